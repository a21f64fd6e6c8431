"""The devices that rows are shared out among, and how arrays get there."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from pymc_flows.backends.jax import has_jax
from pymc_flows.errors import ArgumentError, BackendError
from pymc_flows.support.arguments import check_integer

if TYPE_CHECKING:
    from jax.sharding import Mesh, NamedSharding

AXIS = "rows"
_ON_CPU = (
    "For several devices of one CPU, set XLA_FLAGS=--xla_force_host_platform_device_count=8 before "
    "JAX is imported."
)


@dataclass(frozen=True)
class Devices:
    """Devices, each with its share of the rows.

    Attributes
    ----------
    mesh : jax.sharding.Mesh
    axes : tuple of str
        Axes of the mesh along which rows are shared out; along other axes they are repeated.
    lengths : frozenset of int
        An array is shared out along its first axis of one of these lengths. Empty if the devices
        belong to several processes: then each process has rows of its own.
    """

    mesh: Mesh
    axes: tuple[str, ...]
    lengths: frozenset[int] = frozenset()

    @property
    def n_parts(self) -> int:
        """Number of parts that rows are divided into."""
        return int(np.prod([self.mesh.shape[name] for name in self.axes]))

    @property
    def n_processes(self) -> int:
        """Number of processes that the devices belong to."""
        return len({device.process_index for device in self.mesh.devices.flat})

    @property
    def is_local(self) -> bool:
        """Whether this process has all rows."""
        return self.n_processes == 1

    def sharding(self, array: Any) -> NamedSharding:
        """How an array of data is spread over the devices."""
        from jax.sharding import NamedSharding, PartitionSpec

        if self.is_local:
            along = [i for i, n in enumerate(np.shape(array)) if n in self.lengths][:1]
        else:  # each process goes on using its own array, whatever it holds
            along = [0] if np.ndim(array) else []
        spec = [self.axes if i in along else None for i in range(np.ndim(array))]
        return NamedSharding(self.mesh, PartitionSpec(*spec))

    def place(self, arrays: Sequence[Any]) -> list[Any]:
        """Put arrays of data on the devices: rows shared out, other arrays on each of them."""
        import jax

        if self.is_local:
            return [jax.device_put(x, self.sharding(x)) for x in arrays]
        return [
            jax.make_array_from_process_local_data(self.sharding(x), np.asarray(x)) for x in arrays
        ]

    # -------------------------------------------------------------------------------- processes

    def check_same(self, values: Mapping[str, Any]) -> None:
        """Check that all processes have the same values; keys say what they are.

        Raises
        ------
        ArgumentError
            In every process, if one of them has another value.
        """
        if self.is_local:
            return
        words = np.stack([_digest(value) for value in values.values()])
        everyone = self._gathered(words)
        other = [name for k, name in enumerate(values) if (everyone[:, k] != everyone[:1, k]).any()]
        if other:
            raise ArgumentError(
                f"processes differ in: {', '.join(other)}\nEach of them must build the same "
                "model, with as many rows, and give the fit the same arguments, random_seed= too."
            )

    def least(self, number: int) -> int:
        """The smallest of the processes' numbers."""
        if self.is_local:
            return number
        return int(self._gathered(np.array([number], np.int32)).min())

    def _gathered(self, values: np.ndarray) -> np.ndarray:
        """Values of all processes, stacked on a new first axis."""
        import jax
        from jax.sharding import NamedSharding, PartitionSpec

        apart, together = (NamedSharding(self.mesh, PartitionSpec(*x)) for x in ((self.axes,), ()))
        mine = jax.make_array_from_process_local_data(apart, values[None])
        return np.asarray(jax.jit(lambda x: x, out_shardings=together)(mine))

    def __deepcopy__(self, memo: dict[int, Any]) -> Devices:
        """Return the same devices: they exist once."""
        return self

    def __reduce__(self) -> Any:
        """Refuse: devices belong to this process."""
        raise TypeError(
            "a fit with devices= cannot be pickled, since they belong to this process\n"
            "Pickle or save its approximation."
        )


def _digest(value: Any) -> np.ndarray:
    text = value.tobytes() if isinstance(value, np.ndarray) else repr(value).encode()
    return np.frombuffer(hashlib.sha256(text).digest(), np.uint32)


def as_devices(given: Any) -> Devices | None:
    """Devices from a number, JAX's devices, a mesh or a sharding; None from None.

    Raises
    ------
    BackendError
        If JAX is not installed, or has fewer devices.
    ArgumentError
        If it is something else, or the devices of several processes are not one of each.
    """
    if given is None or isinstance(given, Devices):
        return given
    if not has_jax():
        raise BackendError("devices= needs JAX, which is not installed")
    from jax.sharding import Mesh, NamedSharding

    if isinstance(given, NamedSharding):
        mesh, first = given.mesh, given.spec[0] if len(given.spec) else None
        if first is None:
            raise ArgumentError(
                f"devices= got a sharding that leaves the first axis whole: {given.spec}\n"
                "Name an axis of the mesh first, as in PartitionSpec('rows')."
            )
        axes = (first,) if isinstance(first, str) else tuple(first)
    elif isinstance(given, Mesh):
        mesh, axes = given, tuple(given.axis_names)
    else:
        mesh, axes = Mesh(_given_devices(given), (AXIS,)), (AXIS,)
    # A mesh with explicit axes would ask each operation for the sharding of its result.
    return _checked(Devices(Mesh(mesh.devices, mesh.axis_names), axes))


def _given_devices(given: Any) -> np.ndarray:
    """JAX's devices from a number or a sequence of them."""
    import jax

    if isinstance(given, int | np.integer) and not isinstance(given, bool):
        n, known = check_integer("devices", given), jax.devices()
        if n > len(known):
            raise BackendError(
                f"devices={n}, but JAX has {len(known)}: {known[0].platform}\n{_ON_CPU}"
            )
        return np.array(known[:n])
    is_list = isinstance(given, Sequence | np.ndarray) and not isinstance(given, str)
    if not is_list or not len(given) or not all(isinstance(d, jax.Device) for d in np.ravel(given)):
        raise ArgumentError(
            "devices must be a number, a sequence of jax.devices(), a jax.sharding.Mesh or a "
            f"NamedSharding, got {given!r}"
        )
    return np.ravel(np.array(given))


def _checked(devices: Devices) -> Devices:
    """Return the devices, if they are of this process alone, or one of each process."""
    import jax

    processes = [device.process_index for device in devices.mesh.devices.flat]
    if jax.process_index() not in processes:
        raise ArgumentError(
            f"devices= has none of this process, only of processes {sorted(set(processes))}\n"
            "Give those of jax.local_devices(), or one of each process."
        )
    if devices.is_local or sorted(processes) == list(range(devices.n_parts)):
        return devices
    raise ArgumentError(
        f"devices= has {len(processes)} devices of {devices.n_processes} processes\n"
        "Several processes need one device each: start as many processes as there are devices."
    )

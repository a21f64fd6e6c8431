"""Log density of a PyMC model over flat unconstrained vectors, for many draws at once.

This module is the only reader of `pymc.Model`. It lays the free variables out in one vector,
prepares the model's log density once (parameter checks per draw, large data as function inputs)
and evaluates it for a batch of draws, vectorised where the graph allows it and by a scan over
draws where it does not.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pymc as pm
import pytensor
import pytensor.tensor as pt
from pymc.initial_point import make_initial_point_fn
from pymc.vartypes import discrete_types
from pytensor.graph.basic import Variable
from pytensor.graph.replace import graph_replace, vectorize_graph
from pytensor.tensor.variable import TensorVariable

from pymc_flows._graphs import frontier, lift_constants, switch_parameter_checks
from pymc_flows.errors import ModelError

# Unfused intermediates (value and gradient of the log density) of one micro-batch of draws may
# take this many bytes. A constant, never free memory: the same seed must give the same bits.
MICRO_BATCH_BYTES = 512 * 2**20


@dataclass(frozen=True)
class Slot:
    """Where one value variable sits in the flat vector."""

    name: str
    slice: slice
    shape: tuple[int, ...]
    dtype: str


class ModelDensity:
    """The log density of a model as a function of flat unconstrained vectors.

    Parameters
    ----------
    model : pymc.Model
        Model with at least one free variable, all of them continuous.

    Attributes
    ----------
    slots : tuple of Slot
        Layout of the flat vector, in the order of ``model.free_RVs``.
    dim : int
        Length of the flat vector.

    Raises
    ------
    ModelError
        If the model has no free variable or a discrete one.
    """

    def __init__(self, model: pm.Model):
        self.model = model
        _check_free_variables(model)
        self.slots = _layout(model)
        self.dim = self.slots[-1].slice.stop

    # ------------------------------------------------------------------ flat vector <-> variables

    def unpack(self, z: TensorVariable) -> dict[Variable, TensorVariable]:
        """Split flat vectors into the model's value variables.

        Parameters
        ----------
        z : TensorVariable, shape (..., dim)

        Returns
        -------
        dict of value variable to TensorVariable, shape (..., *shape of the variable)
        """
        batch = tuple(z.shape[i] if n is None else n for i, n in enumerate(z.type.shape[:-1]))
        return {
            value: z[..., slot.slice].reshape((*batch, *slot.shape)).astype(slot.dtype)
            for value, slot in zip(self.model.value_vars, self.slots, strict=True)
        }

    def pack(self, point: Mapping[str, np.ndarray]) -> np.ndarray:
        """Join values by name, shape of the variable each, into one flat vector (dim,)."""
        return np.concatenate(
            [np.ravel(np.asarray(point[slot.name], dtype=float)) for slot in self.slots]
        )

    def split(self, start: Mapping[str, object] | None = None) -> list[np.ndarray]:
        """Return `start` variable by variable, in the order of ``slots``."""
        flat = self.start(start)
        return [flat[slot.slice] for slot in self.slots]

    def start(self, start: Mapping[str, object] | None = None) -> np.ndarray:
        """Return the flat start point: the model's initial point with ``start`` laid over it.

        Parameters
        ----------
        start : mapping of str to array-like, optional
            Values by variable name; a transformed name (``"sigma_log__"``) means a value in the
            unconstrained space, as everywhere in PyMC.

        Raises
        ------
        ModelError
            If a name is unknown, a shape does not fit, or a value lies outside the support.
        """
        start = dict(start or {})
        self._check_start_names(start)
        self._check_start_shapes(start)
        point = make_initial_point_fn(model=self.model, overrides=start, jitter_rvs=set())(0)
        for slot in self.slots:
            if np.shape(point[slot.name]) != slot.shape:
                raise ModelError(
                    f"start value of {slot.name!r} has the wrong shape\n"
                    f"expected {slot.shape}, got {np.shape(point[slot.name])}"
                )
            if not np.isfinite(point[slot.name]).all():
                raise ModelError(
                    f"start value of {slot.name!r} is not finite in the unconstrained space: "
                    f"{point[slot.name]!r}\nGive a start inside the support of the variable."
                )
        return self.pack(point)

    def _check_start_names(self, start: Mapping[str, object]) -> None:
        names = {rv.name for rv in self.model.free_RVs} | {slot.name for slot in self.slots}
        unknown = [key for key in start if not isinstance(key, str) or key not in names]
        if unknown:
            raise ModelError(
                f"start has a value for {unknown[0]!r}, which is not a free variable of the model\n"
                f"Free variables: {', '.join(sorted(names))}."
            )

    def _check_start_shapes(self, start: Mapping[str, object]) -> None:
        shapes = {slot.name: slot.shape for slot in self.slots}
        rv_shapes: dict[str, tuple[int, ...]] | None = None
        for name, value in start.items():
            if name not in shapes and rv_shapes is None:
                rv_shapes = self.model.eval_rv_shapes()
            expected = shapes[name] if name in shapes else (rv_shapes or {})[name]
            try:
                np.broadcast_to(np.asarray(value), expected)
            except ValueError:
                raise ModelError(
                    f"start value of {name!r} has the wrong shape\n"
                    f"expected {expected}, got {np.shape(value)}"
                ) from None
            start[name] = np.array(np.broadcast_to(np.asarray(value), expected))  # type: ignore[index]

    def check_shapes(self) -> None:
        """Raise `ModelError` if a free variable no longer has the shape the flow was built for.

        Only variables whose shape depends on mutable data or coords can change; for the others
        this costs nothing.
        """
        movable = [
            value.name
            for value, slot in zip(self.model.value_vars, self.slots, strict=True)
            if None in value.type.shape
        ]
        if not movable:
            return
        current = {name: np.shape(v) for name, v in self.model.initial_point(0).items()}
        for slot in self.slots:
            if current[slot.name] != slot.shape:
                raise ModelError(
                    f"the shape of free variable {slot.name!r} changed since the approximation "
                    f"was made\nexpected {slot.shape}, got {current[slot.name]}\n"
                    "Data may change their length, free variables may not: make a new "
                    "approximation."
                )

    # -------------------------------------------------------------------------- log density graphs

    @cached_property
    def terms(self) -> list[TensorVariable]:
        """Log prior (with the transforms' Jacobians) and log likelihood (with potentials), scalars.

        Graphs in the model's value variables, for one draw, in nats.
        """
        outputs = [self.model.varlogp, self.model.datalogp]
        outputs = switch_parameter_checks(outputs, keep=self.model.check_bounds)
        return lift_constants(outputs)

    def single(
        self, z: TensorVariable, replacements: Mapping[Variable, Variable] | None = None
    ) -> list[TensorVariable]:
        """Log prior and log likelihood at one point z (dim,)."""
        terms = _replace(self.terms, replacements)
        return graph_replace(terms, self.unpack(z), strict=False)

    def batched(
        self, z: TensorVariable, replacements: Mapping[Variable, Variable] | None = None
    ) -> list[TensorVariable]:
        """Log prior and log likelihood at points z (draws, dim), vectorised: shapes (draws,)."""
        terms = _replace(self.terms, replacements)
        outputs = vectorize_graph(terms, self.unpack(z))
        return [pt.full((z.shape[0],), out) if out.ndim == 0 else out for out in outputs]

    def looped(
        self, z: TensorVariable, replacements: Mapping[Variable, Variable] | None = None
    ) -> list[TensorVariable]:
        """Log prior and log likelihood at points z (draws, dim) by a scan over draws."""
        fn, fixed = self._with_fixed_parts(
            lambda row, terms: graph_replace(terms, self.unpack(row), strict=False), replacements
        )
        return _scan(fn, z, fixed)

    def value_and_grad(
        self,
        z: TensorVariable,
        *,
        weights: Sequence[TensorVariable | float],
        micro_batch: int | None,
        extra: Sequence[Variable] = (),
        replacements: Mapping[Variable, Variable] | None = None,
    ) -> tuple[list[TensorVariable], TensorVariable, list[TensorVariable]]:
        """Values and gradient of weights[0]·log prior + weights[1]·log likelihood.

        The gradient is taken draw by draw or micro-batch by micro-batch inside the scan, so
        that nothing is ever differentiated through a scan over draws.

        Parameters
        ----------
        z : TensorVariable, shape (draws, dim)
        weights : two scalars
        micro_batch : int or None
            Draws evaluated at once; None loops over single draws with the unbatched graph.
        extra : sequence of Variable
            Further inputs of the log density to differentiate with respect to.
        replacements : mapping, optional
            Applied to the log density first.

        Returns
        -------
        values : [log prior, log likelihood], shape (draws,) each
        grad : shape (draws, dim)
        extra_grads : gradients of the weighted sum over all draws, shapes of ``extra``
        """
        n_draws = z.type.shape[0]
        if n_draws == 1:
            values = [pt.atleast_1d(v) for v in self.single(z[0], replacements)]
            grads = _gradient(values, weights, [z, *extra])
            return values, grads[0], grads[1:]
        if micro_batch == n_draws:
            values = self.batched(z, replacements)
            grads = _gradient(values, weights, [z, *extra])
            return values, grads[0], grads[1:]

        def one(row: TensorVariable, terms: list[TensorVariable]) -> list[TensorVariable]:
            if micro_batch is None:
                values = graph_replace(terms, self.unpack(row), strict=False)
            else:
                values = vectorize_graph(terms, self.unpack(row))
                values = [pt.full((micro_batch,), v) if v.ndim == 0 else v for v in values]
            return [*values, *_gradient(values, weights, [row, *extra])]

        fn, fixed = self._with_fixed_parts(one, replacements, free=extra)
        rows = z if micro_batch is None else z.reshape((-1, micro_batch, self.dim))
        prior, data, grad, *extra_grads = _scan(fn, rows, fixed)
        values = [prior.reshape((n_draws,)), data.reshape((n_draws,))]
        return values, grad.reshape((n_draws, self.dim)), [g.sum(axis=0) for g in extra_grads]

    def _with_fixed_parts(self, one, replacements, free=()):  # type: ignore[no-untyped-def]
        """Return a scan step and the parts of the log density that no draw changes.

        Those parts are computed once, outside of the scan: they include whatever the model draws
        at random itself (a minibatch), which must be the same for all draws of a step.
        """
        terms = _replace(self.terms, replacements)
        fixed = frontier(terms, [*self.model.value_vars, *free])

        def step(row: TensorVariable, *values: Variable) -> list[TensorVariable]:
            given = dict(zip(fixed, values, strict=True))
            return one(row, graph_replace(terms, given, strict=False) if given else terms)

        return step, fixed


def _gradient(
    values: Sequence[TensorVariable], weights: Sequence[object], wrt: Sequence[Variable]
) -> list[TensorVariable]:
    total = sum(w * v.sum() for w, v in zip(weights, values, strict=True))
    return pytensor.grad(total, list(wrt), disconnected_inputs="ignore")


def _replace(
    outputs: list[TensorVariable], replacements: Mapping[Variable, Variable] | None
) -> list[TensorVariable]:
    return graph_replace(outputs, dict(replacements), strict=False) if replacements else outputs


def _scan(fn, rows: TensorVariable, fixed: Sequence[Variable]) -> list[TensorVariable]:  # type: ignore[no-untyped-def]
    outputs = pytensor.scan(fn, sequences=[rows], non_sequences=fixed, return_updates=False)
    return outputs if isinstance(outputs, list) else [outputs]


def _check_free_variables(model: pm.Model) -> None:
    if not model.free_RVs:
        observed = ", ".join(rv.name for rv in model.observed_RVs)
        what = f"only observed ones ({observed})" if observed else "no random variables at all"
        raise ModelError(
            f"the model has no free random variable, {what}: there is nothing to approximate\n"
            "Build the model first, then create the approximation in its context or pass model=."
        )
    for rv in model.free_RVs:
        if rv.dtype in discrete_types:
            raise ModelError(
                f"free variable {rv.name!r} is discrete ({rv.dtype})\n"
                "A flow needs continuous variables: marginalise it out "
                "(pymc_extras.marginalize does that for finite ones) or sample it with MCMC."
            )


def _layout(model: pm.Model) -> tuple[Slot, ...]:
    point = model.initial_point(0)
    slots, begin = [], 0
    for value in model.value_vars:
        array = np.asarray(point[value.name])
        slots.append(
            Slot(value.name, slice(begin, begin + array.size), array.shape, str(value.dtype))
        )
        begin += array.size
    if begin == 0:
        names = ", ".join(rv.name for rv in model.free_RVs)
        raise ModelError(f"all free variables of the model have size 0: {names}")
    return tuple(slots)


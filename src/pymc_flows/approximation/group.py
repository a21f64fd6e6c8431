"""The flow on a group of variables: parameters, draws, log q and moments as graphs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pymc as pm
import pytensor
import pytensor.tensor as pt
from numpy.typing import ArrayLike
from pymc.variational import Group
from pytensor.compile.sharedvalue import SharedVariable
from pytensor.tensor.variable import TensorVariable
from xarray import Dataset

from pymc_flows.approximation.start import (
    LayerParams,
    check_frame,
    check_jitter,
    set_layer_params,
)
from pymc_flows.backends.modes import NUMPY
from pymc_flows.flows import Loc, build_chain
from pymc_flows.flows.chain import Loop
from pymc_flows.flows.frame import Frame
from pymc_flows.formula import Formula
from pymc_flows.model.logp import density_of
from pymc_flows.support.compat import node_property
from pymc_flows.support.seeds import RandomState, integer_seed
from pymc_flows.training.objective import base_log_prob

# Draws behind the moments of a chain that is not affine; the noise is fixed.
MOMENT_DRAWS = 4096
# Above this many repeats a graph that PyTensor compiles loops over layers instead of copying them.
_MAX_UNROLLED = 4


class NormalizingFlowGroup(Group):
    """A flow on a group of variables, for PyMC's `Approximation`.

    Parameters
    ----------
    group : list of TensorVariable or None
        Free variables of the model; None for all that no other group has.
    vfam, options
        Only for PyMC's ``Group(vars, vfam=formula)``.
    flow : str or Formula
        Formula of the chain.
    params, random_seed, model, jitter, start
        As for `NormalizingFlow`.
    """

    def __init__(
        self,
        group: Sequence[TensorVariable] | None,
        vfam: str | None = None,
        params: LayerParams | None = None,
        random_seed: RandomState = None,
        model: pm.Model | None = None,
        options: dict[str, Any] | None = None,
        *,
        flow: str | Formula | None = None,
        jitter: float = 0.01,
        start: Mapping[str, ArrayLike] | Frame | None = None,
    ):
        if flow is None:
            flow = "scale-loc" if vfam is None else vfam
        self.formula = Formula(flow)
        self._layer_params = params
        self._jitter = check_jitter(jitter)
        self._start = start
        self.is_framed = isinstance(start, Frame)
        self.seeds = np.random.SeedSequence(integer_seed(random_seed))
        super().__init__(
            group,
            random_seed=self.seeds.generate_state(1)[0],
            model=model,
            options=options,
        )

    def __init_group__(self, group: Sequence[TensorVariable]) -> None:
        """Lay the variables out and create the parameters; PyMC may delay this."""
        density = density_of(self.model)
        super().__init_group__(group)
        self.chain = build_chain(self.formula, self.ddim)
        dtype = pytensor.config.floatX
        rng = np.random.default_rng(self.seeds.spawn(1)[0])
        values = self.chain.initial_params(jitter=self._jitter, rng=rng, dtype=dtype)
        if isinstance(self._start, Frame):
            slots = {slot.name: slot for slot in density.slots}
            frame = check_frame(self._start, [slots[name] for name in self.ordering])
        else:
            split = zip(density.slots, density.split(self._start), strict=True)
            point = {slot.name: value for slot, value in split}
            frame = Frame(np.concatenate([np.ravel(point[name]) for name in self.ordering]))
            if isinstance(self.chain.blocks[-1].layer, Loc):
                values[-1]["loc"][-1] += frame.center.astype(dtype)
                frame = Frame(np.zeros(self.ddim))
        set_layer_params(self.chain, values, self._layer_params)
        self.frame = frame.astype(dtype)
        self.blocks = tuple(
            {name: pytensor.shared(v, name, shape=v.shape) for name, v in block.items()}
            for block in values
        )
        self._finalize_init()

    # ------------------------------------------------------------------------------- parameters

    @property
    def params(self) -> list[SharedVariable]:
        """Shared variables, block by block, alphabetical inside a block."""
        return [value for block in self.blocks for _, value in sorted(block.items())]

    @property
    def params_dict(self) -> dict[str, SharedVariable]:
        """The same by unique name, ``{block}_{word}_{param}``."""
        return {
            f"{i}_{block.layer.word}_{name}": value
            for i, (block, params) in enumerate(zip(self.chain.blocks, self.blocks, strict=True))
            for name, value in sorted(params.items())
        }

    def values(self) -> tuple[dict[str, np.ndarray], ...]:
        """Current raw parameters, one dict per block."""
        return tuple({k: np.asarray(v.get_value()) for k, v in b.items()} for b in self.blocks)

    # -------------------------------------------------------------------------- draws and log q

    @property
    def graph_loop(self) -> Loop:
        """How repeats enter graphs that PyTensor compiles with any backend."""
        return "scan" if max(b.count for b in self.chain.blocks) > _MAX_UNROLLED else "unroll"

    @node_property
    def _draw_and_logq(self) -> tuple[TensorVariable, TensorVariable]:
        z0 = self.symbolic_initial
        z, log_det = self.chain.forward_and_log_det(z0, self.blocks, loop=self.graph_loop)
        return self.frame.place(z), base_log_prob(z0) - log_det - self.frame.log_det

    @node_property
    def symbolic_random(self) -> TensorVariable:
        """Draws (draws, dim), from the group's symbolic base noise."""
        return self._draw_and_logq[0]

    @node_property
    def symbolic_logq_not_scaled(self) -> TensorVariable:
        """Log q (draws,) of `symbolic_random`, in nats."""
        return self._draw_and_logq[1]

    # ---------------------------------------------------------------------------------- moments

    def _points(self, z0: np.ndarray) -> TensorVariable:
        z0 = z0.astype(pytensor.config.floatX)
        z, _ = self.chain.forward_and_log_det(pt.constant(z0), self.blocks, loop=self.graph_loop)
        return self.frame.place(z)

    @node_property
    def _moment_points(self) -> TensorVariable:
        noise = np.random.default_rng(0).standard_normal((MOMENT_DRAWS, self.ddim))
        return self._points(noise)

    @node_property
    def _columns(self) -> TensorVariable:
        """Rows are the columns of A, for an affine chain z = A z0 + c."""
        points = self._points(np.vstack([np.zeros(self.ddim), np.eye(self.ddim)]))
        return points[1:] - points[0]

    @node_property
    def mean(self) -> TensorVariable:
        """Mean (dim,) in the unconstrained space: exact if affine, else from fixed noise."""
        if self.chain.is_affine:
            return self._points(np.zeros((1, self.ddim)))[0]
        return self._moment_points.mean(axis=0)

    @node_property
    def std(self) -> TensorVariable:
        """Standard deviation (dim,): exact if affine, else from fixed noise."""
        if self.chain.is_elementwise and self.chain.is_affine and self.frame.is_elementwise:
            points = self._points(np.vstack([np.zeros(self.ddim), np.ones(self.ddim)]))
            return pt.abs(points[1] - points[0])
        if self.chain.is_affine:
            return pt.sqrt(pt.sqr(self._columns).sum(axis=0))
        return self._moment_points.std(axis=0, ddof=1)

    @node_property
    def cov(self) -> TensorVariable:
        """Covariance (dim, dim): exact if affine, else from fixed noise."""
        if self.chain.is_affine:
            return self._columns.T @ self._columns
        centred = self._moment_points - self._moment_points.mean(axis=0)
        return centred.T @ centred / (MOMENT_DRAWS - 1)

    def var_to_data(self, shared: TensorVariable) -> Dataset:
        """A flat vector by variable, as PyMC does it, but without compiling its graph."""
        return super().var_to_data(_Value(shared.eval(mode=NUMPY)))

    def __str__(self) -> str:
        """Name, dimension and formula."""
        dim = "undefined" if self.group is None else self.ddim
        return f"NormalizingFlowGroup[{dim}]({self.formula})"

    __repr__ = __str__


class _Value(NamedTuple):
    """What PyMC asks of a tensor variable that it turns into data."""

    value: np.ndarray

    def eval(self) -> np.ndarray:
        return self.value

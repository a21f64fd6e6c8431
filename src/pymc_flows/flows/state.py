"""A flow with its parameters: a distribution over R^dim, with draws, densities and moments."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pytensor
import pytensor.tensor as pt
from pytensor.compile.sharedvalue import SharedVariable
from pytensor.tensor.variable import TensorVariable

from pymc_flows.flows.chain import Chain, Loop
from pymc_flows.flows.evaluate import forward_and_log_det, inverse_and_log_det, passage
from pymc_flows.flows.frame import Frame
from pymc_flows.formula import Formula

# Draws behind the moments of a chain that is not affine; their noise is fixed.
MOMENT_DRAWS = 4096
# Columns of an affine map that are held at once for standard deviations.
COLUMNS = 1024
# Graphs that PyTensor compiles scan over layers with more repeats than this, and copy others.
_MAX_UNROLLED = 4
_LOG_2PI = float(np.log(2 * np.pi))


def base_log_prob(z0: TensorVariable) -> TensorVariable:
    """Log density (...) of the standard normal base at z0 (..., dim), in nats."""
    return -0.5 * (pt.sqr(z0).sum(axis=-1) + z0.shape[-1] * np.asarray(_LOG_2PI, dtype=z0.dtype))


def _base_log_prob(z0: np.ndarray) -> np.ndarray:
    return -0.5 * ((z0**2).sum(axis=-1) + z0.shape[-1] * np.log(2 * np.pi)).astype(z0.dtype)


@dataclass(frozen=True, eq=False)
class FlowState:
    """The distribution of z = frame(T(z0)), z0 ~ N(0, I).

    Points are rows (n, dim) of the unconstrained space, in the dtype of the parameters; log
    densities are in nats.

    Attributes
    ----------
    formula : Formula
    chain : Chain
        The flow T.
    blocks : tuple of dict of str to SharedVariable
        Raw parameters of each block of the chain, with repeats on the leading axis. In graphs, the
        parameters of a block that has a kernel may be one vector (n,).
    frame : Frame
    is_framed : bool
        Whether the frame was found for the posterior, and is more than a start point.
    """

    formula: Formula
    chain: Chain
    blocks: tuple[Mapping[str, TensorVariable] | TensorVariable, ...]
    frame: Frame
    is_framed: bool = False

    @property
    def label(self) -> str:
        """The formula, as it is shown."""
        return repr(str(self.formula))

    @property
    def dim(self) -> int:
        """Number of coordinates."""
        return self.chain.dim

    @property
    def chain_dim(self) -> int:
        """Number of coordinates of the chain."""
        return self.chain.dim

    # ------------------------------------------------------------------------------- parameters

    @property
    def params_dict(self) -> dict[str, SharedVariable]:
        """Shared variables by unique name, ``{block}_{word}_{param}``, in the order of `params`."""
        return {
            f"{i}_{block.layer.word}_{name}": value
            for i, (block, params) in enumerate(zip(self.chain.blocks, self.blocks, strict=True))
            for name, value in sorted(params.items())
        }

    @property
    def params(self) -> list[SharedVariable]:
        """Shared variables, block by block, alphabetical inside a block."""
        return list(self.params_dict.values())

    def values(self) -> tuple[dict[str, np.ndarray], ...]:
        """Current raw parameters, one dict per block."""
        return tuple({k: np.asarray(v.get_value()) for k, v in b.items()} for b in self.blocks)

    def arrays(self) -> dict[str, np.ndarray]:
        """All numbers of which the distribution consists, by name."""
        scale = {} if self.frame.scale is None else {"scale": self.frame.scale}
        params = {f"param_{k}": np.asarray(v.get_value()) for k, v in self.params_dict.items()}
        return {"center": self.frame.center, **scale, **params}

    def load(self, array: Callable[..., np.ndarray]) -> None:
        """Set the parameters to those of `arrays`, which ``array(name, shape, dtype)`` returns."""
        for name, param in self.params_dict.items():
            param.set_value(array(f"param_{name}", param.type.shape, param.dtype))

    # ----------------------------------------------------------------------- draws and densities

    def draw(self, n: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """Return n draws (n, dim) and their log densities (n,)."""
        z0 = rng.standard_normal((n, self.dim), dtype=np.dtype(pytensor.config.floatX))
        z, log_det = forward_and_log_det(self.chain, z0, self.values())
        return self.frame.forward(z), _base_log_prob(z0) - log_det - self.frame.log_det

    def log_prob(self, points: np.ndarray) -> np.ndarray:
        """Log densities (n,) at points (n, dim)."""
        return self.inverse(points)[1]

    def forward(self, z0: np.ndarray) -> np.ndarray:
        """Points (n, dim) from base draws z0 (n, dim)."""
        z, _ = forward_and_log_det(self.chain, z0, self.values())
        return self.frame.forward(z)

    def inverse(self, points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Base draws (n, dim) of points (n, dim), and log densities (n,) there.

        Raises
        ------
        NotInvertibleError
            If a layer of the chain has no inverse.
        """
        z0, log_det = inverse_and_log_det(self.chain, self.frame.inverse(points), self.values())
        return z0, _base_log_prob(z0) - log_det - self.frame.log_det

    def center(self) -> np.ndarray:
        """The image (dim,) of 0 in the base."""
        return self.forward(np.zeros((1, self.dim), pytensor.config.floatX))[0]

    def landmarks(self) -> np.ndarray:
        """Images (3, dim) of base points about a standard deviation from 0, always the same."""
        angles = np.arange(1, self.dim + 1)
        z0 = np.stack([np.zeros(self.dim), np.cos(angles), np.sin(2 * angles)])
        return self.forward(z0.astype(pytensor.config.floatX))

    def passage(self, z0: np.ndarray) -> Iterator[tuple[str, np.ndarray]]:
        """Follow base draws (n, dim): yield the word of each layer, and the points after it."""
        yield "base", self.frame.forward(z0)
        for word, z in passage(self.chain, z0, self.values()):
            yield word, self.frame.forward(z)

    # ----------------------------------------------------------------------------------- graphs

    @property
    def graph_loop(self) -> Loop:
        """How repeats enter graphs that PyTensor compiles with any backend."""
        return "scan" if max(b.count for b in self.chain.blocks) > _MAX_UNROLLED else "unroll"

    def graph(
        self, z0: TensorVariable, loop: Loop | None = None, *, fixed: bool = False
    ) -> tuple[TensorVariable, TensorVariable]:
        """Points (n, dim) from base draws z0 (n, dim), and log|det ∂z/∂z0| (n,), as graphs.

        With ``fixed`` the parameters are constants, and anything that depends on them alone is
        computed once.
        """
        blocks = self.blocks
        if fixed:
            blocks = tuple({k: pt.constant(v) for k, v in b.items()} for b in self.values())
        z, log_det = self.chain.forward_and_log_det(z0, blocks, loop=loop or self.graph_loop)
        return self.frame.forward(z), log_det + self.frame.log_det

    def draw_graph(self, z0: TensorVariable) -> tuple[TensorVariable, TensorVariable]:
        """Draws (n, dim) from base draws z0 (n, dim), and their log densities (n,), as graphs."""
        z, log_det = self.chain.forward_and_log_det(z0, self.blocks, loop=self.graph_loop)
        return self.frame.forward(z), base_log_prob(z0) - log_det - self.frame.log_det

    def log_prob_graph(self, points: TensorVariable) -> TensorVariable:
        """Log densities (...) at points (..., dim), as a graph."""
        z0, log_det = self.chain.inverse_and_log_det(
            self.frame.inverse(points), self.blocks, loop=self.graph_loop
        )
        return base_log_prob(z0) - log_det - self.frame.log_det

    # ---------------------------------------------------------------------------------- moments

    def _points(self, z0: np.ndarray | TensorVariable) -> TensorVariable:
        return self.graph(pt.as_tensor_variable(z0).astype(pytensor.config.floatX))[0]

    @cached_property
    def _moment_points(self) -> TensorVariable:
        noise = np.random.default_rng(0).standard_normal((MOMENT_DRAWS, self.dim))
        return self._points(noise)

    @cached_property
    def _columns(self) -> TensorVariable:
        """Rows are the columns of A, for an affine chain z = A z0 + c."""
        points = self._points(np.vstack([np.zeros(self.dim), np.eye(self.dim)]))
        return points[1:] - points[0]

    def mean(self) -> TensorVariable:
        """Mean (dim,): exact if affine, else from fixed noise."""
        if self.chain.is_affine:
            return self._points(np.zeros((1, self.dim)))[0]
        return self._moment_points.mean(axis=0)

    def std(self) -> TensorVariable:
        """Standard deviation (dim,): exact if affine, else from fixed noise."""
        if not self.chain.is_affine:
            return self._moment_points.std(axis=0, ddof=1)
        if self.chain.is_elementwise and self.frame.is_elementwise:
            points = self._points(np.vstack([np.zeros(self.dim), np.ones(self.dim)]))
            return pt.abs(points[1] - points[0])
        if self.dim > COLUMNS:
            return pt.sqrt(self._squares_by_parts())
        return pt.sqrt(pt.sqr(self._columns).sum(axis=0))

    def _squares_by_parts(self) -> TensorVariable:
        """Sums (dim,) of the squared columns of A, in parts: A may not fit into memory."""
        dtype, origin = pytensor.config.floatX, self.mean()
        columns = pt.arange(self.dim)

        def add(first: TensorVariable, total: TensorVariable) -> TensorVariable:
            # Rows beyond the last coordinate are zero and add nothing.
            rows = pt.eq(columns, (first + pt.arange(COLUMNS))[:, None]).astype(dtype)
            return total + pt.sqr(self._points(rows) - origin).sum(axis=0)

        totals = pytensor.scan(
            add,
            sequences=[pt.constant(np.arange(0, self.dim, COLUMNS))],
            outputs_info=[pt.zeros(self.dim, dtype=dtype)],
            return_updates=False,
        )
        return totals[-1]

    def cov(self) -> TensorVariable:
        """Covariance (dim, dim): exact if affine, else from fixed noise."""
        if self.chain.is_affine:
            return self._columns.T @ self._columns
        centred = self._moment_points - self._moment_points.mean(axis=0)
        return centred.T @ centred / (MOMENT_DRAWS - 1)

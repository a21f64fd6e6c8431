"""Factors of a matrix that has a factor, plus a part of low rank."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass

import numpy as np

from pymc_flows.field.factors.base import Factor, Factoring, NotPositiveDefinite, cholesky
from pymc_flows.field.factors.dense import DenseFactor

# S may be this many times softer along a row than on its diagonal; differences lose as many digits.
SOFTEST = 1e9
# Up to this size, a matrix whose sparse part has no factor is factored as a full one.
MOST_DENSE = 2_000


@dataclass(frozen=True, eq=False)
class LowRankFactor(Factor):
    """Q = R₀'(I + B diag(values) B') R₀ with orthonormal B (Woodbury, 1950).

    R is (I + B diag(√(1 + values) − 1) B') R₀.

    Parameters
    ----------
    rest : Factor
        R₀.
    values : ndarray, shape (r,)
        Above −1.
    basis, solved : ndarray, shape (r, n)
        B', and the rows R₀⁻¹ b of its rows.
    """

    rest: Factor
    values: np.ndarray
    basis: np.ndarray
    solved: np.ndarray

    @property
    def half_log_det(self) -> float:
        """½ log|Q|, in nats."""
        return self.rest.half_log_det + 0.5 * float(np.log1p(self.values).sum())

    def solve(self, b: np.ndarray) -> np.ndarray:
        """Q⁻¹ b."""
        less = self.values / (1 + self.values)
        return self.rest.solve(b) - ((b @ self.solved.T) * less) @ self.solved

    def color(self, noise: np.ndarray) -> np.ndarray:
        """R⁻¹ noise."""
        less = 1 - 1 / np.sqrt(1 + self.values)
        return self.rest.color(noise) - ((noise @ self.basis.T) * less) @ self.solved

    def whiten(self, delta: np.ndarray) -> np.ndarray:
        """R delta."""
        white = self.rest.whiten(delta)
        return white + ((white @ self.basis.T) * (np.sqrt(1 + self.values) - 1)) @ self.basis


class LowRankFactoring(Factoring):
    """Factors of S + V' diag(w) V, by those of S.

    Entries are those of S, then the weights w. S may be singular, or nearly so, where the sum is
    not, as for an intrinsic autoregression whose sum is fixed. Then the diagonal of S is raised at
    one element of each row before it is factored, and the update of low rank takes that away again.
    Where S is indefinite and that is not enough, the full matrix is factored if it is small enough.

    Parameters
    ----------
    rest : Factoring
        Of S.
    rows : ndarray, shape (k, n)
        V.
    """

    def __init__(self, rest: Factoring, rows: np.ndarray):
        self.rest, self.rows = rest, rows
        self.n, self.indices, self.indptr = rest.n, rest.indices, rest.indptr
        self._held = np.unique(np.abs(rows).argmax(axis=1))
        self._diagonal = np.flatnonzero(self.indices == self.columns)
        self._units = (self._held[:, None] == np.arange(self.n)).astype(float)

    def factor(self, entries: np.ndarray) -> Factor:
        """Factor S, or S with a raised diagonal, and update the factor; else the full matrix."""
        if not np.isfinite(entries).all():
            raise NotPositiveDefinite("the matrix is not finite")
        cut = len(entries) - len(self.rows)
        sparse, weights = entries[:cut], entries[cut:]
        with suppress(NotPositiveDefinite):
            return self._plain(sparse, weights)
        with suppress(NotPositiveDefinite):
            return self._holding(sparse, weights)
        if self.n > MOST_DENSE:
            raise NotPositiveDefinite("the sparse part is not positive definite")
        full = self.rest.matrix(sparse).toarray() + (self.rows.T * weights) @ self.rows
        return DenseFactor(cholesky(full))

    def _plain(self, sparse: np.ndarray, weights: np.ndarray) -> LowRankFactor:
        rest = self.rest.factor(sparse)
        white = rest.whiten(rest.solve(self.rows))  # rows of V R₀⁻¹
        softness = np.square(white).sum(axis=1) / np.square(self.rows).sum(axis=1)
        if not (softness * self._stiffness(sparse) < SOFTEST).all():
            raise NotPositiveDefinite("the sparse part is nearly singular")
        return _updated(rest, white, weights)

    def _holding(self, sparse: np.ndarray, weights: np.ndarray) -> LowRankFactor:
        more, held = sparse.copy(), np.full(len(self._held), self._stiffness(sparse))
        more[self._diagonal[self._held]] += held
        rest = self.rest.factor(more)
        white = rest.whiten(rest.solve(np.concatenate([self.rows, self._units])))
        return _updated(rest, white, np.concatenate([weights, -held]))

    def _stiffness(self, sparse: np.ndarray) -> float:
        return float(np.abs(sparse[self._diagonal]).mean())


def _updated(rest: Factor, white: np.ndarray, weights: np.ndarray) -> LowRankFactor:
    """The factor of R₀'(I + W' diag(weights) W) R₀, W being the rows of ``white``."""
    basis, triangle = np.linalg.qr(white.T)
    small = (triangle * weights) @ triangle.T
    if not np.isfinite(small).all():
        raise NotPositiveDefinite("the matrix is not positive definite")
    values, vectors = np.linalg.eigh(small)
    if not values.min(initial=0.0) > -1:
        raise NotPositiveDefinite("the matrix is not positive definite")
    directions = (basis @ vectors).T
    return LowRankFactor(rest, values, directions, rest.color(directions))

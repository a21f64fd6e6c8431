"""Gaussian targets."""

from dataclasses import dataclass
from functools import cached_property
from math import log, pi
from types import ModuleType
from typing import Any

import numpy as np
import numpy.typing as npt

from pymc_flows.errors import FlowShapeError
from pymc_flows.targets.base import Target


@dataclass(frozen=True)
class Gaussian(Target):
    """U(z) = ½ (z − mean)ᵀ cov⁻¹ (z − mean); made by `gaussian`.

    Attributes
    ----------
    name : str
        Name of the variable in `model`.
    mean : tuple of float, length dim
        Mean.
    cov : tuple of tuple of float, shape (dim, dim)
        Covariance matrix.
    """

    mean: tuple[float, ...]
    cov: tuple[tuple[float, ...], ...]

    @property
    def dim(self) -> int:
        """Number of dimensions, the length of ``mean``."""
        return len(self.mean)

    @property
    def log_z(self) -> float:
        """Log normalising constant, in nats: ½ ln det(2π cov)."""
        return 0.5 * self.dim * log(2 * pi) + float(np.log(np.diag(self._cholesky)).sum())

    @cached_property
    def _cholesky(self) -> npt.NDArray[np.float64]:
        return np.linalg.cholesky(np.array(self.cov))

    def _log_density(self, z: Any, xp: ModuleType) -> Any:
        # Constants in the dtype of z, so that they do not promote a float32 graph.
        dtype = np.result_type(z.dtype, np.float32)
        mean = np.array(self.mean, dtype)
        whiten = np.linalg.inv(self._cholesky).T.astype(dtype)
        return -0.5 * (((z - mean) @ whiten) ** 2).sum(-1)

    def _sample(self, n: int, rng: np.random.Generator) -> npt.NDArray[np.float64]:
        return np.array(self.mean) + rng.normal(size=(n, self.dim)) @ self._cholesky.T


def gaussian(mean: npt.ArrayLike, cov: npt.ArrayLike, *, name: str = "gaussian") -> Gaussian:
    """Gaussian target with a given mean and covariance.

    Parameters
    ----------
    mean : array_like, shape (dim,)
        Mean.
    cov : array_like, shape (dim, dim)
        Covariance matrix, symmetric and positive definite.
    name : str, optional
        Name of the variable in the target's model.

    Returns
    -------
    Gaussian
        Its log density is the quadratic form alone, so its ``log_z`` is ½ ln det(2π cov).

    Raises
    ------
    FlowShapeError
        If ``mean`` is not a vector or ``cov`` not a square matrix of its length.
    ValueError
        If ``cov`` is not symmetric and positive definite.
    """
    mean, cov = np.asarray(mean, dtype=float), np.asarray(cov, dtype=float)
    if mean.ndim != 1 or cov.shape != 2 * mean.shape:
        raise FlowShapeError(
            "expected a mean of shape (dim,) and a covariance of shape (dim, dim)\n"
            f"got shapes {mean.shape} and {cov.shape}"
        )
    if not (np.isfinite(mean).all() and np.isfinite(cov).all()):
        raise ValueError("expected a finite mean and covariance\ngot NaN or infinite entries")
    # By rounding, a computed covariance is slightly asymmetric, and a singular one has eigenvalues
    # of either sign.
    symmetric = np.allclose(cov, cov.T, rtol=0, atol=1e-10 * np.abs(cov).max())
    smallest, largest = np.linalg.eigvalsh(cov)[[0, -1]]
    if not symmetric or smallest <= len(mean) * np.finfo(float).eps * largest:
        kind = "a symmetric" if symmetric else "an asymmetric"
        raise ValueError(
            "expected a symmetric positive-definite covariance\n"
            f"got {kind} matrix whose smallest eigenvalue is {smallest:g}\n"
            "check for repeated or linearly dependent coordinates"
        )
    return Gaussian(name, tuple(mean.tolist()), tuple(map(tuple, cov.tolist())))

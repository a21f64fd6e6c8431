"""The contract of a target: a log density with known normalising constant and exact draws."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from math import prod
from types import ModuleType
from typing import Any

import numpy as np
import numpy.typing as npt
import pymc as pm
import pytensor.tensor as pt
from pytensor.graph.basic import Variable
from pytensor.tensor.variable import TensorVariable

from pymc_flows.errors import FlowShapeError

type RandomSeed = int | np.random.Generator | None


@dataclass(frozen=True)
class Target(ABC):
    """An unnormalised density over R^dim whose normalising constant and draws are known.

    Targets are values: frozen, compared by their fields, picklable.

    Attributes
    ----------
    name : str
        Name of the variable in `model`.
    """

    name: str

    @property
    @abstractmethod
    def dim(self) -> int:
        """Number of dimensions."""

    @property
    @abstractmethod
    def log_z(self) -> float:
        """Log of the integral of exp(`log_density`) over R^dim, in nats."""

    @abstractmethod
    def _log_density(self, z: Any, xp: ModuleType) -> Any:
        """Log density of points whose last axis is known to be ``dim``."""

    @abstractmethod
    def _sample(self, n: int, rng: np.random.Generator) -> npt.NDArray[np.float64]:
        """Draw ``n`` points, shape (n, dim)."""

    def log_density(self, z: Any, xp: ModuleType | None = None) -> Any:
        """Unnormalised log density, −U(z).

        Values and gradients are finite wherever the squares of the coordinates are (for a banana
        their fourth powers), also at the origin and at ties between modes.

        Parameters
        ----------
        z : array_like or TensorVariable, shape (..., dim)
            Points.
        xp : module, optional
            ``numpy`` or ``pytensor.tensor``, which evaluates it. By default PyTensor for a PyTensor
            variable, else NumPy.

        Returns
        -------
        ndarray or TensorVariable, shape (...)
            In nats; subtract `log_z` to normalise it.

        Raises
        ------
        FlowShapeError
            If the last axis of ``z`` is known not to be ``dim`` long.
        """
        if xp is None:
            xp = pt if isinstance(z, Variable) else np
        if xp is np:
            z = np.asarray(z)
            shape = z.shape
        else:
            z = pt.as_tensor_variable(z)
            shape = z.type.shape
        if not shape or shape[-1] not in (self.dim, None):
            raise FlowShapeError(
                f"expected points of shape (..., {self.dim}) for the target {self.name!r}\n"
                f"got shape {shape}\n"
                "put the coordinates of a point on the last axis"
            )
        return self._log_density(z, xp)

    def sample(self, n: int, *, random_seed: RandomSeed = None) -> npt.NDArray[np.float64]:
        """Draw independent points from the normalised density, exactly.

        Exact means that there is no grid, truncation or Markov chain: the error is that of
        floating-point arithmetic.

        Parameters
        ----------
        n : int
            Number of draws.
        random_seed : int or numpy.random.Generator, optional
            Seed, or generator to draw from.

        Returns
        -------
        ndarray, shape (n, dim)
        """
        return self._sample(n, np.random.default_rng(random_seed))

    def model(self) -> pm.Model:
        """Build a PyMC model of this density: one free variable called ``name``, shape (dim,).

        Its log density is `log_density`, unnormalised, and its initial point the origin.
        ``pm.draw`` and ``pm.sample_prior_predictive`` return exact draws.

        Returns
        -------
        pymc.Model
        """

        def random(rng: np.random.Generator, size: tuple[int, ...] | None) -> npt.NDArray[Any]:
            batch = tuple(size or ())
            return self._sample(prod(batch), rng).reshape(*batch, self.dim)

        def support_point(rv: TensorVariable, size: Any) -> TensorVariable:
            return pt.zeros_like(rv)

        with pm.Model() as model:
            pm.CustomDist(
                self.name,
                logp=self.log_density,
                random=random,
                support_point=support_point,
                signature=f"->({self.dim})",
            )
        return model

"""Draws of a flow, and its density, as arrays."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any, Literal, overload

import numpy as np
import pymc as pm
import pytensor
from numpy.typing import ArrayLike
from pytensor.graph.basic import Variable
from pytensor.tensor.variable import TensorVariable
from xarray import Dataset, DataTree

from pymc_flows.approximation._pymc import StateApproximation
from pymc_flows.approximation.state import HasForward
from pymc_flows.errors import ArgumentError, FlowShapeError, ModelError, NotInvertibleError
from pymc_flows.field.state import FieldState
from pymc_flows.flows import Chain
from pymc_flows.flows.state import FlowState
from pymc_flows.formula import Formula
from pymc_flows.importance import Correction, check_correction, corrected
from pymc_flows.model import draws as _draws
from pymc_flows.model.examine import check_has_weights
from pymc_flows.model.log_density import ROWS, DensityOfFit, LogDensity
from pymc_flows.model.logp import ModelDensity, density_of
from pymc_flows.model.points import is_named, to_unconstrained
from pymc_flows.support.arguments import check_integer
from pymc_flows.support.compat import MultiTrace
from pymc_flows.support.evaluations import Evaluations
from pymc_flows.support.seeds import RandomState, integer_seed

# Size of the parts in which many points are drawn, where they need not be held together.
PART_BYTES = 32 * 2**20

type Space = Literal["unconstrained", "constrained"]
type NamedPoints = Mapping[str, ArrayLike] | Dataset | DataTree


class FlowDraws(StateApproximation):
    """Draws and densities of a distribution over the variables of a model."""

    hist: np.ndarray
    ladder: Any
    restarts: Any
    _fitted_to: DensityOfFit | None
    _sample_rng: np.random.Generator
    _draws_functions: _draws.DrawsFunctions

    @property
    def flow(self) -> FlowState:
        """The distribution as a map of N(0, I).

        Raises
        ------
        NotInvertibleError
            If it is no such map, as a mixture or a field given hyperparameters.
        """
        if not isinstance(self.q, FlowState):
            raise NotInvertibleError(
                f"{self.q.label} is not one map of N(0, I), which is needed here\n"
                "Take the formula of a flow over all variables, such as 'scale-hh*4-loc'."
            )
        return self.q

    @property
    def formula(self) -> Formula:
        """The formula of the distribution."""
        return self.q.formula

    @property
    def chain(self) -> Chain:
        """The layers, in order of application."""
        return self.flow.chain

    @property
    def is_framed(self) -> bool:
        """Whether the flow works in coordinates that were found for the posterior."""
        return self.q.is_framed

    @property
    def evaluations(self) -> Evaluations | None:
        """How often the model was evaluated; None where that was not counted.

        ``fit(formula='auto')`` and fits of fields given hyperparameters count it.
        """
        if self.ladder is not None:
            found: Evaluations = self.ladder.evaluations
            return found
        return self.q.found.evaluations if isinstance(self.q, FieldState) else None

    @property
    def correction(self) -> Correction | None:
        """The default correction of `sample`: 'resample', or None."""
        if isinstance(self.q, FieldState) or (self.ladder is not None and self.ladder.resamples):
            return "resample"
        return None

    def sample_and_log_prob(
        self, n: int, *, random_seed: RandomState = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Draw points of the unconstrained space with their log density under the approximation.

        Parameters
        ----------
        n : int
            Number of draws.
        random_seed : int, Generator, RandomState, optional
            Without one, draws continue the approximation's own stream.

        Returns
        -------
        points : ndarray, shape (n, dim)
        log_prob : ndarray, shape (n,)
            ln q, in nats.

        Raises
        ------
        ArgumentError
            If ``n`` is not an integer of at least 1.
        """
        return self._draw(n, self._rng_for(random_seed))

    def draw_parts(
        self, n: int, *, random_seed: RandomState = None
    ) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Draw the points of `sample_and_log_prob` part by part, to save memory.

        Yields
        ------
        points : ndarray, shape (rows, dim)
        log_prob : ndarray, shape (rows,)
        """
        rng, size = self._rng_for(random_seed), max(ROWS, PART_BYTES // (8 * self.q.dim))
        for begin in range(0, n, size):
            yield self._draw(min(size, n - begin), rng)

    def _rng_for(self, random_seed: RandomState) -> np.random.Generator:
        if random_seed is None:
            return self._sample_rng
        return np.random.default_rng(integer_seed(random_seed))

    def draw_seeds(self, n: int, random_seed: RandomState = None) -> list[int]:
        """Seeds for n sets of draws; without a seed, from the approximation's own stream."""
        return self._rng_for(random_seed).integers(2**32, size=n).tolist()

    def _draw(self, n: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        return self.q.draw(check_integer("the number of draws", n), rng)

    @overload
    def log_prob(self, points: ArrayLike | NamedPoints, *, space: Space = ...) -> np.ndarray: ...

    @overload
    def log_prob(self, points: TensorVariable, *, space: Space = ...) -> TensorVariable: ...

    def log_prob(self, points: Any, *, space: Space = "unconstrained") -> Any:
        """Log density of the approximation at any points, exact through the chain's inverse.

        Parameters
        ----------
        points : array-like, TensorVariable, dict of str to array-like, DataTree or Dataset
            An array (n, dim) or (dim,) holds points of the unconstrained space; a symbolic one
            gives a symbolic result. Values by name, of shape (n, *shape of the variable), are
            mapped to that space; names are those of the free variables (``"sigma"``) or of their
            unconstrained forms (``"sigma_log__"``). Of a DataTree, the group ``posterior`` counts.
        space : 'unconstrained' or 'constrained'
            Space of the density: 'constrained' adds the log-Jacobians of the transforms, which
            gives the density of the variables' own values. Only for values by name.

        Returns
        -------
        ndarray or TensorVariable, shape (n,), (), or (chain, draw) for a DataTree
            ln q, in nats; −∞ at values outside the support.

        Raises
        ------
        FlowShapeError
            If the last axis is not ``dim``, or a value has the wrong shape.
        ArgumentError
            If a name is missing, unknown or given twice, or ``space`` is unknown or meets an array.
        ModelError
            If ``space='constrained'`` and a transform changes the shape of a variable, or is not
            one to one.
        NotInvertibleError
            If a layer of the chain has no inverse.
        """
        named = is_named(points)
        if space not in ("unconstrained", "constrained"):
            raise ArgumentError(f"space must be 'unconstrained' or 'constrained', got {space!r}")
        if space == "constrained" and not named:
            raise ArgumentError(
                "space='constrained' needs values by name, a dict or a DataTree\n"
                "An array holds points of the unconstrained space."
            )
        if isinstance(points, Variable):
            self._check_points(points.type.shape)
            return self.q.log_prob_graph(points)
        if not named:
            rows, shape = self._rows(points)
            return self.q.log_prob(rows).reshape(shape[:-1])
        placed = to_unconstrained(self.density, points, with_log_det=space == "constrained")
        # Values outside the support, or at infinity, get the density 0 without an inverse.
        nan = np.isnan(placed.points).any(axis=1)
        reachable = placed.inside & np.isfinite(placed.points).all(axis=1)
        safe = np.where(reachable[:, None], placed.points, self.center_point())
        log_q = self.q.log_prob(self._rows(safe)[0]) - placed.log_det
        log_q = np.where(reachable, log_q, np.where(placed.inside & nan, np.nan, -np.inf))
        return log_q.reshape(placed.batch)

    def forward(self, z0: ArrayLike) -> np.ndarray:
        """Points of the unconstrained space from draws of the base, N(0, I).

        Parameters
        ----------
        z0 : array-like, shape (..., dim)

        Returns
        -------
        ndarray, shape (..., dim)

        Raises
        ------
        FlowShapeError
            If the last axis is not ``dim``.
        """
        rows, shape = self._rows(z0)
        q = self.q if isinstance(self.q, HasForward) else self.flow
        return q.forward(rows).reshape(shape)

    def inverse(self, points: ArrayLike) -> np.ndarray:
        """Draws of the base, N(0, I), from points of the unconstrained space.

        Parameters
        ----------
        points : array-like, shape (..., dim)

        Returns
        -------
        ndarray, shape (..., dim)

        Raises
        ------
        FlowShapeError
            If the last axis is not ``dim``.
        NotInvertibleError
            If the distribution is not one map of N(0, I), or a layer has no inverse.
        """
        rows, shape = self._rows(points)
        return self.flow.inverse(rows)[0].reshape(shape)

    def center_point(self) -> np.ndarray:
        """A point (dim,) in the middle: that of a flow is the image of the base's origin."""
        return self.q.center()

    def _rows(self, points: ArrayLike) -> tuple[np.ndarray, tuple[int, ...]]:
        """Points as rows (n, dim), and their shape."""
        array = np.asarray(points, dtype=pytensor.config.floatX)
        self._check_points(array.shape)
        return array.reshape(-1, self.q.dim), array.shape

    def _check_points(self, shape: tuple[int | None, ...]) -> None:
        if not shape or shape[-1] not in (None, self.q.dim):
            raise FlowShapeError(
                f"points must have shape (n, {self.q.dim}): one column per unconstrained scalar of "
                f"the model\ngot {shape}"
            )

    def sample(
        self,
        draws: int = 500,
        *,
        correct: Correction | None = None,
        random_seed: RandomState = None,
        return_inferencedata: bool = True,
        **kwargs: Any,
    ) -> DataTree | MultiTrace:
        """Draw from the approximation, all draws at once.

        After `pymc.set_data` the draws are still those of the fit; deterministics follow the data.

        Parameters
        ----------
        draws : int
            Number of draws.
        correct : 'psis', 'resample' or False, optional
            Correction by importance weights p/q, Pareto-smoothed. 'psis' leaves the draws as they
            are and stores their weights, for weighted means of your own. Functions that take draws
            without weights (``az.summary``, ``az.loo``, ``az.compare``, plots,
            ``pm.sample_posterior_predictive``) need 'resample': it chooses as many of the draws by
            their weights, with replacement. Copies of a draw stay side by side, so that ArviZ's
            effective sample sizes and standard errors see them. Neither brings back what the
            approximation misses. False gives draws of the approximation itself.

            The default is the attribute `correction`. It is 'resample' in two cases, else False:
            where `fit` ended with a flow whose weights make good draws, of which more are then
            drawn, so that they are worth ``draws`` of the posterior; and for a field given
            hyperparameters (``'tril-loc | laplace'``), which weighs each group of variables by
            itself.
        random_seed : int, Generator, RandomState, optional
            Without one, draws continue the approximation's own stream.
        return_inferencedata : bool
            False gives PyMC's MultiTrace.
        **kwargs
            Passed to `pymc.to_inference_data`, such as ``include_transformed``.

        Returns
        -------
        DataTree
            Groups ``posterior`` (free variables and deterministics, with dims and coords),
            ``observed_data`` and ``constant_data``. Corrected draws also have ``sample_stats``:
            ``lp`` (log density of the model in the unconstrained space, Jacobians included),
            ``log_q`` and ``log_weight`` (normalised; equal if resampled), all in nats, and in its
            attrs ``khat``, ``khat_threshold``, ``importance_ess`` and ``n_without_density``.

        Raises
        ------
        ArgumentError
            If ``draws`` is not an integer of at least 1, or ``correct`` is unknown or meets
            ``return_inferencedata=False``.
        ModelError
            If a free variable has changed its shape, or the model in context has one that the
            approximation does not know; with ``correct``, if the model's log density is random.
        FitError
            If there is nothing to resample: no draw has a finite weight.

        Warns
        -----
        UserWarning
            If ``correct`` is given and Pareto k-hat is above its threshold.
        """
        check_correction(correct, return_inferencedata=return_inferencedata)
        if "chains" in kwargs:
            raise TypeError(
                "draws of an approximation are independent: there are no chains=, take more draws"
            )
        model = pm.Model.get_context(error_if_none=False) or self.model
        rng = self._rng_for(random_seed)
        self.density.check_shapes()
        points, stats = self._corrected_draws(draws, correct, model, rng)
        everything = self.draws_at(points, model, rng)
        if not return_inferencedata:
            return _draws.to_multitrace(model, everything)
        tree = _draws.to_datatree(model, everything, **kwargs)
        if stats is not None:
            tree["sample_stats"] = _draws.with_coords_of(tree.children["posterior"], stats)
        return tree

    def _corrected_draws(
        self, n: int, correct: Correction | None, model: pm.Model, rng: np.random.Generator
    ) -> tuple[np.ndarray, Dataset | None]:
        """Draws (n, dim), and their ``sample_stats``; None if they have no weights."""
        n = check_integer("the number of draws", n)
        if isinstance(self.q, FieldState) and correct in (None, "resample"):
            points, attrs = self.q.resample(n, rng)
            weights = np.full((1, n), -np.log(n))
            return points, Dataset({"log_weight": (("chain", "draw"), weights)}, attrs=attrs)
        wanted = None
        if correct is None and self.correction:
            # As many draws as are worth n of the posterior.
            correct, wanted, n = self.correction, n, math.ceil(n / self.ladder.share)
        points, log_q = self._draw(n, rng)
        if not correct:
            return points, None
        fitted = self._fitted_to if wanted is not None else None
        density = self.density_of(model) if fitted is None else fitted.current
        log_p = LogDensity(density).value(points)
        return corrected(correct, points, log_p, log_q, rng, wanted)

    def draws_at(
        self, points: np.ndarray, model: pm.Model, rng: np.random.Generator
    ) -> _draws.Draws:
        """All variables and deterministics of a model at points (n, dim), by name: (n, ...) each.

        The generator is for random variables inside deterministics.
        """
        n = len(points)
        values = {s.name: points[:, s.slice].reshape((n, *s.shape)) for s in self.density.slots}
        return self._draws_functions.of(model)(values, rng)

    def density_of(self, model: pm.Model) -> ModelDensity:
        """The log density of a model with the free variables of this approximation.

        Raises
        ------
        ModelError
            If its free variables are others, or its log density is random.
        """
        density = self.density if model is self.model else density_of(model)
        if density.slots != self.density.slots:
            raise ModelError(
                "the model in context does not have the free variables of this approximation, so "
                "that its draws have no weights\n"
                f"expected {', '.join(slot.name for slot in self.density.slots)}, "
                f"got {', '.join(slot.name for slot in density.slots)}"
            )
        check_has_weights(density)
        return density

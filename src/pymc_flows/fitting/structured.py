"""Fits of a flow over the hyperparameters of a model, and of a field given them."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import pymc as pm
from numpy.typing import ArrayLike

from pymc_flows.approximation import NormalizingFlow
from pymc_flows.backends.ops import has_loop
from pymc_flows.errors import ArgumentError, ModelError
from pymc_flows.field import BatchedGradient, FieldOptions, Posterior, batched_gradient, fit_field
from pymc_flows.field.options import Report
from pymc_flows.field.state import FieldState
from pymc_flows.formula import Formula
from pymc_flows.model.examine import check_has_weights, has_weights
from pymc_flows.model.logp import density_of
from pymc_flows.model.streams import stream_of
from pymc_flows.model.structure import Structure, structure, structure_of
from pymc_flows.start.point import find_start
from pymc_flows.support.seeds import RandomState, integer_seeds

_log = logging.getLogger(__name__)

# Second differences of a gradient below this share of it are rounding errors.
ROUNDING = 1e-8


def field_of(
    model: pm.Model,
    *,
    start: Mapping[str, ArrayLike] | None = None,
    hyper: Sequence[str] = (),
    field: Sequence[str] = (),
) -> Structure | None:
    """The structure of a model, if a field given hyperparameters may do; else None.

    Never where the log density is random, or there is no exact Hessian of all rows. The log tells
    of other reasons. Roles that are given are kept even if Hessians take long.
    """
    density = density_of(model)
    if not has_weights(density) or stream_of(density) is not None:
        return None
    if has_loop(density.terms) and not (hyper or field):
        _log.info(
            "No field given hyperparameters: each Hessian would go step by step through a loop."
        )
        return None
    try:
        found = structure(model, start=start, hyper=hyper, field=field)
    except ArgumentError:
        raise
    except Exception as error:  # graphs may fail in any way, and there are other fits
        _log.warning("The structure of the model could not be read: %s", error)
        return None
    if found.why_not is not None:
        _log.info("No field given hyperparameters: %s", found.why_not)
        return None
    return found


def fit_structured(
    formula: Formula | None = None,
    *,
    model: pm.Model,
    start: Mapping[str, ArrayLike] | None = None,
    hyper: Sequence[str] = (),
    field: Sequence[str] = (),
    found: Structure | None = None,
    random_seed: RandomState = None,
    report: Report | None = None,
    options: FieldOptions | None = None,
) -> NormalizingFlow:
    """Fit a flow over the hyperparameters of a model, and the field given them.

    Parameters
    ----------
    formula : Formula, optional
        Such as ``'tril-loc | laplace'``. By default a Gaussian over the hyperparameters, and a flow
        if that is not enough.
    model, start, hyper, field, random_seed
        As for `pymc_flows.fit`.
    found : Structure, optional
        The structure, if it has been read before.
    report : callable, optional
        Called with stage, evaluations and CPU seconds after each unit of work.
    options : FieldOptions, optional

    Raises
    ------
    ModelError
        If the model has no hyperparameters or no field, its log density is random, or it is not
        finite at the start.
    FitError
        If the field has no mode at the start.
    """
    density = density_of(model)
    check_has_weights(density)
    if found is None:
        found = structure(model, hyper=hyper, field=field, start=start)
    if not len(found.field):
        raise ModelError(
            "the model has no field: no variables that a Gaussian given the others could describe\n"
            f"{found.why_not or 'All its variables are hyperparameters.'}\n"
            "Name some with field=[…], or take a flow over all variables, such as 'scale-loc'."
        )
    if found.why_not is not None and not (hyper or field):
        _log.warning("A field given hyperparameters may not do here: %s", found.why_not)
    seed, approx_seed = integer_seeds(random_seed, 2)
    point = find_start(density, start, np.random.default_rng(seed))
    options = options or FieldOptions()
    if formula is not None:
        options = replace(options, formula=str(formula.hyper))
    gradient = batched_gradient(density)
    effects = found.names.covering(found.effects)
    if effects and _is_gaussian(gradient, found, point):
        _log.info("Gaussian given the others, and so part of the field: %s.", ", ".join(effects))
        found = structure_of(density, hyper=hyper, field=[*field, *effects], near=point)
    posterior = Posterior.of(density, found, point, gradient)
    fitted = fit_field(posterior, options=options, random_seed=seed, report=report)
    approx = NormalizingFlow.of(FieldState(fitted, found), model, approx_seed)
    _log.info("%s: %s", approx.formula, fitted.evaluations)
    return approx


def _is_gaussian(gradient: BatchedGradient, found: Structure, point: np.ndarray) -> bool:
    """Whether field and fixed effects are jointly Gaussian, given everything else.

    Fixed effects then belong to the field, whose distribution is exact; a flow would have to learn
    that their standard deviations grow with the scales of the others. The log density of a Gaussian
    is quadratic: its gradient has no second differences.
    """
    together = np.concatenate([found.field, found.effects])
    steps = np.zeros((2, found.dim))
    steps[:, together] = np.random.default_rng(0).standard_normal((2, len(together)))
    points = point + np.stack([0 * steps[0], *steps, steps.sum(axis=0)])
    with np.errstate(all="ignore"):
        gradients = gradient(points)[1][:, together]
        bent = np.abs(gradients[3] - gradients[1] - gradients[2] + gradients[0]).max()
    return bool(bent <= ROUNDING * np.abs(gradients).max())

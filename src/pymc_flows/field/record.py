"""Arrays of a fit of a field given hyperparameters, and the fit from these."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import astuple, replace

import numpy as np

from pymc_flows.field.conditional.judge import GroupQuality
from pymc_flows.field.conditional.mapping import ConditionalField, Expectation, Surface
from pymc_flows.field.conditional.newton import FieldModes
from pymc_flows.field.conditional.noise import NormalNoise
from pymc_flows.field.conditional.skew import Skew
from pymc_flows.field.factors import factoring
from pymc_flows.field.hyper.flow import HyperFlow
from pymc_flows.field.hyper.mode import HyperMode
from pymc_flows.field.hyper.proposal import Proposal
from pymc_flows.field.hyper.values import HyperValues
from pymc_flows.field.marginal import Marginal
from pymc_flows.field.posterior import Posterior
from pymc_flows.field.result import FieldApproximation
from pymc_flows.flows.frame import Frame
from pymc_flows.formula import Formula
from pymc_flows.importance import Quality
from pymc_flows.support.evaluations import Evaluations

type Reader = Callable[[str, tuple[int | None, ...], str], np.ndarray]
"""Returns an array by name; raises unless it has the shape (None: any length) and the dtype."""


def arrays_of(found: FieldApproximation) -> dict[str, np.ndarray]:
    """All numbers of which a fit consists, by name."""
    marginal, mode, values = found.marginal, found.mode, found.values
    surface, noise = marginal.conditional.surface, marginal.noise
    flow = values.flow
    if isinstance(flow, HyperFlow):
        q = {"center": flow.frame.center, "scale": flow.frame.scale, "theta": flow.theta}
    else:
        q = {"center": flow.loc, "scale": flow.lower, "theta": np.empty(0)}
    return {
        **{f"q_{name}": np.asarray(value, dtype=float) for name, value in q.items()},
        "elements": np.concatenate([found.posterior.hyper, found.posterior.field]),
        "groups": found.posterior.groups,
        "hyper": values.hyper,
        "log_weights": values.log_weights,
        "group_ess": found.groups.ess,
        "group_khat": found.groups.khat,
        "quality": np.array(astuple(values.quality), dtype=float),
        "overall": np.array(astuple(values.overall), dtype=float),
        "errors": np.array([values.error, mode.expectation.elbo, found.groups.n_draws]),
        "mode_gradient": mode.expectation.gradient,
        "mode": mode.gaussian.hyper,
        "mode_field": mode.gaussian.mode,
        "covariance": mode.covariance,
        "surface_center": surface.center,
        "surface_mode": surface.mode,
        "surface_slopes": np.asarray(surface.slopes),
        "surface_bends": np.asarray(surface.bends),
        "surface_reach": np.asarray(surface.reach),
        "shift": _rows_of(marginal.conditional.shift, len(surface.center), len(surface.mode)),
        "surface_excess": np.empty((0, 0)) if surface.excess is None else surface.excess,
        "quadrature": marginal.conditional.points.astype("int8"),
        "wide": marginal.wide.astype("int8"),
        **_arrays_of_skew(marginal.skew),
        "noise_points": noise.points,
        "noise_dimension": noise.dimension,
        "noise_shift": noise.shift,
        "noise_seed": np.array([noise.seed]),
        "counts": np.array(
            [
                marginal.n_outer,
                marginal.is_gaussian,
                marginal.conditional.corrects,
                marginal.conditional.is_far,
                marginal.conditional.modes.is_quadratic,
                *astuple(found.evaluations),
            ]
        ),
    }


def restored(posterior: Posterior, formula: Formula, read: Reader) -> FieldApproximation:
    """Make the fit whose arrays `arrays_of` gave.

    Raises
    ------
    ValueError
        If the posterior has other hyperparameters, another field or other groups, or its field no
        mode at the mode over hyperparameters.
    """
    n, m = posterior.n_hyper, posterior.n_field
    elements = np.concatenate([posterior.hyper, posterior.field])
    if not (
        np.array_equal(read("elements", (n + m,), "int64"), elements)
        and np.array_equal(read("groups", (m,), "int64"), posterior.groups)
    ):
        raise ValueError("other hyperparameters, or other groups")

    def numbers(name: str, *shape: int | None) -> np.ndarray:
        return read(name, shape, "float64")

    excess = numbers("surface_excess", None, None)
    surface = Surface(
        numbers("surface_center", n),
        numbers("surface_mode", m),
        numbers("surface_slopes", n, m),
        numbers("surface_bends", n, m),
        numbers("surface_reach", n),
        excess if len(excess) else None,
    )
    shift = _shift(surface, numbers("shift", None, m))
    n_outer, is_gaussian, corrects, is_far, is_quadratic, *evaluations = read(
        "counts", (9,), "int64"
    ).tolist()
    modes = FieldModes(posterior, factoring(posterior.pattern, posterior.groups, posterior.rows))
    modes.is_quadratic = bool(is_quadratic)
    conditional = ConditionalField(
        modes,
        surface,
        read("quadrature", (None, m), "int8").astype(float),
        corrects=bool(corrects),
        is_far=bool(is_far),
        shift=shift,
    )
    noise = NormalNoise(
        numbers("noise_points", None, None),
        read("noise_dimension", (m,), "int64"),
        numbers("noise_shift", m),
        int(read("noise_seed", (1,), "int64")[0]),
    )
    marginal = Marginal(
        conditional,
        noise,
        n_outer=n_outer,
        is_gaussian=bool(is_gaussian),
        wide=read("wide", (posterior.n_groups,), "int8").astype(bool),
        skew=_skew(read, int((posterior.groups < 0).sum())),
    )
    hyper, field = numbers("mode", n), numbers("mode_field", m)
    gaussian = conditional.at(hyper[None], None if is_far else field[None])[0]
    if gaussian is None:
        raise ValueError("the field has no mode where it had one")
    error, elbo, n_draws = numbers("errors", 3).tolist()
    log_weights = numbers("log_weights", None)
    values = HyperValues(
        _flow(formula.hyper, numbers, n),
        _quality(numbers("quality", 7)),
        numbers("hyper", len(log_weights), n),
        log_weights,
        _quality(numbers("overall", 7)),
        error,
    )
    groups = GroupQuality(
        int(n_draws), *(numbers(f"group_{k}", posterior.n_groups) for k in ("ess", "khat"))
    )
    expectation = Expectation(elbo, numbers("mode_gradient", n))
    mode = HyperMode(gaussian, expectation, numbers("covariance", n, n), surface, shift)
    return FieldApproximation(marginal, mode, values, groups, Evaluations(*evaluations), ())


def _arrays_of_skew(skew: Skew | None) -> dict[str, np.ndarray]:
    """Its arrays by name; empty ones without a skew."""
    found = skew or Skew(np.empty(0), np.empty(0), np.empty((0, 2), int), np.empty(0))
    return {f"skew_{name}": value for name, value in vars(found).items()}


def _skew(read: Reader, n: int) -> Skew | None:
    shift, slant, bend = (
        read(f"skew_{name}", (None,), "float64") for name in ("shift", "slant", "bend")
    )
    pairs = read("skew_pairs", (len(bend), 2), "int64")
    if not len(slant):
        return None
    fits = len(shift) == len(slant) == n and np.isin(pairs, np.arange(n)).all()
    if not (fits and (np.abs(slant) < 1).all() and not np.isin(*pairs.T).any()):
        raise ValueError("a skew of another separator")
    return Skew(shift, slant, pairs, bend)


def _rows_of(shift: Surface | None, n: int, m: int) -> np.ndarray:
    """Value, slopes and bends of a surface as rows (1 + 2 n, m); no rows without a surface."""
    if shift is None:
        return np.empty((0, m))
    none = np.zeros((n, m))
    slopes = none if shift.slopes is None else shift.slopes
    bends = none if shift.bends is None else shift.bends
    return np.concatenate([shift.mode[None], slopes, bends])


def _shift(surface: Surface, rows: np.ndarray) -> Surface | None:
    """The surface with these rows, and with the centre and reach of the surface of the modes."""
    if not len(rows):
        return None
    n = len(surface.center)
    return replace(surface, mode=rows[0], slopes=rows[1 : n + 1], bends=rows[n + 1 :])


def _flow(formula: Formula, numbers: Callable[..., np.ndarray], n: int) -> Proposal | HyperFlow:
    center, scale = numbers("q_center", n), numbers("q_scale", n, n)
    theta = numbers("q_theta", None)
    if len(theta) == 0:
        return Proposal(center, scale)
    return HyperFlow(formula, Frame(center, scale), theta)


def _quality(numbers: np.ndarray) -> Quality:
    n_draws, *rest = numbers.tolist()
    return Quality(int(n_draws), *rest)

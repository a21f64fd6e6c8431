"""The posteriors of `benchmarks.hierarchies`: what is fitted, and what it is held against."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pymc as pm
import pytensor.tensor as pt

from benchmarks import _hierarchy_models as models
from benchmarks import _hierarchy_scores as scores
from benchmarks._hierarchy_exact import grid_reference
from benchmarks._hierarchy_models import CENTRED, TERMS, Cell
from benchmarks._hierarchy_references import Arrays, Derive, keep, long_run, regression_reference
from benchmarks._hierarchy_scores import Reference
from benchmarks._posteriors import Draws, Folder, load_module

POSTERIORS, GRID, LOGISTIC = "posteriors", "grid", "logistic"
MILLION, COST, CALIBRATION = "million", "cost", "calibration"
# Hierarchies of a folder that has references of its own.
OF_FOLDER = ("radon_slopes", "radon_slopes_centred")
# Draws behind the moments of such a reference.
FOLDER_DRAWS = 10_000
REGRESSIONS = {"logistic-100000x50": (100_000, 50), "logistic-1000000x20": (1_000_000, 20)}


class NoReferenceError(FileNotFoundError):
    """There is nothing to hold a fit against."""


@dataclass(frozen=True)
class Field:
    """A Gaussian field of known precision, which methods that need one may be told of."""

    model: Callable[[], pm.Model]
    name: str
    precision: Callable[[], pt.TensorVariable]


@dataclass(frozen=True)
class Problem:
    """A posterior.

    Attributes
    ----------
    name : str
    model : callable
        Builds the model.
    known : callable
        Returns the reference.
    few : sequence of str
        Variables that count as hyperparameters and fixed effects, whatever their size.
    stem : str
        Name of the file of its reference; empty if it needs none.
    make : callable, optional
        Makes the reference.
    gaussian : Field, optional
    """

    name: str
    model: Callable[[], pm.Model]
    known: Callable[[], Reference]
    few: Sequence[str] = ()
    stem: str = ""
    make: Callable[[], Arrays] | None = None
    gaussian: Field | None = None


@dataclass(frozen=True)
class Places:
    """Where problems come from.

    Attributes
    ----------
    data : sequence of Path
        Folders with ``models.py`` and, some of them, ``reference/``.
    references : Path, optional
        Folder of references.
    shrink : int
        Divides rows and groups of the large problems.
    """

    data: Sequence[Path] = ()
    references: Path | None = None
    shrink: int = 1

    def path(self, stem: str) -> Path:
        """File of a reference.

        Raises
        ------
        NoReferenceError
            If there is no folder.
        """
        if self.references is None:
            raise NoReferenceError("no reference: give --references FOLDER")
        return self.references / f"{stem}.npz"

    def load(self, stem: str) -> Reference:
        """Read a reference.

        Raises
        ------
        NoReferenceError
            If there is none.
        """
        path = self.path(stem)
        if not path.exists():
            raise NoReferenceError(f"no reference {path.name}: --make-references makes it")
        return scores.load(path)

    def make(self, problem: Problem) -> bool:
        """Make the reference of a problem if it is missing; whether it was."""
        if problem.make is None or self.path(problem.stem).exists():
            return False
        keep(self.path(problem.stem), problem.make())
        return True


def _unchanged(draws: Draws) -> Draws:
    return draws


# ------------------------------------------------------------------------------------ posteriors


def posteriors(places: Places) -> dict[str, Problem]:
    """Those that everybody knows, and the hierarchies of the folders."""
    found = {problem.name: problem for problem in _own(places)}
    for path in places.data:
        module = load_module(path / "models.py")
        if (path / "reference").exists():
            found |= _folder_problems(path)
        else:
            for name in module.M:
                found[name] = _stored(places, name, lambda m=module, n=name: m.build(n))
    return found


def _own(places: Places) -> list[Problem]:
    schools = _stored(
        places,
        "eight_schools",
        lambda: models.eight_schools(centred=False),
    )
    return [
        Problem("funnel", models.funnel, _funnel_moments),
        _renamed(schools, "eight_schools_noncentred", schools.model),
        _renamed(schools, "eight_schools_centred", lambda: models.eight_schools(centred=True)),
        _stored(places, "rat_tumours", models.rat_tumours, _without_sizes),
    ]


def _renamed(problem: Problem, name: str, model: Callable[[], pm.Model]) -> Problem:
    return Problem(name, model, problem.known, problem.few, problem.stem, problem.make)


def _stored(
    places: Places, name: str, model: Callable[[], pm.Model], derive: Derive = _unchanged
) -> Problem:
    few = ("b",) if name.startswith("logit") else ()
    return Problem(
        name,
        model,
        lambda: places.load(name),
        few,
        stem=name,
        make=lambda: long_run(model(), derive, name),
    )


def _without_sizes(draws: Draws) -> Draws:
    return {name: x for name, x in draws.items() if name not in ("a", "b")}


def _funnel_moments() -> Reference:
    """Of v ~ N(0, s²) and log|x| = v/2 + log|ε|, ε ~ N(0, 1); x has moments of no use."""
    shape = models.FUNNEL_AXES
    mean = -0.5 * (np.euler_gamma + math.log(2))
    sd = math.sqrt(models.FUNNEL_SCALE**2 / 4 + math.pi**2 / 8)
    moments = {
        "v": (np.array(0.0), np.array(models.FUNNEL_SCALE)),
        "log_x": (np.full(shape, mean), np.full(shape, sd)),
    }
    return scores.exact(moments)


def _folder_problems(path: Path) -> dict[str, Problem]:
    folder = Folder(path)

    def known() -> Reference:
        reference = folder.reference(OF_FOLDER[0])
        moments = {name: (m, reference["sd"][name]) for name, m in reference["mean"].items()}
        return scores.exact(moments, FOLDER_DRAWS)

    if OF_FOLDER[0] not in folder.names:
        return {}
    builders = (lambda: folder.model(OF_FOLDER[0]), lambda: _centred_radon(path))
    return {
        name: Problem(name, build, known) for name, build in zip(OF_FOLDER, builders, strict=True)
    }


def _centred_radon(path: Path) -> pm.Model:
    """The twin of radon_slopes whose county effects are variables themselves."""
    text = (path / "data" / f"{OF_FOLDER[0]}.json").read_text(encoding="utf-8")
    data: Mapping[str, list[float]] = json.loads(text)
    county = np.asarray(data["county_idx"], dtype=int) - 1
    floor = np.asarray(data["floor_measure"], dtype=float)
    with pm.Model(coords={"county": np.arange(1, county.max() + 2)}) as model:
        sigma_y = pm.HalfNormal("sigma_y", 1)
        sigma_alpha = pm.HalfNormal("sigma_alpha", 1)
        sigma_beta = pm.HalfNormal("sigma_beta", 1)
        mu_alpha = pm.Normal("mu_alpha", 0, 10)
        mu_beta = pm.Normal("mu_beta", 0, 10)
        alpha = pm.Normal("alpha", mu_alpha, sigma_alpha, shape=int(data["J"]))
        beta = pm.Normal("beta", mu_beta, sigma_beta, shape=int(data["J"]))
        observed = np.asarray(data["log_radon"], dtype=float)
        pm.Normal("log_radon", alpha[county] + floor * beta[county], sigma_y, observed=observed)
    return model


# ------------------------------------------------------------------------------------------ grid


def grid_problem(places: Places, name: str, seed: int) -> Problem:
    """A cell of the grid; the seed is that of its data."""
    cell = Cell.parse(name)
    stem = f"{cell.data_name}-seed{seed}"

    return Problem(
        name,
        lambda: models.cell_model(cell, seed),
        lambda: places.load(stem),
        ("fixed", "scale"),
        stem,
        lambda: grid_reference(models.cell_data(cell, seed)),
        _field(cell, seed),
    )


def _field(cell: Cell, seed: int) -> Field | None:
    # A field must be a vector.
    if TERMS[cell.terms] > 1 or cell.parametrisation == CENTRED:
        return None

    def model() -> pm.Model:
        data = models.cell_data(cell, seed)
        with pm.Model() as built:
            fixed = pm.Normal("fixed", 0, models.FIXED_SD, shape=1)
            scale = pm.HalfNormal("scale", models.SCALE_SD, shape=1)
            raw = pm.Normal("raw", shape=cell.groups)
            models.observe(data, (fixed + scale * raw)[data.group])
        return built

    return Field(model, "raw", lambda: pt.eye(cell.groups))


# -------------------------------------------------------------------------------------- logistic


def regression_problem(places: Places, name: str) -> Problem:
    """A logistic regression with many rows."""
    rows, predictors = REGRESSIONS[name]
    rows //= places.shrink
    stem = f"logistic-{rows}x{predictors}"
    return Problem(
        name,
        lambda: models.logistic(rows, predictors),
        lambda: places.load(stem),
        ("beta",),
        stem,
        lambda: regression_reference(rows, predictors),
    )


def problem(places: Places, table: str, name: str, seed: int) -> Problem:
    """The problem of a table by name."""
    if table == GRID:
        return grid_problem(places, name, seed)
    if table == LOGISTIC:
        return regression_problem(places, name)
    return posteriors(places)[name]

"""How close fits with default settings come to posteriors with known answers, and others' fits.

With ``--data FOLDER`` the posteriors are those of a folder outside of this repository:

    FOLDER/models.py            build(name) -> pymc.Model, and the list NAMES
    FOLDER/reference/NAME.npz   what score.py needs to know of the exact posterior
    FOLDER/score.py             load_reference(path); score(draws, reference) -> dict with
                                max_mean, max_logsd, sw1, sw1_white, worst_mean, worst_sd

Without it only the project's own targets are fitted, and the report says what is missing.

A method is ``auto`` or a formula, both for `pymc_flows.fit` with its defaults, or one of others:
``advi`` and ``fullrank_advi`` of `pymc.fit` (30,000 steps, else defaults), ``pathfinder`` of
pymc-extras and ``nuts`` (nutpie where it is installed, else PyMC's own), both with defaults.
"""

from __future__ import annotations

import importlib.util
import warnings
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pymc as pm

import pymc_flows as pmf
from benchmarks._common import Check, Parser, Report, Row, say, stopwatch
from pymc_flows.diagnostics import measure
from pymc_flows.errors import FlowError
from pymc_flows.targets import POTENTIALS, Target, gaussian

DRAWS = 4_000
METHODS = ("auto", "advi", "fullrank_advi")
OTHERS = ("advi", "fullrank_advi", "nuts", "pathfinder")
ADVI_STEPS = 30_000
# Bars of a good fit: mean error in standard deviations, log ratio of standard deviations.
MEAN_BAR, SD_BAR = 0.1, -np.log(0.9)
SHARE_BAR = 0.8
LAYOUT = ("models.py", "score.py", "reference")
COLUMNS = (
    "posterior",
    "method",
    "seed",
    "dim",
    "mean error, sd",
    "log sd error",
    "sw1",
    "white",
    "ELBO",
    "k-hat",
    "wall s",
    "CPU s",
    "worst mean, sd",
    "note",
)
WITHOUT_DATA = (
    "No --data: real posteriors are missing here, only the project's own targets were fitted, "
    "scored against exact draws; the columns sw1 and white need the folder's score.py."
)


class Collection(ABC):
    """Models with known answers."""

    names: Sequence[str]

    @abstractmethod
    def model(self, name: str) -> pm.Model:
        """Build a model."""

    @abstractmethod
    def score(self, name: str, draws: Mapping[str, np.ndarray]) -> Mapping[str, Any]:
        """Compare draws (draw, ...) by variable with the reference."""


@dataclass(frozen=True)
class Folder(Collection):
    """The posteriors of a folder."""

    path: Path
    models: ModuleType
    scoring: ModuleType

    @classmethod
    def open(cls, path: Path) -> Folder:
        """Load a folder's modules; say what it lacks."""
        lacking = [item for item in LAYOUT if not (path / item).exists()]
        if lacking:
            raise FileNotFoundError(f"{path} has no {', '.join(lacking)}\n{__doc__}")
        return cls(path, *(_load(path / item) for item in LAYOUT[:2]))

    @property
    def names(self) -> Sequence[str]:  # type: ignore[override]
        """Names that the folder lists."""
        return tuple(self.models.NAMES)

    def model(self, name: str) -> pm.Model:
        """Build a model."""
        return self.models.build(name)

    def score(self, name: str, draws: Mapping[str, np.ndarray]) -> Mapping[str, Any]:
        """Score with the folder's own function."""
        reference = self.scoring.load_reference(self.path / "reference" / f"{name}.npz")
        return self.scoring.score(draws, reference)


class OwnTargets(Collection):
    """The project's own targets, scored against exact draws."""

    def __init__(self) -> None:
        rng = np.random.default_rng(0)
        factor = rng.standard_normal((20, 20))
        wide = gaussian(rng.standard_normal(20), factor @ factor.T + np.eye(20), name="gaussian20")
        self._targets: dict[str, Target] = {t.name: t for t in (*POTENTIALS, wide)}
        self.names = tuple(self._targets)

    def model(self, name: str) -> pm.Model:
        """Build a model."""
        return self._targets[name].model()

    def score(self, name: str, draws: Mapping[str, np.ndarray]) -> Mapping[str, Any]:
        """Errors of mean and standard deviation relative to 100,000 exact draws."""
        exact = self._targets[name].sample(100_000, random_seed=0)
        error = np.abs(draws[name].mean(0) - exact.mean(0)) / exact.std(0)
        log_sd = np.abs(np.log(draws[name].std(0) / exact.std(0)))
        return {
            "max_mean": error.max(),
            "max_logsd": log_sd.max(),
            "worst_mean": f"{name}[{error.argmax()}]",
            "worst_sd": f"{name}[{log_sd.argmax()}]",
        }


def _load(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"benchmark_data_{path.stem}", path)
    if spec is None or spec.loader is None:
        raise ImportError(f"{path} is not a Python module")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


type Draws = Mapping[str, np.ndarray]


def ours(model: pm.Model, formula: str, seed: int, steps: int | None) -> tuple[Draws, Row]:
    """Fit with the defaults of `pymc_flows.fit`."""
    given = {} if steps is None else {"n": steps}
    approx = pmf.fit(formula=formula, model=model, random_seed=seed, progressbar=False, **given)
    found: Row = {"dim": approx.ddim, "note": str(approx.formula)}
    if not approx.has_minibatch:
        quality = measure(approx, random_seed=seed)
        found = found | {"ELBO": quality.elbo, "k-hat": quality.khat}
    return _by_variable(approx.sample(DRAWS, random_seed=seed)), found


def others(model: pm.Model, method: str, seed: int, steps: int | None) -> tuple[Draws, Row]:
    """Fit or sample with another library."""
    with model:
        if method == "pathfinder":
            from pymc_extras import fit_pathfinder

            idata = fit_pathfinder(random_seed=seed, num_draws=DRAWS, display_summary=False)
            return _by_variable(idata), {}
        if method == "nuts":
            sampler = "nutpie" if importlib.util.find_spec("nutpie") else "pymc"
            idata = pm.sample(
                draws=steps or 1_000,
                chains=4,
                nuts_sampler=sampler,
                random_seed=seed,
                progressbar=False,
            )
            return _by_variable(idata), {"note": sampler}
        approx = pm.fit(steps or ADVI_STEPS, method=method, random_seed=seed, progressbar=False)
        elbo = -float(np.nanmean(approx.hist[-1_000:]))
        return _by_variable(approx.sample(DRAWS, random_seed=seed)), {"ELBO": elbo}


def _by_variable(idata: Any) -> Draws:
    posterior = idata["posterior"].dataset
    return {str(k): v.stack(s=("chain", "draw")).transpose("s", ...).values
            for k, v in posterior.items()}  # fmt: skip


def fit_once(collection: Collection, name: str, method: str, seed: int, steps: int | None) -> Row:
    """Fit one posterior and score it; a failure becomes a line too."""
    row = dict.fromkeys(COLUMNS) | {"posterior": name, "method": method, "seed": seed}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            model = collection.model(name)
            with stopwatch() as seconds:
                fit = others if method in OTHERS else ours
                draws, found = fit(model, method, seed, steps)
        except (FlowError, ArithmeticError, ImportError, RuntimeError, ValueError) as error:
            return row | {"note": f"{type(error).__name__}: {error}".split("\n")[0]}
    scores = collection.score(name, draws)
    return row | {
        "mean error, sd": scores["max_mean"],
        "log sd error": scores["max_logsd"],
        "sw1": scores.get("sw1"),
        "white": scores.get("sw1_white"),
        "wall s": seconds.wall,
        "CPU s": seconds.cpu,
        "worst mean, sd": f"{scores['worst_mean']}, {scores['worst_sd']}",
        **found,
    }


def is_good(row: Row) -> bool:
    """Whether means and standard deviations are within the bars."""
    return (
        row["mean error, sd"] is not None
        and row["mean error, sd"] < MEAN_BAR
        and row["log sd error"] < SD_BAR
    )


def main(argv: Sequence[str] | None = None) -> Report:
    """Fit all posteriors with all methods and seeds, and save the report."""
    parser = Parser("accuracy", (__doc__ or "").split("\n")[0])
    parser.add_argument("--data", type=Path, help="folder with models.py, score.py and reference/")
    parser.add_argument("--names", nargs="+", help="only these posteriors")
    parser.add_argument("--methods", nargs="+", default=list(METHODS))
    parser.add_argument("--seeds", type=int, default=3, help="number of seeds, from 0 (3)")
    parser.add_argument("--steps", type=int, help="other number of steps, to try the script")
    arguments = parser.read(argv)
    try:
        collection = OwnTargets() if arguments.data is None else Folder.open(arguments.data)
    except FileNotFoundError as error:
        parser.error(str(error))
    names = arguments.names or collection.names
    if unknown := sorted(set(names) - set(collection.names)):
        parser.error(f"unknown: {', '.join(unknown)}\nknown: {', '.join(collection.names)}")
    about = (
        f"Defaults of `pymc_flows.fit` and of others, {DRAWS:,} draws. Errors are the largest over "
        "all scalars: |mean difference| in exact standard deviations, |log ratio of standard "
        "deviations|; sw1 is the sliced Wasserstein-1 distance of standardised draws, white the "
        "same of whitened ones. ELBO and k-hat from 10,000 fresh draws (ADVI: mean loss of the "
        "last 1,000 steps). Seconds include the search for a start and compiling. Good: mean error "
        f"below {MEAN_BAR} and log sd error below {SD_BAR:.3f}, in every seed."
    )
    if arguments.data is None:
        about += f"\n\n{WITHOUT_DATA}"
        say(WITHOUT_DATA)
    rows = []
    for name in names:
        for method in arguments.methods:
            for seed in range(arguments.seeds):
                rows.append(fit_once(collection, name, method, seed, arguments.steps))
                say(", ".join(f"{k} {v}" for k, v in rows[-1].items()))
    shares = [
        {
            "method": method,
            "good posteriors": sum(
                all(is_good(r) for r in rows if (r["posterior"], r["method"]) == (name, method))
                for name in names
            ),
            "of": len(names),
        }
        for method in arguments.methods
    ]
    checks = [
        Check(
            f"{row['method']}: share of good posteriors",
            row["good posteriors"] / row["of"],
            f"≥ {SHARE_BAR}",
            row["good posteriors"] >= SHARE_BAR * row["of"],
        )
        for row in shares
        if row["method"] == "auto" and arguments.data is not None
    ]
    report = Report(
        "accuracy",
        about,
        {"seeds": f"0 to {arguments.seeds - 1}", "steps": arguments.steps or "the default"},
        {"Good posteriors": shares, "Errors": rows},
        checks,
    )
    report.save(arguments)
    return report


if __name__ == "__main__":
    main()

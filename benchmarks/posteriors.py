"""How close fits with default settings come to posteriors with known answers.

With ``--data FOLDER`` the posteriors are those of a folder outside of this repository:

    FOLDER/models.py            build(name) -> pymc.Model, and the list NAMES
    FOLDER/reference/NAME.npz   what score.py needs to know of the exact posterior
    FOLDER/score.py             load_reference(path); score(draws, reference) -> dict with
                                max_mean, max_logsd, sw1, sw1_white, worst_mean, worst_sd

Without it only the project's own targets are fitted, and the report says what is missing.
``hh*k`` in a formula stands for one reflection per dimension.
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

from benchmarks._common import Parser, Report, Row, say, stopwatch
from pymc_flows import NFVI, NormalizingFlow
from pymc_flows.errors import FlowError
from pymc_flows.targets import POTENTIALS, Target, gaussian

DRAWS = 4_000
FORMULAS = ("scale-loc", "scale-hh*k-loc")
LAYOUT = ("models.py", "score.py", "reference")
COLUMNS = (
    "posterior",
    "formula",
    "seed",
    "dim",
    "mean error, sd",
    "log sd error",
    "sw1",
    "white",
    "ELBO",
    "fit, wall s",
    "compile, CPU s",
    "steps, CPU s",
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


def fit_once(collection: Collection, name: str, formula: str, seed: int, steps: int | None) -> Row:
    """Fit one posterior with the defaults and score it; a failure becomes a line too."""
    row = dict.fromkeys(COLUMNS) | {"posterior": name, "formula": formula, "seed": seed}
    given = {} if steps is None else {"n": steps}
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            model = collection.model(name)
            dim = NormalizingFlow("loc", model=model).ddim
            inference = NFVI(formula.replace("hh*k", f"hh*{dim}"), model=model, random_seed=seed)
            with stopwatch() as whole:
                inference.fit(progressbar=False, **given)
        except (FlowError, ArithmeticError) as error:
            return row | {"note": f"{type(error).__name__}: {error}".split("\n")[0]}
    draws = inference.approx.sample(DRAWS, random_seed=seed)["posterior"].dataset
    found = collection.score(name, {str(k): np.asarray(v)[0] for k, v in draws.items()})
    n = len(inference.hist)
    tenth = max(1, n // 10)
    elbo = -float(np.nanmean(inference.hist[-tenth:]))
    # More of the same steps, after everything else: they move the parameters.
    with stopwatch() as again:
        inference.refine(tenth, progressbar=False)
    steps_cpu = again.cpu * n / tenth
    return row | {
        "dim": dim,
        "mean error, sd": found["max_mean"],
        "log sd error": found["max_logsd"],
        "sw1": found.get("sw1"),
        "white": found.get("sw1_white"),
        "ELBO": elbo,
        "fit, wall s": whole.wall,
        "compile, CPU s": max(0.0, whole.cpu - steps_cpu),
        "steps, CPU s": steps_cpu,
        "worst mean, sd": f"{found['worst_mean']}, {found['worst_sd']}",
        "note": "; ".join(str(w.message) for w in caught if "skipped" in str(w.message)),
    }


def main(argv: Sequence[str] | None = None) -> Report:
    """Fit all posteriors with all formulas and seeds, and save the report."""
    parser = Parser("posteriors", (__doc__ or "").split("\n")[0])
    parser.add_argument("--data", type=Path, help="folder with models.py, score.py and reference/")
    parser.add_argument("--names", nargs="+", help="only these posteriors")
    parser.add_argument("--formulas", nargs="+", default=list(FORMULAS))
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
    about = f"Defaults of `NFVI.fit`, {DRAWS:,} draws. Errors are the largest over all scalars: "
    about += (
        "|mean difference| in exact standard deviations, |log ratio of standard deviations|; sw1 "
        "is the sliced Wasserstein-1 distance of standardised draws, white the same of whitened "
        "ones. ELBO: mean over the last tenth of the steps. Seconds of the steps: estimated from "
        "a tenth of them, run afterwards; the rest of the fit is compilation."
    )
    if arguments.data is None:
        about += f"\n\n{WITHOUT_DATA}"
        say(WITHOUT_DATA)
    rows = []
    for name in names:
        for formula in arguments.formulas:
            for seed in range(arguments.seeds):
                rows.append(fit_once(collection, name, formula, seed, arguments.steps))
                say(", ".join(f"{k} {v}" for k, v in rows[-1].items()))
    report = Report(
        "posteriors",
        about,
        {"seeds": f"0 to {arguments.seeds - 1}", "steps": arguments.steps or "the default"},
        {"Errors": rows},
    )
    report.save(arguments)
    return report


if __name__ == "__main__":
    main()

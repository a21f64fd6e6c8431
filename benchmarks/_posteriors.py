"""Models with known answers: those of a folder, and the project's own targets."""

from __future__ import annotations

import importlib.util
import json
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pymc as pm

from pymc_flows.targets import POTENTIALS, Target, gaussian

LAYOUT = ("models.py", "score.py", "reference")
# Exact draws behind a reference of the project's own.
EXACT_DRAWS = 100_000
PROJECTIONS, QUANTILES = 100, 1_000

type Draws = Mapping[str, np.ndarray]
type Reference = Mapping[str, Any]


class Collection(ABC):
    """Models with known answers.

    A reference holds by variable, under ``"mean"``, ``"sd"`` and ``"draws"``, the exact moments and
    draws (draw, ...).
    """

    names: Sequence[str]

    @abstractmethod
    def model(self, name: str) -> pm.Model:
        """Build a model."""

    @abstractmethod
    def reference(self, name: str) -> Reference:
        """What is known of the posterior."""

    @abstractmethod
    def score(self, draws: Draws, reference: Reference) -> Mapping[str, Any]:
        """Compare draws (draw, ...) by variable with a reference.

        Returns
        -------
        mapping
            ``max_mean`` and ``mean_mean``: |mean difference| in exact standard deviations, over all
            scalars; ``max_logsd`` and ``mean_logsd``: |log ratio of standard deviations|;
            ``worst_mean``, ``worst_sd``: where the largest are; ``sw1``: sliced Wasserstein-1
            distance of standardised draws; ``sw1_white``: the same of whitened ones, optional.
        """

    def floor(self, name: str) -> Mapping[str, float]:
        """Scores of exact draws, where they are known."""
        return {}


class Folder(Collection):
    """The posteriors of a folder.

    Parameters
    ----------
    path : Path
        With ``models.py`` (``build(name)``, ``NAMES``), ``score.py`` (``load_reference(path)``,
        ``score(draws, reference)``), ``reference/NAME.npz`` and, optionally, ``floor.json`` (scores
        of exact draws by name).

    Raises
    ------
    FileNotFoundError
        If something is missing.
    """

    def __init__(self, path: Path):
        lacking = [item for item in LAYOUT if not (path / item).exists()]
        if lacking:
            raise FileNotFoundError(f"{path} has no {', '.join(lacking)}\n{Folder.__doc__}")
        self._path = path
        self._models, self._scoring = (load_module(path / item) for item in LAYOUT[:2])
        self.names = tuple(self._models.NAMES)
        floor = path / "floor.json"
        self._floor = json.loads(floor.read_text(encoding="utf-8")) if floor.exists() else {}

    def model(self, name: str) -> pm.Model:
        """Build a model."""
        return self._models.build(name)

    def reference(self, name: str) -> Reference:
        """Load a reference with the folder's own function."""
        return self._scoring.load_reference(self._path / "reference" / f"{name}.npz")

    def score(self, draws: Draws, reference: Reference) -> Mapping[str, Any]:
        """Score with the folder's own function."""
        return self._scoring.score(draws, reference)

    def floor(self, name: str) -> Mapping[str, float]:
        """Scores of exact draws, from the folder."""
        return self._floor.get(name, {})


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

    def reference(self, name: str) -> Reference:
        """Moments of many exact draws."""
        return summarized({name: self._targets[name].sample(EXACT_DRAWS, random_seed=0)})

    def score(self, draws: Draws, reference: Reference) -> Mapping[str, Any]:
        """Score as described for `Collection.score`."""
        return score(draws, reference)


def summarized(draws: Draws) -> Reference:
    """A reference from draws (draw, ...) by variable."""
    return {
        "mean": {k: x.mean(0) for k, x in draws.items()},
        "sd": {k: x.std(0, ddof=1) for k, x in draws.items()},
        "draws": dict(draws),
    }


def score(draws: Draws, reference: Reference) -> Mapping[str, Any]:
    """Compare draws with a reference, see `Collection.score`; variables of the reference count."""
    names = sorted(reference["mean"])
    mean, sd = (np.concatenate([np.ravel(reference[k][n]) for n in names]) for k in ("mean", "sd"))
    x, y = ((flat(d, names) - mean) / sd for d in (draws, reference["draws"]))
    labels = [
        f"{n}[{','.join(map(str, i))}]" if i else n
        for n in names
        for i in np.ndindex(np.shape(reference["mean"][n]))
    ]
    error, log_sd = np.abs(x.mean(0)), np.abs(np.log(x.std(0, ddof=1)))
    return {
        "max_mean": float(error.max()),
        "mean_mean": float(error.mean()),
        "max_logsd": float(log_sd.max()),
        "mean_logsd": float(log_sd.mean()),
        "worst_mean": labels[error.argmax()],
        "worst_sd": labels[log_sd.argmax()],
        "sw1": sliced_wasserstein(x, y),
    }


def sliced_wasserstein(x: np.ndarray, y: np.ndarray) -> float:
    """Mean over directions of the Wasserstein-1 distance of projections of (n, dim) and (m, dim).

    Rabin, Peyré, Delon & Bernot, SSVM 2011; by common quantiles, along fixed directions.
    """
    directions = np.random.default_rng(0).standard_normal((x.shape[1], PROJECTIONS))
    directions /= np.linalg.norm(directions, axis=0)
    levels = (np.arange(QUANTILES) + 0.5) / QUANTILES
    quantiles = [np.quantile(points @ directions, levels, axis=0) for points in (x, y)]
    return float(np.abs(quantiles[0] - quantiles[1]).mean())


def sd_ratios(draws: Draws, reference: Reference) -> np.ndarray:
    """Standard deviations over exact ones, (scalars,), variables in sorted order."""
    names = sorted(reference["sd"])
    exact = np.concatenate([np.ravel(reference["sd"][n]) for n in names])
    return flat(draws, names).std(0, ddof=1) / exact


def flat(draws: Draws, names: Sequence[str]) -> np.ndarray:
    """Draws (draw, scalars) of some variables."""
    return np.concatenate([draws[n].reshape(len(draws[n]), -1) for n in names], axis=1)


def load_module(path: Path) -> ModuleType:
    """Import a Python file from anywhere."""
    spec = importlib.util.spec_from_file_location(f"benchmark_data_{path.stem}", path)
    if spec is None or spec.loader is None:
        raise ImportError(f"{path} is not a Python module")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module

"""Posteriors that no default was chosen by: models on made-up data, and long runs of NUTS.

``python -m benchmarks.accuracy --held-out CACHE`` fits them. A reference is made when it is first
asked for, and kept in CACHE; ``python -m benchmarks.held_out CACHE`` makes them all, and shows how
well the chains agree.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import arviz as az
import numpy as np
import pymc as pm

from benchmarks._common import Parser, Row, markdown_table, say
from benchmarks._held_out_models import MODELS
from benchmarks._posteriors import Collection, Draws, Reference, score

CHAINS, TUNE, LENGTH = 4, 2_000, 5_000
TARGET_ACCEPT = 0.95
# As many as a method draws, so that they show how well exact draws do.
KEPT = 4_000
# What chains that agree have, at least.
MAX_RHAT, MIN_ESS = 1.01, 1_000
SEPARATOR = "__"


class HeldOut(Collection):
    """The models of this benchmark.

    Parameters
    ----------
    cache : Path
        Folder of the references, made if it is missing.
    """

    names = tuple(MODELS)

    def __init__(self, cache: Path):
        self._cache = cache

    def model(self, name: str) -> pm.Model:
        """Build a model."""
        return MODELS[name]()

    def reference(self, name: str) -> Reference:
        """Load a reference, or make and keep it.

        Raises
        ------
        RuntimeError
            If the chains of the long run do not agree.
        """
        path = self._cache / f"{name}.npz"
        if not path.exists():
            say(f"{name}: {CHAINS} chains of {LENGTH:,} draws for the reference")
            self._cache.mkdir(parents=True, exist_ok=True)
            np.savez_compressed(path, allow_pickle=False, **long_run(self.model(name)))
        found: dict[str, Any] = {"mean": {}, "sd": {}, "draws": {}}
        with np.load(path) as file:
            for key in file.files:
                kind, _, variable = key.partition(SEPARATOR)
                if variable:
                    found[kind][variable] = file[key]
                else:
                    found[kind] = file[key].item()
        if found["rhat"] > MAX_RHAT or found["ess"] < MIN_ESS:
            raise RuntimeError(
                f"the chains of the reference of {name} do not agree: largest R-hat "
                f"{found['rhat']:.3f}, smallest effective sample size {found['ess']:,.0f}"
            )
        return found

    def score(self, draws: Draws, reference: Reference) -> Mapping[str, Any]:
        """Score as described for `Collection.score`."""
        return score(draws, reference)

    def floor(self, name: str) -> Mapping[str, float]:
        """Scores of the draws that are kept: standard deviations of heavy tails are noisy."""
        reference = self.reference(name)
        return score(reference["draws"], reference)


def long_run(model: pm.Model) -> dict[str, np.ndarray]:
    """Run NUTS, and summarize all variables that vary.

    Returns
    -------
    dict of str to ndarray
        ``mean__NAME``, ``sd__NAME`` of all draws, ``draws__NAME`` (draw, ...) of some;
        ``rhat``, ``ess`` and ``divergences``, the worst of all scalars and their number.
    """
    import nutpie

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        compiled = nutpie.compile_pymc_model(model)
        idata = nutpie.sample(
            compiled,
            chains=CHAINS,
            tune=TUNE,
            draws=LENGTH,
            target_accept=TARGET_ACCEPT,
            seed=1,
            progress_bar=False,
        )
    posterior = idata["posterior"].dataset
    varies = [name for name, v in posterior.items() if (v.std(("chain", "draw")) > 0).all()]
    posterior = posterior[varies]
    found: dict[str, np.ndarray] = {
        "rhat": np.array(max(float(v.max()) for v in az.rhat(posterior).values())),
        "ess": np.array(
            min(
                float(v.min())
                for method in ("bulk", "tail")
                for v in az.ess(posterior, method=method).values()
            )
        ),
        "divergences": np.array(int(idata["sample_stats"]["diverging"].sum())),
    }
    for name, v in posterior.items():
        x = v.stack(s=("draw", "chain")).transpose("s", ...).values
        found[f"mean{SEPARATOR}{name}"] = x.mean(0)
        found[f"sd{SEPARATOR}{name}"] = x.std(0, ddof=1)
        found[f"draws{SEPARATOR}{name}"] = x[:: len(x) // KEPT][:KEPT]
    return found


def main(argv: Sequence[str] | None = None) -> list[Row]:
    """Make the references, and show how well their chains agree."""
    parser = Parser("held_out", (__doc__ or "").split("\n")[0])
    parser.add_argument("cache", type=Path, help="folder of the references")
    parser.add_argument("--names", nargs="+", choices=list(MODELS), default=list(MODELS))
    arguments = parser.read(argv)
    collection, rows = HeldOut(arguments.cache), []
    for name in arguments.names:
        row: dict[str, Any] = {"posterior": name}
        try:
            reference = collection.reference(name)
        except RuntimeError as error:
            rows.append(row | {"note": str(error)})
            continue
        keys = ("rhat", "ess", "divergences")
        scalars = sum(np.size(x) for x in reference["mean"].values())
        rows.append(row | {"scalars": scalars} | {k: reference[k] for k in keys} | {"note": ""})
    say(markdown_table(rows))
    return rows


if __name__ == "__main__":
    main()

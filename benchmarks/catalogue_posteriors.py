"""The default call on a folder of real models, against NUTS.

    python -m benchmarks.catalogue_posteriors --folder FOLDER --keep FILE

FOLDER is that of `benchmarks.catalogue`. NUTS is `pymc.sample` with nutpie and 4 chains of 1,000
draws, one after the other. Where it samples well within the limit of CPU seconds, `pymc_flows.fit`
without a formula has the same limit. Each run has a process, one core and one thread of its own;
imports do not count, compiling does.
"""

from __future__ import annotations

import json
import math
import warnings
from argparse import Namespace
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks._common import Check, Parser, Report, Row, say, stopwatch
from benchmarks.catalogue import (
    FAILS,
    NOT_BUILT,
    REFUSED,
    Kept,
    add_arguments,
    files_of,
    first_line,
    load_model,
    run,
)

NUTS, OURS = "nuts", "auto"
CHAINS, DRAWS = 4, 4_000
# NUTS has sampled well with no larger R-hat of a scalar.
RHAT = 1.01
# A fit is good if all scalars have no larger errors of means, in standard deviations, and of
# standard deviations, relative to them; or errors that are within so many standard errors of NUTS.
MEAN, SPREAD, N_ERRORS = 0.15, 0.15, 3.0
LIMIT = 120
GOOD, WRONG, FASTER = 0.85, 0.02, 0.75
# What became of a run that has ended.
DONE = "done"


# ------------------------------------------------------------------------------- in the child


def measure(path: Path, method: str) -> Row:
    """Run NUTS or the default call on the model of a file, in this process."""
    import arviz  # noqa: F401 - imports do not count
    import jax  # noqa: F401
    import nutpie  # noqa: F401
    import scipy.optimize  # noqa: F401

    warnings.simplefilter("ignore")
    np.random.seed(1)  # noqa: NPY002 - a file may draw its data, which are to be the same for both
    try:
        model, _ = load_model(path)
    except Exception as error:  # whatever the file needs, it is no fault of a fit
        return {"outcome": NOT_BUILT, "why": first_line(error)}
    return by_nuts(model) if method == NUTS else by_default(model)


def by_nuts(model: Any) -> Row:
    """Moments of NUTS, with their errors, and the largest R-hat."""
    import pymc as pm
    from arviz_stats.base.array import array_stats

    with stopwatch() as seconds:
        try:
            with model:
                idata = pm.sample(
                    nuts_sampler="nutpie", chains=CHAINS, cores=1, random_seed=1, progressbar=False
                )
        except Exception as error:  # NUTS cannot sample the model, for whatever reason
            return {"outcome": FAILS, "why": first_line(error)}
    moments, worst = {}, 1.0
    with np.errstate(all="ignore"):
        for var in model.free_RVs:
            draws = _flat(idata.posterior[var.name].values)
            columns = np.moveaxis(draws, -1, 0)
            moments[var.name] = {
                "mean": draws.mean(axis=(0, 1)).tolist(),
                "sd": draws.std(axis=(0, 1), ddof=1).tolist(),
                "mean error": [float(array_stats.mcse(x, method="mean")) for x in columns],
                "sd error": [float(array_stats.mcse(x, method="sd")) for x in columns],
            }
            rhats = [float(array_stats.rhat(x)) for x in columns if np.ptp(x) > 0]
            worst = max([worst, *(x for x in rhats if math.isfinite(x))])
    return {"outcome": DONE, "why": "", "R-hat": worst, "CPU s": seconds.cpu, "moments": moments}


def by_default(model: Any) -> Row:
    """Moments of the default call, and its verdict."""
    import pymc_flows as pmf
    from pymc_flows.errors import BackendError, ModelError

    with stopwatch() as seconds:
        try:
            approx = pmf.fit(model=model, random_seed=1, progressbar=False)
            draws = approx.sample(DRAWS, random_seed=1).posterior
        except (ModelError, BackendError) as error:
            return {"outcome": REFUSED, "why": first_line(error)}
        except Exception as error:  # a fault, of any kind
            return {"outcome": FAILS, "why": f"{type(error).__name__}: {first_line(error)}"}
    found = {var.name: _flat(draws[var.name].values) for var in model.free_RVs}
    return {
        "outcome": DONE,
        "why": "",
        "CPU s": seconds.cpu,
        "dimensions": approx.ddim,
        "formula": str(approx.formula),
        "status": pmf.report(approx, random_seed=1).status,
        "moments": {
            name: {"mean": x.mean(axis=(0, 1)).tolist(), "sd": x.std(axis=(0, 1), ddof=1).tolist()}
            for name, x in found.items()
        },
    }


def _flat(draws: np.ndarray) -> np.ndarray:
    """Draws (chains, draws, scalars)."""
    return draws.reshape(*draws.shape[:2], -1)


# ----------------------------------------------------------------------------------- the report


def judge(found: Mapping[str, Any], reference: Mapping[str, Any]) -> Row:
    """The worst errors of means and standard deviations, and whether all are allowed."""
    means, ratios, is_good = [0.0], [1.0], True
    for name, known in reference.items():
        sd = np.array(known["sd"])
        varies = sd > 0
        sd = sd[varies]
        mean, spread, mean_error, sd_error = (
            np.array(x)[varies]
            for x in (
                found[name]["mean"],
                found[name]["sd"],
                known["mean error"],
                known["sd error"],
            )
        )
        errors = np.abs(mean - np.array(known["mean"])[varies]) / sd
        is_good &= bool(np.all(errors <= np.maximum(MEAN, N_ERRORS * mean_error / sd)))
        off = np.abs(spread / sd - 1)
        is_good &= bool(np.all(off <= np.maximum(SPREAD, N_ERRORS * sd_error / sd)))
        means += errors.tolist()
        ratios += (spread / sd).tolist()
    return {
        "worst mean error": max(means),
        "lowest sd ratio": min(ratios),
        "highest sd ratio": max(ratios),
        "is good": is_good,
    }


def samples_well(run: Row) -> bool:
    """Whether NUTS has ended, and its chains agree."""
    return run["outcome"] == DONE and run["R-hat"] <= RHAT


def table(found: Mapping[str, Mapping[str, Row]]) -> list[Row]:
    """A line per model that NUTS samples well."""
    rows = []
    for name, runs in found.items():
        if OURS not in runs or not samples_well(runs[NUTS]):
            continue
        ours, nuts = runs[OURS], runs[NUTS]
        row = {
            "model": name,
            "dimensions": ours.get("dimensions"),
            "outcome": ours["outcome"],
            "verdict": ours.get("status"),
            "formula": ours.get("formula"),
            "CPU s": ours.get("CPU s"),
            "NUTS, CPU s": nuts["CPU s"],
        }
        if ours["outcome"] == DONE:
            row |= judge(ours["moments"], nuts["moments"])
        rows.append(row | {"why": ours["why"]})
    return rows


def checks(rows: Sequence[Row]) -> list[Check]:
    """Compare with the bars."""
    if not rows:
        return []
    good = [row for row in rows if row.get("is good")]
    wrong = [row for row in rows if row.get("verdict") == "good" and not row["is good"]]
    faster = [row for row in good if row["CPU s"] < row["NUTS, CPU s"]]
    shares = [len(part) / len(rows) for part in (good, wrong, faster)]
    return [
        Check("good, share of models", shares[0], f"≥ {GOOD}", shares[0] >= GOOD),
        Check("wrongly called good, share", shares[1], f"≤ {WRONG}", shares[1] <= WRONG),
        Check("good, and faster than NUTS, share", shares[2], f"≥ {FASTER}", shares[2] >= FASTER),
    ]


def run_all(paths: Mapping[str, Path], arguments: Namespace) -> dict[str, dict[str, Row]]:
    """Runs by model and method, shown as they come."""
    kept = Kept(arguments.keep, "method")
    found = kept.of(arguments.models or paths)
    for name, runs in found.items():
        for method in (NUTS, OURS):
            if method in runs or (method == OURS and not samples_well(runs[NUTS])):
                continue
            done = run(paths[name], method, arguments.limit, "catalogue_posteriors")
            runs[method] = kept.add(name, method, done)
    return found


def main(argv: Sequence[str] | None = None) -> Report | None:
    """Fit all models; save the report."""
    parser = Parser("catalogue_posteriors", __doc__)
    add_arguments(parser, LIMIT)
    arguments = parser.read(argv)
    if arguments.measure:
        path, method = arguments.measure
        say(json.dumps(measure(Path(path), method)))
        return None
    paths = files_of(parser, arguments)
    found = run_all(paths, arguments)
    rows = table(found)
    report = Report(
        "catalogue_posteriors",
        f"Models written by others, which NUTS samples well (R-hat ≤ {RHAT}) in {arguments.limit} "
        f"CPU seconds: {CHAINS} chains of 1,000 draws by nutpie. The default call has as long. "
        f"Good: means within {MEAN} standard deviations and standard deviations within "
        f"{SPREAD:.0%} of those of NUTS, for every scalar, or within {N_ERRORS:.0f} Monte-Carlo "
        "errors of NUTS.",
        {
            "models": f"{len(found)} of {len(paths)} in the folder",
            "sampled well by NUTS": sum(samples_well(runs[NUTS]) for runs in found.values()),
            "CPU seconds per run, at most": arguments.limit,
        },
        {"Models": rows},
        checks(rows),
    )
    report.save(arguments)
    return report


if __name__ == "__main__":
    main()

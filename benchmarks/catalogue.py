"""Which models of a folder of real models can be fitted, and on which backend.

    python -m benchmarks.catalogue --folder FOLDER

FOLDER has a Python file for each model, with a function ``build_model`` that returns a PyMC model
and a point to start from, as in PyMC's public catalogue of models, or the model alone. Each model
has a process of its own for each backend, with a limit of time: 'scale-loc', 8 draws per step, adam
at step size .01.
"""

from __future__ import annotations

import importlib.util
import json
import warnings
from argparse import Namespace
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks._common import Check, Parser, Report, Row, say, stopwatch
from benchmarks._process import SINGLE_THREAD, ChildError, run_child

STEPS, DRAWS, RATE = 500, 8, 0.01
BACKENDS = ("default", "numba", "jax")
SHARE = 0.99
# What became of a fit. The first two are as it should be, if the refusal is right.
FITS, REFUSED, FAILS, LATE, NOT_BUILT = "fits", "refused", "fails", "late", "not built"
# Most of the steps found no finite loss.
STUCK = "stuck"


# ------------------------------------------------------------------------------- in the child


def load_model(path: Path) -> tuple[Any, Any]:
    """Build the model of a file; return it, and where to start if the file says that."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    if spec is None or spec.loader is None:
        raise ImportError(f"{path.name} is no Python file")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    found = module.build_model()
    return found if isinstance(found, tuple) else (found, None)


def measure(path: Path, backend: str) -> Row:
    """Fit the model of a file in this process; say what became of it."""
    import pymc as pm

    from pymc_flows import NFVI
    from pymc_flows.errors import BackendError, ModelError

    warnings.simplefilter("ignore")
    try:
        model, start = load_model(path)
    except Exception as error:  # whatever the file needs, it is no fault of a fit
        return {"outcome": NOT_BUILT, "why": first_line(error)}
    with stopwatch() as elapsed:
        try:
            inference = NFVI("scale-loc", model=model, start=start or None, random_seed=1)
            approx = inference.fit(
                STEPS,
                obj_n_mc=DRAWS,
                obj_optimizer=pm.adam(learning_rate=RATE),
                backend=None if backend == "default" else backend,
                progressbar=False,
            )
            approx.sample(10, random_seed=2)
        except (ModelError, BackendError) as error:
            return {"outcome": REFUSED, "why": first_line(error)}
        except Exception as error:  # a fault, of any kind
            return {"outcome": FAILS, "why": f"{type(error).__name__}: {first_line(error)}"}
    state = inference.state
    is_stuck = state.failed > STEPS / 2
    return {
        "outcome": STUCK if is_stuck else FITS,
        "why": f"{state.failed} of {STEPS} steps were skipped" if is_stuck else "",
        "backend": state.config.backend,
        "dimensions": approx.ddim,
        "steps skipped": state.failed,
        "draws left out": state.lost,
        "loss": float(np.nanmean(inference.hist[-50:])),
        "seconds": elapsed.cpu,
    }


def first_line(error: BaseException) -> str:
    """What an error says first; its name if it says nothing."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]


# ----------------------------------------------------------------------------------- the report


def run(path: Path, how: str, limit: int, module: str = "catalogue") -> Row:
    """Fit the model of a file in a process of its own, which ends after ``limit`` CPU seconds."""
    try:
        return run_child(module, ["--measure", path, how], SINGLE_THREAD, cpu_seconds=limit)
    except ChildError as error:
        if error.is_late:
            return {"outcome": LATE, "why": str(error)}
        return {"outcome": FAILS, "why": str(error).splitlines()[-1][:200]}


def table(found: dict[str, dict[str, Row]]) -> list[Row]:
    """A line per model."""
    rows = []
    for name, runs in found.items():
        best = runs.get("default") or next(iter(runs.values()))
        whys = dict.fromkeys(run["why"] for run in runs.values() if run["why"])
        rows.append(
            {
                "model": name,
                "dimensions": best.get("dimensions"),
                **{backend: run["outcome"] for backend, run in runs.items()},
                "backend chosen": best.get("backend"),
                "draws left out": best.get("draws left out"),
                "steps skipped": best.get("steps skipped"),
                "CPU s": best.get("seconds"),
                "why": "; ".join(whys),
            }
        )
    return rows


def checks(found: dict[str, dict[str, Row]]) -> list[Check]:
    """Compare with the bar how many models fit, or are refused, by the default choice."""
    runs = [runs["default"] for runs in found.values() if "default" in runs]
    built = [run for run in runs if run["outcome"] != NOT_BUILT]
    if not built:
        return []
    share = sum(run["outcome"] in (FITS, REFUSED) for run in built) / len(built)
    crashed = sum(run["outcome"] == FAILS for run in built)
    return [
        Check("models that fit or are refused, share", share, f"≥ {SHARE}", share >= SHARE),
        Check("models that fail otherwise", crashed, "0", crashed == 0),
    ]


def add_arguments(parser: Parser, limit: int) -> None:
    """Add the arguments of a benchmark on a folder of models."""
    parser.add_argument("--folder", help="folder of the models, a Python file each")
    parser.add_argument("--models", nargs="*", help="names of files, without .py; default: all")
    parser.add_argument("--limit", type=int, default=limit, help="CPU seconds per run")
    parser.add_argument("--keep", type=Path, help="file of runs; those in it are not repeated")
    parser.add_argument("--measure", nargs=2, help="used inside")


def files_of(parser: Parser, arguments: Namespace) -> dict[str, Path]:
    """Files of all models by name; an error if there is no folder, or no such model."""
    if arguments.folder is None or not Path(arguments.folder).is_dir():
        parser.error("--folder must be a folder of models")
    paths = sorted(Path(arguments.folder).glob("*.py"))
    found = {path.stem: path.resolve() for path in paths if path.stem[0] != "_"}
    parser.refuse_unknown(arguments.models or [], list(found))
    return found


@dataclass(frozen=True)
class Kept:
    """A file of runs, each a line of JSON, for a benchmark that goes on after an interrupt.

    ``how`` names the entry of a line that says how its model was fitted.
    """

    path: Path | None
    how: str

    def of(self, names: Iterable[str]) -> dict[str, dict[str, Row]]:
        """What the file has of these models."""
        found: dict[str, dict[str, Row]] = {name: {} for name in names}
        if self.path is not None and self.path.exists():
            for run in map(json.loads, self.path.read_text().splitlines()):
                if run["model"] in found:
                    found[run["model"]][run[self.how]] = run
        return found

    def add(self, name: str, how: str, run: Row) -> Row:
        """Show a run, append it to the file, and return it."""
        say(f"{name}, {how}: {run['outcome']} {run['why']}".rstrip())
        if self.path is not None:
            with self.path.open("a") as file:
                file.write(json.dumps({"model": name, self.how: how, **run}) + "\n")
        return run


def run_all(paths: Mapping[str, Path], arguments: Namespace) -> dict[str, dict[str, Row]]:
    """Outcomes by model and backend, shown as they come."""
    kept = Kept(arguments.keep, "asked")
    found = kept.of(arguments.models or paths)
    # All by the default choice first, which tells what is the same on a backend that was named.
    for backend, name in product(arguments.backends, list(found)):
        runs = found[name]
        chosen = runs.get("default", {})
        if backend in runs:
            continue
        if chosen.get("backend") == backend or chosen.get("outcome") == NOT_BUILT:
            runs[backend] = chosen
            continue
        runs[backend] = kept.add(name, backend, run(paths[name], backend, arguments.limit))
    return found


def main(argv: Sequence[str] | None = None) -> Report | None:
    """Fit all models; save the report."""
    parser = Parser("catalogue", __doc__)
    add_arguments(parser, 300)
    parser.add_argument("--backends", nargs="+", default=list(BACKENDS), choices=BACKENDS)
    arguments = parser.read(argv)
    if arguments.measure:
        path, backend = arguments.measure
        say(json.dumps(measure(Path(path), backend)))
        return None
    paths = files_of(parser, arguments)
    found = run_all(paths, arguments)
    report = Report(
        "catalogue",
        f"Models written by others: {STEPS} steps of 'scale-loc' with {DRAWS} draws, adam at step "
        f"size {RATE}, then draws. 'refused' is an error that says why the model cannot be fitted. "
        "A line per model; what is said of a fit is of the one with the default choice of backend.",
        {
            "models": f"{len(found)} of {len(paths)} in the folder",
            "seeds": 1,
            "CPU seconds per fit, at most": arguments.limit,
        },
        {"Models": table(found)},
        checks(found),
        {"runs": found},
    )
    report.save(arguments)
    return report


if __name__ == "__main__":
    main()

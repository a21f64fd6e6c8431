"""One fit of `benchmarks.hierarchies` in this process: seconds, memory, evaluations, accuracy."""

from __future__ import annotations

import resource
import signal
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import pymc as pm

import pymc_flows as pmf
from benchmarks import _methods
from benchmarks._common import Row, stopwatch
from benchmarks._compile_clock import CompileClock, compile_clock
from benchmarks._hierarchy_problems import NoReferenceError, Problem
from benchmarks._hierarchy_scores import SCORES, Moments, Reference, judge, moments
from benchmarks._posteriors import Draws
from benchmarks.scaling import peak_memory
from pymc_flows.errors import FlowError

OURS = "auto"
NUTPIE, LOW_RANK = "nutpie", "nutpie low_rank"
ADVI, PATHFINDER, INLA = "advi", "pathfinder", "inla"
ADAPTATIONS: Mapping[str, str] = {NUTPIE: "diag", LOW_RANK: "low_rank"}
PEERS = (NUTPIE, LOW_RANK, ADVI, PATHFINDER, INLA)

DRAWS = 4_000
# Numbers that draws may take at once.
AT_ONCE = 60_000_000
CHAINS, TUNE = 2, 1_000
# Draws per chain; the next where a run was not good.
LENGTHS = (1_000, 4_000)
PARTS = 20
COLUMNS = (
    *("posterior", "method", "seed", "dim"),
    *("CPU s", "of it compiling", "draws CPU s", "CPU s to good", "peak GB", "GB at the start"),
    *("densities", "gradients", "curvatures"),
    *("status", "says good", "k-hat", "worst group k-hat", "report CPU s", "formula"),
    *SCORES,
    *("note", "source"),
)
FAILURES = (
    *(FlowError, ArithmeticError, ImportError, RuntimeError, ValueError),
    *(np.linalg.LinAlgError, NotImplementedError, TypeError, MemoryError, FileNotFoundError),
)


class OutOfTime(BaseException):
    """The limit of CPU seconds has passed; nothing that catches errors may catch it."""


@contextmanager
def limited(seconds: float) -> Iterator[None]:
    """Raise OutOfTime in the block after so many CPU seconds."""

    def stop(*_: object) -> None:
        raise OutOfTime

    before, handler = resource.getrlimit(resource.RLIMIT_CPU), signal.getsignal(signal.SIGXCPU)
    signal.signal(signal.SIGXCPU, stop)
    end = int(time.process_time() + seconds) + 1
    resource.setrlimit(resource.RLIMIT_CPU, (end, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_CPU, before)
        signal.signal(signal.SIGXCPU, handler)


@dataclass(frozen=True)
class Settings:
    """How fits are run.

    Attributes
    ----------
    limit : float
        CPU seconds for a fit, and again for the rest: draws, and the report.
    lengths : sequence of int
        Draws per chain of NUTS, the next where a run was not good.
    steps : int, optional
        Other number of steps or warm-up draws, to try the script.
    """

    limit: float = 1_200.0
    lengths: Sequence[int] = LENGTHS
    steps: int | None = None


type Fill = Callable[[Problem, int, Settings, CompileClock, dict[str, Any]], None]


def measure(problem: Problem, method: str, seed: int, settings: Settings) -> Row:
    """Fit and judge; what fails becomes a note, and what was known by then is kept."""
    row: dict[str, Any] = dict.fromkeys(COLUMNS)
    row |= {"posterior": problem.name, "method": method, "seed": seed, "source": 0}
    import_all()
    row["GB at the start"] = peak_memory() / 1e9
    with warnings.catch_warnings(), compile_clock() as clock, noted(row, settings):
        warnings.simplefilter("ignore")
        METHODS.get(method, _ours)(problem, seed, settings, clock, row)
    row["peak GB"] = row["peak GB"] or peak_memory() / 1e9
    return row


@contextmanager
def noted(row: dict[str, Any], settings: Settings) -> Iterator[None]:
    """Turn a failure in the block into a note of the row."""
    try:
        yield
    except FAILURES as error:
        add_note(row, f"{type(error).__name__}: {error}".split("\n")[0])
    except OutOfTime:
        add_note(row, f"not done after {settings.limit:,.0f} CPU s")
        if row["CPU s"] is None:
            row["CPU s"] = settings.limit


def add_note(row: dict[str, Any], note: str) -> None:
    """Add to the notes of a row."""
    row["note"] = "; ".join(part for part in (row["note"], note) if part)


def import_all() -> None:
    """Imports do not count: the libraries that a fit may import later."""
    for name in ("jax", "numba", "scipy.optimize", "scipy.stats", "scipy.sparse.linalg"):
        try:
            __import__(name)
        except ImportError:
            continue


# ------------------------------------------------------------------------------------------ ours


def _ours(
    problem: Problem, seed: int, settings: Settings, clock: CompileClock, row: dict[str, Any]
) -> None:
    approx = fit_ours(problem.model(), seed, settings, clock, row)
    with limited(settings.limit):
        with stopwatch() as drawing:
            found = drawn_moments(approx, seed)
        row["draws CPU s"] = drawing.cpu
        score(problem, found, row)
        if row["is good"]:
            row["CPU s to good"] = row["CPU s"] + row["draws CPU s"]
        add_report(approx, seed, row)


def fit_ours(
    model: pm.Model, seed: int, settings: Settings, clock: CompileClock, row: dict[str, Any]
) -> pmf.NormalizingFlow:
    """Call `pymc_flows.fit` with its defaults, or with the formula that the method is."""
    given: dict[str, Any] = {} if row["method"] == OURS else {"formula": row["method"]}
    if settings.steps is not None:
        given["n"] = settings.steps
    with limited(settings.limit), stopwatch() as seconds:
        approx = pmf.fit(model=model, random_seed=seed, progressbar=False, **given)
    row |= {
        "CPU s": seconds.cpu,
        "of it compiling": clock.seconds.cpu,
        "peak GB": peak_memory() / 1e9,
        "dim": approx.ddim,
        "formula": str(approx.formula),
        **evaluations(approx),
    }
    return approx


def evaluations(approx: Any) -> Row:
    """Numbers of evaluations of the model, where the approximation knows them."""
    holders = (approx, getattr(approx, "ladder", None))
    counted = next((c for h in holders if (c := getattr(h, "evaluations", None))), None)
    return {name: getattr(counted, name, None) for name in ("densities", "gradients", "curvatures")}


def add_report(approx: pmf.NormalizingFlow, seed: int, row: dict[str, Any]) -> None:
    """Add what the report says."""
    with stopwatch() as seconds:
        found = pmf.report(approx, random_seed=seed)
    khats = [group.khat for group in found.groups.worst] if found.groups else []
    row |= {
        "status": found.status,
        "says good": found.status == "good",
        "k-hat": found.quality.khat,
        "worst group k-hat": max(khats, default=None),
        "report CPU s": seconds.cpu,
    }


def draw_parts(approx: pmf.NormalizingFlow, n: int, seed: int) -> Iterator[Draws]:
    """Draws (draw, ...) by variable, so many at a time that they fit into memory."""
    size = max(1, min(n, AT_ONCE // (2 * approx.ddim)))
    rng = np.random.default_rng(seed)
    for begin in range(0, n, size):
        yield _methods.by_variable(approx.sample(min(size, n - begin), random_seed=rng))


def drawn_moments(approx: pmf.NormalizingFlow, seed: int, n: int = DRAWS) -> Moments:
    """Means and standard deviations of n draws that are not all held."""
    return pooled(draw_parts(approx, n, seed))


def pooled(parts: Iterator[Draws]) -> Moments:
    """Moments of draws that come in parts; Chan, Golub & LeVeque, Am. Stat. 37(3), 1983."""
    count, mean, square = 0, {}, {}
    for part in parts:
        size = len(next(iter(part.values())))
        total = count + size
        for name, x in part.items():
            own, spread = x.mean(0), ((x - x.mean(0)) ** 2).sum(0)
            if not count:
                mean[name], square[name] = own, spread
                continue
            gap = own - mean[name]
            mean[name] = mean[name] + gap * size / total
            square[name] = square[name] + spread + gap**2 * count * size / total
        count = total
    return {name: (mean[name], np.sqrt(square[name] / (count - 1))) for name in mean}


def score(problem: Problem, found: Moments, row: dict[str, Any]) -> None:
    """Add the comparison with the reference, or why there is none."""
    try:
        row |= judge(found, problem.known(), problem.few)
    except NoReferenceError as error:
        add_note(row, str(error))


# ---------------------------------------------------------------------------------------- others


def _nuts(
    problem: Problem, seed: int, settings: Settings, clock: CompileClock, row: dict[str, Any]
) -> None:
    import nutpie

    model, reference = problem.model(), problem.known()
    with stopwatch() as compiling:
        compiled = nutpie.compile_pymc_model(model)
    row["of it compiling"] = compiling.cpu
    row["dim"] = compiled.n_dim
    for length in settings.lengths:
        with limited(settings.limit), stopwatch() as seconds:
            idata = nutpie.sample(
                compiled,
                chains=CHAINS,
                cores=1,
                tune=TUNE if settings.steps is None else settings.steps,
                draws=length,
                seed=seed,
                adaptation=ADAPTATIONS[row["method"]],
                progress_bar=False,
            )
        row |= {"CPU s": compiling.cpu + seconds.cpu, "peak GB": peak_memory() / 1e9}
        row |= course(idata, reference, problem.few, seconds.cpu)
        if row["is good"] is not False:
            break
    diverging = int(idata["sample_stats"]["diverging"].sum())
    add_note(row, f"{CHAINS} × {length:,} draws, {diverging} divergences")


def course(idata: Any, reference: Reference, few: Sequence[str], seconds: float) -> Row:
    """Judge a run and its beginnings: after which share of the work it was good and stayed so."""
    posterior = {str(k): v.values for k, v in idata["posterior"].dataset.items()}
    n = idata["posterior"].sizes["draw"]
    # The work is gradients, and all of them cost the same.
    steps = float(idata["warmup_sample_stats"]["n_steps"].sum())
    work = steps + np.cumsum(idata["sample_stats"]["n_steps"].sum("chain").values)
    found: dict[str, Any] = {"CPU s to good": None, "gradients": int(work[-1])}
    for end in reversed(np.unique(np.linspace(0, n, PARTS + 1).astype(int)[1:])):
        so_far = {k: x[:, :end].reshape(-1, *x.shape[2:]) for k, x in posterior.items()}
        judged = judge(moments(so_far), reference, few)
        if end == n:
            found |= judged
        if not judged["is good"]:
            break
        found["CPU s to good"] = seconds * float(work[end - 1] / work[-1])
        found["gradients"] = int(work[end - 1])
    return found


def _other(name: str) -> Fill:
    """A method of `benchmarks.accuracy`, whose seconds contain compiling."""

    def fit(
        problem: Problem, seed: int, settings: Settings, clock: CompileClock, row: dict[str, Any]
    ) -> None:
        model = problem.model()
        with limited(settings.limit), stopwatch() as seconds:
            fitted = _methods.METHODS[name](model, seed, settings.steps, clock)
        _judge_draws(problem, fitted.draws, seconds.cpu, clock, row)

    return fit


def _inla(
    problem: Problem, seed: int, settings: Settings, clock: CompileClock, row: dict[str, Any]
) -> None:
    import pymc_extras

    if problem.gaussian is None:
        add_note(row, "needs one vector with a Gaussian prior of known precision")
        return
    with problem.gaussian.model() as model:
        with limited(settings.limit), stopwatch() as seconds:
            idata = pymc_extras.fit(
                method="INLA",
                x=model[problem.gaussian.name],
                Q=problem.gaussian.precision(),
                random_seed=seed,
                chains=CHAINS,
                cores=1,
                progressbar=False,
                **({} if settings.steps is None else {"draws": 50, "tune": settings.steps}),
            )
    add_note(row, "hyperparameters and fixed effects only")
    _judge_draws(problem, _methods.by_variable(idata), seconds.cpu, clock, row)


def _judge_draws(
    problem: Problem, draws: Draws, seconds: float, clock: CompileClock, row: dict[str, Any]
) -> None:
    compiling = clock.seconds.cpu
    row |= {"CPU s": seconds, "of it compiling": compiling, "peak GB": peak_memory() / 1e9}
    score(problem, moments(draws), row)
    if row["is good"]:
        row["CPU s to good"] = seconds - compiling


METHODS: Mapping[str, Fill] = {
    NUTPIE: _nuts,
    LOW_RANK: _nuts,
    ADVI: _other("advi"),
    PATHFINDER: _other("pathfinder"),
    INLA: _inla,
}

"""What each part of the recipe gains over the defaults: gradients, step sizes, clipping, averages.

With ``--data FOLDER`` or ``--held-out CACHE`` the posteriors are those of `benchmarks.accuracy`,
else the project's own targets. All fits of a posterior begin at the same frame and parameters, and
take the same noise; each differs from the defaults by one thing.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pymc as pm

import pymc_flows as pmf
from benchmarks._common import Check, Parser, Report, Row, say, stopwatch
from benchmarks._compile_clock import compile_clock
from benchmarks.accuracy import open_collection
from pymc_flows.callbacks import Tracker
from pymc_flows.diagnostics.quality import measure
from pymc_flows.training.config import GRADIENTS
from pymc_flows.training.objectives.loss import default_gradient
from pymc_flows.training.optimizers import LEARNING_RATE
from pymc_flows.training.stopping import Plateau

FORMULAS = (
    "scale-loc",
    "planar*8-scale-loc",
    "nvp*4-iaf(clip=20, activation=silu)-scale-loc",
)
STEPS, DRAWS, FRESH_DRAWS = 5_000, 64, 20_000
# The time of a step is the least of so many calls of so many steps: what else runs adds to it.
CALLS, CALL_STEPS = 5, 500
# A posterior whose fits would take longer, by this many steps of one, is left out.
CPU_SECONDS, TRIED_STEPS = 120.0, 20
# Smaller differences of an ELBO, in nats, matter to nobody.
MATTERS = 0.02
# Steps at one set of parameters, by which the noise of a gradient is known.
NOISE_STEPS = 200
# The mean loss of the last one of so many equal parts of a fit is compared with the lowest.
PARTS = 20
# Parameters of the last fifth of the steps are averaged, every so many steps.
AVERAGED, AVERAGE_EVERY = 0.2, 20
DEFAULTS, AVERAGE = "defaults", "constant step size, parameters averaged"


def _adam(rate: float) -> dict[str, Any]:
    return {"obj_optimizer": pm.adam(learning_rate=rate), "schedule": "cosine"}


VARIANTS: dict[str, Callable[[], dict[str, Any]]] = {
    DEFAULTS: dict,
    **{name: partial(dict, gradient=name) for name in GRADIENTS},
    "step size 0.03": lambda: _adam(0.03),
    "step size 0.003": lambda: _adam(0.003),
    "one-cycle": lambda: {"schedule": "one-cycle"},
    "norm of the gradient at most 10": lambda: {"total_grad_norm_constraint": 10.0},
}
NOISE, STOPS = "Noise of the gradients", "Stops"
LEFT_OUT = "Left out: their steps take too long"


@dataclass(frozen=True)
class Case:
    """One posterior, formula and seed.

    Attributes
    ----------
    name : str
        Of the posterior.
    model : Model
    frame : Frame
        Where all fits begin.
    formula : str
    seed, steps : int
    """

    name: str
    model: pm.Model
    frame: pmf.Frame
    formula: str
    seed: int
    steps: int

    def inference(self) -> pmf.NFVI:
        """Make one that begins as all others do."""
        return pmf.NFVI(self.formula, model=self.model, start=self.frame, random_seed=self.seed)

    @property
    def gradient(self) -> str:
        """The estimate that a fit takes by default."""
        return default_gradient(self.inference().approx.chain, "jax", anneals=False)

    def fit(self, steps: int, **kwargs: Any) -> tuple[pmf.NFVI, float]:
        """Fit; also CPU seconds of compiling."""
        inference = self.inference()
        with compile_clock() as clock:
            inference.fit(steps, obj_n_mc=DRAWS, progressbar=False, backend="jax", **kwargs)
        return inference, clock.seconds.cpu

    def row(self, variant: str, inference: pmf.NFVI, compiling: float) -> dict[str, Any]:
        """Measure a fit, all of them by the same base draws; it goes on afterwards, for the time.

        Parameters keep their values.
        """
        quality = measure(inference.approx, FRESH_DRAWS, random_seed=self.seed)
        parts = [part[np.isfinite(part)] for part in np.array_split(inference.hist, PARTS)]
        means = np.array([part.mean() if len(part) else np.inf for part in parts])
        steps = len(inference.hist)
        params = inference.approx.params
        values = [x.get_value() for x in params]
        pace = seconds_of_a_step(inference, CALLS, CALL_STEPS)
        for x, value in zip(params, values, strict=True):
            x.set_value(value)
        return {
            "posterior": self.name,
            "formula": self.formula,
            "seed": self.seed,
            "variant": variant,
            "steps": steps,
            "ELBO": quality.elbo,
            "± error": quality.elbo_error,
            "k-hat": quality.khat,
            "last loss above lowest": float(means[-1] - means.min()),
            "CPU s of a step": pace,
            "CPU s of compiling": compiling,
        }


def seconds_of_a_step(inference: pmf.NFVI, calls: int, steps: int) -> float:
    """CPU seconds, once everything is compiled."""
    found = []
    for _ in range(calls):
        with stopwatch() as seconds:
            inference.refine(steps, progressbar=False)
        found.append(seconds.cpu / steps)
    return min(found)


def variant_rows(case: Case) -> tuple[list[dict[str, Any]], Row]:
    """Fit with every variant, and with other gradients at equal time, too.

    Also the noise of the gradients at the fit of the defaults.
    """
    rows: list[dict[str, Any]] = []
    noise: Row = {}
    for variant, settings in VARIANTS.items():
        if variant == case.gradient:  # these are the defaults
            continue
        steps = case.steps
        inference, compiling = case.fit(steps, **settings())
        rows.append(case.row(variant, inference, compiling))
        if variant == DEFAULTS:
            params = inference.approx.q.params_dict
            noise = noise_row(case, {name: x.get_value() for name, x in params.items()})
        if variant in GRADIENTS:
            others = round(steps * rows[0]["CPU s of a step"] / rows[-1]["CPU s of a step"])
            inference, compiling = case.fit(max(1, others), **settings())
            rows.append(case.row(f"{variant}, equal time", inference, compiling))
    return rows, noise


def constant_rate(case: Case) -> tuple[dict[str, Any], np.ndarray]:
    """Fit at a constant step size: averaged parameters, and the losses of twice the steps."""
    last = round(AVERAGED * case.steps)
    optimizer = pm.adam(learning_rate=LEARNING_RATE)
    inference, compiling = case.fit(case.steps - last, obj_optimizer=optimizer)
    params = inference.approx.q.params_dict
    sums = {name: np.zeros_like(x.get_value()) for name, x in params.items()}
    parts = max(1, last // AVERAGE_EVERY)
    for _ in range(parts):
        inference.refine(AVERAGE_EVERY, progressbar=False)
        for name, x in params.items():
            sums[name] += x.get_value() / parts
    latest = {name: x.get_value() for name, x in params.items()}
    for name, x in params.items():
        x.set_value(sums[name])
    hist = inference.hist
    row = case.row(AVERAGE, inference, compiling)
    for name, x in params.items():
        x.set_value(latest[name])
    before = len(inference.hist)
    inference.refine(case.steps, progressbar=False)
    return row, np.concatenate([hist, inference.hist[before:]])


def noise_row(case: Case, start: Mapping[str, np.ndarray]) -> Row:
    """Total variance of the gradients at given parameters, by estimate."""
    found: dict[str, float] = {}
    for gradient in ("total", "path"):
        tracker, inference = Tracker(params=False), case.inference()
        for name, x in inference.approx.q.params_dict.items():
            x.set_value(start[name])
        inference.fit(
            NOISE_STEPS,
            obj_n_mc=DRAWS,
            obj_optimizer=pm.sgd(learning_rate=1e-300),  # it stays where it is
            gradient=gradient,
            callbacks=[tracker],
            progressbar=False,
            backend="jax",
        )
        found[gradient] = float(sum(x.var("step").sum() for x in tracker.dataset.values()))
    return {
        "posterior": case.name,
        "formula": case.formula,
        "seed": case.seed,
        **{f"variance, {k}": v for k, v in found.items()},
        "path : total": found["path"] / found["total"],
    }


def stop_row(case: Case, losses: np.ndarray, rule: Plateau) -> Row:
    """Where the rule ends a recorded fit, and by how much the loss fell afterwards."""
    looks = range(rule.window, len(losses) - rule.window + 1, rule.every)
    stop = next((i for i in looks if rule.has_settled(losses[:i])), None)
    row: dict[str, Any] = {"posterior": case.name, "formula": case.formula, "seed": case.seed}
    if stop is None:
        return row | {"stops at": None, "fall over a window": None, "± error": None}
    before, after = losses[stop - rule.window : stop], losses[stop : stop + rule.window]
    return row | {
        "stops at": stop,
        "fall over a window": float(np.nanmean(before) - np.nanmean(after)),
        "± error": float(np.hypot(np.nanstd(before), np.nanstd(after)) / rule.window**0.5),
    }


def is_false(row: Row, rule: Plateau) -> bool:
    """Whether the loss surely fell by more than the rule tolerates."""
    fall = row["fall over a window"]
    return fall is not None and bool(fall - 2 * row["± error"] > rule.tolerance)


def summary(rows: Sequence[Row]) -> list[Row]:
    """One line per variant and formula: what it gains over the defaults, in nats."""
    keys = ("posterior", "formula", "seed")
    base = {tuple(r[k] for k in keys): r for r in rows if r["variant"] == DEFAULTS}
    lines: list[Row] = []
    for variant in dict.fromkeys(row["variant"] for row in rows):
        for formula in dict.fromkeys(row["formula"] for row in rows):
            pairs = [
                (row, base[tuple(row[k] for k in keys)])
                for row in rows
                if row["variant"] == variant and row["formula"] == formula
            ]
            gains = np.array([row["ELBO"] - other["ELBO"] for row, other in pairs])
            noise = [2 * np.hypot(row["± error"], other["± error"]) for row, other in pairs]
            matters = np.maximum(noise, MATTERS)
            if not pairs:
                continue
            seconds = [row["CPU s of a step"] / other["CPU s of a step"] for row, other in pairs]
            compiling = [row["CPU s of compiling"] - o["CPU s of compiling"] for row, o in pairs]
            lines.append(
                {
                    "variant": variant,
                    "formula": formula,
                    "fits": len(pairs),
                    "better": int((gains > matters).sum()),
                    "worse": int((~(gains >= -matters)).sum()),
                    "median gain": float(np.median(gains)),
                    "lowest": float(gains.min()),
                    "highest": float(gains.max()),
                    "last loss above lowest, most": max(
                        row["last loss above lowest"] for row, _ in pairs
                    ),
                    "CPU s of a step : defaults": float(np.median(seconds)),
                    "CPU s of compiling, more": float(np.median(compiling)),
                }
            )
    return lines


def checks(lines: Sequence[Row], stops: Sequence[Row], rule: Plateau) -> list[Check]:
    """The default gradient wins at equal time; the rule hardly ever stops too early."""
    found = []
    for variant in GRADIENTS:
        of_variant = [line for line in lines if line["variant"] == f"{variant}, equal time"]
        better, worse = (sum(line[k] for line in of_variant) for k in ("better", "worse"))
        what = f"{variant} gradient at equal time: fits better than by default less those worse"
        found.append(Check(what, better - worse, "≤ 0", better <= worse))
    stopped = [row for row in stops if row["stops at"] is not None]
    share = np.mean([is_false(row, rule) for row in stopped]) if stopped else 0.0
    what = f"share of {len(stopped)} stops after which the loss surely fell by more than tolerated"
    return [*found, Check(what, float(share), "≤ 0.05", bool(share <= 0.05))]


def main(argv: Sequence[str] | None = None) -> Report:
    """Fit everything, and save the report."""
    parser = Parser("recipe", (__doc__ or "").split("\n")[0])
    parser.add_argument("--data", type=Path, help="folder, as of benchmarks.accuracy")
    parser.add_argument("--held-out", type=Path, help="folder, as of benchmarks.accuracy")
    parser.add_argument("--names", nargs="+", help="only these posteriors")
    parser.add_argument("--formulas", nargs="+", default=list(FORMULAS))
    parser.add_argument("--seeds", type=int, default=1, help="number of seeds, from 0 (1)")
    parser.add_argument("--steps", type=int, default=STEPS, help=f"of a fit ({STEPS:,})")
    help_ = "take the other posteriors from earlier runs, of the same machine"
    parser.add_argument("--add", nargs="+", type=Path, default=[], metavar="JSON", help=help_)
    arguments = parser.read(argv)
    collection = open_collection(parser, arguments.data, arguments.held_out)
    names, rule = arguments.names or collection.names, Plateau()
    parser.refuse_unknown(names, collection.names)
    rows: list[dict[str, Any]] = []
    noise: list[Row] = []
    stops: list[Row] = []
    left_out: list[Row] = []
    for path in arguments.add:
        record = json.loads(path.read_text(encoding="utf-8"))
        rows += [row for row in record["details"]["rows"] if row["posterior"] not in names]
        for heading, kept in ((NOISE, noise), (STOPS, stops), (LEFT_OUT, left_out)):
            kept += [row for row in record["tables"][heading] if row["posterior"] not in names]
    for name in names:
        model = collection.model(name)
        for seed in range(arguments.seeds):
            frame = pmf.find_frame(model, random_seed=seed)
            cases = [Case(name, model, frame, f, seed, arguments.steps) for f in arguments.formulas]
            tried, _ = cases[0].fit(1)
            seconds = seconds_of_a_step(tried, 1, TRIED_STEPS)
            if seconds * arguments.steps > CPU_SECONDS:
                left_out.append({"posterior": name, "CPU s of a step": seconds})
                break
            for case in cases:
                found, noise_of_case = variant_rows(case)
                averaged, losses = constant_rate(case)
                found.append(averaged)
                rows += found
                stops.append(stop_row(case, losses, rule))
                noise.append(noise_of_case)
                for row in (*found, stops[-1], noise[-1]):
                    say(", ".join(f"{k} {v}" for k, v in row.items()))
        report = report_of(rows, noise, stops, left_out, arguments, rule)
        report.save(arguments, show=name == names[-1])
    return report


def report_of(
    rows: Sequence[Row],
    noise: Sequence[Row],
    stops: Sequence[Row],
    left_out: Sequence[Row],
    arguments: Any,
    rule: Plateau,
) -> Report:
    """Sort what was measured into tables."""
    lines = summary(rows)
    return Report(
        "recipe",
        f"{(__doc__ or '').strip()}\n\nDefaults: Adam at {LEARNING_RATE} with cosine decay, "
        f"{DRAWS} draws a step, the path gradient for flows of affine and planar layers and the "
        f"total one for others. ELBOs are of {FRESH_DRAWS:,} fresh draws, in nats; "
        f"better and worse mean by more than two standard errors and {MATTERS} nats. At equal "
        "time: with as many steps as take the CPU seconds of the defaults. Noise is the total "
        "variance of the gradient at the fit of the defaults. The rule that stops a fit "
        f"({rule}) is applied to losses at a constant step size; a stop is false if the mean loss "
        "of the window after it is below that of the window before it by more than the tolerance "
        "and two standard errors. *Last loss above lowest*: mean losses of the last twentieth of "
        "the steps and of the best one, which keeping the best state would give back.",
        {"seeds": f"0 to {arguments.seeds - 1}", "steps": f"{arguments.steps:,}"},
        {
            "Gains over the defaults": lines,
            NOISE: noise,
            STOPS: stops,
            LEFT_OUT: left_out,
        },
        checks(lines, stops, rule),
        {"rows": rows},
    )


if __name__ == "__main__":
    main()

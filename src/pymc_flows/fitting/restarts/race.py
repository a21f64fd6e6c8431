"""A race: restarts that are behind end early (successive halving, with noise considered).

Jamieson & Talwalkar, Non-stochastic best arm identification and hyperparameter optimization,
AISTATS 2016. There half of the runs end at each look; here, of that half, those that are behind by
more than noise.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from pymc_flows.fitting.restarts.legs import Fits, Leg, fit_leg
from pymc_flows.io.files import Content
from pymc_flows.workers import Finished, Tally, Workers, run_tasks
from pymc_flows.workers.attempt import Result

# Looks, as shares of the steps.
SHARES = (1 / 8, 1 / 4, 1 / 2)
# Losses of this share of the steps before a look are compared, by the means of so many groups.
RECENT, GROUPS = 1 / 4, 10
# Least number of steps in a group.
FEWEST = 2
# Standard errors by which a restart is behind the best.
N_ERRORS = 3.0


def race(
    fits: Fits, tasks: Sequence[tuple[int, Any]], workers: Workers, names: Sequence[str]
) -> tuple[Tally, dict[int, int]]:
    """Fit with each (seed, start), and end early those that are behind.

    Losses alone decide, not the process that computed them, or the time.

    Returns
    -------
    tally : Tally
        Restarts that ended early are as they were then.
    ended : dict of int to int
        Steps of the restarts that ended early, by index.
    """
    results: list[Result] = [None] * len(tasks)
    running, ended, looks = list(range(len(tasks))), dict[int, int](), looks_of(fits.n)
    for until in (*looks, fits.n):
        legs = [Leg(*tasks[i], _content(results[i]), until) for i in running]
        tally = run_tasks(fit_leg, fits, legs, workers, [names[i] for i in running])
        for i, result in zip(running, tally.results, strict=True):
            results[i] = result or results[i]
        if tally.is_interrupted:
            return Tally(results, is_interrupted=True), ended
        contents = {i: content for i in running if (content := _content(results[i])) is not None}
        if until in looks:
            places = list(contents)
            slow = [places[k] for k in behind([c.arrays["hist"] for c in contents.values()])]
            ended |= dict.fromkeys(sorted(slow), until)
            running = [i for i in contents if i not in slow]
    return Tally(results), ended


def looks_of(n: int) -> list[int]:
    """Steps after which to look; none while losses are too few to compare."""
    steps = [int(share * n) for share in SHARES]
    return [step for step in steps if RECENT * step >= FEWEST * GROUPS]


def behind(losses: Sequence[np.ndarray]) -> list[int]:
    """Indices of the worse half whose last losses exceed those of the best by more than noise.

    Losses (steps,) are in nats, NaN for failed steps.
    """
    levels = [_level(values) for values in losses]
    order = sorted(range(len(levels)), key=lambda k: levels[k][0])
    found = []
    for k in order[(len(order) + 1) // 2 :]:
        (mean, error), (best, best_error) = levels[k], levels[order[0]]
        if np.isfinite(best) and mean - best > N_ERRORS * np.hypot(error, best_error):
            found.append(k)
    return found


def _level(losses: np.ndarray) -> tuple[float, float]:
    """Mean of the last losses, and its standard error, by means of groups; ∞ without any."""
    recent = losses[-int(RECENT * len(losses)) :]
    recent = recent[np.isfinite(recent)]
    if len(recent) < FEWEST * GROUPS // 2:
        return np.inf, 0.0
    means = [group.mean() for group in np.array_split(recent, GROUPS)]
    return float(recent.mean()), float(np.std(means, ddof=1) / np.sqrt(GROUPS))


def _content(result: Result) -> Content | None:
    return result.value.content if isinstance(result, Finished) else None

"""`formula='auto'`: richer and richer flows, until nothing is gained."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pymc as pm
from numpy.typing import ArrayLike
from pymc.util import RandomState, _get_seeds_per_chain

from pymc_flows._jax import has_jax
from pymc_flows._tables import html_table, text_table
from pymc_flows.approximation import NormalizingFlow
from pymc_flows.diagnostics import Quality, measure
from pymc_flows.errors import StorageError
from pymc_flows.evaluate import forward_and_log_det
from pymc_flows.formula import Formula
from pymc_flows.frame import Frame
from pymc_flows.inference import NFVI
from pymc_flows.search import MAX_DENSE, find_frame

_log = logging.getLogger(__name__)

# Draws that judge a fit.
JUDGED_BY = 4_000
# A fit this near to the evidence (nats), with weights that can be trusted, leaves nothing to gain.
GOOD_ENOUGH = 0.02
GOOD_KHAT = 0.5
COLUMNS = ("formula", "ELBO", "± error", "k-hat", "log Z", "seconds", "")
NUMBERS = range(1, 6)  # of the columns


@dataclass(frozen=True)
class Rung:
    """One formula that was tried.

    Attributes
    ----------
    formula : Formula
    quality : Quality or None
        None where a minibatch makes the log density random.
    seconds : float
        Wall time of its fit, compiling included.
    """

    formula: Formula
    quality: Quality | None
    seconds: float


@dataclass(frozen=True, repr=False)
class Ladder:
    """All formulas that were tried, in order, and which one was taken."""

    rungs: tuple[Rung, ...]
    taken: int

    def record(self) -> dict[str, Any]:
        """All of it as JSON has it."""
        rungs = [
            {
                "formula": str(rung.formula),
                "quality": None if rung.quality is None else asdict(rung.quality),
                "seconds": rung.seconds,
            }
            for rung in self.rungs
        ]
        return {"rungs": rungs, "taken": self.taken}

    @classmethod
    def restored(cls, record: Any) -> Ladder | None:
        """Make it from a `record`; None of None.

        Raises
        ------
        StorageError
            If it is no record of a ladder.
        """
        if record is None:
            return None
        try:
            rungs = tuple(
                Rung(
                    Formula(rung["formula"]),
                    None if rung["quality"] is None else Quality(**rung["quality"]),
                    float(rung["seconds"]),
                )
                for rung in record["rungs"]
            )
            taken = record["taken"]
            if taken not in range(len(rungs)):
                raise ValueError(f"rung {taken!r} of {len(rungs)}")
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise StorageError(f"the ladder in the file is malformed: {error!r}") from error
        return cls(rungs, taken)

    def rows(self) -> list[tuple[str, ...]]:
        """The table, as text."""
        rows: list[tuple[str, ...]] = []
        for i, rung in enumerate(self.rungs):
            q = rung.quality
            numbers = ("–",) * 4
            if q is not None:
                numbers = (
                    f"{q.elbo:,.3f}",
                    f"{q.elbo_error:.3f}",
                    f"{q.khat:.2f}",
                    f"{q.log_evidence:,.3f}",
                )
            mark = "taken" if i == self.taken else ""
            rows.append((str(rung.formula), *numbers, f"{rung.seconds:.1f}", mark))
        return rows

    def __str__(self) -> str:
        """Aligned columns."""
        return text_table([COLUMNS, *self.rows()], right=NUMBERS, indent="")

    __repr__ = __str__

    def _repr_html_(self) -> str:
        """An HTML table."""
        return html_table(self.rows(), header=COLUMNS, right=NUMBERS)


def climb(
    n: int,
    *,
    model: pm.Model | None = None,
    start: Mapping[str, ArrayLike] | Frame | None = None,
    random_seed: RandomState = None,
    inf_kwargs: Mapping[str, Any] | None = None,
    **kwargs: Any,
) -> NormalizingFlow:
    """Fit a ladder of flows and return the best.

    First a Gaussian, in the coordinates of `find_frame`. If its importance weights say that there
    is something to gain, flows with more layers follow, each the identity at its start in the
    coordinates that the Gaussian has learned. The one with the best ELBO is taken, the simpler one
    where the difference is within the noise.

    Parameters
    ----------
    n : int
        Steps of each fit.
    model, start, random_seed, inf_kwargs, **kwargs
        As for `fit`.

    Returns
    -------
    NormalizingFlow
        Its attribute ``ladder`` is the table of what was tried.
    """
    model = pm.modelcontext(model)
    seeds = iter(np.random.SeedSequence(_get_seeds_per_chain(random_seed, 1)[0]).generate_state(16))
    if isinstance(start, Frame):
        frame = start
    else:
        frame = find_frame(model, start=start, random_seed=int(next(seeds)))
    rungs: list[Rung] = []
    fitted: list[NormalizingFlow] = []
    for formula in _formulas(len(frame.center), kwargs.get("backend")):
        begin = time.perf_counter()
        inference = NFVI(
            formula, model=model, start=frame, random_seed=int(next(seeds)), **(inf_kwargs or {})
        )
        approx = inference.fit(n, **kwargs)
        seconds = time.perf_counter() - begin
        if approx.has_minibatch:
            approx.ladder = Ladder((Rung(approx.formula, None, seconds),), 0)
            return approx
        quality = measure(approx, JUDGED_BY, random_seed=int(next(seeds)))
        fitted.append(approx)
        rungs.append(Rung(approx.formula, quality, seconds))
        _log.info("%s: ELBO %.5g, k-hat %.2f", approx.formula, quality.elbo, quality.khat)
        gap = quality.log_evidence - quality.elbo
        was_stopped = len(inference.hist) < n
        if was_stopped or (gap < GOOD_ENOUGH and quality.khat < GOOD_KHAT):
            break
        if len(fitted) == 1:
            frame = _learned(approx, frame)
    qualities = [rung.quality for rung in rungs if rung.quality is not None]
    taken = _best(qualities)
    best = fitted[taken]
    best.ladder = Ladder(tuple(rungs), taken)
    _log.info("Tried:\n%s", best.ladder)
    if not qualities[taken].is_trusted:
        _log.warning(
            "The best of %d flows has k-hat %.2f: look at pymc_flows.report(approx) before you use "
            "it, and try more steps or a formula of your own.",
            len(rungs),
            qualities[taken].khat,
        )
    return best


def _formulas(dim: int, backend: str | None) -> list[str]:
    """What is tried, in order."""
    if dim == 1:
        return ["scale-loc", "spline*2-scale-loc"]
    mixes = "" if dim <= MAX_DENSE else "scale-hh*10-loc-"
    if backend == "jax" or (backend is None and has_jax()):
        rungs = [f"nvp*4-{mixes}scale-loc", f"planar*8-{mixes}scale-loc"]
        return ["scale-loc", *rungs, f"nvp*10-{mixes}scale-loc"]
    # Networks take minutes to compile there.
    return ["scale-loc", f"planar*16-{mixes}scale-loc"]


def _best(qualities: Sequence[Quality]) -> int:
    """The first whose ELBO no later one exceeds by more than the noise of their difference."""
    best = 0
    for i, quality in enumerate(qualities):
        noise = np.hypot(quality.elbo_error, qualities[best].elbo_error)
        if not np.isfinite(qualities[best].elbo) or quality.elbo > qualities[best].elbo + 2 * noise:
            best = i
    return best


def _learned(approx: NormalizingFlow, frame: Frame) -> Frame:
    """The coordinates of ``frame`` after a fitted ``scale-loc``."""
    ends = np.stack([np.zeros(approx.ddim), np.ones(approx.ddim)])
    (loc, stop), _ = forward_and_log_det(approx.chain, ends, approx.groups[0].values())
    scale = stop - loc
    if frame.scale is None:
        return Frame(frame.center + loc, scale)
    return Frame(frame.place(loc), frame.scale * scale)

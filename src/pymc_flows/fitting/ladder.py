"""What `fit` tried: formulas, one after the other, and the one that was taken."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

from pymc_flows.errors import StorageError
from pymc_flows.formula import Formula
from pymc_flows.importance import N_ERRORS, Quality, known_evidence
from pymc_flows.support.tables import html_table, text_table

COLUMNS = ("formula", "steps", "ELBO", "± error", "k-hat", "log Z", "seconds", "")
NUMBERS = range(1, 7)  # of the columns


@dataclass(frozen=True)
class Rung:
    """One formula that was tried.

    Attributes
    ----------
    formula : Formula
    quality : Quality or None
        None where a minibatch makes the log density random.
    seconds : float
        Wall time of its fit, compiling included; of the first rung that of the search for a start.
    steps : int
        Of its fit; 0 for a Gaussian that has the moments of weighted draws.
    """

    formula: Formula
    quality: Quality | None
    seconds: float
    steps: int


@dataclass(frozen=True, repr=False)
class Ladder:
    """All formulas that were tried, in order, and which one was taken."""

    rungs: tuple[Rung, ...]
    taken: int

    def lacking(self, quality: Quality) -> float:
        """Share, at least, of the evidence that trusted weights of a rung know and others lack.

        Parameters
        ----------
        quality : Quality
            What the others say.
        """
        found = [rung.quality for rung in self.rungs if rung.quality is not None]
        own = quality.log_evidence + N_ERRORS * quality.log_evidence_error
        gap = known_evidence(found) - own
        return -math.expm1(-gap) if 0 < gap < math.inf else 0.0

    def record(self) -> dict[str, Any]:
        """All of it as JSON has it."""
        rungs = [
            {
                "formula": str(rung.formula),
                "quality": None if rung.quality is None else asdict(rung.quality),
                "seconds": rung.seconds,
                "steps": rung.steps,
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
                    int(rung["steps"]),
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
            steps = f"{rung.steps:,}"
            rows.append((str(rung.formula), steps, *numbers, f"{rung.seconds:.1f}", mark))
        return rows

    def __str__(self) -> str:
        """Aligned columns."""
        return text_table([COLUMNS, *self.rows()], right=NUMBERS, indent="")

    __repr__ = __str__

    def _repr_html_(self) -> str:
        """An HTML table."""
        return html_table(self.rows(), header=COLUMNS, right=NUMBERS)

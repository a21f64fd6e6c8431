"""The table of the formulas that `fit` tried, and of the one that was taken."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from html import escape
from typing import Any

from pymc_flows.errors import StorageError
from pymc_flows.formula import Formula
from pymc_flows.importance import N_ERRORS, Quality, known_evidence
from pymc_flows.support.evaluations import Evaluations
from pymc_flows.support.tables import html_table, text_table

COLUMNS = (
    "formula",
    "steps",
    "gradients",
    "Hessians",
    "ELBO",
    "± error",
    "k-hat",
    "log Z",
    "seconds",
    "",
)
NUMBERS = range(1, 9)  # of the columns


@dataclass(frozen=True)
class Rung:
    """One formula that was tried.

    Attributes
    ----------
    formula : Formula
    quality : Quality or None
        None where a minibatch makes the log density random.
    seconds : float
        Wall time of its fit, with compilation; for the first rung with the search for a start.
    steps : int
        Steps of its fit; 0 where nothing was trained.
    evaluations : Evaluations or None
        Evaluations of the model, for the fit and for the draws that judge it; None in files of
        earlier versions.
    parts : int
        Number of parts with this formula, if it is a mixture; else 1.
    """

    formula: Formula
    quality: Quality | None
    seconds: float
    steps: int
    evaluations: Evaluations | None = None
    parts: int = 1

    @property
    def label(self) -> str:
        """The formula, with the number of parts of a mixture."""
        return str(self.formula) if self.parts == 1 else f"mixture of {self.parts} {self.formula}"


@dataclass(frozen=True, repr=False)
class Ladder:
    """All formulas that were tried, in order, and which one was taken.

    Attributes
    ----------
    rungs : tuple of Rung
    taken : int
    notes : tuple of str
        What was left out or failed.
    resamples : bool
        Whether draws of the one that was taken are to be resampled by their weights.
    """

    rungs: tuple[Rung, ...]
    taken: int
    notes: tuple[str, ...] = ()
    resamples: bool = False

    @property
    def share(self) -> float:
        """Share of effective draws of the one that was taken; NaN where weights are unknown."""
        quality = self.rungs[self.taken].quality
        return math.nan if quality is None else quality.share

    @property
    def remarks(self) -> tuple[str, ...]:
        """Lines below the table."""
        if not self.resamples:
            return self.notes
        return (
            *self.notes,
            f"Draws are resampled by their importance weights ({100 * self.share:.0f} % "
            "effective). Ask fit for quality='best' to go on until they need not be.",
        )

    @property
    def evaluations(self) -> Evaluations:
        """Evaluations of the model for all rungs."""
        return sum((r.evaluations for r in self.rungs if r.evaluations is not None), Evaluations())

    def lacking(self, quality: Quality) -> float:
        """Least share of the evidence, known by trusted weights of a rung, that a fit lacks."""
        own = quality.log_evidence + N_ERRORS * quality.log_evidence_error
        gap = known_evidence(known_qualities(self.rungs)) - own
        return -math.expm1(-gap) if 0 < gap < math.inf else 0.0

    def record(self) -> dict[str, Any]:
        """The ladder as JSON."""
        rungs = [
            {
                "formula": str(rung.formula),
                "quality": None if rung.quality is None else asdict(rung.quality),
                "seconds": rung.seconds,
                "steps": rung.steps,
                "evaluations": None if rung.evaluations is None else asdict(rung.evaluations),
                "parts": rung.parts,
            }
            for rung in self.rungs
        ]
        return {
            "rungs": rungs,
            "taken": self.taken,
            "notes": list(self.notes),
            "resamples": self.resamples,
        }

    @classmethod
    def restored(cls, record: Any) -> Ladder | None:
        """Make a ladder from its `record`; None from None.

        Raises
        ------
        StorageError
            If the record is malformed.
        """
        if record is None:
            return None
        try:
            rungs = tuple(
                Rung(
                    Formula(rung["formula"]),
                    quality_of(rung["quality"]),
                    float(rung["seconds"]),
                    int(rung["steps"]),
                    None if rung.get("evaluations") is None else Evaluations(**rung["evaluations"]),
                    int(rung.get("parts", 1)),
                )
                for rung in record["rungs"]
            )
            taken = record["taken"]
            notes = tuple(str(note) for note in record.get("notes", ()))
            if taken not in range(len(rungs)):
                raise ValueError(f"rung {taken!r} of {len(rungs)}")
            resamples = bool(record.get("resamples", False))
            if resamples and rungs[taken].quality is None:
                raise ValueError("draws without weights are resampled")
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise StorageError(f"the ladder in the file is malformed: {error!r}") from error
        return cls(rungs, taken, notes, resamples)

    def rows(self) -> list[tuple[str, ...]]:
        """The table, as text."""
        rows: list[tuple[str, ...]] = []
        for i, rung in enumerate(self.rungs):
            mark = "taken" if i == self.taken else ""
            e = rung.evaluations
            counts = ("–",) * 2 if e is None else (f"{e.gradients:,}", f"{e.curvatures:,}")
            numbers = (*counts, *cells(rung.quality), f"{rung.seconds:.1f}")
            rows.append((rung.label, f"{rung.steps:,}", *numbers, mark))
        return rows

    def __str__(self) -> str:
        """Aligned columns, and lines below."""
        table = text_table([COLUMNS, *self.rows()], right=NUMBERS, indent="")
        return "\n".join([table, *self.remarks])

    __repr__ = __str__

    def _repr_html_(self) -> str:
        """An HTML table, and lines below."""
        table = html_table(self.rows(), header=COLUMNS, right=NUMBERS)
        return table + "".join(f"<p>{escape(note)}</p>" for note in self.remarks)


def known_qualities(rungs: Sequence[Rung]) -> list[Quality]:
    """The qualities of rungs that have one."""
    return [rung.quality for rung in rungs if rung.quality is not None]


def quality_of(record: Mapping[str, Any] | None) -> Quality | None:
    """The quality in a file."""
    return None if record is None else Quality(**record)


def cells(quality: Quality | None) -> tuple[str, ...]:
    """Cells of a table: ELBO, its error, k-hat and log evidence."""
    if quality is None:
        return ("–",) * 4
    return (
        f"{quality.elbo:,.3f}",
        f"{quality.elbo_error:.3f}",
        f"{quality.khat:.2f}",
        f"{quality.log_evidence:,.3f}",
    )

"""The table of restarts: each fit, the modes, their disagreement, and what was taken."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from html import escape
from typing import Any

import numpy as np
from xarray import Dataset

from pymc_flows.errors import StorageError
from pymc_flows.fitting.ladder import cells, quality_of
from pymc_flows.importance import Quality
from pymc_flows.support.tables import html_table, text_table

COLUMNS = (
    "restart",
    "begins at",
    "formula",
    "ELBO",
    "± error",
    "k-hat",
    "log Z",
    "mode",
    "weight",
    "seconds",
    "",
)
NUMBERS = (0, *range(3, 10))  # of the columns


@dataclass(frozen=True)
class Restart:
    """One of the fits.

    Attributes
    ----------
    seed : int
        Seed with which `fit` repeats this fit, from the same start.
    start : str
        Label of the start.
    formula : str
        Empty without a result.
    quality : Quality or None
        None without a result, or where a minibatch makes the log density random.
    weight : float
        In the mixture of all, whether or not that was taken; 0 if it does not need this fit.
    seconds : float
        Wall time.
    error : str
        Why there is no result; empty if there is one.
    messages : tuple of str
        Warnings of the fit.
    ended : int
        Steps after which a race ended the fit early; else 0.
    """

    seed: int
    start: str
    formula: str
    quality: Quality | None
    weight: float
    seconds: float
    error: str = ""
    messages: tuple[str, ...] = ()
    ended: int = 0


@dataclass(frozen=True)
class Mode:
    """Restarts that found the same mode of the posterior.

    Attributes
    ----------
    restarts : tuple of int
    log_evidence, error : float
        Log evidence of the mode, and its standard error, in nats.
    share : float
        Of the evidence of all modes.
    """

    restarts: tuple[int, ...]
    log_evidence: float
    error: float
    share: float


@dataclass(frozen=True, repr=False, eq=False)
class Restarts:
    """All restarts, and their comparison. Shown as text, or as a table in a notebook.

    Attributes
    ----------
    runs : tuple of Restart
    modes : tuple of Mode
        By decreasing evidence; empty if densities of a fit at draws of others are not known.
    disagreement : Dataset or None
        R-hat of each free variable, with its coords, where each restart is a chain; None for fewer
        than two restarts with a result.
    best : int
        Index of the best restart.
    taken : {'best', 'mixture'}
        What `fit` returned.
    quality : Quality or None
        Of the approximation that was returned, by fresh draws.
    notes : tuple of str
        What was left out, and why.
    """

    runs: tuple[Restart, ...]
    modes: tuple[Mode, ...]
    disagreement: Dataset | None
    best: int
    taken: str
    quality: Quality | None
    notes: tuple[str, ...] = ()

    @property
    def worst(self) -> float:
        """The largest R-hat; NaN without any."""
        values = [np.ravel(v.values) for v in (self.disagreement or {}).values()]
        finite = [x for v in values for x in v[np.isfinite(v)]]
        return float(max(finite, default=math.nan))

    def mode_of(self, restart: int) -> int | None:
        """Index of the mode of a restart."""
        found = [m for m, mode in enumerate(self.modes) if restart in mode.restarts]
        return found[0] if found else None

    # ------------------------------------------------------------------------------------ files

    def record(self) -> dict[str, Any]:
        """The restarts as JSON."""
        return {
            "runs": [asdict(run) for run in self.runs],
            "modes": [asdict(mode) for mode in self.modes],
            "disagreement": None if self.disagreement is None else _as_json(self.disagreement),
            "best": self.best,
            "taken": self.taken,
            "quality": None if self.quality is None else asdict(self.quality),
            "notes": list(self.notes),
        }

    @classmethod
    def restored(cls, record: Any) -> Restarts | None:
        """Make restarts from their `record`; None from None.

        Raises
        ------
        StorageError
            If the record is malformed.
        """
        if record is None:
            return None
        try:
            runs = tuple(
                Restart(
                    int(run["seed"]),
                    str(run["start"]),
                    str(run["formula"]),
                    quality_of(run["quality"]),
                    float(run["weight"]),
                    float(run["seconds"]),
                    str(run["error"]),
                    tuple(map(str, run["messages"])),
                    int(run["ended"]),
                )
                for run in record["runs"]
            )
            modes = tuple(
                Mode(
                    tuple(map(int, mode["restarts"])),
                    float(mode["log_evidence"]),
                    float(mode["error"]),
                    float(mode["share"]),
                )
                for mode in record["modes"]
            )
            if record["best"] not in range(len(runs)) or record["taken"] not in TAKEN:
                raise ValueError(f"{record['taken']!r}, {record['best']!r} of {len(runs)}")
            apart = record["disagreement"]
            return cls(
                runs,
                modes,
                None if apart is None else Dataset.from_dict(apart),
                record["best"],
                record["taken"],
                quality_of(record["quality"]),
                tuple(map(str, record["notes"])),
            )
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise StorageError(f"the restarts in the file are malformed: {error!r}") from error

    # ---------------------------------------------------------------------------------- display

    def rows(self) -> list[tuple[str, ...]]:
        """The table, as text."""
        rows: list[tuple[str, ...]] = []
        for i, run in enumerate(self.runs):
            mode = self.mode_of(i)
            early = f"ended after {run.ended:,} steps" if run.ended else ""
            is_in = run.weight > 0 if self.taken == "mixture" else i == self.best
            rows.append(
                (
                    str(i),
                    run.start,
                    run.formula or "failed",
                    *cells(run.quality),
                    "–" if mode is None else str(mode),
                    f"{run.weight:.3f}" if self.modes else "–",
                    f"{run.seconds:.1f}",
                    ", ".join(filter(None, ["taken" if is_in else "", early])),
                )
            )
        return rows

    def lines(self) -> list[str]:
        """Lines below the table."""
        lines = [
            f"Mode {m}: {mode.share:.1%} of the evidence, log Z {mode.log_evidence:,.3f} ± "
            f"{mode.error:.3f}; restarts {', '.join(map(str, mode.restarts))}."
            for m, mode in enumerate(self.modes)
        ]
        if math.isfinite(self.worst):
            lines.append(f"Largest R-hat of the restarts: {self.worst:.2f}.")
        if self.quality is not None:
            what = "The mixture" if self.taken == "mixture" else f"Restart {self.best}"
            q = self.quality
            lines.append(
                f"{what} was taken: ELBO {q.elbo:,.3f} ± {q.elbo_error:.3f}, k-hat {q.khat:.2f}."
            )
        return [*lines, *self.notes]

    def __str__(self) -> str:
        """Aligned columns, and lines below."""
        table = text_table([COLUMNS, *self.rows()], right=NUMBERS, indent="")
        return "\n".join([table, *self.lines()])

    __repr__ = __str__

    def _repr_html_(self) -> str:
        """An HTML table, and lines below."""
        table = html_table(self.rows(), header=COLUMNS, right=NUMBERS)
        return table + "".join(f"<p>{escape(line)}</p>" for line in self.lines())


TAKEN = ("best", "mixture")


def _as_json(values: Dataset) -> dict[str, Any]:
    """A Dataset as JSON: coords that are neither numbers nor text become text."""
    plain = values.drop_attrs()
    odd = [name for name, coord in plain.coords.items() if coord.dtype.kind not in "biufU"]
    plain = plain.assign_coords(
        {name: plain.coords[name].copy(data=plain.coords[name].values.astype(str)) for name in odd}
    )
    return plain.to_dict()

"""`Report`: facts, a table, a verdict."""

from __future__ import annotations

import math
import textwrap
from dataclasses import dataclass
from html import escape

from pymc_flows.diagnostics.coverage import Coverage
from pymc_flows.diagnostics.thresholds import THRESHOLDS
from pymc_flows.importance import LACKING, Quality
from pymc_flows.support.tables import html_table, text_table

__all__ = ["Coordinate", "GroupRow", "Groups", "Report"]

_NUMBERS = range(1, 5)  # columns of the table

_CAVEAT = (
    "k-hat and all that is computed from the approximation's own draws cannot see modes that it "
    "never visited."
)
_ADVICE = "Pass reference= (draws of pm.sample, or of fits from other starts) to check for them."


@dataclass(frozen=True)
class Coordinate:
    """Errors of one unconstrained coordinate of the approximation, in standard deviations.

    Attributes
    ----------
    name : str
        Unconstrained variable and, in brackets, its coords, such as ``'theta[Choate]'``.
    mean, sd : float
        Mean minus weighted mean, and the ratio of standard deviation to weighted one, minus 1; NaN
        without weights.
    reference_mean, reference_sd : float or None
        The same against the draws of the reference.
    """

    name: str
    mean: float
    sd: float
    reference_mean: float | None = None
    reference_sd: float | None = None


@dataclass(frozen=True)
class GroupRow:
    """Weights of one group of variables, given the hyperparameters.

    Attributes
    ----------
    name : str
    ess : float
        Effective number of its draws.
    khat : float
        Pareto k-hat of its weights; −∞ if they are nearly equal.
    """

    name: str
    ess: float
    khat: float


@dataclass(frozen=True)
class Groups:
    """Weights of all groups of a field given hyperparameters.

    Attributes
    ----------
    n_groups : int
    n_draws : int
        Draws of each group for one value of the hyperparameters.
    n_untrusted : int
        Groups with a k-hat above the threshold.
    threshold : float
    worst : tuple of GroupRow
    """

    n_groups: int
    n_draws: int
    n_untrusted: int
    threshold: float
    worst: tuple[GroupRow, ...]


@dataclass(frozen=True)
class Report:
    """What importance weights and a reference say about an approximation.

    It prints as text, and as tables in a notebook.

    Attributes
    ----------
    title : str
    quality : Quality
        ELBO, k-hat, effective number of draws and log evidence.
    n_without_density : int
        Draws whose log density is not finite.
    coordinates : tuple of Coordinate
        The 1,000 with the largest errors, those first.
    n_coordinates : int
    worst : float
        Largest error of a mean or a standard deviation by the weights, in standard deviations;
        NaN without weights.
    coverage : Coverage or None
        Whether the approximation has draws where the reference has draws.
    contradiction : float or None
        The error against the reference that is furthest above its noise, in standard deviations;
        that of weighted draws if k-hat says that the weights can be trusted.
    contradiction_noise : float
        How large this error may be by chance, by the effective numbers of draws of both.
    is_framed : bool
        Whether the flow works in coordinates found for the posterior, as with `fit`.
    lacking : float
        Lower bound of the share of the evidence that another formula of ``fit(formula='auto')``
        found and this approximation lacks.
    groups : Groups or None
        Weights by group, for a field given hyperparameters.
    resamples : bool
        Whether `NormalizingFlow.sample` resamples by default.
    """

    title: str
    quality: Quality
    n_without_density: int
    coordinates: tuple[Coordinate, ...]
    n_coordinates: int
    worst: float
    coverage: Coverage | None = None
    contradiction: float | None = None
    contradiction_noise: float = 0.0
    is_framed: bool = True
    lacking: float = 0.0
    groups: Groups | None = None
    resamples: bool = False

    @property
    def status(self) -> str:
        """One of good, correctable, light-tailed, unreliable, incomplete, mismatched, unusable.

        It is never good if a reference, or another formula that was tried, shows that the
        approximation misses something.
        """
        quality, coverage = self.quality, self.coverage
        if quality.ess == 0:
            return "unusable"
        if coverage is not None and coverage.invalid > THRESHOLDS.invalid:
            return "mismatched"
        if coverage is not None and (coverage.is_missing or self._contradicts):
            return "incomplete"
        if self.lacking > LACKING or (coverage is None and self._contradicts):
            return "incomplete"
        # `sample` corrects the draws of these two by default.
        if self.groups is not None:
            return "good" if quality.is_trusted else "unreliable"
        if self.resamples and quality.can_be_resampled:
            return "good"
        is_close = self.worst <= THRESHOLDS.tolerance + 3 / math.sqrt(quality.ess)
        if not quality.is_trusted:
            # Below 1 the mean weight exists; if most draws count, only rare draws are wrong.
            rare = quality.khat < 1 and quality.ess > quality.n_draws / 2
            return "light-tailed" if rare and is_close else "unreliable"
        return "good" if is_close else "correctable"

    @property
    def _contradicts(self) -> bool:
        error = self.contradiction
        return error is not None and not error <= THRESHOLDS.tolerance + self.contradiction_noise

    @property
    def _remedy(self) -> str:
        if self.is_framed:
            return "a richer formula or more steps"
        return (
            "start=pymc_flows.find_frame(model), with a start= nearer to the posterior if that "
            "finds none: without it steps have the units of the unconstrained variables; then a "
            "richer formula or more steps"
        )

    @property
    def verdict(self) -> str:
        """One sentence: what to believe and what to do next."""
        quality, coverage = self.quality, self.coverage
        match self.status:
            case "unusable":
                return (
                    f"Unusable: the log density is not finite at {self.n_without_density:,} of "
                    f"{quality.n_draws:,} draws, so look at the model or fit again."
                )
            case "mismatched":
                assert coverage is not None
                return (
                    f"Not comparable: {_percent(coverage.invalid)} of the draws of the reference "
                    "have no density under the model, so check that both are of the same model."
                )
            case "incomplete":
                return (
                    f"Do not use it: {self._missing}, so use a richer formula, other starts, or "
                    "MCMC; importance weights cannot repair this."
                )
            case "unreliable" if self.groups is not None and self.groups.n_untrusted:
                return (
                    f"Do not rely on it: {self.groups.n_untrusted:,} of "
                    f"{self.groups.n_groups:,} groups of variables are far from Gaussian (k-hat "
                    f"above {self.groups.threshold:.2f}), the worst {self.groups.worst[0].name}, "
                    "so use a flow over all variables, or MCMC."
                )
            case "unreliable":
                return (
                    f"Do not rely on it: k-hat {quality.khat:.2f} is above "
                    f"{quality.threshold:.2f}, so use {self._remedy}; importance weights cannot "
                    "repair this."
                )
            case "light-tailed":
                return (
                    f"Close, but with tails that are too light (k-hat {quality.khat:.2f} is above "
                    f"{quality.threshold:.2f}): use its means and central intervals, and "
                    f"{self._remedy} where tails or the evidence matter."
                )
            case "correctable":
                return (
                    f"Usable with a correction: errors of up to {self.worst:.2g} standard "
                    "deviations are reduced by sample(correct='resample'), or use "
                    f"{self._remedy}."
                )
        if self.resamples and coverage is None:
            return (
                "Good where it has draws, which sample() resamples by their weights: use these, "
                "after a check against draws from elsewhere if the posterior may have several "
                "modes."
            )
        if self.groups is not None and coverage is None:
            return (
                "Good where it has draws, which sample() weighs: use these, after a check against "
                "draws from elsewhere if the posterior may have several modes. Means of hyper"
                f"parameters are known to {1 / math.sqrt(quality.ess):.2g} standard deviations."
            )
        if coverage is None:
            return (
                "Good where it has draws: use it as it is, after a check against draws from "
                "elsewhere if the posterior may have several modes."
            )
        return (
            "Good, and the reference agrees: use it as it is, unless both may have missed a mode."
        )

    @property
    def _missing(self) -> str:
        """Why the approximation is incomplete."""
        coverage = self.coverage
        if coverage is not None and coverage.is_missing:
            return (
                f"{_percent(coverage.beyond)} of the draws of the reference lie where the "
                "approximation has none"
            )
        if self._contradicts:
            return (
                f"means or standard deviations differ by up to {self.contradiction:.2g} standard "
                "deviations from those of the reference"
            )
        return (
            f"it lacks {_percent(self.lacking)} or more of the evidence that another formula "
            "of the ladder knew of, perhaps a mode"
        )

    # ------------------------------------------------------------------------------- display

    def _facts(self) -> list[tuple[str, str]]:
        q, n = self.quality, self.quality.n_draws
        word = "trusted up to" if q.is_trusted else "too large: not trusted above"
        if q.is_even and round(q.khat, 2) > round(q.threshold, 2):
            word = "of weights so equal that it does not matter; otherwise trusted up to"
        facts = [
            ("ELBO", f"{q.elbo:,.3f} ± {q.elbo_error:.3f}"),
            ("log evidence", f"{q.log_evidence:,.3f} ± {q.log_evidence_error:.3f}"),
            ("Pareto k-hat", f"{q.khat:.2f}, {word} {q.threshold:.2f}"),
            ("effective draws", f"{q.ess:,.0f} of {n:,} ({_percent(q.ess / n)})"),
        ]
        if q.khat == -math.inf:
            facts[2] = ("Pareto k-hat", "none, since all weights are equal")
        if self.n_without_density:
            facts.append(("without density", f"{self.n_without_density:,} of {n:,} draws"))
        if self.groups is not None:
            facts.append(("groups", self._group_fact(self.groups)))
        if self.coverage is not None:
            c = self.coverage
            facts.append(
                (
                    "reference",
                    f"{_percent(c.beyond)} of {c.n_draws:,} draws ({c.n_effective:,.0f} effective) "
                    f"are {_far(c.distance)} the approximation's in log p − log q "
                    f"({_percent(c.limit)}: no surprise)",
                )
            )
        return facts

    @staticmethod
    def _group_fact(groups: Groups) -> str:
        if not groups.worst:
            return "none"
        worst = groups.worst[0]
        khat = "weights nearly equal" if worst.khat == -math.inf else f"k-hat {worst.khat:.2f}"
        return (
            f"{groups.n_groups:,}, {groups.n_untrusted:,} of them not trusted; the worst is "
            f"{worst.name}: {khat}, {worst.ess:.0f} of {groups.n_draws:,} draws effective"
        )

    def _table(self) -> tuple[str, tuple[str, ...], list[tuple[str, ...]], str]:
        """Title, header, rows and footer."""
        noise = 1 / math.sqrt(self.quality.ess) if self.quality.ess else math.inf
        title = (
            "Largest errors in the unconstrained space, in standard deviations, by importance "
            f"weights (noise up to {noise:.2g})"
        )
        header: tuple[str, ...] = ("coordinate", "mean", "sd")
        if self.coverage is not None:
            title += " and against the reference"
            header += ("mean, reference", "sd, reference")
        rows = []
        for c in self.coordinates[: THRESHOLDS.shown]:
            numbers = [c.mean, c.sd, c.reference_mean, c.reference_sd]
            rows.append((c.name, *(_signed(x) for x in numbers if x is not None)))
        hidden = self.n_coordinates - len(rows)
        return title, header, rows, f"... {hidden:,} more, with smaller errors" if hidden else ""

    @property
    def _caveat(self) -> str:
        return _CAVEAT if self.coverage is not None else f"{_CAVEAT} {_ADVICE}"

    def __str__(self) -> str:
        title, header, rows, footer = self._table()
        body = [text_table([header, *rows], right=_NUMBERS)]
        if footer:
            body.append(f"  {footer}")
        prose = [textwrap.fill(text, 100) for text in (self.verdict, self._caveat)]
        title = textwrap.fill(f"{title}:", 100)
        return "\n".join([self.title, text_table(self._facts()), title, *body, "", *prose])

    __repr__ = __str__

    def _repr_html_(self) -> str:
        title, header, rows, footer = self._table()
        facts = html_table(self._facts(), title=self.title)
        table = html_table(rows, header=header, right=_NUMBERS, title=title)
        prose = "".join(f"<p>{escape(text)}</p>" for text in (footer, self._caveat) if text)
        return f"<p><strong>{escape(self.verdict)}</strong></p>{facts}{table}{prose}"


def _percent(share: float) -> str:
    """Format a share; only 0 and 100 % themselves look like it."""
    if 0 < share < 0.001:
        return "< 0.1 %"
    if 0.999 < share < 1 - 1e-6:
        return "> 99.9 %"
    digits = 1 if share < 0.0995 or share > 0.99 else 0
    return f"{100 * share:.{digits}f} %"


def _far(distance: float) -> str:
    return f"{distance:.0f} nats beyond" if distance else "beyond"


def _signed(error: float) -> str:
    return f"{round(error, 2) + 0.0:+.2f}"  # no -0.00

"""Tables of the layers of a formula, with their numbers of parameters."""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

from pymc_flows.errors import FlowError
from pymc_flows.formula.steps import Step
from pymc_flows.support.tables import html_table, text_table

type Blocks = tuple[tuple[Any, int], ...]

_MAX_ROWS = 24
_NO_EXPRESSION = "varies with d"


@dataclass(frozen=True)
class FormulaTable:
    """Blocks of a formula, one in each row; shown as text, or as a table in a notebook.

    Parameters
    ----------
    title, footer : str
        Lines above and below.
    header : tuple of str
        Names of the columns.
    rows : tuple of tuple of str
        All rows. The middle of a long table is not shown.
    """

    title: str
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    footer: str

    def __str__(self) -> str:
        table = text_table([self.header, *self._shown_rows()])
        return f"{self.title}\n{table}\n{self.footer}"

    def __repr__(self) -> str:
        return str(self)

    def _repr_html_(self) -> str:
        table = html_table(self._shown_rows(), header=self.header, title=self.title)
        return f"{table}<p>{escape(self.footer)}</p>"

    def _shown_rows(self) -> tuple[tuple[str, ...], ...]:
        n_hidden = len(self.rows) - _MAX_ROWS
        if n_hidden <= 0:
            return self.rows
        gap = (f"... {n_hidden:,} more ...", *[""] * (len(self.header) - 1))
        half = _MAX_ROWS // 2
        return (*self.rows[:half], gap, *self.rows[-half:])


def symbolic_table(title: str, blocks: Blocks) -> FormulaTable:
    """Tabulate the numbers of parameters as expressions in the dimension d."""
    counts = _layer_counts(blocks)
    expressions = {layer: _expression({layer: 1}) for layer in counts}
    parameters = [_times(count, expressions[layer]) for layer, count in blocks]
    footer = f"layers: {counts.total():,}, parameters: {_expression(counts)}"
    return _table(title, blocks, {"parameters": parameters}, footer)


def numeric_table(title: str, blocks: Blocks, dim: int) -> FormulaTable:
    """Tabulate the numbers of parameters in ``dim`` dimensions, and the notes of the layers."""
    counts = _layer_counts(blocks)
    columns = {"parameters": [f"{_n_params({layer: n}, dim):,}" for layer, n in blocks]}
    notes = [layer.note(dim) for layer, _ in blocks]
    if any(notes):
        columns["note"] = notes
    footer = f"layers: {counts.total():,}, parameters: {_n_params(counts, dim):,}"
    return _table(title, blocks, columns, footer)


def _table(
    title: str, blocks: Blocks, columns: Mapping[str, Sequence[str]], footer: str
) -> FormulaTable:
    names = [str(Step(layer, count)) for layer, count in blocks]
    equations = [layer.equation for layer, _ in blocks]
    rows = tuple(zip(names, equations, *columns.values(), strict=True))
    return FormulaTable(title, ("block", "map", *columns), rows, footer)


def _layer_counts(blocks: Blocks) -> Counter[Any]:
    counts: Counter[Any] = Counter()
    for layer, count in blocks:
        counts[layer] += count
    return counts


def _n_params(counts: Mapping[Any, int], dim: int) -> int:
    return sum(
        count * sum(map(math.prod, layer.param_shapes(dim).values()))
        for layer, count in counts.items()
    )


def _expression(counts: Mapping[Any, int]) -> str:
    """Write the number of parameters as a polynomial in d, of degree 2 at most.

    It follows from d = 2, 3 and 4 and is checked at others, but not at 1, where layers can differ.
    """
    try:
        at_2, at_3, at_4 = (_n_params(counts, dim) for dim in (2, 3, 4))
        # Twice the coefficients, so that they are whole numbers for d(d+1)/2 too.
        square = at_4 - 2 * at_3 + at_2
        linear = 2 * (at_3 - at_2) - 5 * square
        constant = 2 * at_2 - 4 * square - 2 * linear
        exact = all(
            square * dim**2 + linear * dim + constant == 2 * _n_params(counts, dim)
            for dim in (5, 8, 13, 32)
        )
    except FlowError:
        # A layer may refuse some dimensions.
        exact = False
    if not exact:
        return _NO_EXPRESSION
    coefficients = (square, linear, constant)
    if any(twice % 2 for twice in coefficients):
        return f"({_polynomial_text(coefficients)})/2"
    return _polynomial_text([twice // 2 for twice in coefficients])


def _polynomial_text(coefficients: Sequence[int]) -> str:
    text = ""
    for coefficient, power in zip(coefficients, ("d²", "d", ""), strict=True):
        if coefficient:
            size = "" if abs(coefficient) == 1 and power else f"{abs(coefficient)}"
            text += ("-" if coefficient < 0 else "+") + size + power
    return text.removeprefix("+") or "0"


def _times(count: int, expression: str) -> str:
    if count == 1 or expression == _NO_EXPRESSION:
        return expression
    return f"{count}·({expression})" if set("+-") & set(expression) else f"{count}·{expression}"

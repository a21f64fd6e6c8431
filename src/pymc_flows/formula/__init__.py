"""Formulas: short texts such as ``scale-hh*4-loc`` that describe a stack of flow layers.

In order of application, from the base draw to the posterior point::

    formula := chain ('|' NAME)?
    chain   := term ('-' term)*
    term    := atom ('*' COUNT)?
    atom    := NAME ('(' option (',' option)* ')')? | '(' chain ')'
    option  := NAME '=' VALUE

COUNT is a whole number of at least 1; VALUE is an integer, a number, ``true``, ``false`` or a word.
Case does not matter; spaces, tabs and line breaks may stand between tokens.

In ``tril-loc | laplace`` the chain is a flow over the hyperparameters of a hierarchical model. The
word after the bar is the family of all other variables given them: ``laplace``, a Gaussian at the
mode.
"""

import operator
from dataclasses import dataclass
from typing import Any

from pymc_flows.errors import FlowShapeError
from pymc_flows.formula.parser import CONDITIONALS, MAX_CHARACTERS, MAX_LAYERS, MAX_NESTING, parse
from pymc_flows.formula.steps import Group, Step, chain_text, expand
from pymc_flows.formula.table import FormulaTable, numeric_table, symbolic_table

__all__ = [
    "CONDITIONALS",
    "MAX_CHARACTERS",
    "MAX_LAYERS",
    "MAX_NESTING",
    "Formula",
    "FormulaTable",
    "Group",
    "Step",
]


@dataclass(frozen=True, init=False, repr=False)
class Formula:
    """A stack of flow layers, read from a text such as ``scale-hh*4-loc``.

    Formulas are immutable and equal by value; `str` gives the canonical text, which reads back as
    an equal formula. The length is the number of layers.

    Parameters
    ----------
    text : str or Formula
        At most 4,096 characters, brackets 32 deep and, after all repeats, 65,536 layers.

    Attributes
    ----------
    steps : tuple of Step or Group
        The chain as it is written, in normal form: equal neighbours are merged, and brackets that
        change nothing are dropped.
    conditional : str or None
        The word after the bar, for a flow over hyperparameters and a field given them.

    Raises
    ------
    FormulaError
        If the text is malformed; the message marks the place.

    Examples
    --------
    >>> formula = Formula("Scale - HH*2 - hh*2 - Loc")
    >>> str(formula), len(formula)
    ('scale-hh*4-loc', 6)
    >>> Formula("planar-planar") == Formula("planar*2")
    True
    """

    steps: tuple[Step | Group, ...]
    conditional: str | None

    def __init__(self, text: "str | Formula") -> None:
        if isinstance(text, Formula):
            steps, conditional = text.steps, text.conditional
        else:
            steps, conditional = parse(text)
        object.__setattr__(self, "steps", steps)
        object.__setattr__(self, "conditional", conditional)

    @property
    def hyper(self) -> "Formula":
        """The chain alone; in a formula with a bar, the flow over the hyperparameters."""
        return self if self.conditional is None else Formula(chain_text(self.steps))

    @property
    def blocks(self) -> tuple[tuple[Any, int], ...]:
        """All layers in order of application: (layer, count) for each run of equal layers."""
        return expand(self.steps)

    def table(self, dim: int) -> FormulaTable:
        """Tabulate the layers with their numbers of parameters.

        Parameters
        ----------
        dim : int
            Dimension of the points, at least 1.

        Returns
        -------
        FormulaTable
            One row per block, shown as text or, in a notebook, as a table.

        Raises
        ------
        FlowShapeError
            If ``dim`` is not a positive integer, or a layer cannot have that dimension.
        """
        try:
            size = operator.index(dim)
        except TypeError:
            size = 0
        if size < 1:
            raise FlowShapeError(f"dim must be an integer of at least 1, got {dim!r}")
        return numeric_table(f"{self._title()}, d = {size}", self.blocks, size)

    def __len__(self) -> int:
        return sum(map(len, self.steps))

    def __str__(self) -> str:
        chain = chain_text(self.steps)
        return chain if self.conditional is None else f"{chain} | {self.conditional}"

    def __repr__(self) -> str:
        return repr(self._symbolic_table())

    def _repr_html_(self) -> str:
        return self._symbolic_table()._repr_html_()

    def _symbolic_table(self) -> FormulaTable:
        return symbolic_table(self._title(), self.blocks)

    def _title(self) -> str:
        return f"Formula({str(self)!r})"

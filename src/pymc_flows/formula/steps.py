"""The tree that a formula stands for, its normal form and its canonical text."""

import dataclasses
import itertools
from collections.abc import Iterable
from dataclasses import dataclass
from operator import itemgetter
from typing import Any

from pymc_flows.formula.registry import option_types


@dataclass(frozen=True)
class Step:
    """A layer that is applied ``count`` times in a row; its length is ``count``."""

    layer: Any
    count: int

    def __len__(self) -> int:
        return self.count

    def __str__(self) -> str:
        return layer_text(self.layer) + _count_text(self.count)


@dataclass(frozen=True)
class Group:
    """A chain that is applied ``count`` times in a row; its length is the number of layers."""

    steps: tuple["Step | Group", ...]
    count: int

    def __len__(self) -> int:
        return self.count * sum(map(len, self.steps))

    def __str__(self) -> str:
        return f"({chain_text(self.steps)}){_count_text(self.count)}"


def append(chain: list[Step | Group], step: Step | Group) -> None:
    """Add a step at the end of a chain, merging it with the last one where both repeat the same."""
    if chain and dataclasses.replace(chain[-1], count=step.count) == step:
        step = dataclasses.replace(step, count=chain.pop().count + step.count)
    chain.append(step)


def repeat(chain: tuple[Step | Group, ...], count: int) -> tuple[Step | Group, ...]:
    """Repeat a chain, without a group where none is needed."""
    if count == 1:
        return chain
    if len(chain) == 1:
        return (dataclasses.replace(chain[0], count=chain[0].count * count),)
    return (Group(chain, count),)


def expand(chain: Iterable[Step | Group]) -> tuple[tuple[Any, int], ...]:
    """Expand all groups into (layer, count) pairs, no two neighbours with equal layers."""
    runs = itertools.groupby(_pairs(chain), key=itemgetter(0))
    return tuple((layer, sum(count for _, count in run)) for layer, run in runs)


def _pairs(chain: Iterable[Step | Group]) -> list[tuple[Any, int]]:
    pairs: list[tuple[Any, int]] = []
    for step in chain:
        if isinstance(step, Step):
            pairs.append((step.layer, step.count))
        else:
            pairs.extend(_pairs(step.steps) * step.count)
    return pairs


def chain_text(chain: Iterable[Step | Group]) -> str:
    """Canonical text of a chain."""
    return "-".join(map(str, chain))


def layer_text(layer: Any) -> str:
    """Canonical text of a layer: its word and the options that differ from their defaults."""
    defaults = {field.name: field.default for field in dataclasses.fields(layer)}
    options = [
        f"{name}={value_text(getattr(layer, name))}"
        for name in option_types(type(layer))
        if getattr(layer, name) != defaults[name]
    ]
    return layer.word + (f"({','.join(options)})" if options else "")


def value_text(value: Any) -> str:
    """Text of an option's value, as a formula writes it."""
    return str(value).lower() if isinstance(value, bool) else str(value)


def _count_text(count: int) -> str:
    return "" if count == 1 else f"*{count}"

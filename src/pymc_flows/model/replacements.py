"""A model's log density with some of its variables replaced, or with the data that it had."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import pymc as pm
import pytensor.tensor as pt
from pymc.logprob import transformed_conditional_logp
from pytensor.compile.sharedvalue import SharedVariable
from pytensor.graph.basic import Constant, Variable
from pytensor.graph.replace import graph_replace
from pytensor.graph.traversal import ancestors, graph_inputs
from pytensor.tensor.variable import TensorVariable

from pymc_flows.backends.rngs import with_fixed_generators
from pymc_flows.errors import ArgumentError
from pymc_flows.model.layout import tensors
from pymc_flows.support.compat import RandomGeneratorType, replace_rvs_by_values

__all__ = ["DataValues", "Replacements", "check_replacements", "named_terms", "parts_of"]

type Replacements = Mapping[Variable, Variable] | None


def named_terms(
    model: pm.Model, values: Sequence[TensorVariable], replacements: Replacements = None
) -> dict[str, TensorVariable]:
    """Log density of each random variable and potential, as PyMC gives them, in nats.

    Parameters
    ----------
    model : pymc.Model
    values : sequence of TensorVariable
        What takes the places of the model's value variables.
    replacements : mapping of Variable to Variable, optional
        Variables that the model is built from, and what stands in their place, both checked by
        `check_replacements`.

    Returns
    -------
    dict of str to TensorVariable
        Graphs in ``values``, for one draw, not summed: free variables (with the Jacobians of their
        transforms), observed ones, potentials.

    Raises
    ------
    ArgumentError
        If the log density does not depend on a variable that is to be replaced.
    """
    names = [var.name for var in (*model.basic_RVs, *model.potentials)]
    terms = _replaced_logp(model, replacements) if replacements else _logp(model)
    given = dict(zip(model.value_vars, values, strict=True))
    return dict(zip(names, with_fixed_generators(tensors(terms, given)), strict=True))


def _logp(model: pm.Model) -> list[Variable]:
    return model.logp([*model.basic_RVs, *model.potentials], sum=False)


def _replaced_logp(model: pm.Model, replacements: Mapping[Variable, Variable]) -> list[Variable]:
    """Derive the log density of a model with inputs in place of the variables, then fill them in.

    PyMC clones whatever it derives a log density from, so a computed variable of the model cannot
    be found in the result. An input is not cloned.
    """
    inputs = {old: old.type(f"replaced_{i}") for i, old in enumerate(replacements)}
    rvs, potentials = model.basic_RVs, model.potentials
    graphs = [*rvs, *(model.rvs_to_values[rv] for rv in rvs), *potentials]
    graphs = graph_replace(graphs, inputs, strict=False)
    new_rvs, values, potentials = (
        graphs[: len(rvs)],
        graphs[len(rvs) : 2 * len(rvs)],
        graphs[2 * len(rvs) :],
    )
    of_model = {
        "rvs_to_values": dict(zip(new_rvs, values, strict=True)),
        "rvs_to_transforms": {
            new: model.rvs_to_transforms[rv] for new, rv in zip(new_rvs, rvs, strict=True)
        },
    }
    terms = [
        *transformed_conditional_logp(new_rvs, **of_model),
        *replace_rvs_by_values(potentials, **of_model),
    ]
    # What the function of a CustomDist refers to, without having it as an argument, is still there.
    used = set(ancestors(terms))
    given = {}
    for old, new in replacements.items():
        if used.isdisjoint((old, inputs[old])):
            raise ArgumentError(
                f"more_replacements has {old}, but the log density does not depend on it\n"
                "Give a variable that the model was built from: a shared variable, pm.Data, "
                "pm.Minibatch, or what is computed from them."
            )
        given[old] = given[inputs[old]] = model.replace_rvs_by_values([new])[0]
    return graph_replace(terms, given, strict=False)


def check_replacements(model: pm.Model, replacements: Replacements) -> dict[Variable, Variable]:
    """Return the replacements as a dict of their own; none is an empty one.

    Raises
    ------
    ArgumentError
        If they are not a mapping, or a variable cannot be replaced by the other.
    """
    if replacements is None:
        return {}
    if not isinstance(replacements, Mapping):
        raise ArgumentError(
            f"more_replacements must be a dict from variable to variable, got {replacements!r}"
        )
    for old, new in replacements.items():
        for var in (old, new):
            if not isinstance(var, Variable):
                raise ArgumentError(
                    "more_replacements must be a dict from variable to variable, got "
                    f"{type(var).__name__} {var!r}\nMake a constant of an array: pt.constant(...)."
                )
        if old in model.basic_RVs:
            raise ArgumentError(
                f"more_replacements has the random variable {old}, which cannot be replaced\n"
                "Replace what it depends on, or change the model with pm.do or pm.observe."
            )
        if isinstance(old, Constant):
            raise ArgumentError(
                f"more_replacements has the constant {old}, which cannot be replaced\n"
                "Build the model with pm.Data or pytensor.shared in its place."
            )
        try:
            old.type.filter_variable(new)
        except TypeError:
            raise ArgumentError(
                f"more_replacements has a variable of another type for {old}\n"
                f"expected {old.type}, got {new.type}"
            ) from None
    return dict(replacements)


def parts_of(model: pm.Model) -> list[object]:
    """What the log density of a model is made of, besides values of data."""
    maps = model.rvs_to_values, model.rvs_to_transforms
    pairs = [part for mapping in maps for pair in mapping.items() for part in pair]
    return [*model.free_RVs, *model.observed_RVs, *model.potentials, *pairs, model.check_bounds]


class DataValues:
    """Values of the data that graphs depend on, kept to see whether others have come in.

    Parameters
    ----------
    graphs : iterable of Variable
    """

    def __init__(self, graphs: Iterable[Variable]):
        self._values = [
            (var, var.container.storage[0])
            for var in graph_inputs(graphs)
            if isinstance(var, SharedVariable) and not isinstance(var.type, RandomGeneratorType)
        ]

    @property
    def changed(self) -> list[str]:
        """Names of those that have other values now."""
        return [str(v.name) for v, value in self._values if v.container.storage[0] is not value]

    def constants(self) -> dict[Variable, Variable]:
        """The values that were there, by variable."""
        return {var: pt.constant(value, dtype=var.type.dtype) for var, value in self._values}

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

type Replacements = Mapping[Variable, Variable] | None


def named_terms(
    model: pm.Model, values: Sequence[TensorVariable], replacements: Replacements = None
) -> dict[str, TensorVariable]:
    """Log density of each random variable and potential, as PyMC gives them, in nats.

    Parameters
    ----------
    model : pymc.Model
    values : sequence of TensorVariable
        Tensors in the place of the model's value variables.
    replacements : mapping of Variable to Variable, optional
        Result of `check_replacements`: variables that the model is built from, and variables in
        their place.

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
    parts = [*model.basic_RVs, *model.potentials]
    terms = _replaced_logp(model, replacements) if replacements else model.logp(parts, sum=False)
    given = dict(zip(model.value_vars, values, strict=True))
    found = with_fixed_generators(tensors(terms, given))
    return {var.name: term for var, term in zip(parts, found, strict=True)}


def _replaced_logp(model: pm.Model, replacements: Mapping[Variable, Variable]) -> list[Variable]:
    """Derive the log density of a model with inputs in place of the variables, then fill them in.

    PyMC clones the variables that it derives a log density from, so that a computed variable of the
    model cannot be found in the result. An input is not cloned.
    """
    inputs = {old: old.type(f"replaced_{i}") for i, old in enumerate(replacements)}
    rvs, n = model.basic_RVs, len(model.basic_RVs)
    graphs = [*rvs, *(model.rvs_to_values[rv] for rv in rvs), *model.potentials]
    graphs = graph_replace(graphs, inputs, strict=False)
    new_rvs, values, potentials = graphs[:n], graphs[n : 2 * n], graphs[2 * n :]
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
    # A variable that the function of a CustomDist uses without an argument for it is still there.
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
    """Return the replacements as a new dict, which is empty without any.

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
    """The objects that the log density of a model is made from, apart from values of data."""
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

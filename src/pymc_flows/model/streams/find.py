"""Find the rows behind a model's batches: of `Rows`, or of `pymc.Minibatch`."""

from __future__ import annotations

from collections.abc import Sequence
from weakref import WeakKeyDictionary

import numpy as np
import pymc as pm
from pytensor.compile.sharedvalue import SharedVariable
from pytensor.graph.basic import Constant, Variable
from pytensor.graph.traversal import ancestors, graph_inputs

from pymc_flows.backends.functions import function_of
from pymc_flows.backends.modes import NUMPY
from pymc_flows.backends.ops import random_inputs
from pymc_flows.errors import ModelError
from pymc_flows.model.logp import ModelDensity
from pymc_flows.model.streams.stream import Stream
from pymc_flows.rows import Rows, rows_of
from pymc_flows.support.compat import MinibatchOp, MinibatchRandomVariable

_STREAMS: WeakKeyDictionary[ModelDensity, Stream | None] = WeakKeyDictionary()


def stream_of(density: ModelDensity) -> Stream | None:
    """Return the rows behind the batches of a model; None if not all of them are known.

    Raises
    ------
    ModelError
        If a model uses `Rows` in a way that does not tell its log density of all rows.
    """
    if density not in _STREAMS:
        _STREAMS[density] = _found(density)
    return _STREAMS[density]


def _found(density: ModelDensity) -> Stream | None:
    model = density.model
    found = rows_of(graph_inputs(density.terms))
    if found:
        return _of_rows(density, found)
    if not density.is_random:
        return None
    graphs = [*model.basic_RVs, *model.rvs_to_values.values(), *model.potentials]
    owners = {v.owner for v in ancestors(graphs) if v.owner is not None}
    nodes = [node for node in owners if isinstance(node.op, MinibatchOp)]
    if len(nodes) != 1:
        return None
    [node] = nodes
    full, batches = node.inputs[:-1], node.outputs[:-1]
    if random_inputs(full):
        return None
    names = list(map(str, range(len(full))))
    size, total = batches[0].type.shape[0], len(_values(full)[0])
    if size is None or _why_not(model, batches, total):
        return None

    def make() -> Rows:
        values = _values(full)
        if len(values[0]) != total:
            raise ModelError(
                f"the data of a pm.Minibatch had {total:,} rows, as total_size= says, and now have "
                f"{len(values[0]):,}\nBuild the model anew."
            )
        return Rows.arrays(dict(zip(names, values, strict=True)), batch_size=int(size))

    stream = Stream(density, batches, names, make, in_steps=False)
    return None if stream.density.is_random else stream


def _of_rows(density: ModelDensity, found: dict[Variable, Rows]) -> Stream:
    variables = list(found)
    rows = found[variables[0]]
    if any(other is not rows for other in found.values()):
        raise ModelError("a model can have one source of Rows, got several\nJoin their columns.")
    if why := _why_not(density.model, variables, rows.total):
        raise ModelError(f"{why}\nThe model has Rows, of which each step sees a batch.")
    return Stream(density, variables, [str(v.name) for v in variables], lambda: rows, in_steps=True)


def _why_not(model: pm.Model, batch: Sequence[Variable], total: int) -> str:
    """Why the mean over batches of the model's log density is not that of all rows; "" if it is."""

    def sees(*graphs: Variable) -> bool:
        return not set(batch).isdisjoint(ancestors(graphs))

    for rv in model.free_RVs:
        if sees(rv):
            return (
                f"the prior of {rv.name!r} depends on a batch of rows, and the one that depends on "
                "all rows is not known"
            )
    for potential in model.potentials:
        if sees(potential):
            return (
                f"the potential {potential.name!r} depends on a batch of rows, and PyMC does not "
                f"scale it\nMake it an observed variable, such as a pm.CustomDist, with "
                f"total_size={total}"
            )
    for rv in model.observed_RVs:
        if sees(rv, model.rvs_to_values[rv]) and _total_size(rv) != [total]:
            return (
                f"{rv.name!r} depends on a batch of rows and has total_size={_total_size(rv)}\n"
                f"Give it total_size=rows.total, which is {total}"
            )
    return ""


def _total_size(rv: Variable) -> list[int]:
    """The numbers that scale an observed variable."""
    if rv.owner is None or not isinstance(rv.owner.op, MinibatchRandomVariable):
        return []
    sizes = [x.data for x in rv.owner.inputs[1:] if isinstance(x, Constant)]
    return [int(n) for n in sizes if n is not None]


def _values(variables: Sequence[Variable]) -> list[np.ndarray]:
    """Present values of variables that depend on data alone."""
    return [
        v.data
        if isinstance(v, Constant)
        else v.get_value(borrow=True)
        if isinstance(v, SharedVariable)
        else function_of([], v, mode=NUMPY)()
        for v in variables
    ]

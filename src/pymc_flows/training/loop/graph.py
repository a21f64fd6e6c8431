"""The graph of one optimizer step, and of many in one `pytensor.scan`.

What a step changes (parameters, optimizer state, the model's own random generators) is the scan's
carry; base noise and settings such as the step size are its inputs; losses and tracked values are
its outputs.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytensor
import pytensor.tensor as pt
from pytensor import ifelse
from pytensor.compile.sharedvalue import SharedVariable
from pytensor.graph.basic import Variable
from pytensor.graph.replace import graph_replace
from pytensor.tensor.variable import TensorVariable

from pymc_flows.backends.functions import function_of
from pymc_flows.backends.rngs import choose_generator
from pymc_flows.training.loop.packing import Packing

# After so many failed steps in a row the fit gives up.
MAX_FAILURES = 100


@dataclass(frozen=True)
class Step:
    """The graph of one optimizer step.

    Attributes
    ----------
    noise : TensorVariable, shape (draws, dim)
        Base draws of the step.
    loss : TensorVariable
        Scalar, in nats.
    grads : mapping of str to TensorVariable
        Gradients as the optimizer gets them, by name of the parameter, or by "" that of
        ``packing.theta``.
    updates : mapping of SharedVariable to TensorVariable
        New values, from the optimizer and from the user.
    settings : tuple of TensorVariable
        Scalars that are set step by step, such as the step size.
    tracked : mapping of str to TensorVariable
        Recorded every step, by name; with ``packing``, vectors of all parameters by a prefix of
        their names. Parameters are recorded after the step, everything else before it.
    packing : Packing or None
        One vector for all parameters, which the updates change.
    params : tuple of SharedVariable
        Parameters of the flow.
    lost : TensorVariable
        How many draws the loss leaves out, an integer.
    batch : tuple of SharedVariable
        Data that differ in each step; their present values give the shapes.
    most : int, optional
        Most steps that a call needs to take, since so many take long.
    """

    noise: TensorVariable
    loss: TensorVariable
    grads: Mapping[str, TensorVariable]
    updates: Mapping[SharedVariable, TensorVariable]
    settings: tuple[TensorVariable, ...] = ()
    tracked: Mapping[str, TensorVariable] = field(default_factory=dict)
    packing: Packing | None = None
    params: tuple[SharedVariable, ...] = ()
    lost: TensorVariable = field(default_factory=lambda: pt.constant(0, dtype="int64"))
    batch: tuple[SharedVariable, ...] = ()
    most: int | None = None

    def by_parameter(self, values: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Values of ``grads`` or ``tracked``, with further leading axes, by parameter."""
        if self.packing is None:
            return dict(values)
        return {
            f"{prefix}{name}": part
            for prefix, value in values.items()
            for name, part in self.packing.split(value).items()
        }

    @property
    def nbytes(self) -> int:
        """Bytes of noise, state, data and records of a call for each of its steps."""
        arrays = [self.noise, *self.tracked.values()]
        elements = sum(math.prod(n or 1 for n in x.type.shape) for x in arrays)
        kept = [*self.updates, *self.batch]
        state = sum(np.asarray(v.get_value(borrow=True)).nbytes for v in kept)
        return 8 * elements + state


def compile_steps(
    step: Step,
    rngs: Mapping[Variable, Variable],
    kwargs: Mapping[str, Any],
    *,
    skips: bool,
) -> Any:
    """Compile the function that takes many steps.

    Its arguments are noise, batches, settings, n_active, failures, state and generators; it returns
    the last three, and records. Records are, by step: taken, failed, lost, loss, tracked values.
    Only the first ``n_active`` steps are taken; with ``skips`` the others cost next to nothing.
    """
    index, n_active, failures = pt.lscalar("index"), pt.lscalar("n_active"), pt.lscalar("failures")
    taken = (index < n_active) & (failures < MAX_FAILURES)
    carried = [failures, *step.updates]
    after, next_rngs, records = _after_step(step, rngs, failures, taken, copies=skips)
    if skips:
        idle = [*carried, *map(pt.zeros_like, records)]
        chosen = ifelse(taken, [*after, *records], idle)
        after, records = chosen[: len(carried)], chosen[len(carried) :]
        next_rngs = [choose_generator(taken, y, x) for x, y in zip(rngs, next_rngs, strict=True)]
    seen = dict(zip(carried, after, strict=True))
    failed, lost, loss, *values = records
    rest = iter(values)
    tracked = [seen[x] if x in seen else next(rest) for x in step.tracked.values()]
    outputs = [index + 1, *after, *next_rngs, taken, failed, lost, loss, *tracked]

    def inner(noise: Variable, index_: Variable, *inputs: Variable) -> list[Variable]:
        *state, settings, n_active_ = inputs[: len(inputs) - len(batches)]
        given = dict(zip([*carried, *rngs], state, strict=True))
        data = inputs[len(inputs) - len(batches) :]
        given |= {old: all_[index_] for old, all_ in zip(step.batch, data, strict=True)}
        given |= {step.noise: noise, index: index_, n_active: n_active_}
        given |= {x: settings[index_, k].astype(x.dtype) for k, x in enumerate(step.settings)}
        return graph_replace(outputs, given, strict=False)

    # A second sequence would make the number of steps a minimum, which JAX does not see through.
    noise = pt.tensor("noise", dtype=step.noise.dtype, shape=(None, *step.noise.type.shape))
    shape = (None, len(step.settings))
    settings = pt.tensor("settings", dtype=step.noise.dtype, shape=shape)
    batches = [pt.tensor(x.name, dtype=x.dtype, shape=(None, *x.type.shape)) for x in step.batch]
    state = [x.type(name=x.name) for x in [*carried, *rngs]]
    _, *results = pytensor.scan(
        inner,
        sequences=[noise],
        outputs_info=[
            pt.constant(0, dtype="int64"),
            *state,
            *[None] * (len(outputs) - len(state) - 1),
        ],
        non_sequences=[settings, n_active, *batches],
        return_updates=False,
    )
    last = [trace[-1] for trace in results[: len(carried)]]
    with warnings.catch_warnings():
        # With very many blocks some operations stay unfused, which does no harm.
        warnings.filterwarnings("ignore", "Loop fusion failed")
        return function_of(
            [pytensor.In(x, borrow=True) for x in [noise, *batches, settings, n_active, *state]],
            [pytensor.Out(x, borrow=True) for x in [*last, *results[len(carried) :]]],
            trust_input=True,
            **kwargs,
        )


def _after_step(
    step: Step,
    rngs: Mapping[Variable, Variable],
    failures: TensorVariable,
    taken: TensorVariable,
    *,
    copies: bool,
) -> tuple[list[TensorVariable], list[Variable], list[TensorVariable]]:
    """Failures and state after the step; next generators; failed, lost, loss, tracked values."""
    shared = list(step.updates)
    tracked = [x for x in step.tracked.values() if x not in step.updates]
    # Squares, because optimizers take them. Updates are not included: each is one loop together
    # with the choice between old and new.
    health = sum((pt.sqr(g).sum() for g in step.grads.values()), step.loss)
    graphs = [*step.updates.values(), *rngs.values(), health, step.lost, step.loss, *tracked]
    if copies and rngs:
        # In JAX a draw writes into the generator that it gets.
        own = {x: choose_generator(np.array(1), x, x) for x in rngs}
        graphs = graph_replace(graphs, own, strict=False)
    n, m = len(shared), len(shared) + len(rngs)
    new, next_rngs, (health, lost, loss, *values) = graphs[:n], graphs[n:m], graphs[m:]
    new = [x.astype(v.dtype) for v, x in zip(shared, new, strict=True)]
    ok = pt.isfinite(health)
    counted = pt.switch(taken, pt.switch(ok, 0, failures + 1), failures)
    kept = [pt.switch(taken & ok, x, v) for v, x in zip(shared, new, strict=True)]
    after = [
        v.type.filter_variable(x, allow_convert=True)
        for v, x in zip([failures, *shared], [counted, *kept], strict=True)
    ]
    return after, next_rngs, [~ok, lost, loss, *values]

"""The state that a fit begins with, from the user's start values."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pytensor
from numpy.typing import ArrayLike

from pymc_flows.errors import ArgumentError, FlowShapeError
from pymc_flows.flows import Chain, Loc, build_chain
from pymc_flows.flows.frame import Frame
from pymc_flows.flows.state import FlowState
from pymc_flows.formula import Formula
from pymc_flows.model.layout import Slot, sizes
from pymc_flows.model.logp import ModelDensity

type LayerParams = Mapping[int, Mapping[str, ArrayLike]]


def start_state(
    formula: Formula,
    density: ModelDensity,
    names: Sequence[str],
    *,
    jitter: float,
    start: Mapping[str, ArrayLike] | Frame | None,
    params: LayerParams | None,
    seed: np.random.SeedSequence,
) -> FlowState:
    """Make the state that a fit of a flow begins with.

    Parameters
    ----------
    formula : Formula
    density : ModelDensity
    names : sequence of str
        Unconstrained variables of the model that are the flow's coordinates, in order.
    jitter, start, params
        As for `NormalizingFlow`.
    seed : SeedSequence
        Seeds the raw parameters.
    """
    slots = {slot.name: slot for slot in density.slots}
    chain = build_chain(formula, sum(size for _, size in sizes(slots[name] for name in names)))
    dtype = pytensor.config.floatX
    rng = np.random.default_rng(seed)
    values = chain.initial_params(jitter=jitter, rng=rng, dtype=dtype)
    if isinstance(start, Frame):
        frame = check_frame(start, [slots[name] for name in names])
    else:
        flat = density.start(start)
        frame = Frame(np.concatenate([flat[slots[name].slice] for name in names]))
        if isinstance(chain.blocks[-1].layer, Loc):
            values[-1]["loc"][-1] += frame.center.astype(dtype)
            frame = Frame(np.zeros(chain.dim))
    set_layer_params(chain, values, params)
    blocks = tuple(
        {name: pytensor.shared(v, name, shape=v.shape) for name, v in block.items()}
        for block in values
    )
    # A search that has found nothing returns a frame without a scale, which is only a point.
    is_framed = isinstance(start, Frame) and start.scale is not None
    return FlowState(formula, chain, blocks, frame.astype(dtype), is_framed)


def check_jitter(jitter: float) -> float:
    """Return the jitter as a float, if it is a standard deviation."""
    if isinstance(jitter, bool) or not isinstance(jitter, int | float | np.number):
        raise ArgumentError(f"jitter must be a number, got {jitter!r}")
    if not np.isfinite(jitter) or jitter < 0:
        raise ArgumentError(f"jitter must be finite and at least 0, got {jitter!r}")
    return float(jitter)


def check_frame(frame: Frame, slots: Sequence[Slot]) -> Frame:
    """Return the frame, if it is one for these variables."""
    variables = sizes(slots)
    dim = sum(size for _, size in variables)
    if len(frame.center) != dim:
        raise FlowShapeError(
            f"a frame of this model needs a center ({dim},), got {frame.center.shape}"
        )
    if frame.variables not in (None, variables):
        raise ArgumentError(
            "start is a frame of another model\n"
            f"expected a frame of {_listed(variables)}, got one of {_listed(frame.variables)}\n"
            "Find one for this model: find_frame(model)."
        )
    return frame


def _listed(variables: Sequence[tuple[str, int]]) -> str:
    shown = ", ".join(f"{name!r} ({size})" for name, size in variables[:10])
    return shown + (", ..." if len(variables) > 10 else "")


def set_layer_params(
    chain: Chain, values: Sequence[dict[str, np.ndarray]], given: LayerParams | None
) -> None:
    """Overwrite drawn start values with the user's.

    Parameters
    ----------
    chain : Chain
    values : sequence of dict of str to ndarray
        Raw values of each block, repeats on the leading axis; changed in place.
    given : mapping of int to mapping of str to array-like, optional
        By position of the layer in the expanded formula, and name; shapes of one layer.
    """
    layers = [(i, k) for i, block in enumerate(chain.blocks) for k in range(block.count)]
    for position, params in _mapping(given or {}, "layer positions", "params").items():
        is_integer = isinstance(position, int | np.integer) and not isinstance(position, bool)
        if not is_integer or not 0 <= position < len(layers):
            raise ArgumentError(
                f"params has values for layer {position!r}\n"
                f"expected positions 0 to {len(layers) - 1}, 0 is the first applied"
            )
        i, k = layers[position]
        where = f"layer {position} ({chain.blocks[i].layer.word})"
        for name, value in _mapping(params, "names", f"params of {where}").items():
            if name not in values[i]:
                raise ArgumentError(
                    f"params has a value for {name!r} of {where}\n"
                    f"expected one of {', '.join(values[i])}"
                )
            values[i][name][k] = _checked(value, values[i][name][k], f"{name!r} of {where}")


def _mapping[K, V](given: Mapping[K, V], keys: str, what: str) -> Mapping[K, V]:
    if not isinstance(given, Mapping):
        raise ArgumentError(f"{what} must be a dict by {keys}, got {given!r}")
    return given


def _checked(value: ArrayLike, target: np.ndarray, what: str) -> np.ndarray:
    array = np.asarray(value)
    if array.dtype.kind not in "iuf":
        raise ArgumentError(f"the value of {what} is not numeric: {value!r}")
    if array.shape != target.shape:
        raise FlowShapeError(
            f"the value of {what} has the wrong shape\nexpected {target.shape}, got {array.shape}"
        )
    if not np.isfinite(array).all():
        raise ArgumentError(f"the value of {what} is not finite: {value!r}")
    return array

"""Dense networks that compute the parameters of a layer from coordinates of a point.

A network is a list of matrices ``dense0``, ``dense1``, ... of shape (inputs + 1, outputs); the last
row is the bias. Raw entries are multiplied by 1 / √inputs. So hidden units start from raw values
N(0, 1), and jitter and step size mean the same at any width. The last matrix starts at zero, and
so does the network's output.
"""

import itertools
from collections.abc import Mapping, Sequence

import numpy as np
import pytensor.tensor as pt
from pytensor.tensor import TensorVariable

from pymc_flows.errors import FlowShapeError
from pymc_flows.flows.base import Arrays, Params
from pymc_flows.flows.checks import check_choice, check_int, check_positive

_MAX_HIDDEN = 65_536
_MAX_DEPTH = 8  # with one digit in a name, the alphabetical order is that of the matrices


def _relu(x: TensorVariable) -> TensorVariable:
    return pt.maximum(x, 0)


def _silu(x: TensorVariable) -> TensorVariable:
    return x * pt.sigmoid(x)


ACTIVATIONS = {"relu": _relu, "silu": _silu, "tanh": pt.tanh}
"""Functions of hidden units, by their word in a formula."""


def dense_names(depth: int) -> list[str]:
    """Names of the matrices of a network with ``depth`` hidden layers, first to last."""
    return [f"dense{index}" for index in range(depth + 1)]


def dense_shapes(inputs: int, hidden: int, depth: int, outputs: int) -> dict[str, tuple[int, int]]:
    """Shape of each matrix: (inputs + 1, outputs), the bias in the last row."""
    sizes = [inputs, *[hidden] * depth, outputs]
    pairs = itertools.pairwise(sizes)
    return {name: (a + 1, b) for name, (a, b) in zip(dense_names(depth), pairs, strict=True)}


def dense_reference(
    shapes: Mapping[str, tuple[int, ...]], count: int, rng: np.random.Generator
) -> Arrays:
    """Raw start values (count, ...): N(0, 1) in hidden layers, 0 in the last one."""
    last = max(shapes)
    return {
        name: np.zeros((count, *shape)) if name == last else rng.standard_normal((count, *shape))
        for name, shape in shapes.items()
    }


def gains(shape: Sequence[int]) -> np.ndarray:
    """Factors (inputs + 1, 1) of the rows of a raw matrix: 1 / √inputs, and 1 for the bias."""
    inputs = shape[-2] - 1
    return np.append(np.full(inputs, inputs**-0.5), 1.0)[:, None]


def run_network(x: TensorVariable, params: Params, depth: int, activation: str) -> TensorVariable:
    """Output (..., outputs) at x (..., inputs) of a network with the matrices of one layer."""
    *inner, last = (params[name] for name in dense_names(depth))
    for matrix in inner:
        x = ACTIVATIONS[activation](x @ matrix[:-1] + matrix[-1])
    return x @ last[:-1] + last[-1]


def wave_features(x: TensorVariable, matrix: TensorVariable, frequency: float) -> TensorVariable:
    """Append sin(frequency · (xᵀ matrix) + phase) to x (..., inputs): (..., inputs + waves).

    Smooth hidden units learn oscillations slowly or not at all. Sines of random frequencies are
    close to what is needed from the start (Tancik et al., Fourier features let networks learn high
    frequency functions, NeurIPS 2020). Their frequencies and phases are trained, too.
    """
    angles = (
        np.asarray(frequency, x.dtype) * (x @ matrix[:-1]) + np.asarray(np.pi, x.dtype) * matrix[-1]
    )
    return pt.concatenate([x, pt.sin(angles)], axis=-1)


def place_in_block(per_repeat: np.ndarray, matrix: TensorVariable) -> np.ndarray:
    """Values of each repeat of a block, (count, ...); without a leading axis, of the first.

    Parameters
    ----------
    per_repeat : numpy.ndarray, shape (period, ...)
        Values of the first repeats, which recur.
    matrix : TensorVariable, shape (..., inputs + 1, outputs)
        A parameter; the last of its leading axes counts repeats.
    """
    if matrix.ndim == 2:
        return per_repeat[0]
    count = matrix.type.shape[-3]
    if count is None:
        raise FlowShapeError("a layer with masks needs a number of repeats that the graph knows")
    values = per_repeat[np.arange(count) % len(per_repeat)]
    return np.broadcast_to(values, (*matrix.type.shape[:-3], *values.shape))


def check_network(word: str, hidden: int, depth: int, activation: str) -> None:
    """Check the options of a network."""
    check_int(word, "hidden", hidden, 1, _MAX_HIDDEN)
    check_int(word, "depth", depth, 0, _MAX_DEPTH)
    check_choice(word, "activation", activation, sorted(ACTIVATIONS))


def check_waves(word: str, waves: int, frequency: float) -> None:
    """Check the number of waves and their frequency."""
    check_int(word, "waves", waves, 0, _MAX_HIDDEN)
    check_positive(word, "frequency", frequency)

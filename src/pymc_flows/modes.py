"""PyTensor modes: how graphs are turned into functions.

Compile time is the first thing a user feels, so only the training function goes through a
compiling backend. Everything that is called a few times on whole arrays (a start check, draws,
log densities) runs on `NUMPY`: no compilation, one NumPy call per node, all draws at once.
"""

from pytensor.compile.mode import Mode, get_mode
from pytensor.graph.rewriting.db import RewriteDatabaseQuery

BACKENDS = ("numba", "jax")

# "stabilize" keeps the numerically careful forms (log1p, logsumexp, ...) that a model's author
# relies on; a leftover parameter check becomes -inf instead of an exception, as everywhere in PyMC.
_CHECKS = "local_check_parameter_to_ninf_switch"
NUMPY = Mode(
    linker="py",
    optimizer=RewriteDatabaseQuery(include=["fast_compile", "stabilize", _CHECKS]),
)


def training_mode(backend: str) -> Mode:
    """Return the mode that compiles the training loop on ``backend`` ("numba" or "jax")."""
    return get_mode(backend.upper()).including(_CHECKS)

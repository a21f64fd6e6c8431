"""Registration of an Op with a PyTensor backend when that backend compiles its first graph.

PyTensor imports numba and JAX only when they compile something. An Op of ours has to be known to
them by then, but must not import them before.
"""

import hashlib
import inspect
import sys
from collections.abc import Callable

from pytensor.compile.mode import optdb
from pytensor.graph.fg import FunctionGraph
from pytensor.graph.rewriting.basic import GraphRewriter


class _RegisterOnce(GraphRewriter):
    """A rewrite that changes no graph; its first call shows that a backend compiles."""

    def __init__(self, register: Callable[[], None]) -> None:
        super().__init__()
        self.register = register
        self.is_done = False

    def apply(self, fgraph: FunctionGraph) -> None:
        if not self.is_done:
            self.register()
            self.is_done = True


def on_first_use(backend: str) -> Callable[[Callable[[], None]], Callable[[], None]]:
    """Call the decorated function once, before ``backend`` translates its first graph.

    Parameters
    ----------
    backend : {'numba', 'jax'}
        Every mode of these backends includes the rewrites tagged with their name.
    """

    def decorator(register: Callable[[], None]) -> Callable[[], None]:
        name = f"{register.__module__}.{register.__qualname__}"
        optdb.register(name, _RegisterOnce(register), backend, position=0)
        return register

    return decorator


def source_key(module: str) -> str:
    """Digest of a module's name and source.

    Numba's disk cache identifies a kernel by the key that its registration returns, not by its
    code, and imports the module that the kernel was in. A key made from both cannot go stale.
    """
    source = inspect.getsource(sys.modules[module])
    return hashlib.sha256(f"{module}\n{source}".encode()).hexdigest()

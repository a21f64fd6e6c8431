"""Who runs tasks."""

from __future__ import annotations

import multiprocessing
from collections.abc import Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from multiprocessing.context import BaseContext
from typing import Any, Literal

from pymc_flows.errors import ArgumentError
from pymc_flows.support.arguments import check_integer

type BlasCores = int | Literal["auto"] | None


@dataclass(frozen=True)
class Workers:
    """Who runs tasks: this process, further ones, or an executor.

    Attributes
    ----------
    cores : int
        Processes; 1 is this one.
    executor : Executor, optional
        Instead of ``cores``.
    mp_ctx : str or context, optional
        How processes begin; default ``'spawn'``.
    blas_cores : int, 'auto' or None
        Threads of BLAS of all processes together; ``'auto'``: as many as ``cores``. None sets no
        limit.
    progressbar : bool

    Raises
    ------
    ArgumentError
        If one of them has another value, or both an executor and processes are asked for.
    """

    cores: int = 1
    executor: Executor | None = None
    mp_ctx: str | BaseContext | None = None
    blas_cores: BlasCores = "auto"
    progressbar: bool = True

    def __post_init__(self) -> None:
        """Check the values."""
        check_integer("cores", self.cores)
        if self.blas_cores is not None and self.blas_cores != "auto":
            check_integer("blas_cores", self.blas_cores)
        known = multiprocessing.get_all_start_methods()
        if not isinstance(self.mp_ctx, BaseContext) and self.mp_ctx not in (None, *known):
            raise ArgumentError(
                f"mp_ctx must be a multiprocessing context or one of {', '.join(known)}, "
                f"got {self.mp_ctx!r}"
            )
        if self.executor is None:
            return
        given: Any = self.executor
        if not callable(getattr(given, "submit", None)) or isinstance(given, type):
            raise ArgumentError(
                f"executor must be a concurrent.futures.Executor, got {given!r}\n"
                "Of a Dask client, give client.get_executor()."
            )
        if self.cores != 1:
            raise ArgumentError(
                f"give cores= or executor=, not both; got cores={self.cores} and {given!r}"
            )

    @property
    def are_here(self) -> bool:
        """Whether tasks run in this process, one after the other."""
        return self.executor is None and self.cores == 1

    @property
    def context(self) -> BaseContext:
        """How processes begin."""
        if isinstance(self.mp_ctx, BaseContext):
            return self.mp_ctx
        return multiprocessing.get_context(self.mp_ctx or "spawn")

    @property
    def blas_threads(self) -> int | None:
        """Threads of BLAS of each process; None for no limit."""
        if self.blas_cores is None:
            return None
        total = self.cores if self.blas_cores == "auto" else self.blas_cores
        return max(1, total // self.cores)


def listed(names: Sequence[str], most: int = 8) -> str:
    """Names in a sentence, the first few of many."""
    left = len(names) - most
    return ", ".join(names[:most]) + (f" and {left} others" if left > 0 else "")

"""Where tasks run."""

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
    """Where tasks run: in this process, in further ones, or on an executor.

    Attributes
    ----------
    cores : int
        Number of processes; 1 means this process.
    executor : Executor, optional
        Instead of ``cores``.
    mp_ctx : str or context, optional
        Start method of processes, by default ``'spawn'``.
    blas_cores : int, 'auto' or None
        BLAS threads of all processes together; ``'auto'`` means as many as ``cores``, None no
        limit.
    progressbar : bool

    Raises
    ------
    ArgumentError
        If a value is wrong, or both an executor and several processes are given.
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
                "For a Dask client, give client.get_executor()."
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
        """The context that processes are started in."""
        if isinstance(self.mp_ctx, BaseContext):
            return self.mp_ctx
        return multiprocessing.get_context(self.mp_ctx or "spawn")

    @property
    def blas_threads(self) -> int | None:
        """BLAS threads of each process; None for no limit."""
        if self.blas_cores is None:
            return None
        total = self.cores if self.blas_cores == "auto" else self.blas_cores
        return max(1, total // self.cores)


def listed(names: Sequence[str], most: int = 8) -> str:
    """Names for a sentence; of many, only the first few."""
    left = len(names) - most
    return ", ".join(names[:most]) + (f" and {left} others" if left > 0 else "")

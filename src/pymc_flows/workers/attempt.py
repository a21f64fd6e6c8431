"""One run of a task, and its warnings."""

from __future__ import annotations

import logging
import pickle
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from pymc_flows.errors import WorkerError

LOGGER = "pymc_flows"

type Function = Callable[[Any, Any], Any]


@dataclass(frozen=True)
class Finished:
    """The result of a task.

    Attributes
    ----------
    value : object
    messages : tuple of str
        Warnings.
    """

    value: Any
    messages: tuple[str, ...] = ()


@dataclass(frozen=True)
class Failed:
    """The failure of a task.

    Attributes
    ----------
    error : Exception
    messages : tuple of str
        Warnings.
    """

    error: Exception
    messages: tuple[str, ...] = ()


type Result = Finished | Failed | None


def attempt(function: Function, shared: Any, task: Any) -> Finished | Failed:
    """Return ``function(shared, task)``, or the exception that it raises.

    Warnings go into the result: those of many tasks would hide everything else.
    """
    with _collected() as messages:
        try:
            value = function(shared, task)
        except Exception as error:  # any error is a result, and other tasks go on
            return Failed(portable(error), tuple(messages))
    return Finished(value, tuple(messages))


def portable(error: Exception) -> Exception:
    """The error, or one with its text if it does not survive pickle."""
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:  # its own methods may raise anything
        return WorkerError(f"{type(error).__name__}: {error}")
    return error


@contextmanager
def _collected() -> Iterator[list[str]]:
    """Collect the texts of the warnings in a block; in the main thread only.

    Warning filters and handlers of loggers belong to all threads of a process.
    """
    messages: list[str] = []
    if threading.current_thread() is not threading.main_thread():
        yield messages
        return
    logger = logging.getLogger(LOGGER)
    propagate, handler = logger.propagate, _Handler(messages)
    logger.addHandler(handler)
    logger.propagate = False
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always", UserWarning)
            yield messages
        for found in caught:
            # Other categories are shown as they would have been.
            if issubclass(found.category, UserWarning):
                messages.append(str(found.message))
            else:
                warnings.warn_explicit(found.message, found.category, found.filename, found.lineno)
    finally:
        logger.removeHandler(handler)
        logger.propagate = propagate


class _Handler(logging.Handler):
    """Keeps warnings, and passes other records on to the root logger."""

    def __init__(self, messages: list[str]):
        super().__init__()
        self._messages = messages

    def emit(self, record: logging.LogRecord) -> None:
        if record.levelno >= logging.WARNING:
            self._messages.append(record.getMessage())
        else:
            logging.getLogger().handle(record)

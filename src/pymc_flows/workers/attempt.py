"""One run of a task, with what it has to say meanwhile."""

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
    """What a task returned.

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
    """Why a task returned nothing.

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

    Warnings go into the result: of many tasks they would drown what matters.
    """
    with _collected() as messages:
        try:
            value = function(shared, task)
        except Exception as error:  # of any kind: it is the result, and other tasks go on
            return Failed(portable(error), tuple(messages))
    return Finished(value, tuple(messages))


def portable(error: Exception) -> Exception:
    """The error, or one with its text if it does not survive pickle."""
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:  # whatever its own methods raise
        return WorkerError(f"{type(error).__name__}: {error}")
    return error


@contextmanager
def _collected() -> Iterator[list[str]]:
    """Texts of the warnings that the block gives; outside of the main thread there are none.

    Filters of warnings and handlers of loggers belong to all threads of a process.
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
            # What is not of this package is as loud as it would have been.
            if issubclass(found.category, UserWarning):
                messages.append(str(found.message))
            else:
                warnings.warn_explicit(found.message, found.category, found.filename, found.lineno)
    finally:
        logger.removeHandler(handler)
        logger.propagate = propagate


class _Handler(logging.Handler):
    """Keeps warnings, and lets the rest go where it would have gone."""

    def __init__(self, messages: list[str]):
        super().__init__()
        self._messages = messages

    def emit(self, record: logging.LogRecord) -> None:
        if record.levelno >= logging.WARNING:
            self._messages.append(record.getMessage())
        else:
            logging.getLogger().handle(record)

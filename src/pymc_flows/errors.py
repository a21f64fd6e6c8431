"""Exceptions of the package.

Each derives from `FlowError` and from the builtin exception that callers would expect, so that both
``except FlowError`` and, for example, ``except ValueError`` work.
"""

import unicodedata

__all__ = [
    "ArgumentError",
    "BackendError",
    "FitError",
    "FlowError",
    "FlowShapeError",
    "FormulaError",
    "ModelError",
    "NotInvertibleError",
    "RegistrationError",
    "StorageError",
    "WorkerError",
]

_EXCERPT_CHARACTERS = 72


class FlowError(Exception):
    """Base class of the errors that this package raises."""


class ArgumentError(FlowError, ValueError):
    """An argument has a value that cannot be used."""


class FlowShapeError(FlowError, ValueError):
    """An array or a dimension does not have the shape that a flow needs."""


class NotInvertibleError(FlowError, NotImplementedError):
    """A flow has no inverse."""


class RegistrationError(FlowError, ValueError):
    """A class cannot be registered as a flow."""


class ModelError(FlowError, ValueError):
    """A model cannot be approximated by a flow."""


class BackendError(FlowError, ValueError):
    """A backend is unknown, not installed, or cannot run the model."""


class FitError(FlowError, FloatingPointError):
    """Training or a correction of draws met values that are not finite."""


class StorageError(FlowError, ValueError):
    """A file is damaged, was not written by this package, or belongs to another model."""


class WorkerError(FlowError, RuntimeError):
    """A worker was lost, or could not run its task."""


class FormulaError(FlowError, ValueError):
    """A flow formula is malformed; the message marks the place.

    Parameters
    ----------
    message : str
        What is wrong, on one line.
    source : str
        The formula as it was given.
    start, end : int
        Half-open range of characters of ``source`` that the error is about; empty where something
        is missing.
    hint : str
        What to do about it.

    Examples
    --------
    >>> print(FormulaError("unknown flow 'panar'", "scale-panar", 6, 11, "Did you mean 'planar'?"))
    unknown flow 'panar'
        scale-panar
              ^^^^^
    Did you mean 'planar'?
    """

    def __init__(self, message: str, source: str, start: int, end: int, hint: str) -> None:
        # All fields are passed on as `args`, so that the exception can be pickled.
        super().__init__(message, source, start, end, hint)
        self.message = message
        self.source = source
        self.start = start
        self.end = end
        self.hint = hint

    def __str__(self) -> str:
        """Four lines: the message, the formula, the carets and the hint."""
        text, carets = _excerpt(self.source, self.start, self.end)
        return f"{self.message}\n    {text}\n    {carets}\n{self.hint}"


def _excerpt(source: str, start: int, end: int) -> tuple[str, str]:
    """Show ``source`` on one line, cut around the range, and the line of carets below it."""
    left = max(0, min(start - _EXCERPT_CHARACTERS // 2, len(source) - _EXCERPT_CHARACTERS))
    right = left + _EXCERPT_CHARACTERS
    end = min(end, right)
    before = ("..." if left else "") + _display(source[left:start])
    marked = _display(source[start:end])
    after = _display(source[end:right]) + ("..." if right < len(source) else "")
    carets = " " * _columns(before) + "^" * max(1, _columns(marked))
    return before + marked + after, carets


def _display(text: str) -> str:
    """Replace the characters that would break the line or shift its columns."""
    return "".join(map(_display_char, text))


def _display_char(char: str) -> str:
    if char.isspace():
        return " "
    is_mark = unicodedata.category(char).startswith("M")
    return char if char.isprintable() and not is_mark else ascii(char)[1:-1]


def _columns(text: str) -> int:
    """Columns that a terminal needs for the text; East Asian wide characters take two."""
    return sum(2 if unicodedata.east_asian_width(char) in "WF" else 1 for char in text)

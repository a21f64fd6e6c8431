import pickle

import pytest

from pymc_flows import errors
from pymc_flows.errors import FlowError, FormulaError


@pytest.mark.parametrize(
    ("cls", "builtin"),
    [
        (errors.ArgumentError, ValueError),
        (errors.BackendError, ValueError),
        (errors.FitError, FloatingPointError),
        (errors.FlowShapeError, ValueError),
        (errors.FormulaError, ValueError),
        (errors.ModelError, ValueError),
        (errors.NotInvertibleError, NotImplementedError),
        (errors.RegistrationError, ValueError),
        (errors.StorageError, ValueError),
        (errors.WorkerError, RuntimeError),
    ],
)
def test_an_error_is_a_flow_error_and_a_builtin_one(cls, builtin):
    assert issubclass(cls, FlowError)
    assert issubclass(cls, builtin)


def shown(source, start, end):
    """The lines with the source and the carets."""
    message, text, carets, hint = str(FormulaError("what", source, start, end, "so")).split("\n")
    assert (message, hint) == ("what", "so")
    assert text.startswith("    ")
    assert carets.startswith("    ")
    return text[4:], carets[4:]


@pytest.mark.parametrize(
    ("source", "start", "end", "text", "carets"),
    [
        ("scale-panar", 6, 11, "scale-panar", "      ^^^^^"),
        ("", 0, 0, "", "^"),
        ("loc", 3, 3, "loc", "   ^"),
        ("\tloc\n-\r\nX", 8, 9, " loc -  X", "        ^"),
        ("a\x00b", 1, 2, r"a\x00b", " ^^^^"),
        ("a\x00b", 2, 3, r"a\x00b", "     ^"),
        ("\x1b[31mloc", 1, 2, r"\x1b[31mloc", "    ^"),
        ("é-x", 2, 3, "é-x", "  ^"),
        # Wide characters take two columns; a combining one would take none, so it is spelled out.
        ("流れ-x", 3, 4, "流れ-x", "     ^"),
        ("流れ-x", 0, 2, "流れ-x", "^^^^"),
        ("e\u0301-x", 3, 4, r"e\u0301-x", "        ^"),
        ("\u202e-x", 2, 3, r"\u202e-x", "       ^"),
        ("\U0001f600-x", 2, 3, "\U0001f600-x", "   ^"),
        ("\ud800-x", 2, 3, r"\ud800-x", "       ^"),
        ("\xa0-x", 2, 3, " -x", "  ^"),
        ("\u2028-x", 2, 3, " -x", "  ^"),
    ],
)
def test_carets_stand_below_the_range(source, start, end, text, carets):
    assert shown(source, start, end) == (text, carets)


@pytest.mark.parametrize("length", [73, 100, 4_096, 10**6])
def test_a_long_source_is_cut_around_the_range(length):
    digits = "".join(str(i % 10) for i in range(length))
    for start in {0, 1, 36, 37, 50, length // 2, length - 37, length - 1}:
        text, carets = shown(digits, start, start + 1)
        left = min(max(start - 36, 0), length - 72)
        before, after = "..." * (left > 0), "..." * (left + 72 < length)
        assert text == before + digits[left : left + 72] + after
        assert carets == " " * (len(before) + start - left) + "^"
    text, carets = shown(digits, 2, length)
    assert carets == "  " + "^" * 70
    assert text == digits[:72] + "..."


def test_a_source_that_fits_is_whole():
    source = "x" * 72
    assert shown(source, 71, 72) == (source, " " * 71 + "^")


def test_a_formula_error_pickles_with_its_fields():
    error = FormulaError("what", "scale-panar", 6, 11, "so")
    copy = pickle.loads(pickle.dumps(error))
    assert type(copy) is FormulaError
    fields = ("what", "scale-panar", 6, 11, "so")
    assert (copy.message, copy.source, copy.start, copy.end, copy.hint) == fields
    assert str(copy) == str(error)

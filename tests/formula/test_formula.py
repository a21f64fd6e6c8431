import copy
import dataclasses
import itertools
import pickle
import re
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from formula_cases import BAD, GOOD, Demo
from pymc_flows.errors import FormulaError
from pymc_flows.flows import Householder, Loc, Planar, Radial, Scale
from pymc_flows.formula import MAX_LAYERS, Formula, Group, Step
from pymc_flows.formula.registry import FLOWS, register_flow

LAYERS = (Householder, Loc, Planar, Radial, Scale)


@pytest.fixture(scope="module", autouse=True)
def _demo():
    register_flow(Demo)
    yield
    del FLOWS["demo"]


def refused(text):
    with pytest.raises(FormulaError) as caught:
        Formula(text)
    return caught.value


# Values


@pytest.mark.parametrize(("text", "canonical"), GOOD)
def test_canonical_text(text, canonical):
    formula = Formula(text)
    assert str(formula) == canonical
    again = Formula(canonical)
    assert again == formula
    assert hash(again) == hash(formula)
    assert str(again) == canonical


def test_canonical_texts_differ_where_formulas_do():
    formulas = {canonical: Formula(canonical) for _, canonical in GOOD}
    assert len(set(formulas.values())) == len(formulas)


def test_steps():
    assert Formula("scale-(planar*2-demo(hidden=3))*4-loc").steps == (
        Step(Scale(), 1),
        Group((Step(Planar(), 2), Step(Demo(hidden=3), 1)), 4),
        Step(Loc(), 1),
    )


@pytest.mark.parametrize(
    ("text", "blocks"),
    [
        ("scale-hh*4-loc", [(Scale(), 1), (Householder(), 4), (Loc(), 1)]),
        (
            "(planar*2-radial-planar)*2",
            [(Planar(), 2), (Radial(), 1), (Planar(), 3), (Radial(), 1), (Planar(), 1)],
        ),
        (
            "((loc-scale)*2-scale)*2",
            [(Loc(), 1), (Scale(), 1), (Loc(), 1), (Scale(), 2)] * 2,
        ),
        ("demo(rate=2)-demo(rate=2.0)-demo", [(Demo(rate=2.0), 2), (Demo(), 1)]),
    ],
)
def test_blocks_are_expanded_from_left_to_right_and_merged(text, blocks):
    formula = Formula(text)
    assert formula.blocks == tuple(blocks)
    assert len(formula) == sum(count for _, count in blocks)


def test_equality_is_by_value():
    assert Formula("planar-planar") == Formula("planar*2")
    assert Formula("planar*2") != Formula("planar*3")
    assert Formula("planar-radial") != Formula("radial-planar")
    assert Formula("demo") != Formula("demo(hidden=17)")
    assert Formula("loc") != "loc"


def test_a_formula_is_a_formula():
    formula = Formula("(planar-radial)*3")
    assert Formula(formula) == formula


def test_a_formula_does_not_change():
    formula = Formula("planar*2")
    for change in (
        lambda: setattr(formula, "steps", ()),
        lambda: setattr(formula, "other", 1),
        lambda: delattr(formula, "steps"),
    ):
        with pytest.raises(dataclasses.FrozenInstanceError):
            change()


@pytest.mark.parametrize("text", ["loc", "(planar-demo(kind=b,hidden=2)*3)*2-loc"])
@pytest.mark.parametrize(
    "through",
    [
        copy.copy,
        copy.deepcopy,
        *[
            lambda formula, protocol=protocol: pickle.loads(pickle.dumps(formula, protocol))
            for protocol in range(pickle.HIGHEST_PROTOCOL + 1)
        ],
    ],
)
def test_a_formula_pickles_and_copies(text, through):
    formula = Formula(text)
    same = through(formula)
    assert same == formula
    assert hash(same) == hash(formula)
    assert str(same) == str(formula)


# Errors


@pytest.mark.parametrize(("marked", "message", "hint"), BAD)
def test_what_is_refused_and_where(marked, message, hint):
    before, inside, after = marked.replace(">", "<").split("<")
    error = refused(before + inside + after)
    assert (error.start, error.end) == (len(before), len(before + inside))
    assert error.message == message
    assert error.hint == hint
    assert error.source == before + inside + after
    check_display(error)


@pytest.mark.parametrize("value", [None, 3, b"loc", ["loc"], Loc(), object(), Formula])
def test_what_is_not_text(value):
    error = refused(value)
    name = f"<{type(value).__name__}>"
    check_display(error)
    assert error.message == f"a formula must be a string, got {name}"
    assert (error.source, error.start, error.end) == (name, 0, len(name))
    assert error.hint == "Write the formula in quotes, such as 'scale-loc'."


def test_the_whole_message():
    assert str(refused("scale-panar*2-loc")).split("\n") == [
        "unknown flow 'panar'",
        "    scale-panar*2-loc",
        "          ^^^^^",
        f"Did you mean 'planar'? Known flows: {', '.join(sorted(FLOWS))}.",
    ]


def test_the_known_flows_are_those_of_the_registry(monkeypatch):
    monkeypatch.delitem(FLOWS, "radial")
    hint = refused("radial").hint
    assert hint.endswith(f"Known flows: {', '.join(sorted(FLOWS))}.")
    assert "radial" not in hint


def test_an_error_of_a_layer_is_the_cause():
    cause = refused("demo(hidden=-1)").__cause__
    assert type(cause) is ValueError
    assert str(cause) == "hidden must be at least 1,\n    got -1"


def test_errors_of_a_layer_that_are_not_about_values_are_not_hidden(monkeypatch):
    def broken(self):
        raise TypeError("a defect")

    monkeypatch.setattr(Demo, "__post_init__", broken)
    with pytest.raises(TypeError, match="a defect"):
        Formula("demo(hidden=3)")


def test_numbers_of_thousands_of_digits_are_never_converted():
    limit = sys.get_int_max_str_digits()
    sys.set_int_max_str_digits(640)
    try:
        assert refused(f"hh*{'9' * 4_000}").start == 3
        assert refused(f"demo(hidden={'9' * 4_000})").start == 12
        assert str(Formula(f"hh*{'0' * 4_000}2")) == "hh*2"
        assert str(Formula(f"demo(hidden={'0' * 4_000}2)")) == "demo(hidden=2)"
        assert str(Formula(f"demo(rate=1.{'0' * 4_000}1)")) == "demo(rate=1.0)"
    finally:
        sys.set_int_max_str_digits(limit)


def check_display(error):
    """Four printable lines, carets below what they mark."""
    lines = str(error).split("\n")
    assert len(lines) == 4
    assert all(line.isprintable() for line in lines)
    text, carets = lines[1], lines[2]
    assert set(carets.lstrip(" ")) == {"^"}
    assert 0 <= error.start <= error.end <= len(error.source)
    if len(error.source) <= 72 and error.source.isascii() and error.source.isprintable():
        assert text == "    " + error.source
        assert carets == " " * (4 + error.start) + "^" * max(1, error.end - error.start)


def check_any_text(text):
    """Either a formula with a canonical text, or a FormulaError that can be shown and pickled."""
    error = None
    try:
        formula = Formula(text)
    except FormulaError as refusal:
        error = refusal
    if error is None:
        assert 1 <= len(formula) <= MAX_LAYERS
        assert Formula(str(formula)) == formula
        assert str(Formula(str(formula))) == str(formula)
    else:
        assert error.source == text
        check_display(error)
        same = pickle.loads(pickle.dumps(error))
        assert str(same) == str(error)
        assert vars(same) == vars(error)


@given(st.text())
def test_any_text(text):
    check_any_text(text)


TOKENS = [
    *["loc", "hh", "planar", "demo", "Scale", "panar", "hidden", "rate", "flag", "kind", "true"],
    *["-", "*", "(", ")", "=", ",", " ", "\n", "+", ".", "é", "\x00", "–"],
    *["0", "1", "2", "007", "2.5", "1e9", "1e-3", "-2", "300", "65536", "9" * 30],
    *["demo(", "hidden=2", "rate=-1", ",", "))", "((", "*2", "-loc"],
]


@given(st.lists(st.sampled_from(TOKENS), max_size=30).map("".join))
def test_any_sequence_of_tokens(text):
    check_any_text(text)


def demo_atom(options):
    """The layer with some options, and a text for it that is not the canonical one."""
    texts = [f"{key} = {str(value).title()}" for key, value in options.items()]
    return (f"Demo ({', '.join(texts)})" if texts else "demo", [Demo(**options)])


PLAIN_ATOMS = st.sampled_from([(cls.word, [cls()]) for cls in LAYERS])
DEMO_ATOMS = (
    st.fixed_dictionaries(
        {},
        optional={
            "kind": st.sampled_from(["a", "b", "c_3"]),
            "flag": st.booleans(),
            "rate": st.floats(allow_nan=False, allow_infinity=False),
            "hidden": st.integers(1, 10**18 - 1),
        },
    )
    .filter(lambda options: not (options.get("flag") and options.get("rate", 0) < 0))
    .map(demo_atom)
)


def chains(terms):
    """Texts of chains of terms, each with the list of its layers."""

    def repeated(drawn):
        (text, layers), count = drawn
        return (f"{text} * {count}", layers * count) if count else (text, layers)

    def joined(drawn):
        texts, layers = zip(*drawn, strict=True)
        return "-".join(texts), list(itertools.chain(*layers))

    counts = st.sampled_from([None, None, 1, 2, 3])
    return st.lists(st.tuples(terms, counts).map(repeated), min_size=1, max_size=4).map(joined)


def in_brackets(drawn):
    text, layers = drawn
    return f"({text})", layers


FORMULAS = chains(
    st.recursive(
        PLAIN_ATOMS | DEMO_ATOMS, lambda terms: chains(terms).map(in_brackets), max_leaves=12
    )
).filter(lambda drawn: len(drawn[0]) <= 2_000 and len(drawn[1]) <= MAX_LAYERS)


@given(FORMULAS)
def test_any_formula(drawn):
    text, layers = drawn
    formula = Formula(text)
    assert [layer for layer, count in formula.blocks for _ in range(count)] == layers
    assert len(formula) == len(layers)
    assert all(a != b for (a, _), (b, _) in itertools.pairwise(formula.blocks))
    canonical = str(formula)
    assert re.fullmatch(r"[-a-z0-9_*(),=.+]+", canonical)
    assert Formula(canonical) == formula
    assert hash(Formula(canonical)) == hash(formula)
    assert str(Formula(canonical)) == canonical
    assert pickle.loads(pickle.dumps(formula)) == formula
    assert Formula(text.upper()) == formula


@given(FORMULAS, st.data())
def test_any_change_of_a_formula(drawn, data):
    text = drawn[0]
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, len(text)))
        removed = data.draw(st.integers(0, 2))
        added = data.draw(st.one_of(st.sampled_from(["", *TOKENS]), st.characters()))
        text = text[:at] + added + text[at + removed :]
    check_any_text(text)


def count_calls(text):
    """Calls of Python and C functions that it takes to read the text or to refuse it."""
    calls = 0

    def count(frame, event, argument):
        nonlocal calls
        calls += event in ("call", "c_call")

    sys.setprofile(count)
    try:
        Formula(text)
    except FormulaError:
        pass
    finally:
        sys.setprofile(None)
    return calls


@pytest.mark.parametrize(
    ("before", "repeated", "after"),
    [
        ("", "loc-", "loc"),
        ("", "planar-radial-", "loc"),
        ("", "(planar-radial)*2-", "loc"),
        ("", "(planar-radial)*2-loc-", "loc"),
        ("", "loc-", "panar"),
        ("", "loc-", "-loc"),
        ("(" * 32, "loc-", "loc" + ")*1" * 32),
        ("(" * 31, "(planar-radial)*2-loc-", "loc" + ")*1-hh" * 31),
        ("", "demo(hidden=2,rate=1e9,kind=b)-", "loc"),
        ("demo(", "hidden=2,", ")"),
        ("demo(rate=", "1", "x)"),
        ("demo(hidden=", "0", "1)"),
        ("hh*", "9", "-loc"),
        ("hh*", "0", "1"),
        ("loc", " ", "-"),
        ("", "planar", ""),
        ("", "(", ""),
        ("", ")", ""),
    ],
)
def test_the_time_to_read_is_linear(before, repeated, after):
    few, many = (
        count_calls(before + repeated * (length // len(repeated)) + after)
        for length in (450, 3_600)
    )
    assert few > 0
    assert many <= 8.5 * few


def test_a_text_of_any_length_is_refused_at_once():
    assert count_calls("loc-" * 10**6) < 100

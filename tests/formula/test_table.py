import re
from xml.etree import ElementTree

import pytest

from formula_cases import Demo
from pymc_flows.errors import FlowShapeError
from pymc_flows.flows import Householder, Loc, Planar, Scale
from pymc_flows.formula import Formula
from pymc_flows.formula.registry import FLOWS, register_flow


@pytest.fixture(scope="module", autouse=True)
def _demo():
    register_flow(Demo)
    yield
    del FLOWS["demo"]


def cells(line):
    return re.split("   *", line.strip())


def test_repr():
    title, *table, footer = repr(Formula("Scale-(planar*2-demo(hidden=3))*2-hh*4-loc")).split("\n")
    assert title == "Formula('scale-(planar*2-demo(hidden=3))*2-hh*4-loc')"
    assert [cells(line) for line in table] == [
        ["block", "map", "parameters"],
        ["scale", Scale.equation, "d"],
        ["planar*2", Planar.equation, "2·(2d+1)"],
        ["demo(hidden=3)", "z & <z>", "3d+1"],
        ["planar*2", Planar.equation, "2·(2d+1)"],
        ["demo(hidden=3)", "z & <z>", "3d+1"],
        ["hh*4", Householder.equation, "4·d"],
        ["loc", Loc.equation, "d"],
    ]
    assert footer == "layers: 12, parameters: 20d+6"


def test_table():
    table = Formula("demo(hidden=2)*200-demo").table(3)
    assert str(table).split("\n") == [
        "Formula('demo(hidden=2)*200-demo'), d = 3",
        "  block               map      parameters  note",
        "  demo(hidden=2)*200  z & <z>  1,400       lost in space",
        "  demo                z & <z>  49          lost in space",
        "layers: 201, parameters: 1,449",
    ]
    assert repr(table) == str(table)


def test_a_layer_without_a_note_has_an_empty_cell():
    table = Formula("demo-planar").table(3)
    assert table.header == ("block", "map", "parameters", "note")
    assert table.rows == (
        ("demo", "z & <z>", "49", "lost in space"),
        ("planar", Planar.equation, "7", ""),
    )
    assert str(table).split("\n")[3].endswith("7")


def test_a_table_without_notes_has_no_column_for_them():
    table = Formula("demo(hidden=2)").table(4)
    assert table.header == ("block", "map", "parameters")
    assert table.rows == (("demo(hidden=2)", "z & <z>", "9"),)


def test_the_table_says_that_a_reflection_cannot_learn_in_one_dimension():
    assert "gradient is zero" in str(Formula("hh*4").table(1))
    assert "gradient" not in str(Formula("hh*4").table(2))


@pytest.mark.parametrize("dim", [0, -1, 2.0, "2", None])
def test_a_table_needs_a_dimension(dim):
    with pytest.raises(FlowShapeError, match="dim must be an integer of at least 1, got"):
        Formula("loc").table(dim)


@pytest.mark.parametrize(
    ("n_params", "layer", "block", "total"),
    [
        (lambda d: 0, "0", "3·0", "0"),
        (lambda d: 4, "4", "3·4", "12"),
        (lambda d: d - 1, "d-1", "3·(d-1)", "3d-3"),
        (lambda d: 5 - d, "-d+5", "3·(-d+5)", "-3d+15"),
        (lambda d: d * d, "d²", "3·d²", "3d²"),
        (lambda d: 2 * d * d - 3 * d + 1, "2d²-3d+1", "3·(2d²-3d+1)", "6d²-9d+3"),
        (lambda d: d * (d + 1) // 2, "(d²+d)/2", "3·((d²+d)/2)", "(3d²+3d)/2"),
        # A parabola fits three points of any of these.
        (lambda d: d**3, *["varies with d"] * 3),
        (lambda d: d // 2, *["varies with d"] * 3),
        (lambda d: d + (d > 30), *["varies with d"] * 3),
    ],
)
def test_numbers_of_parameters_as_expressions(monkeypatch, n_params, layer, block, total):
    monkeypatch.setattr(Demo, "param_shapes", lambda self, dim: {"w": (n_params(dim),)})
    once, thrice = (repr(Formula(text)).split("\n") for text in ("demo", "demo*3"))
    assert once[2].split("  ")[-1] == layer
    assert once[3] == f"layers: 1, parameters: {layer}"
    assert thrice[2].split("  ")[-1] == block
    assert thrice[3] == f"layers: 3, parameters: {total}"


def test_a_layer_that_refuses_a_dimension_still_has_a_repr(monkeypatch):
    def even_only(self, dim):
        if dim % 2:
            raise FlowShapeError("dim must be even")
        return {"w": (dim,)}

    monkeypatch.setattr(Demo, "param_shapes", even_only)
    assert repr(Formula("loc-demo")).endswith("layers: 2, parameters: varies with d")
    assert "parameters: 4" in str(Formula("demo").table(4))
    with pytest.raises(FlowShapeError, match="dim must be even"):
        Formula("demo").table(3)


@pytest.mark.parametrize("view", [lambda formula: formula, lambda formula: formula.table(3)])
def test_html_has_the_same_text_and_no_colours(view):
    shown = view(Formula("loc-demo*2"))
    markup = shown._repr_html_()
    assert "color" not in markup
    # Well-formed, and so escaped: the equation of demo is no markup.
    content = list(ElementTree.fromstring(f"<div>{markup}</div>").itertext())
    assert "z & <z>" in content
    assert "".join(content).replace(" ", "") == re.sub(r"\s", "", repr(shown))


def test_a_long_table_is_shown_without_its_middle():
    formula = Formula("(loc-scale)*1000-hh")
    lines = repr(formula).split("\n")
    assert len(lines) == 2 + 12 + 1 + 12 + 1
    assert lines[14] == "  ... 1,977 more ..."
    assert lines[2].startswith("  loc")
    assert lines[-2].startswith("  hh")
    assert lines[-1] == "layers: 2,001, parameters: 2001d"
    assert len(formula.table(2).rows) == 2_001
    assert formula._repr_html_().count("<tr>") == 1 + 12 + 1 + 12

import dataclasses
from dataclasses import dataclass, field
from typing import ClassVar

import pytest

from formula_cases import Demo
from pymc_flows import flows
from pymc_flows.errors import RegistrationError
from pymc_flows.flows import Flow
from pymc_flows.formula.registry import _CONTRACT, FLOWS, option_types, register_flow


@pytest.fixture(autouse=True)
def _restore_flows():
    before = dict(FLOWS)
    yield
    FLOWS.clear()
    FLOWS.update(before)


def make(name="Other", fields=(), bases=(Demo,), frozen=True, **attributes):
    """A dataclass with the given fields; with its defaults a flow that can be registered."""
    attributes = {"word": "other", "__module__": __name__, **attributes}
    return dataclasses.make_dataclass(
        name, fields, bases=bases, namespace=attributes, frozen=frozen
    )


def test_the_flows_of_the_package_are_registered():
    public = [getattr(flows, name) for name in flows.__all__]
    expected = {thing.word: thing for thing in public if hasattr(thing, "word")}
    assert {"hh", "loc", "nvp", "planar", "radial", "scale"} < set(expected)
    assert FLOWS == expected


def test_the_contract_is_that_of_flow():
    members = {name for name in {**vars(Flow), **Flow.__annotations__} if name[0] != "_"}
    assert set(_CONTRACT) == members - {"word"}


def test_register_flow_is_a_decorator():
    assert register_flow(Demo) is Demo
    assert FLOWS["demo"] is Demo
    assert option_types(Demo) == {"hidden": int, "rate": float, "flag": bool, "kind": str}


def test_annotations_may_be_text():
    cls = make(fields=[("depth", "int", 3), ("slope", "float", 1)])
    assert list(option_types(register_flow(cls)).items())[-2:] == [("depth", int), ("slope", float)]


def test_the_same_class_defined_again_replaces_the_first():
    first, second = make(), make()
    register_flow(first)
    register_flow(second)
    assert FLOWS["other"] is second is not first


def test_a_word_belongs_to_one_class():
    register_flow(make("First"))
    with pytest.raises(RegistrationError, match=r"'other' of .*\.Second belongs to .*\.First"):
        register_flow(make("Second"))
    assert FLOWS["other"].__name__ == "First"


@pytest.mark.parametrize(
    "word", ["Loc", "", "2x", "_x", "a-b", "a b", "true", "false", "é", 3, None]
)
def test_a_word_that_no_formula_can_name(word):
    with pytest.raises(RegistrationError, match="must be a lower-case name"):
        register_flow(make(word=word))


@pytest.mark.parametrize("word", ["x", "x2", "true_", "falsehood", "a_b"])
def test_a_word_that_a_formula_can_name(word):
    assert FLOWS[register_flow(make(word=word)).word].word == word


@pytest.mark.parametrize("thing", ["planar", 3, None, make()()])
def test_only_classes_can_be_registered(thing):
    with pytest.raises(RegistrationError, match="expects a class"):
        register_flow(thing)


def test_missing_members_are_named():
    with pytest.raises(RegistrationError, match=r"Other lacks constrain, .*, reference_params of"):
        register_flow(make(bases=()))


def test_abstract_members_are_named():
    with pytest.raises(RegistrationError, match="constrain"):
        register_flow(make(bases=(Flow,), equation="z"))


def test_a_class_must_be_frozen_and_compared_by_value():
    class Plain(Demo):
        """Inherits the dataclass machinery of Demo, but its own fields are none."""

        word: ClassVar[str] = "plain"
        depth: int = 3

    @dataclass(frozen=True, eq=False)
    class ByIdentity(Demo):
        word: ClassVar[str] = "by_identity"

    for cls in (Plain, ByIdentity):
        with pytest.raises(RegistrationError, match="must be a dataclass with frozen=True"):
            register_flow(cls)


def test_a_class_that_can_change_is_refused():
    members = {name: getattr(Demo, name) for name in _CONTRACT}
    with pytest.raises(RegistrationError, match="must be a dataclass with frozen=True"):
        register_flow(make(bases=(), frozen=False, **members))


@pytest.mark.parametrize(
    ("option", "message"),
    [
        (
            ("depth", list, field(default_factory=list)),
            "annotated with one of bool, ",
        ),
        (("depth", "int | None", None), "annotated with one of bool, "),
        (("depth", int | None, None), "annotated with one of bool, "),
        (("depth", int, field(default_factory=int)), "must have a default"),
        (("depth", int, field(default=1, init=False)), "must be a parameter of the constructor"),
        (("Depth", int, 1), "must have a lower-case name"),
        (("_depth", int, 1), "must have a lower-case name"),
        (("depth", int, 1.0), "must be int, got 1.0"),
        (("depth", int, True), "must be int, got True"),
        (("depth", bool, 1), "must be bool, got 1"),
        (("depth", float, "a"), "must be a finite float, got 'a'"),
        (("depth", float, float("nan")), "must be a finite float, got nan"),
        (("depth", float, float("inf")), "must be a finite float, got inf"),
        (("depth", str, "Big Word"), "must be a lower-case word, got 'Big Word'"),
        (("depth", str, "true"), "must be a lower-case word, got 'true'"),
        (("depth", str, 3), "must be a lower-case word, got 3"),
    ],
)
def test_a_field_that_no_formula_can_set(option, message):
    with pytest.raises(RegistrationError, match=message) as caught:
        register_flow(make(fields=[option]))
    assert f"option {option[0]!r} of {__name__}.Other" in str(caught.value)


def test_defaults_must_work():
    class Refusing:
        def __post_init__(self):
            raise ValueError("nothing suits me")

    with pytest.raises(RegistrationError, match=r"Other\(\) fails .*: nothing suits me"):
        register_flow(make(bases=(Refusing, Demo)))
    assert "other" not in FLOWS

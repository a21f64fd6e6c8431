"""Formulas that are read and formulas that are refused, and a flow with options of every type."""

from dataclasses import dataclass
from typing import ClassVar

from pymc_flows.flows import FLOWS, Flow


@dataclass(frozen=True)
class Demo(Flow):
    """A flow for tests of formulas: it has options and a size, and no map."""

    word: ClassVar[str] = "demo"
    equation: ClassVar[str] = "z & <z>"
    hidden: int = 16
    rate: float = 0.5
    flag: bool = False
    kind: str = "a"

    def __post_init__(self):
        if self.hidden < 1:
            raise ValueError(f"hidden must be at least 1,\n    got {self.hidden}")
        if self.kind == "narrow" and self.hidden > 8:
            raise ValueError(f"a narrow demo has at most 8 hidden units, got {self.hidden}")
        if self.flag and self.rate < 0:
            raise ValueError("flag needs a rate of at least 0")

    def param_shapes(self, dim):
        return {"b": (), "w": (self.hidden, dim)}

    def reference_params(self, dim, count, rng):
        raise NotImplementedError

    def constrain(self, raw):
        raise NotImplementedError

    def forward_and_log_det(self, z, params):
        raise NotImplementedError

    def note(self, dim):
        return "lost in space" if dim == 3 else ""


# Text, and the canonical text of the formula that it stands for.
GOOD = [
    ("loc", "loc"),
    ("Tril-Loc|LAPLACE ", "tril-loc | laplace"),
    ("(planar-radial)*2-scale-loc | laplace", "(planar-radial)*2-scale-loc | laplace"),
    ("scale-loc", "scale-loc"),
    ("scale-hh*100-loc", "scale-hh*100-loc"),
    ("planar*8", "planar*8"),
    (" Scale - HH * 2", "scale-hh*2"),
    ("\tscale\n-\r\nloc ", "scale-loc"),
    ("hh*1", "hh"),
    ("hh*007", "hh*7"),
    ("hh*" + "0" * 4_000 + "7", "hh*7"),
    ("planar-planar", "planar*2"),
    ("planar*2-planar-radial", "planar*3-radial"),
    ("(planar)", "planar"),
    ("(((planar*2))*3)*4", "planar*24"),
    ("(planar-radial)-loc", "planar-radial-loc"),
    ("(planar-radial)*1-loc", "planar-radial-loc"),
    ("planar-(planar-radial)", "planar*2-radial"),
    ("(planar-planar)*3", "planar*6"),
    ("(planar*2-radial)*3", "(planar*2-radial)*3"),
    ("((planar-radial)*2)*3", "(planar-radial)*6"),
    ("((planar-radial)*2-loc)*3", "((planar-radial)*2-loc)*3"),
    ("(planar-radial)*2-(planar-radial)*3", "(planar-radial)*5"),
    ("(planar-radial)*2-(radial-planar)*2", "(planar-radial)*2-(radial-planar)*2"),
    ("(planar-radial)*2-((planar-radial)*2-loc)", "(planar-radial)*4-loc"),
    ("hh*65536", "hh*65536"),
    ("(planar-radial)*32768", "(planar-radial)*32768"),
    ("(" * 32 + "loc" + ")" * 32, "loc"),
    ("(" * 32 + "loc" + ")*2" * 16 + ")" * 16, "loc*65536"),
    ("loc" + " " * 4_093, "loc"),
    ("demo(hidden=16)", "demo"),
    ("demo(hidden=32)", "demo(hidden=32)"),
    ("DEMO ( Hidden = 32 , RATE = 1 ) * 2", "demo(hidden=32,rate=1.0)*2"),
    ("demo(kind=B_2,flag=TRUE,rate=2,hidden=3)", "demo(hidden=3,rate=2.0,flag=true,kind=b_2)"),
    ("demo(flag=False,kind=a,rate=.5)", "demo"),
    ("demo(hidden=" + "0" * 4_000 + "7)", "demo(hidden=7)"),
    ("demo(hidden=999999999999999999)", "demo(hidden=999999999999999999)"),
    ("demo(rate=-1.5E-3)", "demo(rate=-0.0015)"),
    ("demo(rate=- 1.)", "demo(rate=-1.0)"),
    ("demo(rate=1e16)", "demo(rate=1e+16)"),
    ("demo(rate=1e+16)", "demo(rate=1e+16)"),
    ("demo(rate=-0)", "demo(rate=0.0)"),
    ("demo(rate=" + "1" * 25 + ")", "demo(rate=1.1111111111111111e+24)"),
    ("demo(kind=narrow,hidden=8)", "demo(hidden=8,kind=narrow)"),
    ("demo(hidden=2)-demo(hidden=2)-demo(hidden=3)", "demo(hidden=2)*2-demo(hidden=3)"),
]

FLOWS_LIST = f"Known flows: {', '.join(sorted({*FLOWS, 'demo'}))}."
STEP_HINT = f"A step is a flow, or a chain in brackets, such as 'hh*4'. {FLOWS_LIST}"
COUNT_HINT = "Write how often to repeat as a whole number of at least 1, such as 'planar*8'."
LAYERS = "the formula has more than 65,536 layers"
LAYERS_HINT = "All repeats together may give at most 65,536 layers; use smaller counts."
DASH_HINT = "Join layers with dashes, such as 'scale-loc'."
CLOSE_HINT = "Separate options with commas and close with ')'."
DEMO_HINT = "Options of demo (with defaults): hidden=16, rate=0.5, flag=false, kind=a."
BAR_HINT = "Write 'tril-loc | laplace': a flow over hyperparameters, and the field given them."
SIGNS_HINT = "A formula is made of names, numbers, spaces and the signs - * ( ) , = | only."


def bad_count(got):
    return f"the count must be a whole number of at least 1, got {got}"


# Text with the place of the error between < and >, the message, and the hint.
BAD = [
    ("<>", "the formula is empty", f"Name at least one flow. {FLOWS_LIST}"),
    ("< \t >", "the formula is empty", f"Name at least one flow. {FLOWS_LIST}"),
    # flows
    ("scale-<panar>*2-loc", "unknown flow 'panar'", f"Did you mean 'planar'? {FLOWS_LIST}"),
    ("<PLANER>", "unknown flow 'PLANER'", f"Did you mean 'planar'? {FLOWS_LIST}"),
    ("<scalehh>-\x20loc", "unknown flow 'scalehh'", f"Did you mean 'scale'? {FLOWS_LIST}"),
    ("loc-<_>", "unknown flow '_'", FLOWS_LIST),
    (
        "<auto>",
        "unknown flow 'auto'",
        "'auto' is no flow: pymc_flows.fit(formula='auto') tries several formulas in turn.",
    ),
    ("<true>", "unknown flow 'true'", FLOWS_LIST),
    (f"<{'z' * 50}>", f"unknown flow '{'z' * 37}...'", FLOWS_LIST),
    ("(planar-<oops>(hidden=1))*2", "unknown flow 'oops'", FLOWS_LIST),
    # dashes
    ("scale-<->loc", "expected a flow, found '-'", STEP_HINT),
    ("<->scale", "expected a flow, found '-'", STEP_HINT),
    ("scale<->", "expected a flow after '-'", STEP_HINT),
    ("scale <-> \n", "expected a flow after '-'", STEP_HINT),
    ("(scale<->)*2", "expected a flow after '-'", STEP_HINT),
    ("(<->scale)", "expected a flow, found '-'", STEP_HINT),
    ("scale <loc>", "expected '-', found 'loc'", DASH_HINT),
    ("(scale <loc>)", "expected '-' or ')', found 'loc'", DASH_HINT),
    ("(scale)<(>loc)", "expected '-', found '('", DASH_HINT),
    ("hh*2 <loc>", "expected '-', found 'loc'", DASH_HINT),
    ("scale<,>loc", "expected '-', found ','", DASH_HINT),
    ("<2>*hh", "expected a flow, found '2'", STEP_HINT),
    ("hh-<*>2", "expected a flow, found '*'", STEP_HINT),
    # the field behind the bar
    ("<|>laplace", "expected a flow, found '|'", STEP_HINT),
    ("tril-loc <|>", "expected a word after '|'", BAR_HINT),
    ("tril-loc | <laplac>", "unknown family 'laplac' of the field", BAR_HINT),
    ("tril-loc | <2>", "expected a word, found '2'", BAR_HINT),
    ("tril-loc | laplace <|> laplace", "expected the end, found '|'", BAR_HINT),
    ("tril-(loc <|> laplace)", "expected '-' or ')', found '|'", DASH_HINT),
    # counts
    ("hh*<0>", bad_count("'0'"), COUNT_HINT),
    ("hh*<000>-loc", bad_count("'000'"), COUNT_HINT),
    ("hh*<-2>", bad_count("'-2'"), COUNT_HINT),
    ("hh*<- 2>-loc", bad_count("'- 2'"), COUNT_HINT),
    ("hh*<2.5>", bad_count("'2.5'"), COUNT_HINT),
    ("hh*<2.>", bad_count("'2.'"), COUNT_HINT),
    ("hh*<1e3>", bad_count("'1e3'"), COUNT_HINT),
    ("hh*<2x>-loc", bad_count("'2x'"), COUNT_HINT),
    ("hh*<1_000>", bad_count("'1_000'"), COUNT_HINT),
    ("hh*<1.2.3>", bad_count("'1.2.3'"), COUNT_HINT),
    (f"hh*<{'1' * 50}x>", bad_count(f"'{'1' * 37}...'"), COUNT_HINT),
    ("hh<*>", "expected a count after '*'", COUNT_HINT),
    ("(hh<*>)", "expected a count after '*'", COUNT_HINT),
    ("hh*<->loc", "expected a count, found '-'", COUNT_HINT),
    ("hh*<*>2", "expected a count, found '*'", COUNT_HINT),
    ("hh*<two>", "expected a count, found 'two'", COUNT_HINT),
    (
        "hh*2<*>3",
        "the step has a count already",
        "Multiply the two counts into one: 'hh*6' for 'hh*2*3'.",
    ),
    # limits
    ("hh*<65537>", LAYERS, LAYERS_HINT),
    ("hh*<1000000000>", LAYERS, LAYERS_HINT),
    (f"hh*<{'9' * 4_000}>-loc", LAYERS, LAYERS_HINT),
    ("(planar*300)*<300>-loc", LAYERS, LAYERS_HINT),
    (f"{'(' * 3}loc*300)*200)*<2>)*{'9' * 30}", LAYERS, LAYERS_HINT),
    ("hh*65536-<loc>-planar", LAYERS, LAYERS_HINT),
    ("hh*65536-<loc*5>-planar", LAYERS, LAYERS_HINT),
    ("(planar-radial)*<32769>", LAYERS, LAYERS_HINT),
    (
        f"{'(' * 32}<(>loc{')' * 33}",
        "brackets are nested more than 32 deep",
        "Remove brackets that are not repeated.",
    ),
    (
        f"{'(' * 32}<(>{'(' * 4_000}",
        "brackets are nested more than 32 deep",
        "Remove brackets that are not repeated.",
    ),
    (
        f"{'loc-' * 1_024}<loc>",
        "the formula is longer than the limit of 4,096 characters",
        "Write repeats with a count, such as 'planar*8' or '(planar-radial)*8'.",
    ),
    (
        f"<{'demo(rate=1e15)-loc-' * 200}loc>",
        "the canonical form is longer than the limit of 4,096 characters",
        "It writes numbers out, 1e9 as 1000000000.0; use fewer steps with options.",
    ),
    # brackets
    ("<(>scale-loc", "the bracket is never closed", "Add the missing ')'."),
    ("scale-<(>(planar-radial)*2-loc", "the bracket is never closed", "Add the missing ')'."),
    ("scale-loc<)>", "the bracket was never opened", "Remove it or add a '('."),
    ("(loc)<)>*2", "the bracket was never opened", "Remove it or add a '('."),
    ("<)>", "expected a flow, found ')'", STEP_HINT),
    ("<(>)", "expected a flow after '('", STEP_HINT),
    ("<(>", "expected a flow after '('", STEP_HINT),
    # options
    ("demo(<hiden>=3)", "unknown option 'hiden' of demo", f"Did you mean 'hidden'? {DEMO_HINT}"),
    ("loc(<Hidden>=3)", "unknown option 'Hidden' of loc", "loc has no options."),
    ("demo(<planar>)", "unknown option 'planar' of demo", DEMO_HINT),
    ("demo<(>)", "expected an option after '('", DEMO_HINT),
    ("loc<(>)", "expected an option after '('", "loc has no options."),
    ("demo(hidden=3<,>)", "expected an option after ','", DEMO_HINT),
    ("demo(<3>)", "expected an option, found '3'", DEMO_HINT),
    ("demo(<,>hidden=3)", "expected an option, found ','", DEMO_HINT),
    ("demo(<hidden>)", "expected '=' after 'hidden'", DEMO_HINT),
    ("demo(<hidden3>)", "unknown option 'hidden3' of demo", f"Did you mean 'hidden'? {DEMO_HINT}"),
    ("demo(hidden <3>)", "expected '=', found '3'", DEMO_HINT),
    ("demo(hidden<=>)", "expected a value after '='", DEMO_HINT),
    ("demo(hidden<=>", "expected a value after '='", DEMO_HINT),
    ("demo(hidden=<,>rate=1)", "expected a value, found ','", DEMO_HINT),
    ("demo(hidden=<(>3))", "expected a value, found '('", DEMO_HINT),
    ("demo(rate=<->)", "expected a number after '-'", DEMO_HINT),
    ("demo(rate=-<->1)", "expected a number, found '-'", DEMO_HINT),
    ("demo(rate=-<kind>)", "expected a number, found 'kind'", DEMO_HINT),
    ("demo(hidden=3,<HIDDEN>=4)", "option 'hidden' of demo is given twice", "Keep one of the two."),
    ("demo<(>hidden=3", "the bracket is never closed", "Add the missing ')'."),
    ("(demo<(>hidden=3", "the bracket is never closed", "Add the missing ')'."),
    ("demo(hidden=3 <rate>=1)", "expected ',' or ')', found 'rate'", CLOSE_HINT),
    ("demo(hidden=3<->loc", "expected ',' or ')', found '-'", CLOSE_HINT),
    *[
        (
            f"demo({option}=<{value}>)-loc",
            f"option {option!r} of demo takes {expected}, got {value!r}",
            DEMO_HINT,
        )
        for option, expected, values in [
            (
                "hidden",
                "an integer (at most 18 digits)",
                ["2.5", "1e3", "2.", "true", "Wide", "2x", "1" + "0" * 18, "-1" + "0" * 18],
            ),
            ("rate", "a finite number", ["true", "nan", "inf", "1e999", "-1e999", "1.2.3", "1_0"]),
            ("flag", "true or false", ["1", "0", "yes", "-1"]),
            ("kind", "a word", ["1", "-0.5", "True", "false", "_a"]),
        ]
        for value in values
    ],
    # what the layer itself refuses
    ("demo(rate=1,<hidden=-1>)", "demo: hidden must be at least 1, got -1", DEMO_HINT),
    ("loc-demo( <HIDDEN = - 1> )*2", "demo: hidden must be at least 1, got -1", DEMO_HINT),
    (
        "loc-demo(rate=1,<kind=narrow>)",
        "demo: a narrow demo has at most 8 hidden units, got 16",
        DEMO_HINT,
    ),
    (
        "loc-<demo(hidden=9,kind=narrow)>",
        "demo: a narrow demo has at most 8 hidden units, got 9",
        DEMO_HINT,
    ),
    ("loc-<demo(rate=-1,flag=true)>*2", "demo: flag needs a rate of at least 0", DEMO_HINT),
    # characters
    ("a<\x00>b", r"unexpected character '\x00'", SIGNS_HINT),
    ("panar-loc<\x00>", r"unexpected character '\x00'", SIGNS_HINT),
    ("hh<+>loc", "unexpected character '+'", SIGNS_HINT),
    ("hh*2<\x0c>", r"unexpected character '\x0c'", SIGNS_HINT),
    ("scale<.>loc", "unexpected character '.'", SIGNS_HINT),
    ("demo(kind=<'>b')", 'unexpected character "\'"', SIGNS_HINT),
    ("scale<–>loc", "unexpected character '–' (U+2013 EN DASH)", "Did you mean '-'?"),
    ("hh<×>2", "unexpected character '×' (U+00D7 MULTIPLICATION SIGN)", "Did you mean '*'?"),
    (
        "hh*<\uff12>",
        "unexpected character '\uff12' (U+FF12 FULLWIDTH DIGIT TWO)",
        "Did you mean '2'?",
    ),
    ("hh*<٣>", "unexpected character '٣' (U+0663 ARABIC-INDIC DIGIT THREE)", SIGNS_HINT),
    (
        "scale<\xa0>-loc",
        r"unexpected character '\xa0' (U+00A0 NO-BREAK SPACE)",
        "Did you mean ' '?",
    ),
    ("scal<é>", "unexpected character 'é' (U+00E9 LATIN SMALL LETTER E WITH ACUTE)", SIGNS_HINT),
    (
        "LOC-<İ>",
        "unexpected character 'İ' (U+0130 LATIN CAPITAL LETTER I WITH DOT ABOVE)",
        SIGNS_HINT,
    ),
    ("loc<\ud800>", r"unexpected character '\ud800' (U+D800 unnamed)", SIGNS_HINT),
]

"""From the text of a formula to its tree, by recursive descent over a list of tokens.

Python's own parser would not do, although most formulas are Python expressions: it marks errors at
other places, and refuses leading zeros. Characters that no formula has are refused first. Any other
error marks the token that cannot stand where it is. If something is missing at the end of the text
or before a closing bracket, it marks the token that needs it, such as the dash of ``scale-``.
"""

import dataclasses
import difflib
import math
import re
import unicodedata
from typing import Any, NamedTuple

from pymc_flows.errors import FormulaError
from pymc_flows.formula.registry import FLOWS, WORD, OptionType, option_types
from pymc_flows.formula.steps import Group, Step, append, chain_text, repeat, value_text

# What may follow "|": families of the field given the hyperparameters.
CONDITIONALS = ("laplace",)
MAX_CHARACTERS = 4_096
MAX_NESTING = 32
MAX_LAYERS = 65_536

# Character classes are spelled out because case folding and \d would let other alphabets in.
_NUMBER = r"(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][+-]?[0-9]+)?"
_FLOAT = re.compile(f"-?{_NUMBER}")
_INTEGER = re.compile(r"(-?)0*([0-9]{1,18})")
# A number includes what follows it directly, so that an error marks all of '2.5.1' or '2x'.
_TOKEN = re.compile(
    r"(?P<space>[ \t\r\n]+)"
    r"|(?P<name>[A-Za-z_][A-Za-z0-9_]*)"
    rf"|(?P<number>{_NUMBER}[A-Za-z0-9_.]*)"
    r"|(?P<sign>[-*(),=|])"
)
_EXPECTED_VALUE: dict[OptionType, str] = {
    bool: "true or false",
    float: "a finite number",
    int: "an integer (at most 18 digits)",
    str: "a word",
}
_LOOKALIKES = dict.fromkeys("\u2010\u2011\u2012\u2013\u2014\u2212", "-") | dict.fromkeys(
    "\u00b7\u00d7\u2217\u22c5", "*"
)
_AUTO_HINT = "'auto' is no flow: pymc_flows.fit(formula='auto') tries several formulas in turn."
_CONDITIONAL_HINT = (
    "Write 'tril-loc | laplace': a flow over hyperparameters, and the field given them."
)
_COUNT_HINT = "Write how often to repeat as a whole number of at least 1, such as 'planar*8'."
_LAYERS_HINT = f"All repeats together may give at most {MAX_LAYERS:,} layers; use smaller counts."


class _Token(NamedTuple):
    kind: str  # "name", "number", "end", or the sign itself
    text: str
    start: int
    end: int


class _Option(NamedTuple):
    value: bool | float | str
    first: _Token
    last: _Token


def parse(source: object) -> tuple[tuple[Step | Group, ...], str | None]:
    """Parse a formula, in time linear in its length.

    Parameters
    ----------
    source : str
        The text of the formula.

    Returns
    -------
    chain : tuple of Step or Group
        In normal form: every group is repeated and has two steps or more, and no two neighbours
        repeat the same.
    conditional : str or None
        The word after "|".

    Raises
    ------
    FormulaError
        If the formula is malformed, names an unknown flow or option, or exceeds a limit.
    """
    if not isinstance(source, str):
        shown = f"<{type(source).__name__}>"
        hint = "Write the formula in quotes, such as 'scale-loc'."
        raise FormulaError(f"a formula must be a string, got {shown}", shown, 0, len(shown), hint)
    if len(source) > MAX_CHARACTERS:
        message = f"the formula is longer than the limit of {MAX_CHARACTERS:,} characters"
        hint = "Write repeats with a count, such as 'planar*8' or '(planar-radial)*8'."
        raise FormulaError(message, source, MAX_CHARACTERS, len(source), hint)
    chain, conditional = _Parser(source).formula()
    # The canonical form must parse, too, and numbers can be longer in it: 1e9 is 1000000000.0.
    if len(chain_text(chain)) > MAX_CHARACTERS:
        message = f"the canonical form is longer than the limit of {MAX_CHARACTERS:,} characters"
        hint = "It writes numbers out, 1e9 as 1000000000.0; use fewer steps with options."
        raise FormulaError(message, source, 0, len(source), hint)
    return chain, conditional


def _tokenize(source: str) -> list[_Token]:
    tokens = []
    position = 0
    while position < len(source):
        match = _TOKEN.match(source, position)
        if match is None:
            raise _unexpected_character(source, position)
        if match.lastgroup != "space":
            kind = match.group() if match.lastgroup == "sign" else str(match.lastgroup)
            tokens.append(_Token(kind, match.group(), position, match.end()))
        position = match.end()
    tokens.append(_Token("end", "", position, position))
    return tokens


def _unexpected_character(source: str, position: int) -> FormulaError:
    char = source[position]
    message = f"unexpected character {char!r}"
    if not char.isascii():
        message += f" (U+{ord(char):04X} {unicodedata.name(char, 'unnamed')})"
    meant = _LOOKALIKES.get(char, unicodedata.normalize("NFKC", char))
    if _TOKEN.fullmatch(meant):
        hint = f"Did you mean {meant!r}?"
    else:
        hint = "A formula is made of names, numbers, spaces and the signs - * ( ) , = | only."
    return FormulaError(message, source, position, position + 1, hint)


class _Parser:
    def __init__(self, source: str) -> None:
        self.source = source
        self.tokens = _tokenize(source)
        self.index = 0

    @property
    def token(self) -> _Token:
        return self.tokens[self.index]

    @property
    def previous(self) -> _Token:
        return self.tokens[self.index - 1]

    def advance(self) -> _Token:
        self.index += 1
        return self.previous

    def error(
        self, message: str, hint: str, first: _Token, last: _Token | None = None
    ) -> FormulaError:
        return FormulaError(message, self.source, first.start, (last or first).end, hint)

    def unexpected(self, expected: str, hint: str) -> FormulaError:
        if self.token.kind in ("end", ")") and self.index > 0:
            message = f"expected {expected} after {_quote(self.previous.text)}"
            return self.error(message, hint, self.previous)
        return self.error(f"expected {expected}, found {_quote(self.token.text)}", hint, self.token)

    def unclosed(self, opening: _Token) -> FormulaError:
        return self.error("the bracket is never closed", "Add the missing ')'.", opening)

    def formula(self) -> tuple[tuple[Step | Group, ...], str | None]:
        if self.token.kind == "end":
            hint = f"Name at least one flow. {_known_flows()}"
            raise FormulaError("the formula is empty", self.source, 0, len(self.source), hint)
        chain = self.chain(depth=0)
        conditional = None
        if self.token.kind == "|":
            self.advance()
            conditional = self.conditional()
        if self.token.kind == ")":
            raise self.error("the bracket was never opened", "Remove it or add a '('.", self.token)
        if self.token.kind != "end":
            if conditional is not None:
                raise self.unexpected("the end", _CONDITIONAL_HINT)
            raise self.unexpected("'-'", "Join layers with dashes, such as 'scale-loc'.")
        return chain, conditional

    def conditional(self) -> str:
        word = self.token.text.lower()
        if self.token.kind != "name":
            raise self.unexpected("a word", _CONDITIONAL_HINT)
        if word not in CONDITIONALS:
            message = f"unknown family {_quote(self.token.text)} of the field"
            raise self.error(message, _CONDITIONAL_HINT, self.token)
        self.advance()
        return word

    def chain(self, depth: int) -> tuple[Step | Group, ...]:
        chain: list[Step | Group] = []
        n_layers = 0
        while True:
            first = self.token
            term = self.term(depth)
            n_layers += sum(map(len, term))
            if n_layers > MAX_LAYERS:
                raise self.too_many_layers(first, self.previous)
            for step in term:
                append(chain, step)
            if self.token.kind != "-":
                return tuple(chain)
            self.advance()

    def term(self, depth: int) -> tuple[Step | Group, ...]:
        atom = self.group(depth) if self.token.kind == "(" else (Step(self.layer(), 1),)
        if self.token.kind != "*":
            return atom
        self.advance()
        count = self.count(limit=MAX_LAYERS // sum(map(len, atom)))
        if self.token.kind == "*":
            hint = "Multiply the two counts into one: 'hh*6' for 'hh*2*3'."
            raise self.error("the step has a count already", hint, self.token)
        return repeat(atom, count)

    def group(self, depth: int) -> tuple[Step | Group, ...]:
        opening = self.token
        if depth == MAX_NESTING:
            message = f"brackets are nested more than {MAX_NESTING} deep"
            raise self.error(message, "Remove brackets that are not repeated.", opening)
        self.advance()
        chain = self.chain(depth + 1)
        if self.token.kind == "end":
            raise self.unclosed(opening)
        if self.token.kind != ")":
            raise self.unexpected("'-' or ')'", "Join layers with dashes, such as 'scale-loc'.")
        self.advance()
        return chain

    def count(self, limit: int) -> int:
        first = self.token
        if first.kind == "-" and self.tokens[self.index + 1].kind == "number":
            self.advance()
        if self.token.kind != "number":
            raise self.unexpected("a count", _COUNT_HINT)
        last = self.advance()
        # int() refuses numbers with thousands of digits, so their length is checked first.
        digits = last.text.lstrip("0")
        if first is not last or not last.text.isdigit() or not digits:
            text = self.source[first.start : last.end]
            message = f"the count must be a whole number of at least 1, got {_quote(text)}"
            raise self.error(message, _COUNT_HINT, first, last)
        if len(digits) > len(str(limit)) or int(digits) > limit:
            raise self.too_many_layers(last, last)
        return int(digits)

    def too_many_layers(self, first: _Token, last: _Token) -> FormulaError:
        message = f"the formula has more than {MAX_LAYERS:,} layers"
        return self.error(message, _LAYERS_HINT, first, last)

    def layer(self) -> Any:
        name = self.token
        if name.kind != "name":
            hint = f"A step is a flow, or a chain in brackets, such as 'hh*4'. {_known_flows()}"
            raise self.unexpected("a flow", hint)
        word = name.text.lower()
        if word not in FLOWS:
            hint = _AUTO_HINT if word == "auto" else _did_you_mean(word, FLOWS) + _known_flows()
            raise self.error(f"unknown flow {_quote(name.text)}", hint, name)
        self.advance()
        cls = FLOWS[word]
        options = self.options(cls) if self.token.kind == "(" else {}
        try:
            return cls(**{key: option.value for key, option in options.items()})
        except ValueError as error:
            first, last = _culprit(cls, options, error) or (name, self.previous)
            message = f"{word}: {' '.join(str(error).split())}"
            raise self.error(message, _options_hint(cls), first, last) from error

    def options(self, cls: type[Any]) -> dict[str, _Option]:
        types = option_types(cls)
        options: dict[str, _Option] = {}
        opening = self.token
        while not options or self.token.kind == ",":
            self.advance()
            key = self.token
            if key.kind != "name":
                raise self.unexpected("an option", _options_hint(cls))
            name = key.text.lower()
            if name not in types:
                hint = _did_you_mean(name, types) + _options_hint(cls)
                raise self.error(f"unknown option {_quote(key.text)} of {cls.word}", hint, key)
            if name in options:
                message = f"option {name!r} of {cls.word} is given twice"
                raise self.error(message, "Keep one of the two.", key)
            self.advance()
            if self.token.kind != "=":
                raise self.unexpected("'='", _options_hint(cls))
            self.advance()
            options[name] = self.option(cls, key, types[name])
        if self.token.kind == "end":
            raise self.unclosed(opening)
        if self.token.kind != ")":
            raise self.unexpected("',' or ')'", "Separate options with commas and close with ')'.")
        self.advance()
        return options

    def option(self, cls: type[Any], key: _Token, kind: OptionType) -> _Option:
        first = self.token
        negative = first.kind == "-"
        if negative:
            self.advance()
        if self.token.kind != "number" and (negative or self.token.kind != "name"):
            raise self.unexpected("a number" if negative else "a value", _options_hint(cls))
        last = self.advance()
        text = "-" * negative + last.text.lower()
        value = _convert(text, kind)
        if value is None:
            expected = f"option {key.text.lower()!r} of {cls.word} takes {_EXPECTED_VALUE[kind]}"
            got = _quote(self.source[first.start : last.end])
            raise self.error(f"{expected}, got {got}", _options_hint(cls), first, last)
        return _Option(value, key, last)


def _convert(text: str, kind: OptionType) -> bool | float | str | None:
    """Value of an option, or None where the text is not of the kind."""
    if kind is bool:
        return {"true": True, "false": False}.get(text)
    if kind is int:
        integer = _INTEGER.fullmatch(text)
        return int(integer[1] + integer[2]) if integer else None
    if kind is float:
        # Adding zero turns -0.0 into 0.0: equal values must have the same text.
        number = float(text) + 0.0 if _FLOAT.fullmatch(text) else math.nan
        return number if math.isfinite(number) else None
    return text if WORD.fullmatch(text) else None


def _culprit(
    cls: type[Any], options: dict[str, _Option], error: ValueError
) -> tuple[_Token, _Token] | None:
    """Find the option that fails with the same message when given alone."""
    for name, option in options.items():
        try:
            cls(**{name: option.value})
        except ValueError as alone:
            if str(alone) == str(error):
                return option.first, option.last
    return None


def _quote(text: str) -> str:
    return repr(text if len(text) <= 40 else text[:37] + "...")


def _did_you_mean(word: str, known: dict[str, Any]) -> str:
    matches = difflib.get_close_matches(word, known, n=1)
    return f"Did you mean {matches[0]!r}? " if matches else ""


def _known_flows() -> str:
    return f"Known flows: {', '.join(sorted(FLOWS))}."


def _options_hint(cls: type[Any]) -> str:
    fields = dataclasses.fields(cls)
    if not fields:
        return f"{cls.word} has no options."
    return (
        f"Options of {cls.word} (with defaults): "
        + ", ".join(f"{field.name}={value_text(field.default)}" for field in fields)
        + "."
    )

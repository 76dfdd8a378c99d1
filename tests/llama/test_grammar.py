"""llama.cpp's grammars on tokens: what they allow, and what is said about broken ones."""

from __future__ import annotations

import gc
import json
from collections.abc import Callable, Iterator
from pathlib import Path

import jsonschema
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from capt_local.decoding.json_schema import grammar_of
from capt_local.engine.grammar import Grammar, check_grammar
from capt_local.engine.weights import Weights
from capt_local.errors import UsageError

CANARY = "zyzzyva"


@pytest.fixture(scope="module")
def weights(tiny_path: Callable[..., Path]) -> Iterator[Weights]:
    with Weights(tiny_path(), vocabulary_only=True) as opened:
        yield opened


def takes(weights: Weights, grammar: str, text: str, lead: bytes = b"") -> bool:
    """Whether a text is one of the grammar, byte by byte."""
    held = Grammar(weights, grammar, lead)
    for byte in text.encode():
        token = weights.vocabulary.byte_ids[byte]
        if not held.allowed([token])[0]:
            return False
        held.accept(token)
    return held.complete


def test_a_choice_allows_its_beginnings_and_then_the_end(weights: Weights) -> None:
    grammar = 'root ::= "yes" | "no"'
    assert [takes(weights, grammar, text) for text in ("yes", "no", "ye", "not", "")] == [
        True, True, False, False, False,
    ]  # fmt: skip
    held = Grammar(weights, grammar)
    ends = weights.vocabulary.end_ids.tolist()
    assert not held.complete and not held.allowed(ends).any()
    for byte in b"no":
        held.accept(weights.vocabulary.byte_ids[byte])
    every = np.flatnonzero(held.allowed(np.arange(len(weights.vocabulary))))
    assert every.tolist() == ends


def test_longer_pieces_are_allowed_as_wholes(weights: Weights) -> None:
    held = Grammar(weights, 'root ::= " the patient"')
    found = np.flatnonzero(held.allowed(np.arange(len(weights.vocabulary))))
    pieces = {weights.vocabulary.piece(token) for token in found}
    assert len(pieces) > 1
    assert all(b" the patient".startswith(piece) for piece in pieces)


def test_characters_may_be_split_between_tokens(weights: Weights) -> None:
    grammar = 'root ::= "°" [α-ω]+ "\U0001f321"'
    assert takes(weights, grammar, "°αβ\U0001f321")
    assert not takes(weights, grammar, "°αΩ\U0001f321")
    held = Grammar(weights, grammar)
    held.accept(weights.vocabulary.byte_ids["°".encode()[0]])
    assert not held.complete
    assert held.allowed([weights.vocabulary.byte_ids[byte] for byte in (0xB0, 0xB1)]).tolist() == [
        True, False,
    ]  # fmt: skip


@pytest.mark.parametrize(
    "wrong",
    [b"\xc0\xaf", b"\xed\xa0\x80", b"\xf8\x80\x81\x81", b"\xf5", b"\x80", b"\xc3a", b"\xff"],
)
def test_what_is_not_utf8_is_not_allowed(weights: Weights, wrong: bytes) -> None:
    held = Grammar(weights, "root ::= .*")
    tokens = [weights.vocabulary.byte_ids[byte] for byte in wrong]
    for token in tokens[:-1]:
        if not held.allowed([token])[0]:
            return
        held.accept(token)
    assert not held.allowed(tokens[-1:])[0]


def test_control_tokens_are_no_text(weights: Weights) -> None:
    held = Grammar(weights, "root ::= .*")
    control = [token for token in range(len(weights.vocabulary))
               if weights.vocabulary.kinds[token] == 3
               and not weights.vocabulary.is_end[token]]  # fmt: skip
    assert control and not held.allowed(control).any()
    with pytest.raises(ValueError, match="does not allow"):
        held.accept(control[0])


def test_a_token_that_is_not_allowed_does_not_end_the_process(weights: Weights) -> None:
    held = Grammar(weights, 'root ::= "a"')
    for token in (weights.vocabulary.byte_ids[ord("b")], int(weights.vocabulary.end_ids[0])):
        with pytest.raises(ValueError, match="does not allow"):
            held.accept(token)
    held.accept(weights.vocabulary.byte_ids[ord("a")])
    assert held.complete


def test_the_lead_may_stand_before_the_answer(weights: Weights) -> None:
    grammar = 'root ::= "yes"\nled ::= "x"'
    assert takes(weights, grammar, " yes", b" ") and takes(weights, grammar, "yes", b" ")
    assert not takes(weights, grammar, "  yes", b" ")
    assert not takes(weights, grammar, " yes")


def test_grammars_are_freed(weights: Weights) -> None:
    for _ in range(50):
        assert Grammar(weights, 'root ::= [a-z]{1,500} | "b"').allowed([0]) is not None
    gc.collect()


@pytest.mark.parametrize(
    ("grammar", "said"),
    [
        ("", "is empty"),
        ("  \n", "is empty"),
        ('root ::= "a', "unexpected end of input"),
        ('x ::= "a"', "does not contain a 'root' symbol"),
        ('root ::= root "a" | "b"', "left recursion"),
        (f"root ::= {CANARY}", "Undefined rule identifier"),
        (f'root ::= "a"\nb ::= $ {CANARY}', "line 2: expecting newline or end"),
        (f"The patient {CANARY} is ill.", "line 1: expecting ::="),
        ('root ::= "\\q"', "line 1: unknown escape"),
        ('root ::= "a"{2,3000}', "more than 1999 times"),
        ('root ::= "a"{99999999999999999999}', "more than 1999 times"),
        ("root ::= " + "(" * 5000 + '"a"' + ")" * 5000, "more than 100 deep"),
        ('root ::= "a"' + " " * (1 << 18), "larger than 256 KiB"),
        ('root ::= "a\0"', "null character"),
    ],
)
def test_a_broken_grammar_is_one_line(
    grammar: str, said: str, capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(UsageError, match=r"^The grammar ") as told:
        check_grammar(grammar)
    assert said in str(told.value)
    assert CANARY not in str(told.value) and "\n" not in str(told.value)
    assert capfd.readouterr() == ("", "")


def test_tokens_by_name_are_a_models(weights: Weights) -> None:
    grammar = 'root ::= <|channel|> "a"'
    check_grammar(grammar)
    token = weights.tokenize(b"<|channel|>", special=True)
    assert Grammar(weights, 'root ::= <|channel|> "a"').allowed(token).all()
    with pytest.raises(UsageError, match="invalid token"):
        Grammar(weights, f"root ::= <{CANARY}>")


def test_standard_error_is_as_it_was(capfd: pytest.CaptureFixture[str]) -> None:
    import os

    check_grammar('root ::= "a"')
    os.write(2, b"still there")
    assert capfd.readouterr().err == "still there"


PERSON = {
    "type": "object",
    "properties": {
        'a "b" \\ é\n': {"enum": ["x", 'y"\\', 1, None, [1, {"z": "\U0001f321"}]]},
        "age": {"type": "integer", "minimum": 0, "maximum": 120},
        "names": {"type": "array", "items": {"type": "string", "minLength": 1, "maxLength": 4},
                  "minItems": 1, "maxItems": 2},
        "more": {"$ref": "#/$defs/more"},
    },
    "required": ["age", "names"],
    "additionalProperties": False,
    "$defs": {
        # The same name as a property's, and a definition that holds itself.
        "more": {"type": "object", "properties": {"more": {"$ref": "#/$defs/more"}}},
        "age": {"type": "boolean"},
    },
}  # fmt: skip
SCHEMAS = [
    {"enum": ["yes", "no", '1/2 \u2028 "quoted"']},
    {"type": "number", "minimum": 0},
    {"type": ["integer", "null"]},
    {"anyOf": [{"type": "boolean"}, {"type": "array", "maxItems": 1, "items": {"const": "é"}}]},
    {"type": "array", "maxItems": 0},
    {"type": "string", "maxLength": 0},
    {"type": "object", "additionalProperties": {"type": "integer", "minimum": -2, "maximum": 2}},
    {
        "type": "object",
        "properties": {"a": {"type": "null"}, "b": {"type": "null"}},
        "additionalProperties": False,
    },
    {},
    PERSON,
]
VALUES = [
    "yes", "no", "maybe", "1/2 \u2028 \"quoted\"", 0, 7, -7, 1.5, 1e-7, -0.25, None, True, [],
    ["é"], ["e"], ["é", "é"], "", "x", {}, {"x": 1}, {"x": 3}, {"a": None}, {"b": None},
    {"a": None, "b": None}, {"a": 1},
    {"age": 120, "names": ["Jörg"]}, {"age": 121, "names": ["a"]}, {"age": 1, "names": []},
    {"age": 1, "names": ["abcde"]}, {"age": 1, "names": ["a", "\U0001f321°"], "more": {"more": {}}},
    {"age": 1, "names": ["a"], "more": True}, {"names": ["a"]},
    *({'a "b" \\ é\n': value, "age": 0, "names": ["a\n"]} for value in ('y"\\', 1, 2, None)),
    {'a "b" \\ é\n': [1, {"z": "\U0001f321"}], "age": 0, "names": ["a"]},
]  # fmt: skip


@pytest.mark.parametrize("schema", SCHEMAS, ids=range(len(SCHEMAS)))
def test_a_schemas_grammar_takes_its_instances_and_nothing_else(
    weights: Weights, schema: dict
) -> None:
    grammar = grammar_of(json.dumps(schema).encode())
    check_grammar(grammar)
    for value in VALUES:
        valid = jsonschema.Draft202012Validator(schema).is_valid(value)
        text = json.dumps(value, ensure_ascii=False)
        assert takes(weights, grammar, text) == valid, text
        tight = json.dumps(value, ensure_ascii=False, separators=(",", ":"))
        assert takes(weights, grammar, tight) <= valid, tight


@settings(deadline=None, max_examples=60, suppress_health_check=list(HealthCheck))
@given(seed=st.integers(0, 2**32), place=st.integers(0, len(SCHEMAS) - 1))
def test_whatever_is_allowed_is_an_instance(weights: Weights, seed: int, place: int) -> None:
    """Tokens at random, as long as they are allowed."""
    rng = np.random.default_rng(seed)
    held, said = Grammar(weights, grammar_of(json.dumps(SCHEMAS[place]).encode())), b""
    singles = np.array(sorted(weights.vocabulary.byte_ids.values()))
    for _ in range(300):
        if held.complete:
            break
        may = singles[held.allowed(singles)]
        # Brackets and quotation marks close sooner or later.
        closing = [t for t in may if weights.vocabulary.piece(t) in (b'"', b"}", b"]", b"1")]
        token = int(rng.choice(closing if closing and rng.random() < 0.5 else may))
        held.accept(token)
        said += weights.vocabulary.piece(token)
    else:
        return  # too long; what counts is that it could go on
    jsonschema.validate(json.loads(said.decode()), SCHEMAS[place])


def test_a_line_end_in_a_string_is_escaped(weights: Weights) -> None:
    grammar = grammar_of(b'{"type": "string"}')
    assert takes(weights, grammar, '"a\\n\\u00e9\\ud7ff"')
    for text in ('"a\n"', '"a\tb"', '"\x7f"', '"\\ud800"', '"\\x"'):
        assert not takes(weights, grammar, text)

"""llama.cpp's grammars on tokens: what they allow, and what is said about broken ones."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from capt_local.errors import UsageError
from capt_local.llama.grammar import Grammar, check_grammar
from capt_local.llama.weights import Weights

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


def test_an_ambiguous_grammar_is_refused_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """llama.cpp takes minutes for this one: 64,000 ways to begin."""
    monkeypatch.setattr("capt_local.llama.grammar._LONGEST_READING", 3)
    with pytest.raises(UsageError, match=r"^The grammar is too ambiguous"):
        check_grammar('root ::= a{0,40}\na ::= b{0,40}\nb ::= c{0,40}\nc ::= "x"?')


def test_tokens_by_name_are_a_models(weights: Weights) -> None:
    grammar = 'root ::= <|channel|> "a"'
    check_grammar(grammar)
    token = weights.tokenize(b"<|channel|>", special=True)
    assert Grammar(weights, 'root ::= <|channel|> "a"').allowed(token).all()
    with pytest.raises(UsageError, match="invalid token"):
        Grammar(weights, f"root ::= <{CANARY}>")

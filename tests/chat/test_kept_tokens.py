"""What stays in the KV caches from turn to turn, counted on a trained trio."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from capt_local import CombineOptions, GenerateOptions, LoadOptions, Message, Runtime
from capt_local.decoding.options import Speed
from capt_local.tokenization import common_length
from tests.small_trio import SMALL_TRIO

FIRST = "Summarize: the patient is a 54-year-old man with chest pain for 2 days and a cough."
SECOND = "And which medicines does he take at home?"
# Step by step: what a draft reads ahead would count, too.
FIXED = GenerateOptions(
    speed=Speed.EXACT_STEPS, max_tokens=16, combine=CombineOptions(alphas=(0.5,))
)
EVIDENCE = GenerateOptions(speed=Speed.EXACT_STEPS, max_tokens=16)


@pytest.fixture(scope="module")
def runtime() -> Iterator[Runtime]:
    with Runtime.open(SMALL_TRIO, load=LoadOptions(threads=1)) as opened:
        yield opened


def turn(runtime: Runtime, said: list[Message], options: GenerateOptions) -> list[Message]:
    """The conversation with the answer to its last question."""
    generation = runtime.generate(said, options)
    assert list(generation)
    return [*said, Message("assistant", generation.text)]


def tokens(runtime: Runtime, said: list[Message]) -> dict[str, list[int]]:
    return {
        role: list(asker.prompt(said, raw=False).tokens)
        for role, asker in runtime._prompt_builders.items()
    }


def new_tokens(runtime: Runtime, said: list[Message]) -> dict[str, int]:
    """How many tokens of a prompt the caches do not hold."""
    return {
        role: len(prompt) - common_length(prompt, runtime._caches[role].tokens)
        for role, prompt in tokens(runtime, said).items()
    }


def decoded_by(runtime: Runtime, said: list[Message], options: GenerateOptions) -> dict[str, int]:
    """Tokens that each model decodes before the answer's first token is known."""
    before = runtime.decoded()
    next(runtime.generate(said, options))
    return {role: count - before[role] for role, count in runtime.decoded().items()}


@pytest.mark.parametrize("options", [FIXED, EVIDENCE], ids=["fixed", "evidence"])
def test_a_second_turn_decodes_only_what_is_new(runtime: Runtime, options: GenerateOptions) -> None:
    runtime.forget()
    said = turn(runtime, [Message("user", FIRST)], options)
    asked = [*said, Message("user", SECOND)]
    new, whole = new_tokens(runtime, asked), tokens(runtime, asked)
    # The first turn is there but for the marks at its end.
    assert all(0 < count < len(whole[role]) / 2 for role, count in new.items())
    assert decoded_by(runtime, asked, options) == new


@pytest.mark.parametrize("options", [FIXED, EVIDENCE], ids=["fixed", "evidence"])
def test_what_was_kept_changes_no_answer(runtime: Runtime, options: GenerateOptions) -> None:
    runtime.forget()
    said = turn(runtime, [Message("user", FIRST)], options)
    asked = [*said, Message("user", SECOND)]
    kept = turn(runtime, asked, options)
    runtime.forget()
    assert turn(runtime, asked, options) == kept

"""Where a model's answer ends, and where its reasoning begins and ends, read off its template.

A template shows how its model writes: what it puts behind an answer is what the model ends one
with, and what it puts around reasoning is what the model puts there. Both are found by rendering
it with marks in the place of texts. Reasoning that templates leave out of a conversation is looked
for by the names of known markers, in the source of the template and in the vocabulary.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple

import numpy as np

from capt_local.prompting.messages import Pair, ReasoningMarkers
from capt_local.prompting.template import ChatTemplate
from capt_local.tokenization import TokenKind, Vocabulary

_SPECIAL = (TokenKind.CONTROL, TokenKind.USER_DEFINED)
# What begins and ends reasoning: Qwen, DeepSeek, GLM, Nemotron, SmolLM3, Granite, LFM2 and others;
# Mistral; Seed-OSS; Cohere; EXAONE Deep; Apertus; Gemma 4; MedGemma; Kimi-VL; Pangu; MiniMax.
_PAIRS: tuple[Pair, ...] = (
    (b"<think>", b"</think>"),
    (b"[THINK]", b"[/THINK]"),
    (b"<seed:think>", b"</seed:think>"),
    (b"<|START_THINKING|>", b"<|END_THINKING|>"),
    (b"<thought>", b"</thought>"),
    (b"<|inner_prefix|>", b"<|inner_suffix|>"),
    (b"<|channel>thought", b"<channel|>"),
    (b"<unused94>thought", b"<unused95>"),
    ("◁think▷".encode(), "◁/think▷".encode()),
    (b"[unused16]", b"[unused17]"),
    (b"<mm:think>", b"</mm:think>"),
    (b"<thinking>", b"</thinking>"),
    (b"<reasoning>", b"</reasoning>"),
)
# What some models put around the answer itself: Cohere, Granite and ERNIE, Hunyuan, Apriel.
_ANSWERS: tuple[Pair, ...] = (
    (b"<|START_RESPONSE|>", b"<|END_RESPONSE|>"),
    (b"<|START_TEXT|>", b"<|END_TEXT|>"),
    (b"<response>", b"</response>"),
    (b"<answer>", b"</answer>"),
    (b"[BEGIN FINAL RESPONSE]", b"[END FINAL RESPONSE]"),
)


class _Channels(NamedTuple):
    """Messages in channels, each of them closed (gpt-oss, Solar).

    Attributes:
        tokens: that such a vocabulary has.
        close: what ends a message and begins the next one of the model.
        channels: what begins a message, and whether it is reasoning.
    """

    tokens: tuple[bytes, ...]
    close: bytes
    channels: tuple[tuple[bytes, bool], ...]


_FAMILIES = (
    _Channels(
        (b"<|channel|>", b"<|message|>"),
        b"<|end|><|start|>assistant",
        (
            (b"<|channel|>analysis<|message|>", True),
            (b"<|channel|>commentary<|message|>", True),
            (b"<|channel|>final<|message|>", False),
        ),
    ),
    _Channels(
        (b"<|think|>", b"<|content|>", b"<|begin|>"),
        b"<|end|><|begin|>assistant",
        ((b"<|think|>", True), (b"<|content|>", False)),
    ),
)
_LONGEST = 80
_MARKER = re.compile(r"<[^<>\s]{1,60}>|\[[^\[\]]{1,60}\]|◁[^◁▷]{1,60}▷")
_RUN = re.compile(rf"(?:(?:{_MARKER.pattern})\w{{0,20}})*(?:{_MARKER.pattern})")
_MENTIONS = re.compile(r"reasoning_content|enable_thinking|reasoning_effort|<think")


def find_turn_ends(
    template: ChatTemplate, vocabulary: Vocabulary, tokenize: Callable[..., list[int]]
) -> frozenset[int]:
    """The control tokens that the template writes first behind an answer.

    Where it writes none that belongs to the answer, that is what begins the next turn; a model
    that writes it has ended its own.

    `tokenize` is the model's; see `TextTokenizer`.
    """
    found = set()
    for written in template.behind_answers():
        tokens = tokenize(written.encode("utf-8", "replace"), special=True) if written else []
        found.update([token for token in tokens if _is_marker(vocabulary, token)][:1])
    return frozenset(found)


def find_markers(vocabulary: Vocabulary, template: ChatTemplate | str) -> ReasoningMarkers | None:
    """The markers of a model; None for one that writes no reasoning, as far as can be seen.

    Of a template that is a source alone, nothing is rendered.
    """
    source = template if isinstance(template, str) else template.source
    special = np.isin(vocabulary.kinds, _SPECIAL)
    names = {vocabulary.piece(token) for token in np.flatnonzero(special).tolist()}
    written = source.encode("utf-8", "replace")

    def has(parts: Iterable[bytes]) -> bool:
        parts = tuple(parts)
        return all(part in names for part in parts) or all(part in written for part in parts)

    for family in _FAMILIES:
        if has(family.tokens):
            within = tuple((family.close + mark, reasons) for mark, reasons in family.channels)
            return ReasoningMarkers(family.channels, within)
    # Behind `<unused94>` stands a word that is no part of the token.
    pairs = [
        (begin, end)
        for begin, end in _PAIRS
        if has((begin.removesuffix(b"thought"), end)) or end in written
    ]
    if not isinstance(template, str):
        pairs += _rendered(template, pairs)
    answers = tuple(pair for pair in _ANSWERS if has(pair))
    if not pairs and not answers:
        return None
    begin = [(begin, True) for begin, _ in pairs] + [(begin, False) for begin, _ in answers]
    if not isinstance(template, str):
        begin += [(opener, False) for opener in _answer_opener(template, begin)]
    return ReasoningMarkers(tuple(begin), tuple((end, False) for _, end in pairs), answers)


def mentions_reasoning(source: str) -> bool:
    """Whether the source of a template speaks of reasoning."""
    return _MENTIONS.search(source) is not None


def _rendered(template: ChatTemplate, known: Sequence[Pair]) -> Iterator[Pair]:
    """What the template writes around reasoning, where that is no known pair."""
    around = template.around_answer(reasoning=True)
    if around is None:
        return
    prompt, before, between = (part.strip() for part in around)
    begin, end = _beyond(prompt, before), between
    if not begin and prompt.startswith(before) and end not in prompt[len(before) :]:
        begin = _from_last_marker(prompt)  # the template opens the reasoning itself
    begin = begin or _from_last_marker(before)
    pair = begin.encode(), end.encode()
    if max(map(len, pair)) > _LONGEST or not _MARKER.search(begin) or not _MARKER.match(end):
        return
    if not any(pair[1].startswith(other) for _, other in known):
        yield pair


def _answer_opener(template: ChatTemplate, known: Sequence[tuple[bytes, bool]]) -> Iterator[bytes]:
    """What the template writes between a generation prompt and an answer without reasoning."""
    around = template.around_answer(reasoning=False)
    if around is not None:
        opener = _beyond(around[0].strip(), around[1].strip()).encode()
        if opener and len(opener) <= _LONGEST and not any(mark in opener for mark, _ in known):
            yield opener


def _beyond(prompt: str, written: str) -> str:
    """What is written behind a generation prompt, not from the middle of a marker on."""
    pairs = enumerate(zip(prompt, written, strict=False))
    size = next((at for at, (one, other) in pairs if one != other), min(len(prompt), len(written)))
    for bracket, closing in ("<>", "[]"):
        at = written.rfind(bracket, 0, size)
        size = at if at >= 0 and closing not in written[at:size] else size
    return written[size:].strip()


def _from_last_marker(scaffold: str) -> str:
    """The end of a piece of scaffolding, from its last markers on."""
    found = list(_RUN.finditer(scaffold))
    return scaffold[found[-1].start() :].rstrip() if found else ""


def _is_marker(vocabulary: Vocabulary, token: int) -> bool:
    kind, piece = vocabulary.kinds[token], vocabulary.piece(token)
    if kind == TokenKind.CONTROL or vocabulary.is_end[token]:
        return True
    text = piece.decode("utf-8", "replace")
    return bool(kind == TokenKind.USER_DEFINED and len(text) > 1 and not text.isspace())

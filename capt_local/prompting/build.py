"""From messages or raw text to the tokens of one model.

Scaffolding (template text) is tokenized with control tokens, people's text without, separately.
Where tokenization depends on both sides of a boundary, three rules give the tokens of the whole
prompt, for text without leading or trailing whitespace:

- Text at the beginning, or directly after a control token, gets the leading space that some
  tokenizers add; elsewhere it continues the preceding text.
- A space at the end of scaffolding is part of the following word ("[/INST] Hello" is "]",
  " Hello"), so it is moved from the scaffolding to the text before tokenization. It is then in the
  tokens of the text's segment but not in its `text`, like the leading space.
- An empty text has no segment: the scaffolding before and after it is tokenized together.

The tokens that end an answer, and the markers of reasoning, come from the chat template: a model
ends its answer with what the template writes after one, and encloses reasoning in what the template
writes around it. Both are found by rendering the template with placeholders for texts. If a
template drops reasoning from a conversation, known markers are searched in its source and in the
vocabulary.
"""

from __future__ import annotations

import dataclasses
import datetime
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cached_property
from typing import NamedTuple

import numpy as np

from capt_local.bundles.manifest import ModelFile
from capt_local.errors import CaptError, ModelError, UnspellableText, UsageError
from capt_local.prompting.messages import (
    Message,
    Pair,
    Prompt,
    ReasoningMarkers,
    Segment,
    check_turns,
    refuse_nul,
)
from capt_local.prompting.template import ChatTemplate, open_template
from capt_local.tokenization import TextTokenizer, TokenKind, UnspellableByte, Vocabulary

_MARKERS = (TokenKind.CONTROL, TokenKind.USER_DEFINED)


def build_chat(
    messages: Sequence[Message], template: ChatTemplate, tokenizer: TextTokenizer
) -> Prompt:
    """The prompt of a conversation, to be answered by the model.

    Raises:
        UsageError: the conversation is empty, out of order, or its last message is empty.
        ModelError: the template or the vocabulary cannot take it.
    """
    check_turns(messages)
    scaffold = template.scaffold(messages)
    texts = [_utf8(message.content) for message in messages]
    segments = _Segments(tokenizer, template.role)
    for part in scaffold.parts:
        if isinstance(part, str):
            segments.add_scaffold(part.encode("utf-8", "replace"))
        else:
            segments.add_text(texts[part], evidence=messages[part].role == "user")
    segments.close()
    return Prompt(
        segments=tuple(segments.done),
        starts_text=segments.fresh,
        leading_space=tokenizer.leading_space if segments.fresh else b"",
        notices=(*scaffold.notices, *segments.notices),
    )


def build_raw(text: bytes, tokenizer: TextTokenizer, *, role: str = "target") -> Prompt:
    """The prompt of a text to be continued, without a chat template.

    Only the target must encode every byte; for a proxy, characters that its vocabulary has no token
    for are left out, with a notice.

    Raises:
        UsageError: the text is empty.
        UnspellableText: the target's vocabulary has no token for a byte of it.
    """
    if not text:
        raise UsageError("The prompt is empty.")
    segments = _Segments(tokenizer, role)
    segments.add_text(text, evidence=True)
    segments.close()
    return Prompt(
        segments=tuple(segments.done),
        continues_text=True,
        starts_text=False,
        notices=tuple(segments.notices),
    )


class _Segments:
    """Builds the segments of a prompt; scaffolding is buffered until the next text is known."""

    def __init__(self, tokenizer: TextTokenizer, role: str) -> None:
        self.done: list[Segment] = []  # tokenized segments
        self.fresh = True  # whether the next text is at the start or directly after a control token
        self.notices: list[str] = []  # messages for the user
        self._tokenizer = tokenizer
        self._role = role
        self._held = b""
        self._bos_due = True

    def add_scaffold(self, text: bytes) -> None:
        self._held += text

    def add_text(self, text: bytes, *, evidence: bool) -> None:
        if not text:
            return
        space = b" " if self._held.endswith(b" ") else b""
        self._held = self._held.removesuffix(space)
        self.close()
        if self._role == "target":
            try:
                tokens = self._tokenizer.encode(space + text, start=self.fresh)
            except UnspellableByte as error:
                raise UnspellableText(self._role, error.byte) from None
        else:
            tokens, whole = self._tokenizer.encode_known(space + text, start=self.fresh)
            if not whole:
                self.notices.append(
                    f"The {self._role} has no token for some bytes of the text and does not see "
                    "them."
                )
        # A last check of the tokens: text must never forge a turn.
        kinds = self._tokenizer.vocabulary.kinds
        if (kinds[np.asarray(tokens, dtype=np.intp)] == TokenKind.CONTROL).any():
            raise ModelError(
                f"The tokenizer of the {self._role} makes control tokens out of text; this model "
                "cannot be used with text that is not trusted."
            )
        self.done.append(Segment(tuple(tokens), text, evidence))
        self.fresh = False

    def close(self) -> None:
        """Tokenizes the buffered scaffolding."""
        vocabulary = self._tokenizer.vocabulary
        try:
            tokens = self._tokenizer.scaffold(self._held, start=self.fresh)
        except ValueError:
            raise ModelError(
                f"The tokenizer of the {self._role} cannot take its chat template apart from the "
                "text. Name another template in the bundle, or use --raw."
            ) from None
        self._held = b""
        if self._bos_due and vocabulary.add_bos and vocabulary.bos is not None:
            # The template may write BOS itself; two would begin a second text.
            tokens = tokens if tokens[:1] == [vocabulary.bos] else [vocabulary.bos, *tokens]
        self._bos_due = False
        if tokens:
            self.done.append(Segment(tuple(tokens)))
            self.fresh = bool(vocabulary.kinds[tokens[-1]] in _MARKERS)


@dataclasses.dataclass
class PromptBuilder:
    """Builds the prompts of one model, with its chat template and tokenizer.

    For `file`, `own`, `date` and `given` see `open_template`.
    """

    file: ModelFile
    own: str | None
    tokenizer: TextTokenizer
    date: datetime.date | None = None
    given: str | None = None

    def prompt(self, question: str | Sequence[Message], *, raw: bool) -> Prompt:
        """The prompt of a question, a conversation, or with `raw` a text to continue.

        Raises:
            UsageError: it is empty, not text, or of the wrong form; or there is no template.
            ModelError: the template or the vocabulary cannot represent it.
        """
        if raw:
            if not isinstance(question, str):
                raise UsageError("A conversation has no raw form: give a text.")
            return build_raw(_utf8(question), self.tokenizer, role=self.file.role)
        messages = [Message("user", question)] if isinstance(question, str) else question
        made = build_chat(messages, self.template, self.tokenizer)
        ends, markers = self._ends_and_markers
        notices = made.notices
        if markers is None and mentions_reasoning(self.template.source):
            notices += (
                f"The chat template of the {self.file.role} mentions reasoning, but its markers "
                "are not known: reasoning may stand in the answer.",
            )
        return dataclasses.replace(made, markers=markers, turn_ends=ends, notices=notices)

    @cached_property
    def template(self) -> ChatTemplate:
        """The chat template, opened on first use: raw text needs none."""
        vocabulary = self.tokenizer.vocabulary
        return open_template(self.file, self.own, vocabulary, given=self.given, date=self.date)

    @cached_property
    def _ends_and_markers(self) -> tuple[frozenset[int], ReasoningMarkers | None]:
        vocabulary, template = self.tokenizer.vocabulary, self.template
        ends = find_turn_ends(template, vocabulary, self.tokenizer.tokenize)
        return ends, find_markers(vocabulary, template)


def vocabulary_with_turn_ends(
    file: ModelFile,
    own: str | None,
    vocabulary: Vocabulary,
    tokenize: Callable[..., list[int]],
    given: str | None = None,
) -> Vocabulary:
    """The vocabulary with the turn ends of the model's chat template as end tokens.

    Tokens of reasoning markers are excluded: they end an answer, but not the output. A model
    without a usable template keeps its vocabulary; building a prompt raises the error.
    """
    try:
        template = open_template(file, own, vocabulary, given=given)
        ends = find_turn_ends(template, vocabulary, tokenize)
        markers = find_markers(vocabulary, template) if ends else None
    except CaptError:
        return vocabulary
    if markers is not None:
        ends = frozenset(token for token in ends if vocabulary.piece(token) not in markers)
    return vocabulary if vocabulary.is_end[list(ends)].all() else vocabulary.with_end_tokens(ends)


def _utf8(text: str) -> bytes:
    refuse_nul(text, "A message of the prompt")
    try:
        return text.encode("utf-8")
    except UnicodeEncodeError:
        # The error itself holds the text.
        raise UsageError("A message holds half of a character (a lone surrogate).") from None


# --- where an answer ends, and where its reasoning begins and ends --------------------------------

_SPECIAL = (TokenKind.CONTROL, TokenKind.USER_DEFINED)
# Markers of reasoning (begin, end): Qwen, DeepSeek, GLM, Nemotron, SmolLM3, Granite, LFM2, others;
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
# Markers around the answer itself: Cohere, Granite and ERNIE, Hunyuan, Apriel.
_ANSWERS: tuple[Pair, ...] = (
    (b"<|START_RESPONSE|>", b"<|END_RESPONSE|>"),
    (b"<|START_TEXT|>", b"<|END_TEXT|>"),
    (b"<response>", b"</response>"),
    (b"<answer>", b"</answer>"),
    (b"[BEGIN FINAL RESPONSE]", b"[END FINAL RESPONSE]"),
)


class _Channels(NamedTuple):
    """The markers of models that write messages in channels (gpt-oss, Solar)."""

    tokens: tuple[bytes, ...]  # special tokens by which such a vocabulary is recognised
    close: bytes  # ends a message and begins the model's next one
    channels: tuple[tuple[bytes, bool], ...]  # each channel's beginning; whether it is reasoning


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
    """The first control tokens that the template writes after an answer.

    If the template does not close the answer, that is the token that begins the next turn; a model
    that generates it has ended its own turn.

    `tokenize` is the model's; see `TextTokenizer`.
    """
    found = set()
    for written in template.text_after_answers():
        tokens = tokenize(written.encode("utf-8", "replace"), special=True) if written else []
        found.update([token for token in tokens if _is_marker(vocabulary, token)][:1])
    return frozenset(found)


def find_markers(vocabulary: Vocabulary, template: ChatTemplate) -> ReasoningMarkers | None:
    """The markers of a model; None for one that writes no reasoning, as far as can be seen."""
    special = np.isin(vocabulary.kinds, _SPECIAL)
    names = {vocabulary.piece(token) for token in np.flatnonzero(special).tolist()}
    written = template.source.encode("utf-8", "replace")

    def has(parts: Iterable[bytes]) -> bool:
        parts = tuple(parts)
        return all(part in names for part in parts) or all(part in written for part in parts)

    for family in _FAMILIES:
        if has(family.tokens):
            within = tuple((family.close + mark, reasons) for mark, reasons in family.channels)
            return ReasoningMarkers(family.channels, within)
    # The word "thought" after `<unused94>` is not part of that token.
    pairs = [
        (begin, end)
        for begin, end in _PAIRS
        if has((begin.removesuffix(b"thought"), end)) or end in written
    ]
    pairs += _rendered(template, pairs)
    answers = tuple(pair for pair in _ANSWERS if has(pair))
    if not pairs and not answers:
        return None
    begin = [(begin, True) for begin, _ in pairs] + [(begin, False) for begin, _ in answers]
    begin += [(opener, False) for opener in _answer_opener(template, begin)]
    return ReasoningMarkers(tuple(begin), tuple((end, False) for _, end in pairs), answers)


def mentions_reasoning(source: str) -> bool:
    """Whether the source of a template mentions reasoning."""
    return _MENTIONS.search(source) is not None


def _rendered(template: ChatTemplate, known: Sequence[Pair]) -> Iterator[Pair]:
    """The markers that the template writes around reasoning, unless the pair is known."""
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
    """The text between the generation prompt and an answer without reasoning."""
    around = template.around_answer(reasoning=False)
    if around is not None:
        opener = _beyond(around[0].strip(), around[1].strip()).encode()
        if opener and len(opener) <= _LONGEST and not any(mark in opener for mark, _ in known):
            yield opener


def _beyond(prompt: str, written: str) -> str:
    """The text of `written` after its common prefix with a generation prompt, in whole markers."""
    pairs = enumerate(zip(prompt, written, strict=False))
    size = next((at for at, (one, other) in pairs if one != other), min(len(prompt), len(written)))
    for bracket, closing in ("<>", "[]"):
        at = written.rfind(bracket, 0, size)
        size = at if at >= 0 and closing not in written[at:size] else size
    return written[size:].strip()


def _from_last_marker(scaffold: str) -> str:
    """The end of scaffolding, from its last run of markers on."""
    found = list(_RUN.finditer(scaffold))
    return scaffold[found[-1].start() :].rstrip() if found else ""


def _is_marker(vocabulary: Vocabulary, token: int) -> bool:
    kind, piece = vocabulary.kinds[token], vocabulary.piece(token)
    if kind == TokenKind.CONTROL or vocabulary.is_end[token]:
        return True
    text = piece.decode("utf-8", "replace")
    return bool(kind == TokenKind.USER_DEFINED and len(text) > 1 and not text.isspace())

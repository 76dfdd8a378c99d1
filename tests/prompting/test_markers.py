"""Where answers end and how reasoning is marked, read off the templates of many families."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

import pytest

from capt_local.bundles.manifest import ModelFile
from capt_local.prompting.build import (
    PromptBuilder,
    find_markers,
    find_turn_ends,
    vocabulary_with_turn_ends,
)
from capt_local.prompting.template import CHATML, ChatTemplate
from capt_local.tokenization import TextTokenizer, TokenKind, Vocabulary
from tests.fakes import make_vocabulary
from tests.prompting import templates
from tests.real_vocabularies import open_vocabulary, templates_folder

MARKER = re.compile(r"<[^<>\s]+>|\[e~\[|\[[^\[\]\s]+\]")
EOS = "</s>"


class Marked:
    """A vocabulary of bytes and the control tokens that a template names, with its tokenizer."""

    def __init__(self, source: str, extra: Iterable[str] = ()) -> None:
        plain = make_vocabulary([])
        self.names = [*dict.fromkeys([EOS, *MARKER.findall(source), *extra])]
        pieces = [*plain.pieces(), *(name.encode() for name in self.names)]
        kinds = [*plain.kinds.tolist(), *[TokenKind.CONTROL] * len(self.names)]
        self.first = len(plain)
        self.vocabulary = Vocabulary(pieces, kinds, end_ids=[self.first], bos=0, eos=self.first)
        self._split = re.compile("|".join(map(re.escape, self.names)))

    def tokenize(self, text: bytes, *, special: bool) -> list[int]:
        tokens, at, said = [], 0, text.decode("utf-8", "replace")
        for match in self._split.finditer(said) if special else ():
            tokens += [2 + byte for byte in said[at : match.start()].encode()]
            tokens.append(self.first + self.names.index(match[0]))
            at = match.end()
        return tokens + [2 + byte for byte in said[at:].encode()]

    def builder(self, source: str) -> PromptBuilder:
        file = ModelFile(role="target", path=Path("model.gguf"), size=1)
        return PromptBuilder(file, source, TextTokenizer(self.vocabulary, self.tokenize))


def published(name: str) -> str:
    """A template in the source distribution of the binding."""
    return (templates_folder() / f"{name}.jinja").read_text("utf-8")


THINK = ("<think>", "</think>")
FAMILIES = {
    "Qwen-Qwen3-0.6B": ({"<|im_end|>"}, THINK),
    "Qwen3.5-4B": ({"<|im_end|>"}, THINK),
    "deepseek-ai-DeepSeek-R1-Distill-Qwen-32B": ({"<｜end▁of▁sentence｜>"}, THINK),
    "ByteDance-Seed-OSS": ({"<seed:eos>"}, ("<seed:think>", "</seed:think>")),
    # No marker of its own behind an answer: the next turn's ends it.
    "GLM-4.6": ({"<|user|>"}, THINK),
    "google-gemma-2-2b-it": ({"<end_of_turn>"}, None),
    "google-gemma-4-31B-it": ({"<turn|>"}, ("<|channel>thought", "<channel|>")),
    "meta-llama-Llama-3.1-8B-Instruct": ({"<|eot_id|>"}, None),
    "microsoft-Phi-3.5-mini-instruct": ({"<|end|>"}, None),
    "mistralai-Mistral-Nemo-Instruct-2407": ({EOS}, None),
    "mistralai-Ministral-3-14B-Reasoning-2512": ({EOS}, ("[THINK]", "[/THINK]")),
    "openai-gpt-oss-120b": (
        {"<|end|>", "<|return|>"},
        ("<|channel|>analysis<|message|>",
         "<|end|><|start|>assistant<|channel|>final<|message|>")),
    "upstage-Solar-Open-100B": ({"<|end|>"}, ("<|think|>", "<|end|><|begin|>assistant<|content|>")),
    CHATML: ({"<|im_end|>"}, None),
    templates.UNHEARD: ({"[STOP]"}, ("[MUSE]", "[/MUSE]")),
}  # fmt: skip


@pytest.mark.parametrize("family", FAMILIES, ids=lambda name: name[:30])
def test_a_template_tells_how_answers_end_and_reasoning_is_marked(family: str) -> None:
    ends, pair = FAMILIES[family]
    source = family if "{" in family else published(family)
    template = ChatTemplate(source, bos="<s>", eos=EOS)
    found = Marked(source + "".join(template.text_after_answers()))
    tokens = find_turn_ends(template, found.vocabulary, found.tokenize)
    assert {found.vocabulary.piece(token).decode() for token in tokens} == ends
    markers = find_markers(found.vocabulary, template)
    if pair is None:
        assert markers is None
        return
    assert markers is not None
    assert pair[0] in [begin.decode() for begin, reasons in markers.begin if reasons]
    assert pair[1] in [end.decode() for end, reasons in markers.within if not reasons]


@pytest.mark.parametrize(
    ("family", "opened"),
    [("Qwen-Qwen3-0.6B", False), ("Qwen3.5-4B", True), ("openai-gpt-oss-120b", False)],
)
def test_a_template_may_open_the_reasoning(family: str, opened: bool) -> None:
    source = published(family)
    prompt = Marked(source).builder(source).prompt("x", raw=False)
    scaffold = b"".join(Marked(source).vocabulary.piece(t) for t in prompt.segments[-1].tokens)
    assert prompt.markers is not None and prompt.markers.opened_by(scaffold) is opened
    # Then what closes it may be the first thing that an answer writes.
    assert ((b"</think>", False) in prompt.markers.begin) is opened
    # Reasoning switched off: the template has closed it again.
    assert not prompt.markers.opened_by(scaffold + b"<think>\n\n</think>\n\n")


def test_the_vocabulary_ends_where_the_template_does_but_not_inside_reasoning() -> None:
    file = ModelFile(role="target", path=Path("model.gguf"), size=1)
    for source, ends in ((CHATML, {EOS, "<|im_end|>"}),
                         (published("openai-gpt-oss-120b"), {EOS, "<|return|>"}),
                         ("{{ broken", {EOS})):  # fmt: skip
        found = Marked(source)
        made = vocabulary_with_turn_ends(file, source, found.vocabulary, found.tokenize)
        assert {made.piece(token).decode() for token in made.end_ids.tolist()} == ends
        assert made.is_end.sum() == len(ends) and not made.is_text[made.end_ids].any()


def test_reasoning_that_is_mentioned_but_not_marked_is_told() -> None:
    for source, told in ((CHATML, 0), (CHATML + "{# enable_thinking #}", 1)):
        notices = Marked(source).builder(source).prompt("x", raw=False).notices
        assert sum("mentions reasoning" in notice for notice in notices) == told


@pytest.mark.slow
def test_published_templates() -> None:
    """Those in the binding's source distribution: each but one renders, and shows an end."""
    without_end, reasoning = set(), set()
    for path in sorted(templates_folder().glob("*.jinja")):
        source = path.read_text("utf-8")
        template = ChatTemplate(source, bos="<s>", eos=EOS)
        found = Marked(source + "".join(template.text_after_answers()))
        if not find_turn_ends(template, found.vocabulary, found.tokenize):
            without_end.add(path.stem)
        if find_markers(make_vocabulary([]), template) is not None:
            reasoning.add(path.stem)
    # It needs functions; its turns end with lines alone.
    assert without_end <= {"fireworks-ai-llama-3-firefunction-v2", "llama-cpp-rwkv-world"}
    assert len(reasoning) >= 35


@pytest.mark.parametrize(
    ("vocabulary", "template", "end", "begin"),
    [
        ("gemma-4", "google-gemma-4-31B-it", "<turn|>", "<|channel>thought"),
        ("qwen35", "Qwen3.5-4B", "<|im_end|>", "<think>"),
        ("llama-bpe", "meta-llama-Llama-3.1-8B-Instruct", "<|eot_id|>", None),
    ],
)
def test_published_templates_in_their_own_vocabularies(
    vocabulary: str, template: str, end: str, begin: str | None
) -> None:
    weights = open_vocabulary(vocabulary)
    found = ChatTemplate(published(template))
    ends = find_turn_ends(found, weights.vocabulary, weights.tokenize)
    assert {weights.vocabulary.piece(token).decode() for token in ends} == {end}
    markers = find_markers(weights.vocabulary, found)
    assert (markers and markers.begin[0][0].decode()) == begin

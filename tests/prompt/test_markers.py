"""Which markers a model has, and whether its template has opened the thoughts."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from capt_local.bundle.manifest import ModelFile
from capt_local.prompt.asking import Asker
from capt_local.prompt.markers import find_markers
from capt_local.vocab.tokenizer import TextTokenizer
from capt_local.vocab.vocabulary import TokenKind, Vocabulary
from tests.fakes import FakeModel, make_vocabulary


def with_tokens(names: Sequence[bytes]) -> Vocabulary:
    plain = make_vocabulary([])
    kinds = [*plain.kinds.tolist(), *[TokenKind.CONTROL] * len(names)]
    return Vocabulary([*plain.pieces(), *names], kinds, end_ids=[1], bos=0)


PLAIN = make_vocabulary([])
PAIR = (((b"<think>", True),), ((b"</think>", False),))


@pytest.mark.parametrize(
    ("vocabulary", "template", "wanted"),
    [
        (PLAIN, "{{ messages }}", None),
        (with_tokens([b"<think>", b"</think>"]), "", PAIR),
        (PLAIN, "{% if '</think>' in content %}{{ '<think>\n' }}{% endif %}", PAIR),
        (with_tokens([b"<think>"]), "", None),
    ],
)
def test_markers_come_from_vocabulary_or_template(
    vocabulary: Vocabulary, template: str, wanted: object
) -> None:
    found = find_markers(vocabulary, template)
    assert (found and (found.begin, found.within)) == wanted


def test_channels_are_those_of_gpt_oss() -> None:
    found = find_markers(with_tokens([b"<|channel|>", b"<|message|>"]), "")
    assert found is not None
    assert dict(found.begin) == {
        b"<|channel|>analysis<|message|>": True,
        b"<|channel|>commentary<|message|>": True,
        b"<|channel|>final<|message|>": False,
    }
    assert all(marker.startswith(b"<|end|><|start|>assistant") for marker, _ in found.within)


@pytest.mark.parametrize(
    ("scaffold", "opened"),
    [
        (b"<|im_start|>assistant\n", False),
        (b"<|im_start|>assistant\n<think>\n", True),
        # Thinking switched off: the template has closed it again.
        (b"<|im_start|>assistant\n<think>\n\n</think>\n\n", False),
    ],
)
def test_a_template_may_open_the_thoughts(scaffold: bytes, opened: bool) -> None:
    found = find_markers(PLAIN, "<think> </think>")
    assert found is not None and found.opened_by(scaffold) is opened


def test_an_asker_puts_the_markers_into_its_prompts() -> None:
    template = "{% for m in messages %}{{ m.content }}{% endfor %}{{ '\n<think>\n' }}"
    template += "{# ends with </think> #}"
    model = FakeModel(PLAIN, 1)
    asker = Asker(
        ModelFile(role="target", path=Path("model.gguf"), size=1),
        template, TextTokenizer(PLAIN, model.tokenize),
    )  # fmt: skip
    chat = asker.prompt("x", raw=False)
    assert chat.markers is not None and asker.prompt("y", raw=False).markers == chat.markers
    assert asker.prompt("x", raw=True).markers is None

"""A model that thinks first, in llama.cpp; its template opens the thoughts."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from capt_local import FinishReason, GenerateOptions, LoadOptions, Runtime
from capt_local.bundles.manifest import Bundle
from capt_local.prompting.messages import Message
from tests.tiny_models import tiny_gguf
from tests.tiny_vocabularies import TEMPLATE

# As Qwen3's and DeepSeek's do: earlier thoughts are cut off, new ones begun.
THINKING = TEMPLATE.replace("message['content']", "message['content'].split('</think>')[-1]")
THINKING = THINKING.replace("assistant\n' }}{% endif %}", "assistant\n<think>\n' }}{% endif %}")


@pytest.fixture(scope="module")
def runtime(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Runtime]:
    folder: Path = tmp_path_factory.mktemp("thinking")
    files = [
        tiny_gguf(folder / f"{role}.gguf", seed=seed, template=template)
        for role, seed, template in (
            ("target", 1, THINKING), ("expert", 2, TEMPLATE), ("base", 3, TEMPLATE),
        )
    ]  # fmt: skip
    with Runtime.open(Bundle.from_paths(*files), load=LoadOptions(threads=1)) as opened:
        yield opened


def test_expert_and_base_stay_at_their_prompt_while_the_target_thinks(runtime: Runtime) -> None:
    generation = runtime.generate("chest pain", GenerateOptions(max_tokens=12))
    steps = list(generation)
    assert generation.finish is FinishReason.LENGTH
    assert all(step.thought and step.contrast == 0.0 for step in steps)
    assert generation.text_bytes == b"" and generation.thoughts_bytes
    for role in ("expert", "base"):
        assert runtime.models[role].position == generation.prompt_tokens[role]


def test_the_next_turn_takes_the_thoughts_out_of_the_cache(runtime: Runtime) -> None:
    list(runtime.generate("chest pain", GenerateOptions(max_tokens=12)))
    said = [Message("user", "chest pain"), Message("assistant", "no"), Message("user", "why")]
    counts = runtime.keep(said)
    assert runtime.models["target"].position < counts["target"]

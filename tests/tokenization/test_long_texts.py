"""Long runs of one kind of character under every pre-tokenizer of llama.cpp.

Some pre-tokenizers are std::regex, which recurses over its match: 30,000 equal characters ended
the process. Each pre-tokenizer reads them in a process of its own.
"""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest

from capt_local.errors import ModelError, TextTooLong
from capt_local.llama.weights import LONGEST_RUN, Weights
from capt_local.tokenization import TextTokenizer
from tests.children import long_texts
from tests.real_models import gemma, open_tokenizer
from tests.real_vocabularies import open_vocabulary, vocabulary_path, with_pre_tokenizer

# One name for each kind in llama.cpp's llama-vocab.cpp.
PRE_TOKENIZERS = (
    "default", "minicpm5", "llama-bpe", "deepseek-llm", "deepseek-coder", "deepseek-v3",
    "spark2_5", "youtu", "falcon", "mpt", "starcoder", "gpt-2", "jais-2", "refact",
    "command-r", "qwen2", "qwen35", "stablelm2", "olmo", "dbrx", "smaug-bpe", "poro-chat",
    "chatglm-bpe", "viking", "jais", "tekken", "smollm", "codeshell", "bloom", "gpt3-finnish",
    "exaone", "exaone-moe", "chameleon", "minerva-7b", "gpt-4o", "granite-embed-multi-97m",
    "tiny_aya", "superbpe", "trillion", "granite-docling", "bailingmoe", "seed-coder", "hunyuan",
    "hunyuan-dense", "hy_v4", "joyai-llm", "kimi-k2", "ufakzeka", "grok-2", "afmoe", "laguna",
    "minimax-m2", "solar-open", "mellum2",
)  # fmt: skip


def tokenize_all(path: Path, size: int, seconds: int, *classes: str) -> list[str]:
    command = [sys.executable, long_texts.__file__, str(path), str(size), str(seconds), *classes]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{done.returncode} after {done.stdout[-200:]}{done.stderr[-800:]}"
    return done.stdout.splitlines()


@pytest.mark.parametrize("name", ["gpt-4o", "deepseek-v3", "superbpe"])
def test_long_runs_do_not_end_the_process(name: str, tmp_path: Path) -> None:
    classes = ("underscores", "spaces", "lower case", "digits", "words")
    path = with_pre_tokenizer(name, tmp_path)
    assert len(tokenize_all(path, 40_000, 60, *classes)) == len(classes)


@pytest.mark.slow
@pytest.mark.parametrize("name", PRE_TOKENIZERS)
def test_every_class_under_every_pre_tokenizer(name: str, tmp_path: Path) -> None:
    lines = tokenize_all(with_pre_tokenizer(name, tmp_path), 200_000, 60)
    assert len(lines) == len(long_texts.CLASSES)
    print(name, *lines, sep="\n  ")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["llama-spm", "gemma-4", "phi-3", "baichuan"])
def test_every_class_under_other_tokenizers(name: str) -> None:
    assert len(tokenize_all(vocabulary_path(name), 200_000, 60)) == len(long_texts.CLASSES)


def test_a_pre_tokenizer_that_ends_the_process_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="two spaces"):
        Weights(with_pre_tokenizer("whitespace", tmp_path), vocabulary_only=True)


def test_what_cannot_be_divided_is_refused() -> None:
    weights = open_vocabulary("llama-spm")
    tokenizer = TextTokenizer(weights.vocabulary, weights.tokenize)
    with pytest.raises(TextTooLong):
        tokenizer.encode(b"a" * (LONGEST_RUN + 1), start=True)


@pytest.mark.parametrize("name", ["qwen2", "llama-bpe", "llama-spm"])
def test_parts_have_the_tokens_of_the_whole(name: str) -> None:
    """A text that goes to llama.cpp in parts, against llama.cpp's own tokens of the whole."""
    weights = open_vocabulary(name)
    text = b"".join(
        b"Day %d: BP %d/80 mmHg, SpO2 9%d %%;\n  no pain.\n" % (i, i, i) for i in range(900)
    )
    tokenizer = TextTokenizer(weights.vocabulary, weights.tokenize)
    assert tokenizer.encode(text, start=True) == weights.tokenize(text, special=False)


def test_many_lines_are_no_square_of_their_number() -> None:
    """Gemma's line ends and tabs are taken out of a text first: 37 s for this one as a whole."""
    weights = open_tokenizer(gemma())
    tokenizer = TextTokenizer(weights.vocabulary, weights.tokenize)
    text = b"a\n" * 1000 + b"b c\t\td  \n\ne" * 500
    assert tokenizer.encode(text, start=True) == weights.tokenize(text, special=False)
    started = time.process_time()
    assert len(tokenizer.encode(b"a\n" * 50_000, start=True)) == 100_000
    assert time.process_time() - started < 15

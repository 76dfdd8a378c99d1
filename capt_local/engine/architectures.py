"""Which kinds of models may reach llama.cpp: a list of those that are let in, not of the others.

The architectures are those of the pinned llama.cpp that write text from left to right by
themselves. Left out are encoders and embedders (BERT and its kin, T5), diffusion models (LLaDA,
Dream, RND1), speech and audio, drafts that need the inside of another model (EAGLE-3, DFlash,
Gemma-4 assistants) and readers of pictures alone.
"""

from __future__ import annotations

import re

from capt_local.errors import ModelError

_NAMES = """
    afmoe apertus arcee arctic arwkv7 baichuan bailingmoe bailingmoe2 bailingmoe3 bitnet bloom
    chatglm codeshell cohere2 cohere2moe command-r dbrx deci deepseek deepseek2 deepseek32 deepseek4
    dots1 dots3note ernie4_5 ernie4_5-moe exaone exaone-moe exaone4 falcon falcon-h1 gemma gemma2
    gemma3 gemma3n gemma4 glm-dsa glm4 glm4moe glm5-next gpt-oss gpt2 gptj gptneox granite
    granite_swa granitehybrid granitemoe graniteswitch grok grovemoe hunyuan-dense hunyuan-moe hy_v3
    hy_v4 internlm2 jais jais2 jamba kimi-k3 kimi-linear laguna lfm2 lfm2moe llama llama4 maincoder
    mamba mamba2 maple mellum mimo2 minicpm minicpm3 minimax-01 minimax-m2 minimax-m3 mistral3
    mistral4 mpt muse-glimmer nanbeige nemotron nemotron_h nemotron_h_moe olmo olmo2 olmoe openelm
    orion pangu-embedded phi2 phi3 phimoe plamo plamo2 plamo3 plm qwen qwen2 qwen2moe qwen2vl qwen3
    qwen35 qwen35moe qwen3moe qwen3next qwen3vl qwen3vlmoe qwen4exp refact rwkv6 rwkv6qwen2 rwkv7
    seed_oss smallthinker smollm3 spark2_5 stablelm starcoder starcoder2 step35 talkie xverse
    """
ARCHITECTURES = frozenset(_NAMES.split())
# Byte-level BPE, SentencePiece and their kin; not those that rewrite the text (WordPiece, Unigram).
TOKENIZERS = frozenset({"gemma4", "gpt2", "llama", "plamo2", "rwkv"})

_PLAIN = re.compile(r"[\w.-]{1,40}", re.ASCII)


def check_kind(name: str, architecture: object, tokenizer: object = None) -> None:
    """Refuses models of a kind that is not let in.

    Args:
        name: of the file.
        architecture: as the file has it.
        tokenizer: likewise; None where the file has none, as an adapter.

    Raises:
        ModelError: it is of another kind.
    """
    if architecture not in ARCHITECTURES:
        raise ModelError(
            f"{name}: {_shown(architecture)} is not among the architectures that are let in: "
            "language models that write text from left to right. Use one of them."
        )
    if tokenizer is not None and tokenizer not in TOKENIZERS:
        raise ModelError(
            f"{name}: {_shown(tokenizer)} is not among the tokenizers that are let in: byte-level "
            "BPE and SentencePiece, which keep a text as it was written. Use a model with one."
        )


def _shown(value: object) -> str:
    """The name comes from the file, so only a plain one is shown."""
    if isinstance(value, str) and _PLAIN.fullmatch(value):
        return value
    return "what the file names" if value else "a file that names none"

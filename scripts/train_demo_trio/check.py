"""Checks of the exported files against what was trained; needs llama-cpp-python.

    python -m scripts.train_demo_trio.check WORK OUT [--prose EVAL_DIR]

Compares llama.cpp's tokenization and logits with those of the training side, and measures bits per
byte on held-out prose.
"""

from __future__ import annotations

import argparse
import json
import math
from pathlib import Path

import llama_cpp
import numpy as np
import torch
from numpy.typing import NDArray

from scripts.train_demo_trio.train import checkpoint, load_model
from scripts.train_demo_trio.turns import Turn
from scripts.train_demo_trio.vocab import ProxyVocab, TargetVocab, open_vocab

ROLES = {"target": "target-tune", "expert": "expert-tune", "base": "base"}
STRANGE = (
    "BP 142/90 mmHg, T 38.5 °C; 2½ tablets,  µg/dL ≥ 3.5 – “quoted” naïve café Ménière's 😷👩‍⚕️\n\n"
    "\n  indented\ttab   three blanks\n- item 1\n- item 2\r\nPO₂ α-blocker β₂ 日本語 \n",
    " leading blank", "\n", " ", "  ", "a", "", "Don't DON'T we'll I'VE 1234567 3.14 x=1e-5",
    "<|im_end|> is text <|end|> <s> </s> <|user|>", "\u00a0nbsp\u2009thin\u200bzero",
)  # fmt: skip


class Native:
    """The part of llama.cpp that the checks use."""

    def __init__(self, path: Path, context: int) -> None:
        """Load one file on the CPU."""
        self.llama = llama_cpp.Llama(
            str(path),
            n_ctx=context,
            n_batch=context,
            logits_all=True,
            n_threads=1,
            n_threads_batch=1,
            verbose=False,
        )
        self.vocab = llama_cpp.llama_model_get_vocab(self.llama.model)

    def tokens(self, text: str, special: bool = False) -> list[int]:
        """llama.cpp's ids, without a start token."""
        raw = text.encode()
        room = (llama_cpp.llama_token * (len(raw) + 8))()
        count = llama_cpp.llama_tokenize(self.vocab, raw, len(raw), room, len(room), False, special)
        return list(room[:count])

    def logits(self, ids: list[int]) -> NDArray[np.float32]:
        """Logits of every position [n, vocab]."""
        self.llama.reset()
        self.llama.eval(ids)
        return np.array(self.llama.scores[: len(ids)], np.float32)


def check_tokens(native: Native, vocab: TargetVocab | ProxyVocab, texts: list[str]) -> int:
    """Texts on which the two tokenizers disagree."""
    wrong = 0
    for text in texts:
        if native.tokens(text) != vocab.encode(text):
            wrong += 1
            print("  differs:", repr(text[:120]))
    return wrong


def check_template(native: Native, vocab: TargetVocab | ProxyVocab) -> bool:
    """Whether llama.cpp reads a rendered template as training did."""
    from jinja2 import Environment

    template = native.llama.metadata["tokenizer.chat_template"]
    turn = Turn("What is a fever?", "A high temperature.\nDone", "Be brief.")
    said = [("system", turn.system), ("user", turn.user)]
    text = Environment().from_string(template).render(
        messages=[{"role": r, "content": c} for r, c in said],
        add_generation_prompt=True, bos_token="",
    )  # fmt: skip
    ids, _ = vocab.turn(turn, apart=False)
    read = native.tokens(text + turn.answer, special=True)
    return read == ids[:-1] and bool(llama_cpp.llama_vocab_is_eog(native.vocab, ids[-1]))


def bits_per_byte(native: Native, vocab: TargetVocab | ProxyVocab, texts: list[str]) -> float:
    """Bits per byte of the first 2,000 bytes of each text, after the start token."""
    bits, size, lengths = 0.0, 0, vocab.byte_lengths()
    for text in texts:
        part = text.encode()[:2000].decode(errors="ignore")
        ids = [vocab.start, *vocab.encode(part)][:1024]
        rows = native.logits(ids)[:-1]
        picked = rows[np.arange(len(ids) - 1), ids[1:]]
        top = rows.max(1)
        total = top + np.log(np.exp(rows - top[:, None]).sum(1, dtype=np.float64))
        bits += float((total - picked).sum()) / math.log(2)
        read = sum(lengths[i] for i in ids[1:])
        size += min(read, len(part.encode()))
    return bits / size


def compare_logits(native: Native, path: Path, ids: list[int]) -> tuple[float, float]:
    """Largest and mean difference of log-probabilities between llama.cpp and torch."""
    model = load_model(path, torch.float32)
    with torch.no_grad():
        ours = torch.log_softmax(model(torch.tensor([ids]))[0], -1)
    theirs = torch.log_softmax(torch.from_numpy(native.logits(ids)), -1)
    gap = (ours - theirs).abs()
    return float(gap.max()), float(gap.mean())


def read_prose(path: Path) -> list[str]:
    """Texts of an evaluation file."""
    with path.open(encoding="utf-8") as lines:
        return [json.loads(line)["text"] for line in lines]


def check(role: str, stage: str, args: argparse.Namespace, prose: dict[str, list[str]]) -> None:
    """Compare one file with the checkpoint that it was made from."""
    vocab = open_vocab("target" if role == "target" else "proxy", args.work)
    native = Native(args.out / f"{role}.gguf", 1024)
    texts = [*STRANGE, *(text[:3000] for part in prose.values() for text in part[:20])]
    print(role, "tokenized differently:", check_tokens(native, vocab, texts), "of", len(texts))
    print(role, "template and end of turn agree:", check_template(native, vocab))
    ids = [vocab.start, *vocab.encode(STRANGE[0] * 2)][:200]
    gap = compare_logits(native, checkpoint(args.work, stage), ids)
    print(role, "logp gap max, mean:", *gap)
    for name, texts in prose.items():
        print(role, name, f"{bits_per_byte(native, vocab, texts):.4f} bits per byte")


def main() -> None:
    """Run the checks on the three files."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("work", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--prose", type=Path)
    for role, stage in ROLES.items():
        parser.add_argument(f"--{role}", default=stage, help="its stage")
    args = parser.parse_args()
    torch.set_num_threads(1)
    names = ("clinical-prose.test-a", "general-prose.valid")
    prose = {n: read_prose(args.prose / f"{n}.jsonl") for n in names} if args.prose else {}
    for role in ROLES:
        check(role, getattr(args, role), args, prose)


if __name__ == "__main__":
    main()

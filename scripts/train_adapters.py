"""Train the two clinical LoRA adapters of SmolLM2: knowledge first, then alignment.

    python -m scripts.train_adapters prepare DATA --model MODEL.gguf --work W
    python -m scripts.train_adapters train knowledge --work W [--threads 2] [--minutes 60]
    python -m scripts.train_adapters train alignment --work W [--threads 2] [--tokens 300000]
    python -m scripts.train_adapters export --work W OUT
    python -m scripts.train_adapters take knowledge.gguf --work W

DATA holds clinical/, general/ and eval/ (JSON Lines). Needs the extra "train": PyTorch,
transformers, peft.

The two stages are those of MedCare (Wang et al. 2024): a *knowledge* adapter learns the text of
notes, case reports, patient information and textbooks; an *alignment* adapter then learns to answer
(dialogue to note section, visit to note, question to answer) on top of the frozen first one, and is
kept orthogonal to it: the penalty is the mean square of the products of the rows of their A
matrices (Wang et al. 2023, O-LoRA). MedCare's routed experts are left out: a GGUF adapter has no
router. The weights of the model itself are the de-quantized ones of the GGUF file, so an adapter
fits the very file that it is used with.

A stage ends after its tokens or its minutes, whichever comes first; the learning rate falls
linearly to zero by then. A checkpoint is written every few minutes, and the same command resumes
from it. `take` makes an exported adapter the frozen one that alignment stages lie on.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from scripts.common import write_gguf
from scripts.train_demo_trio.corpus import (
    CLINICAL,
    TEXTBOOKS,
    Document,
    evaluation_texts,
    load,
    sift,
)
from scripts.train_demo_trio.turns import turns_of

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

MATRICES = {
    "q_proj": "attn_q",
    "k_proj": "attn_k",
    "v_proj": "attn_v",
    "o_proj": "attn_output",
    "gate_proj": "ffn_gate",
    "up_proj": "ffn_up",
    "down_proj": "ffn_down",
}
"""The matrices with an adapter: their names in transformers and in GGUF."""
SEPARATOR = "<|endoftext|>"
ROW = 512
"""Tokens of a row; documents are packed into rows one behind the other."""
IGNORED = -100
"""Label of a position that is no part of the loss."""


@dataclass(frozen=True, slots=True)
class Stage:
    """How one adapter is trained.

    Attributes:
        name: of the adapter.
        shares: tokens of each source, relative to each other.
        turns: whether it reads turns made from the sources, with the loss on answers alone.
        tokens: read at most.
        rank: of the matrices A and B.
        scale: what B A is multiplied by (alpha / rank).
        lr: the highest learning rate.
        rows: of ROW tokens, in a step.
        under: the adapter that it lies on, frozen.
        orthogonal: weight of the penalty that keeps it orthogonal to that one.
        noise: alpha of NEFTune (Jain et al. 2023); 0 is without.
    """

    name: str
    shares: dict[str, float]
    turns: bool
    tokens: int
    rank: int = 16
    scale: float = 2.0
    lr: float = 6e-4
    rows: int = 4
    under: str = ""
    orthogonal: float = 0.0
    noise: float = 0.0


_KNOWLEDGE = Stage(
    "knowledge",
    {
        "mtsamples-noleak": 0.62,
        "e3c-en-ccby": 0.12,
        "medquad": 0.06,
        "mts-dialog-train": 0.05,
        "aci-bench-train": 0.03,
        **dict.fromkeys(TEXTBOOKS, 0.04),
    },
    turns=False,
    tokens=2_600_000,
)
_ALIGNMENT = Stage(
    "alignment",
    {
        "mts-dialog-train": 0.4,
        "aci-bench-train": 0.1,
        "medquad": 0.2,
        "mtsamples-noleak": 0.15,
        "e3c-en-ccby": 0.05,
        **dict.fromkeys(TEXTBOOKS, 0.03),
    },
    turns=True,
    tokens=1_000_000,
    lr=4e-4,
    under="knowledge",
    orthogonal=1.0,
)
_PLAIN = replace(_ALIGNMENT, name="alignment-plain", orthogonal=0.0)
_NEFT = replace(_ALIGNMENT, name="alignment-neft", noise=5.0)
STAGES = {stage.name: stage for stage in (_KNOWLEDGE, _ALIGNMENT, _PLAIN, _NEFT)}


# Text


def prepare(data: Path, model: Path, work: Path) -> None:
    """Tokenize all sources, without what stands in evaluation files, into WORK/rows."""
    documents = [d for source in CLINICAL for d in load(data, source)]
    kept = sift(documents, evaluation_texts(data / "eval"))
    tokenizer = load_tokenizer(model)
    folder = work / "rows"
    folder.mkdir(parents=True, exist_ok=True)
    (work / "model").write_text(str(model.resolve()), encoding="utf-8")
    for source in CLINICAL:
        ours = [d for d in kept if d.source == source]
        for split, held_out in (("train", False), ("held", True)):
            part = [d for d in ours if d.held_out is held_out]
            random.Random(0).shuffle(part)
            _save(folder / f"{source}.text.{split}.npz", _text_rows(part, tokenizer))
            _save(folder / f"{source}.turns.{split}.npz", _turn_rows(source, part, tokenizer))


Row = tuple[list[int], list[int]]
"""Tokens and labels, of equal length."""


def _save(path: Path, rows: Sequence[Row]) -> None:
    tokens = np.zeros((len(rows), ROW), np.int32)
    labels = np.full((len(rows), ROW), IGNORED, np.int32)
    for at, (ids, marks) in enumerate(rows):
        tokens[at, : len(ids)], labels[at, : len(marks)] = ids, marks
    np.savez(path, tokens=tokens, labels=labels)
    print(f"{path.name:45} {len(rows):6} rows, {int((labels != IGNORED).sum()):9} labels")


def _text_rows(documents: Sequence[Document], tokenizer: PreTrainedTokenizerBase) -> list[Row]:
    end = tokenizer.convert_tokens_to_ids(SEPARATOR)
    stream: list[int] = []
    for document in documents:
        stream += [end, *tokenizer(document.text, add_special_tokens=False)["input_ids"]]
    return [(row, row) for row in (stream[i : i + ROW] for i in range(0, len(stream), ROW))]


def _turn_rows(
    source: str, documents: Sequence[Document], tokenizer: PreTrainedTokenizerBase
) -> list[Row]:
    """Turns packed into rows; one that is longer than a row is left out, none is cut."""
    rows: list[Row] = []
    ids: list[int] = []
    marks: list[int] = []
    turns = turns_of(source, documents, "adapters")
    random.Random(1).shuffle(turns)
    for turn in turns:
        said = [{"role": "system", "content": turn.system}] if turn.system else []
        said.append({"role": "user", "content": turn.user})
        prompt = tokenizer.apply_chat_template(said, tokenize=False, add_generation_prompt=True)
        head = tokenizer(prompt, add_special_tokens=False)["input_ids"]
        answer = tokenizer(turn.answer + "<|im_end|>", add_special_tokens=False)["input_ids"]
        if len(head) + len(answer) > ROW:
            continue
        if len(ids) + len(head) + len(answer) > ROW:
            rows.append((ids, marks))
            ids, marks = [], []
        ids = [*ids, *head, *answer]
        marks = [*marks, *[IGNORED] * len(head), *answer]
    return [*rows, (ids, marks)] if ids else rows


def mixture(folder: Path, stage: Stage, seed: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Rows without end, drawn from the sources by their shares, each source in a random order."""
    rng = np.random.default_rng(seed)
    kind = "turns" if stage.turns else "text"
    loaded = {n: np.load(folder / f"{n}.{kind}.train.npz") for n in stage.shares}
    data = {n: (each["tokens"], each["labels"]) for n, each in loaded.items()}
    data = {n: each for n, each in data.items() if len(each[0])}
    names = list(data)
    shares = np.array([stage.shares[n] for n in names])
    orders: dict[str, list[int]] = {n: [] for n in names}
    while True:
        name = names[rng.choice(len(names), p=shares / shares.sum())]
        if not orders[name]:
            orders[name] = list(rng.permutation(len(data[name][0])))
        at = orders[name].pop()
        yield data[name][0][at], data[name][1][at]


# Model


def load_tokenizer(model: Path) -> PreTrainedTokenizerBase:
    """The tokenizer that the GGUF file holds."""
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(str(model.parent), gguf_file=model.name)


def load_model(model: Path) -> PreTrainedModel:
    """The de-quantized model, in bfloat16 and frozen."""
    import torch
    from transformers import AutoModelForCausalLM, GgufConfig

    loaded = AutoModelForCausalLM.from_pretrained(
        str(model.parent),
        gguf_file=model.name,
        quantization_config=GgufConfig(dequantize=True),
        dtype=torch.bfloat16,
    )
    for parameter in loaded.parameters():
        parameter.requires_grad_(False)
    return loaded


def with_adapters(model: PreTrainedModel, stage: Stage, work: Path) -> PreTrainedModel:
    """The model with the stage's adapter to train, on the frozen one under it."""
    from peft import LoraConfig, PeftModel, get_peft_model

    config = LoraConfig(
        r=stage.rank,
        lora_alpha=int(stage.scale * stage.rank),
        target_modules=list(MATRICES),
        lora_dropout=0.0,
        task_type="CAUSAL_LM",
    )
    if not stage.under:
        return get_peft_model(model, config, adapter_name=stage.name)
    both = PeftModel.from_pretrained(model, work / stage.under / stage.under, stage.under)
    both.add_adapter(stage.name, config)
    both.base_model.set_adapter([stage.under, stage.name])
    for name, parameter in both.named_parameters():
        parameter.requires_grad_(f".{stage.name}." in name)
    return both


def overlap_penalty(model: PreTrainedModel, stage: Stage) -> torch.Tensor:
    """Mean square of the products of the rows of both A, over all matrices (O-LoRA)."""
    import torch

    terms = [
        (module.lora_A[stage.under].weight @ module.lora_A[stage.name].weight.T).square().mean()
        for module in model.modules()
        if hasattr(module, "lora_A") and stage.name in module.lora_A
    ]
    return torch.stack(terms).mean()


def loss_of(
    hidden: torch.Tensor, labels: torch.Tensor, head: torch.Tensor, chunk: int = 512
) -> torch.Tensor:
    """Summed cross-entropy of (positions, width) that the head (vocabulary, width) reads.

    Chunk by chunk, and once more for the gradient, so that the logits of a batch are never in
    memory together. Positions with the label IGNORED do not count.
    """
    import torch
    from torch.utils.checkpoint import checkpoint

    def summed(states: torch.Tensor, own: torch.Tensor) -> torch.Tensor:
        logits = (states @ head.T).float()
        return torch.nn.functional.cross_entropy(logits, own, reduction="sum")

    counted = labels != IGNORED
    chunks = zip(hidden[counted].split(chunk), labels[counted].split(chunk), strict=True)
    losses = [checkpoint(summed, *each, use_reentrant=False) for each in chunks]
    return torch.stack(losses).sum()


# Training


def train(
    work: Path, stage: str, threads: int = 1, minutes: float = 1e6, tokens: int | None = None
) -> None:
    """Train a stage, or go on with it; `tokens` instead of its own number."""
    import torch

    plan = replace(STAGES[stage], tokens=tokens or STAGES[stage].tokens)
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    model = with_adapters(load_model(Path((work / "model").read_text())), plan, work)
    weights = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(weights, lr=plan.lr, betas=(0.9, 0.98), weight_decay=0.0)
    folder = work / plan.name
    folder.mkdir(exist_ok=True)
    state = {"tokens": 0, "steps": 0, "seconds": 0.0}
    if (folder / "state.pt").exists():
        saved = torch.load(folder / "state.pt")
        state, values = saved["state"], saved["weights"]
        optimizer.load_state_dict(saved["optimizer"])
        for parameter, value in zip(weights, values, strict=True):
            parameter.data.copy_(value)

    def save() -> None:
        part = folder / "state.pt.part"
        values = [p.detach().clone() for p in weights]
        torch.save({"state": state, "weights": values, "optimizer": optimizer.state_dict()}, part)
        part.replace(folder / "state.pt")

    rows = mixture(work / "rows", plan, seed=state["steps"])
    began, saved_at = time.monotonic() - state["seconds"], time.monotonic()
    body = model.get_base_model()
    head = body.lm_head.weight
    recent: list[float] = []
    while True:
        state["seconds"] = time.monotonic() - began
        done = max(state["tokens"] / plan.tokens, state["seconds"] / (60 * minutes))
        if done >= 1:
            break
        rate = plan.lr * min(1.0, (state["steps"] + 1) / 20, 1 - done)
        for each in optimizer.param_groups:
            each["lr"] = rate
        batch = [next(rows) for _ in range(plan.rows)]
        ids = torch.from_numpy(np.stack([b[0] for b in batch])).long()
        labels = torch.from_numpy(np.stack([b[1] for b in batch])).long()
        labels = torch.nn.functional.pad(labels[:, 1:], (0, 1), value=IGNORED)
        inputs = body.model.embed_tokens(ids)
        if plan.noise:
            size = plan.noise / math.sqrt(ROW * inputs.shape[-1])
            inputs = inputs + torch.empty_like(inputs).uniform_(-size, size)
        with torch.autocast("cpu", torch.bfloat16):
            hidden = body.model(inputs_embeds=inputs).last_hidden_state
        loss = loss_of(hidden.to(head.dtype), labels, head) / (labels != IGNORED).sum()
        recent.append(loss.item())
        if plan.orthogonal:
            loss = loss + plan.orthogonal * overlap_penalty(model, plan)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(weights, 1.0)
        optimizer.step()
        state["tokens"] += plan.rows * ROW
        state["steps"] += 1
        if state["steps"] % 10 == 0:
            speed = state["tokens"] / max(state["seconds"], 1)
            print(
                f"{plan.name} step {state['steps']} tokens {state['tokens']} "
                f"loss {np.mean(recent[-20:]):.4f} rate {rate:.1e} {speed:.0f} tokens/s",
                flush=True,
            )
        if time.monotonic() - saved_at > 300:
            save()
            saved_at = time.monotonic()
    save()
    model.save_pretrained(folder, selected_adapters=[plan.name])
    (folder / "log.json").write_text(json.dumps({**state, "losses": recent}))


# GGUF


def export(work: Path, out: Path, names: Sequence[str], bits: int) -> None:
    """Write each adapter as OUT/NAME.gguf, in the form of llama.cpp's converter.

    Rows of B of attn_q and attn_k are permuted as the converter permutes the weights of llama
    models (rotary pairs side by side instead of in halves).
    """
    import gguf
    from gguf import GGMLQuantizationType as Kind
    from safetensors.numpy import load_file

    heads = _heads(work)
    out.mkdir(parents=True, exist_ok=True)
    for name in names:
        values = load_file(work / name / name / "adapter_model.safetensors")
        settings = json.loads((work / name / name / "adapter_config.json").read_text())
        writer = gguf.GGUFWriter(out / f"{name}.gguf", "llama")
        writer.add_type("adapter")
        writer.add_string("adapter.type", "lora")
        writer.add_float32("adapter.lora.alpha", float(settings["lora_alpha"]))
        writer.add_string("general.name", f"SmolLM2-135M-Instruct clinical {name}")
        writer.add_string("general.license", "apache-2.0")
        for key, value in sorted(values.items()):
            parts = key.split(".")
            layer = parts[parts.index("layers") + 1]
            matrix = MATRICES[next(p for p in parts if p in MATRICES)]
            side = "a" if "lora_A" in parts else "b"
            value = value.astype(np.float32)
            if side == "b" and matrix in heads:
                halves = value.reshape(heads[matrix], 2, value.shape[0] // heads[matrix] // 2, -1)
                value = halves.swapaxes(1, 2).reshape(value.shape)
            kind = Kind.Q8_0 if bits == 8 and value.shape[-1] % 32 == 0 else Kind.F16
            packed = gguf.quants.quantize(np.ascontiguousarray(value), kind)
            writer.add_tensor(f"blk.{layer}.{matrix}.weight.lora_{side}", packed, raw_dtype=kind)
        write_gguf(writer)
        print(f"{out / name}.gguf {(out / f'{name}.gguf').stat().st_size} bytes")


def take(work: Path, file: Path) -> None:
    """Make an adapter that `export` wrote WORK/NAME, in peft's form; NAME is that of the file."""
    import gguf
    from safetensors.numpy import save_file

    reader, heads = gguf.GGUFReader(file), _heads(work)
    modules = {ours: theirs for theirs, ours in MATRICES.items()}
    values = {}
    for tensor in reader.tensors:
        _, layer, matrix, _, side = tensor.name.split(".")
        value = gguf.quants.dequantize(tensor.data, tensor.tensor_type).astype(np.float32)
        if side == "lora_b" and matrix in heads:
            pairs = value.reshape(heads[matrix], value.shape[0] // heads[matrix] // 2, 2, -1)
            value = pairs.swapaxes(1, 2).reshape(value.shape)
        part = "mlp" if matrix.startswith("ffn") else "self_attn"
        place = f"base_model.model.model.layers.{layer}.{part}.{modules[matrix]}"
        values[f"{place}.lora_{side[-1].upper()}.weight"] = np.ascontiguousarray(value)
    rank = next(value.shape[0] for name, value in values.items() if ".lora_A." in name)
    settings = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "r": rank,
        "lora_alpha": int(reader.fields["adapter.lora.alpha"].parts[-1][0]),
        "target_modules": list(MATRICES),
    }
    folder = work / file.stem / file.stem
    folder.mkdir(parents=True, exist_ok=True)
    save_file(values, folder / "adapter_model.safetensors")
    (folder / "adapter_config.json").write_text(json.dumps(settings))


def _heads(work: Path) -> dict[str, int]:
    """Heads of the matrices whose rows llama.cpp has in another order."""
    import gguf

    fields = gguf.GGUFReader(Path((work / "model").read_text())).fields
    keys = {"attn_q": "head_count", "attn_k": "head_count_kv"}
    return {name: int(fields[f"llama.attention.{key}"].parts[-1][0]) for name, key in keys.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    verbs = parser.add_subparsers(required=True)

    def verb(call: Callable[..., None]) -> argparse.ArgumentParser:
        part = verbs.add_parser(call.__name__)
        part.set_defaults(call=call)
        part.add_argument("--work", type=Path, required=True)
        return part

    part = verb(prepare)
    part.add_argument("data", type=Path)
    part.add_argument("--model", type=Path, required=True)
    part = verb(train)
    part.add_argument("stage", choices=list(STAGES))
    part.add_argument("--threads", type=int, default=1)
    part.add_argument("--minutes", type=float, default=1e6)
    part.add_argument("--tokens", type=int, help="instead of the stage's own number")
    part = verb(export)
    part.add_argument("out", type=Path)
    part.add_argument("--names", nargs="+", default=["knowledge", "alignment"])
    part.add_argument("--bits", type=int, choices=(8, 16), default=16)
    verb(take).add_argument("file", type=Path)
    given = vars(parser.parse_args())
    given.pop("call")(**given)


if __name__ == "__main__":
    main()

"""Train the scorer of `--best-of`: an encoder that says whether an answer to a question is right.

    python -m scripts.measure_best_of draw CANDIDATES.jsonl trio TASK.jsonl ... [--limit N] [--free]
    python -m scripts.train_scorer borrow OUT.jsonl CANDIDATES.jsonl TASK.jsonl[:COUNT] ...
    python -m scripts.train_scorer train CANDIDATES.jsonl ENCODER --work W [--epochs 1]
    python -m scripts.train_scorer export ENCODER --work W OUT

After MedAdapter (Shi et al. 2024): a trio answers labelled questions n times at temperature 1, each
candidate is labelled by whether it names the right choice, and a BERT-sized encoder with a head of
two labels learns the label from "Q: question A: answer" (cross-entropy). ENCODER is the folder of
all-MiniLM-L6-v2 (safetensors, tokenizer.json). `train` and `export` need the extra "train".

A TASK has the format of evaluation tasks; `mts-dialog:FILE.jsonl.xz` reads the training split of
MTS-Dialog as the task of naming the section. COUNT questions are drawn at random. One question in
ten is held out, by its id; the state with the lowest loss of held-out candidates is kept.
"""

from __future__ import annotations

import hashlib
import json
import random
import re
import time
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from scripts.common import records, write_gguf

if TYPE_CHECKING:
    import torch
    from tokenizers import Tokenizer

    from capt_local.evaluate.tasks import EvalTask

LENGTH = 256
"""Tokens of a question and an answer at most."""
CLS, SEP = 101, 102
ENCODER, HEAD = "encoder.gguf", "head.safetensors"  # as `capt_local.rerank` has it
BATCH = 16

app = typer.Typer(help=__doc__)
Work = Annotated[Path, typer.Option()]


# Candidates


def tasks_of(names: Sequence[str]) -> Iterator[EvalTask]:
    """The tasks that are named, each with its questions in a random order."""
    from capt_local.evaluate.tasks import read_task

    for name in names:
        place, _, count = name.rpartition(":")
        if not count.isdigit():
            place, count = name, "0"
        if place.startswith("mts-dialog:"):
            task = sections(Path(place.partition(":")[2]), headers=mts_headers(names))
        else:
            task = read_task(Path(place))
        items = list(task.items)
        random.Random(0).shuffle(items)
        yield replace(task, items=tuple(items[: int(count) or None]))


def mts_headers(names: Sequence[str]) -> tuple[str, ...]:
    """The sections that the task file of MTS-Dialog among them lists."""
    from capt_local.evaluate.tasks import read_task

    found = next(n for n in names if "mts-header" in n)
    return read_task(Path(re.sub(r":\d+$", "", found))).choices


def sections(path: Path, headers: tuple[str, ...]) -> EvalTask:
    """The training dialogues of MTS-Dialog, each with the name of its section."""
    from capt_local.evaluate.tasks import EvalTask, Item, Kind, Measure

    items = []
    for record in records(path):
        found = re.match(r"Dialogue:\n(.*)\n\n([A-Z/_ ]+):\n", record["text"], re.S)
        if found and found[2] in headers:
            asked = "Name the clinical note section that this conversation belongs to."
            items.append(Item(record["id"], asked, found[1].strip(), found[2], headers))
    return EvalTask("mts-header", Kind.CLASSIFICATION, tuple(items), Measure.CHOICE)


@app.command()
def borrow(out: Path, known: Path, tasks: list[str], count: int = 3) -> None:
    """Write candidates for further questions: answers that the trio gave to others of the task.

    A classification has few different answers, so the models need not run for each question.
    """
    lines = records(known)
    there = {(line["task"], line["id"]) for line in lines}
    rng = random.Random(1)
    with out.open("w", encoding="utf-8") as file:
        for task in tasks_of(tasks):
            pool = [
                answer
                for line in lines
                if line["task"] == task.name and "likeliest" in line
                for answer in line["answers"]
            ]
            for item in task.items:
                if (task.name, item.id) not in there:
                    answers = rng.sample(pool, count)
                    line = {
                        "task": task.name,
                        "id": item.id,
                        "question": f"{item.instruction}\n\n{item.input}",
                        "reference": item.reference,
                        "answers": answers,
                        "said": answers,
                        "likeliest": "",
                    }
                    file.write(json.dumps(line) + "\n")


# Training


def examples(lines: Sequence[dict[str, Any]]) -> list[tuple[int, str, str, int]]:
    """(place of the question, question, answer, label): each answer of a question once.

    The right answer is one of them even where the trio never gave it; or a question that the trio
    cannot answer would teach that all answers to it are wrong.
    """
    found = []
    for place, line in enumerate(lines):
        labels = [int(one == line["reference"]) for one in line["said"]]
        answers = dict(zip(line["answers"], labels, strict=True))
        if "likeliest" in line:  # answers that are choices
            answers[line["reference"]] = 1
        found += [(place, line["question"], answer, label) for answer, label in answers.items()]
    return found


def held_out(line: dict[str, Any]) -> bool:
    """One question in ten, by its id."""
    return zlib.crc32(f"{line['task']}/{line['id']}".encode()) % 10 == 0


def pair_ids(tokenizer: Tokenizer, question: str, answer: str) -> list[int]:
    """[CLS] Q: question A: answer [SEP], as the runtime gives it to the encoder.

    At most LENGTH tokens; the beginning of the question is left out where they are longer.
    """
    parts = ("Q:", question, f"A: {answer}")
    before, own, behind = (tokenizer.encode(part, add_special_tokens=False).ids for part in parts)
    left = LENGTH - 2 - len(before) - len(behind)
    own = own[-left:] if left > 0 else []
    return [CLS, *before, *own, *behind[: LENGTH - 2 - len(before)], SEP]


@app.command()
def train(
    candidates: list[Path], encoder: Path, work: Work, epochs: int = 1, lr: float = 2e-5
) -> None:
    """Train encoder and head; keep the state with the lowest held-out loss in WORK."""
    import numpy as np
    import torch
    from tokenizers import Tokenizer
    from transformers import AutoModel

    torch.set_num_threads(1)
    torch.manual_seed(0)
    lines = [line for path in candidates for line in records(path)]
    tokenizer = Tokenizer.from_file(str(encoder / "tokenizer.json"))
    tokenizer.no_truncation()
    tokenizer.no_padding()
    rows = [(p, pair_ids(tokenizer, q, a), label) for p, q, a, label in examples(lines)]
    learned = [row for row in rows if not held_out(lines[row[0]])]
    hidden = [row for row in rows if held_out(lines[row[0]])]
    print(
        f"{len(learned)} candidates of {len({r[0] for r in learned})} questions; held out "
        f"{len(hidden)} of {len({r[0] for r in hidden})}",
        flush=True,
    )
    body = AutoModel.from_pretrained(encoder, add_pooling_layer=False)
    head = torch.nn.Linear(body.config.hidden_size, 2)
    weights = [*body.parameters(), *head.parameters()]
    optimizer = torch.optim.AdamW(
        [{"params": body.parameters(), "scale": 1.0}, {"params": head.parameters(), "scale": 50.0}],
        lr=lr, weight_decay=0.01,
    )  # fmt: skip
    # Each question weighs the same, however many answers it has.
    counts = np.bincount([row[0] for row in rows], minlength=len(lines))

    def logits(batch: Sequence[tuple[int, list[int], int]]) -> torch.Tensor:
        longest = max(len(row[1]) for row in batch)
        ids = torch.tensor([row[1] + [0] * (longest - len(row[1])) for row in batch])
        mask = torch.tensor([[1.0] * len(r[1]) + [0.0] * (longest - len(r[1])) for r in batch])
        with torch.autocast("cpu", torch.bfloat16):
            states = body(ids, mask.long()).last_hidden_state.float()
        pooled = (states * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)
        found: torch.Tensor = head(pooled)
        return found

    def batches(some: list[tuple[int, list[int], int]], size: int, seed: int) -> list[Any]:
        """Of about equal lengths, in a random order."""
        rng = random.Random(seed)
        ordered = sorted(some, key=lambda row: (len(row[1]) + rng.randint(0, 24), rng.random()))
        made = [ordered[at : at + size] for at in range(0, len(ordered), size)]
        rng.shuffle(made)
        return made

    def judged() -> float:
        body.eval()
        losses, shares = [], []
        with torch.no_grad():
            for batch in batches(hidden, 32, 0):
                logp = torch.log_softmax(logits(batch), 1)
                for row, values in zip(batch, logp.tolist(), strict=True):
                    losses.append(-values[row[2]])
                    shares.append(1 / counts[row[0]])
        body.train()
        return float(np.average(losses, weights=shares))

    work.mkdir(parents=True, exist_ok=True)
    plan = [batch for epoch in range(epochs) for batch in batches(learned, BATCH, epoch)]
    best, started, recent = judged(), time.monotonic(), list[float]()
    print(f"untrained: held-out loss {best:.4f}", flush=True)
    body.train()
    for step, batch in enumerate(plan, 1):
        share = min(1.0, step / 50, 1.02 - step / len(plan))
        for group in optimizer.param_groups:
            group["lr"] = lr * group["scale"] * share
        losses = torch.nn.functional.cross_entropy(
            logits(batch), torch.tensor([row[2] for row in batch]), reduction="none"
        )
        share_of = torch.tensor([1 / counts[row[0]] for row in batch], dtype=torch.float32)
        loss = (losses * share_of).sum() / share_of.sum()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(weights, 1.0)
        optimizer.step()
        recent.append(loss.item())
        if step % 25 == 0:
            print(
                f"step {step} of {len(plan)} loss {np.mean(recent[-25:]):.4f} "
                f"{time.monotonic() - started:.0f} s",
                flush=True,
            )
        if (len(plan) - step) % max(1, len(plan) // (2 * epochs)) == 0:
            found = judged()
            print(f"step {step}: held-out loss {found:.4f}", flush=True)
            if found < best:
                best = found
                torch.save({"encoder": body.state_dict(), "head": head.state_dict()},
                           work / "scorer.pt")  # fmt: skip


# Export


@app.command()
def export(
    encoder: Path,
    out: Path,
    work: Work,
    target: Annotated[Path, typer.Option(help="GGUF whose answers it scores")],
) -> None:
    """Write OUT/encoder.gguf (Q5_0) and OUT/head.safetensors."""
    import gguf
    import numpy as np
    import torch
    from gguf import GGMLQuantizationType as Kind
    from safetensors.numpy import save_file

    from capt_local.llama.gguf_header import file_digests

    state = torch.load(work / "scorer.pt")
    config = json.loads((encoder / "config.json").read_text())
    out.mkdir(parents=True, exist_ok=True)
    writer = gguf.GGUFWriter(out / ENCODER, "bert")
    writer.add_name("all-MiniLM-L6-v2, trained to score answers")
    writer.add_license("apache-2.0")
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_layer_norm_eps(config["layer_norm_eps"])
    writer.add_causal_attention(False)
    writer.add_pooling_type(gguf.PoolingType.MEAN)
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_Q5_0)
    words = (encoder / "vocab.txt").read_text(encoding="utf-8").splitlines()
    special = {f"[{name}]" for name in ("PAD", "UNK", "CLS", "SEP", "MASK")}
    writer.add_tokenizer_model("bert")
    writer.add_tokenizer_pre("default")
    # As llama.cpp's converter writes WordPiece: a mark before what begins a word.
    writer.add_token_list([
        word if word in special else word[2:] if word.startswith("##") else f"\u2581{word}"
        for word in words
    ])  # fmt: skip
    writer.add_token_types([3 if word in special else 1 for word in words])
    writer.add_token_type_count(config["type_vocab_size"])
    for add, name in (
        (writer.add_bos_token_id, "CLS"), (writer.add_eos_token_id, "SEP"),
        (writer.add_unk_token_id, "UNK"), (writer.add_sep_token_id, "SEP"),
        (writer.add_pad_token_id, "PAD"), (writer.add_mask_token_id, "MASK"),
    ):  # fmt: skip
        add(words.index(f"[{name}]"))
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.BERT, config["num_hidden_layers"])
    for key, tensor in state["encoder"].items():
        name = names.get_name(key, try_suffixes=(".weight", ".bias"))
        if name is None:
            continue
        value = np.ascontiguousarray(tensor.numpy().astype(np.float32))
        kind = Kind.F32
        if value.ndim == 2 and name != "token_types.weight":
            kind = Kind.Q5_0
        writer.add_tensor(name, gguf.quants.quantize(value, kind), raw_dtype=kind)
    write_gguf(writer)
    about = {
        "encoder_sha256": hashlib.sha256((out / ENCODER).read_bytes()).hexdigest(),
        "target_tokenizer": file_digests(target).tokenizer,
        "length": str(LENGTH),
    }
    head = {name: tensor.numpy() for name, tensor in state["head"].items()}
    save_file(head, out / HEAD, metadata=about)
    print(f"{out / ENCODER}: {(out / ENCODER).stat().st_size:,} bytes")


if __name__ == "__main__":
    app()

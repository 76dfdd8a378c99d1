"""The whole recipe on invented text: from sources to files that llama.cpp runs."""

from __future__ import annotations

import itertools
import json
import random
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("tokenizers")
pytest.importorskip("sentencepiece")

import torch

from scripts.train_demo_trio import __main__ as command
from scripts.train_demo_trio import train as training
from scripts.train_demo_trio.check import Native, check_template, check_tokens, compare_logits
from scripts.train_demo_trio.corpus import CLINICAL, SOURCES
from scripts.train_demo_trio.head import head_loss
from scripts.train_demo_trio.importance import measure
from scripts.train_demo_trio.model import Llama
from scripts.train_demo_trio.quantize import ROLES, quantize_trio
from scripts.train_demo_trio.shapes import Shape
from scripts.train_demo_trio.stages import PRESETS, STAGES
from scripts.train_demo_trio.tokens import read_streams
from scripts.train_demo_trio.train import Limits, Trainer, held_names
from scripts.train_demo_trio.vocab import open_vocab

EXTRA = {
    "medquad": "Question: What is it ?\n\nAnswer: {}",
    "gsm8k-train": "Question: {}\nAnswer: {}",
}


def sentence(rng: random.Random) -> str:
    def word() -> str:
        return "".join(rng.choice("bdfgklmnprst") + rng.choice("aeiou") for _ in range(2))

    return " ".join([word().title(), *(word() for _ in range(8)), str(rng.randint(0, 99))]) + "."


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a pack and its tokens, made by the command line."""
    data, work = tmp_path_factory.mktemp("data"), tmp_path_factory.mktemp("work")
    rng = random.Random(1)
    for source in SOURCES:
        folder = data / ("clinical" if source in CLINICAL else "general")
        folder.mkdir(exist_ok=True)
        lines = []
        for number in range(120):
            text = " ".join(sentence(rng) for _ in range(8))
            text = EXTRA.get(source, "{}").format(text, text)
            lines.append(json.dumps({"id": number, "text": text}) + "\n")
        (folder / f"{source}.jsonl").write_text("".join(lines))
    command.main(["prepare", str(data), "--work", str(work), "--preset", "tests"])
    command.main(["tokens", "--work", str(work), "--jobs", "1"])
    return work


def trainer(work: Path, stage: str) -> Trainer:
    made = STAGES[stage]
    vocab = open_vocab(made.role, work)
    return Trainer(made, PRESETS["tests"], vocab, work, device="cpu", seed=1, compiled=False)


def run(work: Path, stage: str, limits: Limits) -> bool:
    made = STAGES[stage]
    streams = read_streams(work, made.role, tuple(made.epochs))
    held = read_streams(work, made.role, held_names(made), held=True)
    return trainer(work, stage).run(streams, held, limits)


@pytest.fixture(scope="module")
def trained(work: Path) -> Path:
    torch.set_num_threads(1)
    for stage in ("target-pretrain", "target-tune", "base", "expert-pretrain", "expert-tune"):
        assert run(work, stage, Limits(4096))
    return work


def test_what_was_counted_is_what_is_trained(work: Path) -> None:
    for role, shape in PRESETS["demo"].shapes.items():
        assert sum(p.numel() for p in Llama(shape).parameters()) == shape.parameters, role


def test_a_stage_that_was_stopped_goes_on_as_if_it_had_not(
    work: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "tokens").symlink_to(work / "tokens")
    for name in ("target.tokenizer.json", "proxy.spm"):
        (tmp_path / name).write_bytes((work / name).read_bytes())
    weights = []
    for stops in ([np.inf], [2, np.inf]):
        for file in tmp_path.glob("base.*"):
            file.unlink()
        for stop in stops:
            ticks = itertools.count()
            monkeypatch.setattr(training.time, "time", lambda ticks=ticks: next(ticks))
            done = run(tmp_path, "base", Limits(4 * 2048, stop_at=stop))
            assert done == (stop == np.inf)
        saved = torch.load(tmp_path / "base.pt", weights_only=False)
        assert saved["step"] == 4
        weights.append(saved["model"])
    for name, tensor in weights[0].items():
        assert torch.equal(tensor, weights[1][name]), name


def test_noise_is_drawn_anew_and_only_on_embeddings() -> None:
    torch.manual_seed(0)
    model = Llama(Shape(64, 32, 1, 1, 1, 32, 32, context=16), torch.float32)
    ids = torch.arange(16)[None]
    plain, noisy, again = (model.hidden(ids, noise) for noise in (0.0, 5.0, 5.0))
    assert torch.equal(plain, model.hidden(ids)) and not torch.equal(noisy, again)
    assert (noisy - plain).abs().max() > 0


def test_the_head_a_few_rows_at_a_time_is_the_whole_one() -> None:
    torch.manual_seed(1)
    x, head = torch.randn(2, 1100, 16), torch.randn(96, 16)
    targets, weights = torch.randint(0, 96, (2, 1100)), torch.rand(2, 1100)
    found = []
    for whole in (False, True):
        given = [part.clone().requires_grad_() for part in (x, head)]
        if whole:
            logits = (given[0] @ given[1].T).flatten(0, 1)
            nats = torch.nn.functional.cross_entropy(logits, targets.flatten(), reduction="none")
            loss = (nats * weights.flatten()).sum() / weights.sum()
        else:
            loss = head_loss(*given, targets, weights)
        (2 * loss).backward()
        found.append((loss, given[0].grad, given[1].grad))
    for one, other in zip(*found, strict=True):
        assert torch.allclose(one, other, rtol=1e-4, atol=1e-6)


def test_the_files_say_what_was_trained(trained: Path, tmp_path: Path) -> None:
    command.main(["export", "--work", str(trained), str(tmp_path / "f16")])
    stages = {"target": "target-tune", "expert": "expert-tune", "base": "base"}
    for role, stage in stages.items():
        vocab = open_vocab("target" if role == "target" else "proxy", trained)
        native = Native(tmp_path / "f16" / f"{role}.gguf", 256)
        texts = ["Bade 12 fige.", " leading", "a\n\nb", "BP 142/90 µg"]
        assert check_tokens(native, vocab, texts) == 0 and check_template(native, vocab)
        ids = [vocab.start, *vocab.encode(" ".join(texts))]
        assert compare_logits(native, trained / f"{stage}.pt", ids)[1] < 0.01
    measure(trained, stages, tmp_path / "importance")
    lines = quantize_trio(tmp_path / "f16", tmp_path / "q8", "q8_0", tmp_path / "importance")
    assert len(lines) == len(ROLES) + 1
    assert sum(f.stat().st_size for f in (tmp_path / "f16").glob("*.gguf")) < 1_000_000


def test_what_is_delivered_can_be_exported(trained: Path, tmp_path: Path) -> None:
    parts, other = tmp_path / "parts", tmp_path / "work"
    command.main(["deliver", "--work", str(trained), str(parts), "--stages", "base", "expert-tune",
                  "--part-mib", "0.125"])  # fmt: skip
    assert len(list(parts.glob("base.*"))) > 1
    assert max(path.stat().st_size for path in parts.iterdir()) <= 2**17
    arguments = ["--work", str(other), "--pack", str(trained / "pack"), str(parts)]
    command.main(["receive", *arguments])
    first, second = (
        torch.load(folder / "base.pt", weights_only=False) for folder in (trained, other)
    )
    assert second["shape"] == first["shape"] and (other / "base.done").exists()
    for name, tensor in first["model"].items():
        assert torch.allclose(tensor, second["model"][name], rtol=1e-3, atol=1e-6)

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

import llama_cpp
import torch
from jinja2 import Environment

from scripts.train_demo_trio import train as training
from scripts.train_demo_trio.__main__ import app
from scripts.train_demo_trio.corpus import CLINICAL, SOURCES
from scripts.train_demo_trio.stages import PRESETS, STAGES
from scripts.train_demo_trio.streams import Vocab
from scripts.train_demo_trio.train import Trainer, checkpoint, load_model
from scripts.train_demo_trio.turns import Turn

EXTRA = {
    "medquad": "Question: What is it ?\n\nAnswer: {}",
    "gsm8k-train": "Question: {}\nAnswer: {}",
}


def main(arguments: list[str]) -> None:
    app(arguments, standalone_mode=False)


def sentence(rng: random.Random) -> str:
    def word() -> str:
        return "".join(rng.choice("bdfgklmnprst") + rng.choice("aeiou") for _ in range(2))

    return " ".join([word().title(), *(word() for _ in range(8)), str(rng.randint(0, 99))]) + "."


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with vocabulary and token streams, made by the command line."""
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
    main(["prepare", str(data), "--work", str(work), "--preset", "tests"])
    return work


@pytest.fixture(scope="module")
def trained(work: Path) -> Path:
    main(["train", "--work", str(work), "--device", "cpu", "--steps", "4"])
    return work


def test_a_stage_that_was_stopped_goes_on_as_if_it_had_not(
    work: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "tokens").symlink_to(work / "tokens")
    (tmp_path / "proxy.spm").symlink_to(work / "proxy.spm")
    preset, weights = PRESETS["tests"], []
    tokens = 4 * preset.rows * preset.shape.context
    for stops in ([np.inf], [2, np.inf]):
        for file in tmp_path.glob("base.*"):
            file.unlink()
        for stop in stops:
            ticks = itertools.count()
            monkeypatch.setattr(training.time, "time", lambda ticks=ticks: next(ticks))
            made = Trainer(STAGES["base"], preset, tmp_path, device="cpu")
            assert made.run(stop, tokens) == (stop == np.inf)
        saved = torch.load(tmp_path / "base.pt", weights_only=False)
        assert saved["step"] == 4
        weights.append(saved["model"])
    for name, tensor in weights[0].items():
        assert torch.equal(tensor, weights[1][name]), name


def test_the_files_say_what_was_trained(trained: Path, tmp_path: Path) -> None:
    main(["export", "--work", str(trained), str(tmp_path / "f16")])
    main(["quantize", str(tmp_path / "f16"), str(tmp_path / "q8"), "--type", "q8_0"])
    vocab = Vocab(trained)
    turn = Turn("What is a fever?", "A high temperature.\nDone", "Be brief.")
    said = [("system", turn.system), ("user", turn.user)]
    for role, stage in (("expert", "expert-tune"), ("base", "base")):
        path = tmp_path / "f16" / f"{role}.gguf"
        native = llama_cpp.Llama(
            str(path), n_ctx=256, n_batch=256, logits_all=True, n_threads=1, verbose=False
        )

        def tokens(text: str, native: llama_cpp.Llama = native, special: bool = False) -> list[int]:
            return native.tokenize(text.encode(), add_bos=False, special=special)

        texts = ["Bade 12 fige.", " leading", "a\n\nb", "BP 142/90 µg"]
        assert [tokens(text) for text in texts] == [vocab.encode(text) for text in texts]
        template = Environment().from_string(native.metadata["tokenizer.chat_template"])
        messages = [{"role": who, "content": text} for who, text in said]
        asked = template.render(messages=messages, add_generation_prompt=True, bos_token="")
        ids, _ = vocab.turn(turn, apart=False)
        assert tokens(asked + turn.answer, special=True) == ids[:-1]
        ids = [vocab.start, *vocab.encode(" ".join(texts))]
        native.eval(ids)
        theirs = torch.log_softmax(torch.from_numpy(native.scores[: len(ids)]).float(), -1)
        with torch.no_grad():
            model = load_model(checkpoint(trained, stage), torch.float32)
            ours = torch.log_softmax(model(torch.tensor([ids]))[0], -1)
        assert float((ours - theirs).abs().mean()) < 0.01
        native.close()
        assert (tmp_path / "q8" / path.name).stat().st_size < path.stat().st_size < 500_000

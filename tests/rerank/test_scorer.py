"""A scorer on a tiny encoder, against BERT in numpy; files that are none."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pytest

from capt_local.errors import CaptError, ModelError
from capt_local.llama import model, probe
from capt_local.llama.gguf_header import file_digests
from capt_local.llama.model import Encoder
from capt_local.llama.weights import Weights
from capt_local.rerank import Scorer, ScorerFiles
from tests.real_models import smollm2
from tests.rerank.tiny_scorer import WORDS, pooled, tiny_scorer, tiny_weights, write_head
from tests.tiny_models import tiny_gguf


def test_the_vector_is_that_of_bert(tmp_path: Path) -> None:
    files = ScorerFiles.at(tiny_scorer(tmp_path))
    text = "The patient has chest pain. Question: yes"
    ids = [WORDS.index(word) for word in text.lower().replace(".", " .").replace(":", " :").split()]
    with Encoder(files.encoder) as encoder:
        assert encoder.tokenize(text) == ids
        found = encoder.vector(ids)
        assert np.array_equal(found, encoder.vector(ids))
    wanted = pooled(tiny_weights(1), [2, *ids, 3])
    assert np.abs(found - wanted).max() < 0.02 * np.abs(wanted).max()


def test_a_score_is_the_softmax_of_the_head(tmp_path: Path) -> None:
    files = ScorerFiles.at(tiny_scorer(tmp_path))
    weights = tiny_weights(1)
    with Scorer(files) as scorer:
        found = scorer.scores("pain?", ["true", "false", "true"])
        assert not scorer.notices
    wanted = []
    for answer in ("true", "false"):
        read = ["[CLS]", "q", ":", "pain", "?", "a", ":", answer, "[SEP]"]
        vector = pooled(weights, [WORDS.index(word) for word in read])
        logits = weights["head.weight"] @ vector + weights["head.bias"]
        wanted.append(np.exp(logits[1]) / np.exp(logits).sum())
    assert found == pytest.approx([*wanted, wanted[0]], abs=0.01)


def test_a_long_question_loses_its_beginning_and_says_so(tmp_path: Path) -> None:
    with Scorer(ScorerFiles.at(tiny_scorer(tmp_path))) as scorer:
        long = scorer.scores("chest " * 100 + "pain", ["yes", "no"])
        assert long == scorer.scores("patient " + "chest " * 100 + "pain", ["yes", "no"])
        scorer.scores("pain", ["yes " * 100])
        first, second = scorer.notices
    assert "beginning" in first and "end of a long answer" in second


def test_a_question_of_any_size_is_scored_by_its_end(tmp_path: Path) -> None:
    with Scorer(ScorerFiles.at(tiny_scorer(tmp_path))) as scorer:
        huge = scorer.scores("chest " * 400_000, ["yes"])
        assert huge == scorer.scores("chest " * 100, ["yes"])


def test_a_scorer_that_takes_most_of_the_free_memory_loads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = ScorerFiles.at(tiny_scorer(tmp_path))
    free = iter([files.encoder.stat().st_size])  # asked for before loading alone
    monkeypatch.setattr(model, "available_memory", lambda: next(free))
    Scorer(files).close()


def test_files_that_are_no_scorer(tmp_path: Path) -> None:
    good = tiny_scorer(tmp_path / "good", target_tokenizer="a" * 64)
    other = tiny_scorer(tmp_path / "other", seed=2)
    cases = {
        "no head": ScorerFiles(good / "encoder.gguf", tmp_path / "none.safetensors"),
        "another encoder": ScorerFiles(other / "encoder.gguf", good / "head.safetensors"),
        "no pooling": ScorerFiles.at(tiny_scorer(tmp_path / "unpooled", pooling=None)),
        "a language model": _with_head(tiny_gguf(tmp_path / "encoder.gguf", seed=1)),
    }
    for size in (0, 7, 40, 300):
        head = tmp_path / f"cut{size}.safetensors"
        head.write_bytes((good / "head.safetensors").read_bytes()[:size])
        cases[f"cut off at {size}"] = ScorerFiles(good / "encoder.gguf", head)
    for name, files in cases.items():
        with pytest.raises(ModelError) as caught:
            Scorer(files)
        assert "\n" not in str(caught.value), name
    with pytest.raises(ModelError, match="another target"):
        Scorer(ScorerFiles.at(good), target_tokenizer="b" * 64)
    Scorer(ScorerFiles.at(good), target_tokenizer="a" * 64).close()
    with pytest.raises(ModelError):
        ScorerFiles.at(tmp_path / "nowhere")


def test_a_head_of_huge_weights_still_gives_a_probability(tmp_path: Path) -> None:
    files = ScorerFiles.at(tiny_scorer(tmp_path))
    digest = hashlib.sha256(files.encoder.read_bytes()).hexdigest()
    about = {"encoder_sha256": digest, "length": "9" * 5000}
    bias = np.array([3e38, 0], np.float32)
    write_head(files.head, np.zeros_like(tiny_weights(1)["head.weight"]), bias, about)
    with Scorer(files) as scorer:
        assert scorer.scores("pain?", ["true"]) == [0.0]


def _with_head(model: Path) -> ScorerFiles:
    head = model.parent / "llama.safetensors"
    about = {"encoder_sha256": hashlib.sha256(model.read_bytes()).hexdigest()}
    write_head(head, np.zeros((2, 32), np.float32), np.zeros(2, np.float32), about)
    return ScorerFiles(model, head)


def test_an_encoder_is_looked_at_first_and_writes_no_text(tmp_path: Path) -> None:
    files = ScorerFiles.at(tiny_scorer(tmp_path))
    probe.probe_files(files.encoder, encoder=True)
    data = bytearray(files.encoder.read_bytes())
    data[-4:] = b"\x00\x00\xc0\x7f"  # NaN in the last tensor
    broken = tmp_path / "broken.gguf"
    broken.write_bytes(data)
    with pytest.raises(CaptError, match="damaged"):
        probe.probe_files(broken, encoder=True)
    with pytest.raises(ModelError):
        Weights(files.encoder)


def test_the_scorer_that_is_shipped_knows_questions_that_ask_the_same() -> None:
    folder = Path(__file__).resolve().parents[2] / "models" / "scorer"
    assert sum(path.stat().st_size for path in folder.iterdir()) < 22_000_000
    tokenizer = file_digests(smollm2()).tokenizer
    asked = (
        "Does answering the second question also answer the first one? Reply with true or false."
        "\n\nFirst question: {}\n\nSecond question: {}"
    )
    gout = "My father is 60 and has gout in his foot. How is gout treated at his age?"
    with Scorer(ScorerFiles.at(folder), tokenizer) as scorer:
        for second, answer in (
            ("How should I treat gout in an older patient?", "true"),
            ("What causes a rash on the arms of a child?", "false"),
        ):
            true, false = scorer.scores(asked.format(gout, second), ["true", "false"])
            assert (true > false) == (answer == "true")

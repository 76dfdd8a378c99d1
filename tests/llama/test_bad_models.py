"""Files that cannot be used, or only with worse answers: one clear line that names the file."""

from __future__ import annotations

import math
import struct
from collections.abc import Callable
from pathlib import Path

import gguf
import numpy as np
import pytest

from capt_local.cli import app
from capt_local.errors import ModelError
from capt_local.llama.gguf_header import read_header
from capt_local.llama.model import LlamaModel
from capt_local.llama.options import LoadOptions
from capt_local.llama.weights import Weights
from capt_local.runtime import Runtime
from tests.fuzz.seeds import text
from tests.llama.conftest import ONE_THREAD
from tests.tiny_models import INNER, WIDTH, adapter_gguf, tiny_gguf

TinyPath = Callable[..., Path]
NAN, INF = float("nan"), float("inf")


def patched(path: Path, target: Path, old: bytes, new: bytes) -> Path:
    """A copy with some bytes changed; its length stays."""
    data = path.read_bytes()
    assert old in data and len(old) == len(new)
    target.write_bytes(data.replace(old, new))
    return target


def without_vocabulary(path: Path, target: Path) -> Path:
    reader = gguf.GGUFReader(path)
    writer = gguf.GGUFWriter(str(target), "llama")
    for field in reader.fields.values():
        if not field.name.startswith(("GGUF.", "general.architecture", "tokenizer.")):
            writer.add_key_value(field.name, field.contents(), field.types[0])
    writer.add_tokenizer_model("no_vocab")
    for tensor in reader.tensors:
        writer.add_tensor(tensor.name, tensor.data)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return target


MAKERS: dict[str, tuple[Callable[[Path, Path], Path], str]] = {
    "unknown pre-tokenizer": (
        lambda good, new: patched(good, new, text("gpt-2"), text("gpt-x")),
        "unknown pre-tokenizer type: 'gpt-x', which this llama.cpp does not know"),
    "no vocabulary": (
        lambda good, new: without_vocabulary(good, new), "has no vocabulary"),
    "no template": (
        lambda _, new: tiny_gguf(new, seed=1, template=None), "The target has no chat template"),
    "a broken template": (
        lambda _, new: tiny_gguf(new, seed=1, template="{% if %}"),
        "The chat template of the target has a mistake in line 1"),
    "NaN": (lambda _, new: tiny_gguf(new, seed=1, nan=True), "a tensor has invalid data"),
}  # fmt: skip


@pytest.mark.parametrize("what", MAKERS)
def test_one_line_and_exit_3(
    tiny_path: TinyPath, tmp_path: Path, capsys: pytest.CaptureFixture[str], what: str
) -> None:
    make, said = MAKERS[what]
    path = make(tiny_path(), tmp_path / "other.gguf")
    code = app.run(["generate", "-p", "x", "-t", "1", "--method", "target", "--target", str(path)])
    captured = capsys.readouterr()
    errors = [line for line in captured.err.splitlines() if line.startswith("error:")]
    assert (int(code), captured.out, len(errors)) == (3, "", 1) and said in errors[0]


@pytest.mark.parametrize("alpha", [0.0, -16.0, NAN, INF])
def test_the_alpha_of_an_adapter_by_its_value(
    tiny_path: TinyPath, tmp_path: Path, alpha: float
) -> None:
    name = "blk.0.ffn_down.weight"
    tensors = {f"{name}.lora_a": np.ones((2, INNER)), f"{name}.lora_b": np.ones((WIDTH, 2))}
    path = adapter_gguf(tmp_path / "lora.gguf", tensors, alpha=alpha)
    with Weights(tiny_path()) as weights, pytest.raises(ModelError, match=r"^lora\.gguf .*alpha"):
        weights.adapter(path)


def test_what_llama_cpp_warns_about_is_shown_once_in_plain_words(
    tiny_path: TinyPath, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = patched(
        tiny_path(), tmp_path / "m.gguf", text("tokenizer.ggml.pre"), text("tokenizer.ggml.prx")
    )
    words = ["-t", "1", "--method", "target", "--target", str(path)]
    assert app.run(["generate", "-p", "x", "-n", "2", *words]) == 0
    shown = capsys.readouterr().err
    assert shown.count("does not say how its text is split") == 1 and "m.gguf" in shown
    app.run(["doctor", "--target", str(path)])
    captured = capsys.readouterr()
    assert "does not say how its text is split" in captured.out + captured.err


def test_special_tokens_that_are_none(tiny_path: TinyPath, tmp_path: Path) -> None:
    key = text("tokenizer.ggml.bos_token_id")
    was = struct.pack("<II", 4, int(read_header(tiny_path()).values["tokenizer.ggml.bos_token_id"]))
    beyond = key + struct.pack("<II", 4, 1 << 20)
    path = patched(tiny_path(), tmp_path / "m.gguf", key + was, beyond)
    with Weights(path, vocabulary_only=True) as weights:
        assert "names a special token that is not in its vocabulary" in " ".join(weights.notes)


def test_weights_are_checked_without_threads(tiny_path: TinyPath, tmp_path: Path) -> None:
    """The check of values agrees with llama.cpp's own on formats in blocks."""
    for number_format in ("F32", "F16", "Q8_0"):
        path = tiny_gguf(tmp_path / f"{number_format}.gguf", seed=1, number_format=number_format)
        Weights(path, LoadOptions(check_tensors=True)).close()
        tensor = read_header(path).tensors[-2]
        data = bytearray(path.read_bytes())
        data[tensor.place : tensor.place + 4] = b"\xff\xff\xff\x7f"
        path.write_bytes(data)
        with pytest.raises(ModelError, match="a tensor has invalid data"):
            Weights(path, LoadOptions(check_tensors=True))


def test_embedding_rows_beyond_the_tokens(tmp_path: Path) -> None:
    """Rows that converters name [PAD...] are no text and no events; rows without names are refused.

    Target and proxies may have different numbers of them.
    """
    plain = tiny_gguf(tmp_path / "plain.gguf", seed=1)
    padded = tiny_gguf(tmp_path / "padded.gguf", seed=1, unused=7)
    files = {"target": padded, "expert": plain, "base": padded}
    with Runtime.open(**files, load=ONE_THREAD, check=False) as runtime:
        vocabulary = runtime.models["target"].vocabulary
        assert len(vocabulary) == len(runtime.models["expert"].vocabulary) + 7
        assert not vocabulary.is_text[-7:].any() and not vocabulary.is_end[-7:].any()
        steps = list(runtime.generate("Pt. is well.", raw=True, max_tokens=8, alpha=0.5))
        assert steps and all(math.isfinite(step.logp) for step in steps)
        assert math.isfinite(runtime.score(b"Pt. is well.").nats)
    rows = tiny_gguf(tmp_path / "rows.gguf", seed=1, more_rows=3)
    with pytest.raises(ModelError, match=r"^rows\.gguf cannot be loaded: .*token_embd"):
        Runtime.open(target=rows, load=ONE_THREAD, check=False)


def test_text_that_is_not_utf_8_never_reaches_llama_cpp(tiny_path: TinyPath) -> None:
    with Weights(tiny_path(), vocabulary_only=True) as weights:
        with pytest.raises(ValueError, match="utf-8"):
            weights.tokenize(b"caf\xe9", special=False)
        assert weights.tokenize(b"", special=False) == []
        assert weights.vocabulary.text(weights.tokenize(b"a\0b", special=False)) == b"a\0b"


def test_llama_cpp_says_itself_what_is_wrong_with_a_model(
    tiny_path: TinyPath, tmp_path: Path
) -> None:
    whole = tiny_path().read_bytes()
    path = tmp_path / "odd.gguf"
    path.write_bytes(whole.replace(b"blk.1.ffn_up", b"blk.1.ffn_xx", 1))
    with pytest.raises(ModelError) as caught:
        Weights(path)
    message = str(caught.value)
    assert message.startswith("odd.gguf cannot be loaded: ")
    assert "tensor 'blk.1.ffn_up.weight' not found" in message
    assert str(tmp_path) not in message
    assert "\n" not in message


@pytest.mark.parametrize("quantized", ["Q8_0", "Q4_0", "F16"])
def test_batches_run_in_every_format_that_is_rearranged(tmp_path: Path, quantized: str) -> None:
    # With tiles (AMX) such a batch ends the process in the version that is pinned.
    path = tiny_gguf(tmp_path / "model.gguf", seed=1, number_format=quantized)
    with LlamaModel.open(path, ONE_THREAD) as model:
        rows = model.extend(list(range(60)), rows=4)
        assert rows.std() > 1

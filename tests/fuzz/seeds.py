"""Writes the first files of the corpus (`python -m tests.fuzz.seeds`); others were found later."""

from __future__ import annotations

import struct
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from capt_local.bundles.archive import export
from capt_local.bundles.create import describe, write_manifest
from capt_local.bundles.manifest import MANIFEST, Bundle, read_bundle
from tests.fuzz.targets import CORPUS

LINES = {
    "short": b'{"id": "a", "prompt": "Cough for three days."}\n{"id": "b", "prompt": "x"}\n',
    "openai": b'{"custom_id": "a", "method": "POST", "url": "/v1/chat/completions", "body": '
    b'{"model": "m", "messages": [{"role": "system", "content": "s"}, {"role": "user", '
    b'"content": [{"type": "text", "text": "t"}]}], "max_tokens": 5, "temperature": 0.5}}\n',
    "settings": b'{"id": "a", "messages": [{"role": "user", "content": "\\u00b5g"}], "seed": 3, '
    b'"stop": ["\\n"], "logprobs": true, "top_logprobs": 2}\r\n\r\n',
    "marks": b'\xef\xbb\xbf{"id": "a", "prompt": "\xe2\x80\xa8"}\n{"id": "a", "prompt": "\\ud800"}',
}
TABLES = {
    "plain": b"id,prompt\na,Cough\nb,Fever\n",
    "quoted": b'id,prompt\r\na,"one ""two""\nthree, four"\r\n"b",x\r\n',
    "mark": b"\xef\xbb\xbfid,prompt\n\na,x\n",
}
VALUES = {
    "kinds": b'{"a": [1, -2.5e3, true, null, "\\ud83c\\udfe5"], "b": {"c": {}}}',
    "number": b"-0.0e-7",
    "deep": b"[[[[[[[[]]]]]]]]",
    "twice": b'{"a": 1, "a": 2}',
}


def text(value: str) -> bytes:
    """A text as GGUF has it."""
    return struct.pack("<Q", len(value.encode())) + value.encode()


def gguf(pairs: Sequence[bytes], tensors: Sequence[bytes], size: int, version: int = 3) -> bytes:
    """A file of these entries, with `size` bytes of numbers."""
    front = b"GGUF" + struct.pack("<IQQ", version, len(tensors), len(pairs))
    data = front + b"".join((*pairs, *tensors))
    return data + bytes(-len(data) % 32 + size)


def headers() -> Iterator[tuple[str, bytes]]:
    """Small files with every kind of value."""
    architecture = text("general.architecture") + struct.pack("<I", 8) + text("llama")
    layers = text("llama.block_count") + struct.pack("<II", 4, 2)
    kinds = ((0, "B", 1), (1, "b", -1), (2, "H", 2), (3, "h", -2), (5, "i", -3), (6, "f", 1.5),
             (7, "?", True), (10, "Q", 9), (11, "q", -9), (12, "d", 2.5))  # fmt: skip
    scalars = [text(f"x.{n}") + struct.pack(f"<I{code}", n, v) for n, code, v in kinds]
    heads = text("llama.attention.head_count_kv") + struct.pack("<IIQ2i", 9, 5, 2, 2, 2)
    tokens = text("tokenizer.ggml.tokens") + struct.pack("<IIQ", 9, 8, 2) + text("a") + text("b")
    scores = text("tokenizer.ggml.scores") + struct.pack("<IIQ2f", 9, 6, 2, 0, -1)
    model = text("tokenizer.ggml.model") + struct.pack("<I", 8) + text("gpt2")
    matrix = text("token_embd.weight") + struct.pack("<IQQIQ", 2, 8, 2, 0, 0)
    packed = text("output.weight") + struct.pack("<IQQIQ", 2, 32, 2, 8, 64)
    yield "empty", gguf([architecture], [], 0)
    yield "scalars", gguf([architecture, layers, *scalars], [], 0, version=2)
    yield "vocabulary", gguf([architecture, model, tokens, scores, heads], [], 0)
    yield "tensors", gguf([architecture, layers], [matrix, packed], 64 + 68)


def bundles() -> Iterator[tuple[str, str, bytes]]:
    """Target, name and bytes: archives without a signature, and their manifests."""
    with tempfile.TemporaryDirectory() as name:
        for roles, more in ((("target",), {}), (("target", "expert", "base"), {"licence": "MIT"})):
            folder = Path(name) / f"of-{len(roles)}"
            folder.mkdir()
            for role in roles:
                (folder / f"{role}.gguf").write_bytes(f"GGUF of {role}".encode())
            models = {role: describe(role, folder / f"{role}.gguf") for role in roles}
            made = Bundle(id="fuzz", version="1.2", models=models, **more)
            bundle = read_bundle(write_manifest(made, folder))
            yield "manifest", f"of-{len(roles)}", (folder / MANIFEST).read_bytes()
            archive = export(bundle, Path(name) / f"{len(roles)}.capt", None)
            yield "archive", f"of-{len(roles)}", archive.read_bytes()


def main() -> None:
    """Writes."""
    texts = {"lines": LINES, "table": TABLES, "value": VALUES}
    every = [(target, name, data) for target, of in texts.items() for name, data in of.items()]
    every += [("header", name, data) for name, data in headers()]
    for target, name, data in (*every, *bundles()):
        (CORPUS / target).mkdir(parents=True, exist_ok=True)
        (CORPUS / target / name).write_bytes(data)


if __name__ == "__main__":
    main()

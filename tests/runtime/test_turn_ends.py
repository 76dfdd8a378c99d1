"""What a model's template writes behind an answer ends it, in every model of one vocabulary."""

from __future__ import annotations

import hashlib
from pathlib import Path

from capt_local import GenerateOptions, LoadOptions, Method, Runtime
from capt_local.bundles.manifest import Bundle
from capt_local.provenance import provenance
from capt_local.tokenization import Vocabulary
from tests.tiny_models import tiny_gguf

# The token is USER_DEFINED, and in no list of llama.cpp.
TEMPLATE = "{% for m in messages %}{{ m.content + '<|channel|>' }}{% endfor %}"


def ends(vocabulary: Vocabulary) -> set[bytes]:
    return {vocabulary.piece(token) for token in vocabulary.end_ids.tolist()}


def test_the_template_of_one_model_is_enough(tmp_path: Path) -> None:
    target = tiny_gguf(tmp_path / "target.gguf", seed=1, template=TEMPLATE)
    other = tiny_gguf(tmp_path / "expert.gguf", seed=2)
    spm = tiny_gguf(tmp_path / "base.gguf", seed=3, flavour="spm")
    bundle = Bundle.from_paths(target, other, spm)
    with Runtime.open(bundle, load=LoadOptions(threads=1)) as runtime:
        found = {role: ends(model.vocabulary) for role, model in runtime.models.items()}
        assert b"<|channel|>" in found["target"] & found["expert"]
        assert b"<|channel|>" not in found["base"]
        vocabulary = runtime.models["target"].vocabulary
        assert not vocabulary.is_text[vocabulary.end_ids].any()
        for method in (Method.CAPT, Method.TARGET):
            answer = runtime.generate("chest pain", GenerateOptions(method, max_tokens=8))
            assert all(not vocabulary.is_end[step.token] or step.finish for step in answer)


def test_a_given_template_says_it_too(tmp_path: Path) -> None:
    target = tiny_gguf(tmp_path / "target.gguf", seed=1, template=None)
    bundle = Bundle.from_paths(target, None, None)
    with Runtime.open(bundle, load=LoadOptions(threads=1), template=TEMPLATE) as runtime:
        assert b"<|channel|>" in ends(runtime.models["target"].vocabulary)
        list(runtime.generate("chest pain", GenerateOptions(Method.TARGET, max_tokens=2)))


def test_provenance_names_a_given_template(tmp_path: Path) -> None:
    target = tiny_gguf(tmp_path / "target.gguf", seed=1)
    bundle = Bundle.from_paths(target, None, None)
    for template in (None, TEMPLATE):
        load = LoadOptions(threads=1)
        with Runtime.open(bundle, load=load, template=template) as runtime:
            found = provenance(runtime, GenerateOptions(Method.TARGET), load, None)
            digest = None if template is None else hashlib.sha256(template.encode()).hexdigest()
            assert found["template_sha256"] == digest

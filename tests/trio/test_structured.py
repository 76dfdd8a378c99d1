"""Structured answers of a trained trio: forms hold whatever the models would rather say."""

from __future__ import annotations

import json

import jsonschema
import pytest

from capt_local import FinishReason, GenerateOptions, Method, Runtime, SampleOptions
from capt_local.bundles.store import find
from capt_local.decoding.options import Structure
from capt_local.decoding.structured import schema_structure
from tests.small_trio import SMALL_TRIO

PROMPTS = ["A 54-year-old man with chest pain for 2 days.", "Temperatur 38,5 °C — \U0001f321"]
FINDING = {
    "type": "object",
    "properties": {"value": {"type": "number"}, "sure": {"type": ["boolean", "null"]}},
    "required": ["value"],
}
SCHEMA = {
    "type": "object",
    "properties": {
        "diagnosis": {"type": "string", "maxLength": 30},
        "severity": {"enum": ["mild", "moderate", "severe"]},
        "age": {"type": "integer", "minimum": 0, "maximum": 120},
        "findings": {"type": "array", "minItems": 1, "maxItems": 2, "items": FINDING},
    },
    "required": ["severity", "findings"],
    "additionalProperties": False,
}
FORM = schema_structure(json.dumps(SCHEMA).encode())
CHOICE = Structure('{"enum": ["yes", "no"]}')


@pytest.mark.parametrize(("prompt", "temperature"), list(zip(PROMPTS, [0.0, 1.0], strict=True)))
@pytest.mark.parametrize("method", [Method.CAPT, Method.TARGET, Method.EXPERT, Method.CAPT_PAPER,
                                    Method.UNITE, Method.CONTRASTIVE])  # fmt: skip
def test_every_answer_is_an_instance(
    small: Runtime, prompt: str, temperature: float, method: Method
) -> None:
    sample = SampleOptions(temperature=temperature, seed=1)
    options = GenerateOptions(method, 300, structure=FORM, sample=sample)
    generation = small.generate(prompt, options)
    list(generation)
    assert (generation.finish, generation.structured) == (FinishReason.STOP, True)
    jsonschema.validate(json.loads(generation.text_bytes), SCHEMA)


def test_the_targets_answer_is_that_of_the_binding(small: Runtime) -> None:
    llama_cpp = pytest.importorskip("llama_cpp")
    model = llama_cpp.Llama(
        str(find(SMALL_TRIO).models["target"].path), n_ctx=512, n_threads=1, verbose=False
    )
    prompt = small._prompt_builders["target"].prompt(PROMPTS[0], raw=False)
    ends = set(small.models["target"].vocabulary.end_ids.tolist())
    wanted = []
    grammar = llama_cpp.LlamaGrammar.from_string(r'root ::= "\"yes\"" | "\"no\""')
    for token in model.generate(list(prompt.tokens), temp=0.0, repeat_penalty=1.0, grammar=grammar):
        wanted.append(token)
        if token in ends or len(wanted) == 200:
            break
    model.close()
    options = GenerateOptions(Method.TARGET, 200, structure=CHOICE)
    steps = list(small.generate(PROMPTS[0], options))
    assert [step.token for step in steps] == wanted


def test_an_answer_that_is_cut_is_incomplete(small: Runtime) -> None:
    generation = small.generate(PROMPTS[0], GenerateOptions(max_tokens=5, structure=FORM))
    list(generation)
    assert (generation.finish, generation.structured) == (FinishReason.LENGTH, False)

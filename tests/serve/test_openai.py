"""OpenAI's own client against a running server."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jsonschema
import openai
import pytest

from capt_local import GenerateOptions, LoadOptions, Runtime
from capt_local.llama.gguf_header import file_digests
from tests.rerank.tiny_scorer import tiny_scorer
from tests.serve.conftest import CANARY, Running, Starts
from tests.tiny_models import tiny_adapter, tiny_gguf

NOTE = "58-year-old woman with dyspnea for 3 days. Metoprolol 25 mg twice a day. Troponin negative."
ASK = [{"role": "user", "content": f"{NOTE}\n\nWhat medicine does she take?"}]

Ask = Callable[..., Any]


@pytest.fixture
def client(server: Running) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key=server.key, max_retries=0) as client:
        yield client


def strict(answer: Any) -> Any:
    """The answer; the client builds its types without a check, so they are checked here."""
    type(answer).model_validate_json(answer.model_dump_json())
    return answer


@pytest.fixture
def ask(client: openai.OpenAI) -> Ask:
    """Asks for a chat completion, or for the chunks of one."""

    def call(**asked: Any) -> Any:
        found = client.chat.completions.create(**{"model": "demo", "messages": ASK, **asked})
        return list(map(strict, found)) if asked.get("stream") else strict(found)

    return call


def test_models_are_the_bundle_and_its_methods(client: openai.OpenAI) -> None:
    names = [model.id for model in client.models.list()]
    assert names[0] == "demo" and {"demo:capt", "demo:target", "demo:expert"} < set(names)
    assert client.models.retrieve("demo:target").id == "demo:target"
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("other")


def test_an_answer_is_that_of_generate(ask: Ask) -> None:
    with Runtime.open("demo", load=LoadOptions(threads=1), check=False) as runtime:
        for model, more in (("demo", {"alpha": 0.5}), ("demo:target", {"method": "target"})):
            found = ask(model=model, max_tokens=12)
            own = runtime.generate(ASK, GenerateOptions(max_tokens=12), **more)
            list(own)
            # The last bits of another batch may turn a near choice, so a few words are enough.
            assert found.choices[0].message.content[:20] == own.text[:20]
            assert found.choices[0].finish_reason in ("stop", "length")
            assert found.usage.prompt_tokens == own.prompt_tokens["target"]


def test_a_stream_joined_is_the_answer(ask: Ask) -> None:
    asked = {"max_tokens": 15, "n": 2, "temperature": 0.7, "seed": 3}
    whole = ask(**asked)
    assert whole.choices[0].message.content != whole.choices[1].message.content
    texts, roles, ends = ["", ""], ["", ""], [None, None]
    chunks = ask(**asked, stream=True, stream_options={"include_usage": True})
    for choice in (choice for chunk in chunks for choice in chunk.choices):
        texts[choice.index] += choice.delta.content or ""
        roles[choice.index] += choice.delta.role or ""
        ends[choice.index] = choice.finish_reason
    assert texts == [choice.message.content for choice in whole.choices]
    assert roles == ["assistant"] * 2 and None not in ends
    assert chunks[-1].choices == [] and chunks[-1].usage.completion_tokens == 30
    assert all(chunk.usage is None for chunk in chunks[:-1])


def test_log_probabilities_and_ours_beside(ask: Ask) -> None:
    found = ask(max_tokens=8, logprobs=True, top_logprobs=3, extra_body={"capt": {"top": 2}})
    tokens = found.choices[0].logprobs.content
    assert len(tokens) == 8
    text = b"".join(bytes(token.bytes) for token in tokens).decode()
    assert text == found.choices[0].message.content
    for token in tokens:
        assert token.logprob <= 0 and len(token.top_logprobs) == 3
        ours = token.model_extra["capt"]
        assert len(ours["expert_top"]) == 3 and ours["changed"] in (True, False)
    assert found.model_extra["capt"]["finish"] == "length"
    assert found.model_extra["provenance"]["bundle"]["id"] == "demo"
    plain = ask(max_tokens=3, logprobs=True)
    assert "capt" not in plain.choices[0].logprobs.content[0].model_extra


def test_the_best_of_several_is_the_answer(ask: Ask) -> None:
    asked = {"max_tokens": 8, "temperature": 1, "seed": 5}
    body = {"best_of": 3, "capt": {}}
    found = ask(**asked, logprobs=True, extra_body=body)
    (choice,) = found.choices
    told = found.model_extra["capt"]["best_of"]
    candidates = told["candidates"]
    assert told["ranked_by"] == "mean-logprob"
    assert sorted(each["seed"] for each in candidates) == [5, 6, 7]
    scores = [each["score"] for each in candidates]
    logps = [token.logprob for token in choice.logprobs.content]
    assert scores == sorted(scores, reverse=True)
    assert scores[0] == pytest.approx(sum(logps) / len(logps))
    assert found.usage.completion_tokens == sum(each["tokens"] for each in candidates)
    assert found.model_extra["provenance"]["parameters"]["sample"]["seed"] == candidates[0]["seed"]
    chunks = ask(**asked, stream=True, extra_body=body)
    texts = [each.choices[0].delta.content or "" for each in chunks if each.choices]
    assert "".join(texts) == choice.message.content


def test_facts_of_an_answer_are_looked_for_in_the_document(ask: Ask) -> None:
    document = f"\U0001f600 {NOTE}"
    messages = [{"role": "user", "content": f"{document}\n\nWhich medicine?"}]
    found = ask(messages=messages, max_tokens=40, extra_body={"capt": {"document": document}})
    sources = found.model_extra["capt"]["sources"]
    assert sources["of"] == "document" and sources["facts"] and sources["statements"]
    text = found.choices[0].message.content
    for fact in sources["facts"]:
        assert text[fact["start"] : fact["end"]] == fact["text"]
        if fact["match"] == "exact":
            start, end = fact["source"]
            assert document[start:end].lower() == fact["text"].lower()
    plain = ask(messages=messages, max_tokens=2, extra_body={"capt": {}})
    assert plain.model_extra["capt"]["sources"]["of"] == "prompt"


def test_an_adapter_of_scale_0_makes_the_expert_its_base_and_a_scorer_ranks(
    starts: Starts, tmp_path: Path
) -> None:
    target = tiny_gguf(tmp_path / "target.gguf", seed=1, flavour="spm")
    base, lora = tiny_gguf(tmp_path / "base.gguf", seed=2), tmp_path / "lora.gguf"
    tiny_adapter(lora, seed=3)
    tiny_scorer(tmp_path / "scorer", target_tokenizer=file_digests(target).tokenizer)
    models = ["--target", str(target), "--base", str(base), "--expert-adapter", str(lora)]
    server = starts(*models, "--scorer", str(tmp_path / "scorer"))
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key=server.key, max_retries=0) as client:

        def contrasts(capt: dict[str, object]) -> list[float | None]:
            found = client.completions.create(
                model="files", prompt="fever", max_tokens=6, extra_body={"capt": capt | {"top": 1}}
            )
            content = found.choices[0].logprobs.model_extra["content"]
            return [token["capt"]["delta"] for token in content]

        assert any(contrasts({}))
        assert not any(contrasts({"adapter_scales": {"expert": [0]}}))
        assert any(contrasts({}))  # the next request has those it was loaded with
        for scales in ({"expert": [1, 1]}, {"base": [1]}, {CANARY: [1]}):
            with pytest.raises(openai.BadRequestError) as caught:
                contrasts({"adapter_scales": scales})
            assert caught.value.param == "capt" and CANARY not in caught.value.response.text
        best = client.completions.create(
            model="files", prompt="fever", max_tokens=4, temperature=1,
            extra_body={"best_of": 3, "capt": {}},
        ).model_extra["capt"]["best_of"]  # fmt: skip
        scores = [each["score"] for each in best["candidates"]]
        assert best["ranked_by"] == "scorer" and scores == sorted(scores, reverse=True)
        assert all(0 < score < 1 for score in scores)


def test_completions_go_on_with_a_text(client: openai.OpenAI) -> None:
    asked = {"model": "demo", "prompt": "The patient has a history of", "max_tokens": 6}
    found = strict(client.completions.create(**asked, logprobs=2, stop="\n"))
    logprobs = found.choices[0].logprobs
    assert len(logprobs.tokens) == len(logprobs.token_logprobs) == len(logprobs.text_offset) == 6
    assert "".join(logprobs.tokens) == found.choices[0].text
    assert all(len(top) == 2 for top in logprobs.top_logprobs)
    chunks = client.completions.create(**asked, stream=True)
    assert "".join(chunk.choices[0].text for chunk in chunks) == found.choices[0].text


def test_structured_answers_have_their_form(ask: Ask) -> None:
    schema = {
        "type": "object",
        "properties": {"drug": {"type": "string", "maxLength": 12}, "daily": {"type": "boolean"}},
        "required": ["drug", "daily"],
        "additionalProperties": False,
    }
    form = {"type": "json_schema", "json_schema": {"name": "visit", "schema": schema}}
    found = ask(max_tokens=60, response_format=form)
    assert found.choices[0].finish_reason == "stop"
    jsonschema.validate(json.loads(found.choices[0].message.content), schema)
    found = ask(max_tokens=40, response_format={"type": "json_object"})
    assert found.choices[0].message.content.startswith("{")


def test_stop_strings_and_the_largest_length(ask: Ask) -> None:
    whole = ask(max_completion_tokens=12)
    text = whole.choices[0].message.content
    word = text.split()[3]
    cut = ask(max_tokens=12, stop=[word])
    assert cut.choices[0].message.content == text[: text.index(word)]
    assert cut.choices[0].finish_reason == "stop"
    assert whole.usage.completion_tokens == 12


def test_the_same_note_is_not_read_again(ask: Ask) -> None:
    note = f"{NOTE} " * 4
    for turn, question in enumerate(("Which drug?", "How old is she?")):
        messages = [{"role": "user", "content": f"{note}\n\n{question}"}]
        used = ask(messages=messages, max_tokens=3).usage
        assert turn == 0 or used.prompt_tokens - used.prompt_tokens_details.cached_tokens < 20


def test_many_at_once_are_answered_as_alone(ask: Ask, server: Running) -> None:
    questions = [f"{NOTE}\n\nQuestion {number}: what now?" for number in range(8)]

    def answer(question: str) -> str:
        found = ask(messages=[{"role": "user", "content": question}], max_tokens=10)
        return (found.choices[0].message.content or "")[:12]

    before = server.metric('capt_requests_total{outcome="answered"}')
    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(answer, questions))
    assert together == [answer(each) for each in questions]
    assert server.metric('capt_requests_total{outcome="answered"}') - before == 16


REFUSED = [
    ({"tools": [{"type": "function", "function": {"name": CANARY}}]}, "tools"),
    ({"messages": [{"role": CANARY, "content": "x"}]}, "messages"),
    ({"messages": []}, "messages"),
    ({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]},
     "messages"),
    ({"frequency_penalty": 0.5}, "frequency_penalty"),
    ({"temperature": -1}, "temperature"),
    ({"best_of": 2}, "best_of"),
    ({"best_of": 2, "n": 2, "temperature": 1}, "n"),
    ({"top_logprobs": 2}, "top_logprobs"),
    ({"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema":
        {"type": CANARY}}}}, "response_format"),
]  # fmt: skip


@pytest.mark.parametrize(("more", "field"), REFUSED, ids=lambda each: str(each)[:20])
def test_what_would_change_the_answer_is_refused_by_name(
    client: openai.OpenAI, more: dict[str, object], field: str
) -> None:
    body = {"model": "demo", "messages": [{"role": "user", "content": CANARY}], **more}
    with pytest.raises(openai.BadRequestError) as caught:
        client.post("/chat/completions", body=body, cast_to=object)
    assert caught.value.param == field
    assert CANARY not in caught.value.response.text


def test_what_would_not_is_ignored(ask: Ask) -> None:
    found = ask(
        messages=[{"role": "developer", "content": "Be short."}, *ASK], max_tokens=2, user="x",
        store=False, metadata={"a": "b"}, tools=[], presence_penalty=0, parallel_tool_calls=True,
        frequency_penalty=0.0,
    )  # fmt: skip
    assert found.usage.completion_tokens == 2


def test_a_text_that_does_not_fit_is_refused_with_the_counts(ask: Ask) -> None:
    for stream in (False, True):
        with pytest.raises(openai.BadRequestError) as caught:
            ask(messages=[{"role": "user", "content": f"{CANARY} " * 900}], stream=stream)
        assert caught.value.code == "context_length_exceeded"
        counts = caught.value.body["prompt_tokens_by_model"]
        assert set(counts) == {"target", "expert", "base"} and min(counts.values()) > 1024
        assert CANARY not in caught.value.response.text

"""lm-evaluation-harness with our model: its own evaluation, its command line, local tasks alone."""

from __future__ import annotations

import json
import logging
import os
import sys
from collections.abc import Callable, Iterator
from functools import partialmethod
from pathlib import Path
from typing import Any

import pytest

# Imported before a test forbids the network: libraries of the harness look at sockets as they load.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_DATASETS_OFFLINE", "1")
lm_eval = pytest.importorskip("lm_eval")
evaluator = pytest.importorskip("lm_eval.evaluator")

from lm_eval.api.instance import Instance  # noqa: E402
from lm_eval.tasks import TaskManager  # noqa: E402

from capt_local import CombineOptions, GenerateOptions, LoadOptions, Method, Runtime, SampleOptions  # noqa: E402
from capt_local.errors import ContextOverflow, UsageError  # noqa: E402
from capt_local.lm_eval import CaptLocal, answer_options, main  # noqa: E402
from capt_local.prompting.messages import Message  # noqa: E402

NOTE = "The patient is a 61-year-old woman with shortness of breath. She was"
ANSWERS = [" given furosemide.", " painted blue.", " admitted to the hospital."]
TASKS = {
    "choices": """
        output_type: multiple_choice
        doc_to_text: "{{note}}"
        doc_to_target: "{{right}}"
        doc_to_choice: "{{answers}}"
        target_delimiter: ""
        metric_list: [{metric: acc}, {metric: acc_norm}]
        """,
    "prose": """
        output_type: loglikelihood_rolling
        doc_to_text: ""
        doc_to_target: "{{note}}"
        metric_list: [{metric: bits_per_byte}]
        """,
    "writing": """
        output_type: generate_until
        doc_to_text: "{{note}}"
        doc_to_target: "{{answers[0]}}"
        generation_kwargs: {until: ["."], max_gen_toks: 12}
        metric_list: [{metric: exact_match}]
        """,
}

AS_THE_BUNDLE = GenerateOptions(combine=CombineOptions(alphas=(0.5,)))


@pytest.fixture
def tasks(tmp_path: Path) -> Path:
    """A folder with one task of each kind, over a file beside them."""
    lines = [{"note": NOTE, "answers": ANSWERS, "right": 2}]
    lines.append({"note": "Chest X-ray showed", "answers": ANSWERS, "right": 0})
    data = tmp_path / "data.jsonl"
    data.write_text("".join(json.dumps(line) + "\n" for line in lines))
    for name, text in TASKS.items():
        body = "".join(line.strip() + "\n" for line in text.strip().splitlines())
        (tmp_path / f"{name}.yaml").write_text(
            f"task: local_{name}\ndataset_path: json\n"
            f"dataset_kwargs: {{data_files: {{test: {data}}}, cache_dir: {tmp_path / 'cache'}}}\n"
            f"test_split: test\n{body}"
        )
    return tmp_path


@pytest.fixture(scope="module")
def model() -> Iterator[CaptLocal]:
    opened = CaptLocal(bundle="demo", method="capt", threads=1, batch_size=8)
    yield opened
    opened.close()


@pytest.fixture(scope="module")
def runtime() -> Iterator[Runtime]:
    with Runtime.open("demo", load=LoadOptions(threads=1)) as opened:
        yield opened


def requests(kind: str, *arguments: tuple[Any, ...]) -> list[Instance]:
    return [
        Instance(request_type=kind, doc={}, arguments=each, idx=place)
        for place, each in enumerate(arguments)
    ]


def test_log_likelihoods_are_those_of_the_runtime(model: CaptLocal, runtime: Runtime) -> None:
    pairs = [(NOTE, answer) for answer in (*ANSWERS, ANSWERS[0])]
    pairs += [("Chest X-ray showed", " no acute disease."), ("", NOTE)]
    found = model.loglikelihood(requests("loglikelihood", *pairs), disable_tqdm=True)
    for (context, answer), (logp, greedy) in zip(pairs, found, strict=True):
        wanted = runtime.score_answer(context, answer.encode(), AS_THE_BUNDLE, raw=True)
        assert logp == pytest.approx(-wanted.nats, rel=5e-3)
        assert greedy == wanted.greedy
    (logp,) = model.loglikelihood_rolling(requests("loglikelihood_rolling", (NOTE,)))
    assert logp == pytest.approx(-runtime.score(NOTE.encode(), AS_THE_BUNDLE).nats, rel=5e-3)


def test_a_chat_template_is_each_models_own(model: CaptLocal, runtime: Runtime) -> None:
    turns = [
        {"role": "system", "content": "Be short."},
        {"role": "user", "content": "What is asthma?"},
    ]
    context = model.apply_chat_template(turns)
    messages = [Message("system", "Be short."), Message("user", "What is asthma?")]
    ((logp, _),) = model.loglikelihood(requests("loglikelihood", (context, "A disease.")))
    wanted = runtime.score_answer(messages, b"A disease.", AS_THE_BUNDLE)
    assert logp == pytest.approx(-wanted.nats, rel=5e-3)
    with pytest.raises(UsageError, match="gen_prefix"):
        model.apply_chat_template(turns, add_generation_prompt=False)


def test_nothing_is_cut(model: CaptLocal) -> None:
    with pytest.raises(ContextOverflow, match=r"target \d+, expert \d+, base \d+ tokens"):
        model.loglikelihood(requests("loglikelihood", ("chest pain " * 3000, "yes")))


@pytest.mark.parametrize("chat", [False, True])
def test_the_harness_evaluates_local_tasks(model: CaptLocal, tasks: Path, chat: bool) -> None:
    manager = TaskManager(include_path=str(tasks), include_defaults=False)
    names = ["local_choices", "local_writing"] + ([] if chat else ["local_prose"])
    found = lm_eval.simple_evaluate(
        model=model,
        tasks=names,
        task_manager=manager,
        bootstrap_iters=0,
        apply_chat_template=chat,
        fewshot_as_multiturn=chat,
    )
    assert found is not None
    assert 0.0 <= found["results"]["local_choices"]["acc,none"] <= 1.0
    samples = found["samples"]["local_writing"]
    assert all("." not in sample["resps"][0][0] for sample in samples)
    if not chat:
        for sample in found["samples"]["local_choices"]:
            wanted = model._session.runtime.choose(
                sample["doc"]["note"], ANSWERS, AS_THE_BUNDLE, raw=True
            )
            got = [logp for ((logp, _),) in sample["resps"]]
            assert got == pytest.approx(list(wanted.logps), rel=5e-3)
        assert 0.3 < found["results"]["local_prose"]["bits_per_byte,none"] < 8


@pytest.fixture
def command(
    tasks: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> Callable[..., tuple[int, str, str]]:
    """Runs the harness's command line; without its own thousands of tasks, which take a minute."""
    own = TaskManager.__init__
    monkeypatch.setattr(TaskManager, "__init__", partialmethod(own, include_defaults=False))
    # Handlers that libraries made in an earlier test write to that test's streams.
    monkeypatch.setattr(logging, "raiseExceptions", False)

    def call(*arguments: str) -> tuple[int, str, str]:
        front = ["lm_eval", "--model", "capt-local", "--include_path", str(tasks)]
        monkeypatch.setattr(sys, "argv", [*front, *arguments])
        code = main()
        return code, *capfd.readouterr()

    return call


def test_its_command_line_loads_the_model_and_tells_errors_in_a_line(
    command: Callable[..., tuple[int, str, str]], tasks: Path
) -> None:
    names = ["--tasks", "local_choices,local_prose", "--output_path", str(tasks / "out")]
    code, out, err = command(
        "--model_args", "bundle=demo,method=target,threads=1", "--batch_size", "4", *names
    )
    assert code == 0, err
    assert "local_choices" in out and "bits_per_byte" in out
    (written,) = (tasks / "out").rglob("results_*.json")
    about = json.loads(written.read_text())["config"]["capt_local"]
    assert about["method"] == "target" and set(about["models"]) == {"target"}
    code, _, err = command("--model_args", "method=best", "--tasks", "local_prose")
    assert code == 2 and "Traceback" not in err
    assert err.splitlines()[-1].startswith("error: The model arguments: method is none of")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"method": "zyzzyva"}, "method is none of"),
        ({"threads": 0}, "threads must be at least 1"),
        ({"alpha": "zyzzyva"}, "--alpha takes a number"),
        ({"bundle": "demo", "target": "zyzzyva.gguf"}, "either --bundle, or --target"),
    ],
)
def test_model_arguments_without_a_meaning_are_refused(
    arguments: dict[str, Any], said: str
) -> None:
    with pytest.raises(UsageError) as error:
        CaptLocal(**arguments)
    assert said in str(error.value) and "zyzzyva" not in str(error.value)


OURS = GenerateOptions(method=Method.TARGET)


@pytest.mark.parametrize(
    ("asked", "temperature", "length", "stops"),
    [
        ({}, 0.0, 256, ()),
        ({"until": "\n", "max_gen_toks": 9}, 0.0, 9, ("\n",)),
        ({"until": ["a", "b"], "max_new_tokens": 7}, 0.0, 7, ("a", "b")),
        ({"temperature": 0.7}, 0.7, 256, ()),
        ({"do_sample": False, "temperature": 0.7}, 0.0, 256, ()),
        ({"do_sample": True}, 1.0, 256, ()),
        ({"do_sample": True, "temperature": 0.5, "max_gen_toks": None}, 0.5, 256, ()),
    ],
)
def test_generation_arguments_mean_what_they_do_in_the_harness(
    asked: dict[str, Any], temperature: float, length: int, stops: tuple[str, ...]
) -> None:
    got = answer_options(OURS, asked, seed=3)
    assert got.sample == SampleOptions(temperature=temperature, seed=3)
    assert (got.max_tokens, got.stop, got.method) == (length, stops, Method.TARGET)

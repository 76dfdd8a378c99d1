"""What a record is: the forms of a line, ids, what it may set for itself."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from capt_local.batch.records import RecordSettings, read_settings
from capt_local.prompting.messages import Message
from capt_local.strict_json import NotReadable
from tests.batch.inputs import CANARY, checked, line, openai, problems, records, short, written

USER = Message("user", CANARY)
UNKNOWN = (
    "it has a field that is not one of max_tokens, temperature, top_p, seed, stop, logprobs, "
    "top_logprobs, adapter_scales"
)
NO_PROMPT = 'either "prompt" or "messages" is needed (other fields need --template)'


def test_the_forms_of_a_line(tmp_path: Path) -> None:
    turns = [{"role": "system", "content": "s"}, {"role": "user", "content": CANARY}]
    data = (
        short("a", max_tokens=3)
        + line(id=2, messages=turns)
        + openai("c", model="m", temperature=0, seed=5)
        + line(custom_id="d", body={"messages": turns[1:]})
    )
    source = checked(written(tmp_path, data))
    found = records(source)
    assert list(source.ids) == [record.id for record in found] == ["a", "2", "c", "d"]
    assert [record.number for record in found] == [1, 2, 3, 4]
    assert [record.custom_id for record in found] == [None, None, "c", "d"]
    assert [record.prompt for record in found] == [
        CANARY, (Message("system", "s"), USER), (USER,), (USER,)
    ]  # fmt: skip
    assert [record.settings for record in found] == [
        RecordSettings(max_tokens=3),
        RecordSettings(),
        RecordSettings(temperature=0.0, seed=5),
        RecordSettings(),
    ]


def test_the_system_text_of_the_run(tmp_path: Path) -> None:
    turns = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]
    turns.append({"role": "user", "content": CANARY})
    path = written(tmp_path, short("a") + line(id="b", messages=turns))
    first, second = records(checked(path, system="be brief"))
    assert first.prompt == (Message("system", "be brief"), USER)
    assert second.prompt[0] == Message("system", "be brief") and len(second.prompt) == 4
    own = [{"role": "system", "content": CANARY}, {"role": "user", "content": "q"}]
    path = written(tmp_path, short("a") + line(id="b", messages=own))
    assert problems(path, system="be brief") == (
        "line 2: it has a system message of its own, and --system gives another",
    )


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({}, NO_PROMPT),
        ({"prompt": CANARY, "messages": []}, '"prompt" and "messages" do not go together'),
        ({"prompt": " \n"}, "the prompt is empty"),
        ({"prompt": f"{CANARY}\0"},
         "a text of it holds a NUL byte (0x00) at byte 7 (counted from 0)"),
        ({"prompt": "x", CANARY: 1}, UNKNOWN),
        ({"messages": CANARY}, '"messages" must be a list of objects'),
        ({"messages": []}, "The conversation is empty"),
        ({"messages": [{"role": CANARY, "content": "x"}]},
         'the "role" of a message must be system, user or assistant'),
        ({"messages": [{"role": "user"}]}, 'the "content" of a message must be a text'),
        ({"messages": [{"role": "user", "content": f"{CANARY}\0"}]},
         "a text of it holds a NUL byte (0x00) at byte 7 (counted from 0)"),
        ({"messages": [{"role": "user", "content": "x", "name": CANARY}]},
         'a message holds more than "role" and "content"'),
        ({"messages": [{"role": "assistant", "content": CANARY}]},
         "The last message must be the user's"),
        ({"custom_id": "x", "body": {"messages": []}},
         "beside custom_id, method, url and body there is another field"),
    ],
)  # fmt: skip
def test_prompts_that_are_none(fields: dict[str, Any], said: str, tmp_path: Path) -> None:
    assert problems(written(tmp_path, line(id="a", **fields))) == (f"line 1: {said}",)


@pytest.mark.parametrize(
    ("id", "said"),
    [
        (None, 'no "id"'),
        (True, "the id must be a text or a whole number"),
        (CANARY * 29, "the id must have 1 to 200 characters"),
        (f"\u202e{CANARY}", "the id must be printable, with no space at its ends"),
        (f" {CANARY}", "the id must be printable, with no space at its ends"),
    ],
)
def test_ids_that_are_none(id: object, said: str, tmp_path: Path) -> None:
    assert problems(written(tmp_path, short(id))) == (f"line 1: {said}",)


SETTINGS = [
    ({"max_completion_tokens": 4}, {"max_tokens": 4}),
    ({"max_tokens": None, "stop": None}, {}),
    ({"temperature": 1, "top_p": 0.5}, {"temperature": 1.0, "top_p": 0.5}),
    ({"stop": "x"}, {"stop": ("x",)}),
    ({"stop": ["x", "y"]}, {"stop": ("x", "y")}),
    ({"logprobs": True, "top_logprobs": 3}, {"logprobs": True, "top_logprobs": 3}),
    ({"logprobs": False}, {"logprobs": False}),
    ({"seed": (1 << 63) - 1}, {"seed": (1 << 63) - 1}),
    ({"n": 1, "stream": False, "tools": [], "frequency_penalty": 0.0}, {}),
    ({"response_format": {"type": "text"}, "user": None}, {}),
]


@pytest.mark.parametrize(("fields", "made"), SETTINGS)
def test_settings(fields: dict[str, object], made: dict[str, Any]) -> None:
    assert read_settings(fields) == RecordSettings(**made)


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"max_tokens": 0}, "max_tokens must be at least 1"),
        ({"temperature": -0.1}, "temperature must be at least 0"),
        ({"temperature": CANARY}, "temperature must be a number"),
        ({"temperature": 10**400}, "temperature is out of range"),
        ({"top_p": 0}, "top_p must be more than 0"),
        ({"seed": True}, "seed must be a whole number"),
        ({"stop": ["x"] * 17}, "stop must be a list"),
        ({"stop": ["x", 5]}, "stop must be a text"),
        ({"logprobs": 1}, "logprobs must be true or false"),
        ({"top_logprobs": 2}, '"top_logprobs" goes with "logprobs": true'),
        ({"max_tokens": 1, "max_completion_tokens": 1},
         '"max_tokens" and "max_completion_tokens" do not go together'),
        ({"stream": True}, 'this "stream" is not supported'),
        ({"response_format": {"type": "json_object"}},
         'this "response_format" is not supported: give --json-schema for the whole run'),
        ({"top_k": 5}, 'this "top_k" is not supported: give --top-k for the whole run'),
        ({"user": CANARY}, 'this "user" is not supported'),
        ({"guided_json": {}},
         '"guided_json" is not supported: give --json-schema for the whole run'),
        ({CANARY: CANARY}, UNKNOWN),
    ],
)  # fmt: skip
def test_settings_that_are_refused(fields: dict[str, object], said: str) -> None:
    with pytest.raises(NotReadable) as caught:
        read_settings(fields)
    assert str(caught.value) == said

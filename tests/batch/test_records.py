"""What a record is: its prompt, its id, and a template around its fields, whose text stays text."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from capt_local.batch.records import RecordTemplate, record_seed
from capt_local.errors import UsageError
from capt_local.prompting.messages import Message
from capt_local.strict_json import NotReadable
from tests.batch.inputs import CANARY, checked, line, problems, records, short, written

USER = Message("user", CANARY)


def test_the_forms_of_a_line(tmp_path: Path) -> None:
    turns = [{"role": "system", "content": "s"}, {"role": "user", "content": CANARY}]
    scales = {"expert": [0.5, 1]}
    data = short("a") + line(id=2, messages=turns) + short("c", adapter_scales=scales)
    source = checked(written(tmp_path, data))
    found = records(source)
    assert list(source.ids) == [record.id for record in found] == ["a", "2", "c"]
    assert [record.number for record in found] == [1, 2, 3]
    assert [record.prompt for record in found] == [CANARY, (Message("system", "s"), USER), CANARY]
    assert [each.adapter_scales for each in found] == [None, None, {"expert": (0.5, 1.0)}]


def test_the_system_text_of_the_run(tmp_path: Path) -> None:
    turns = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]
    turns.append({"role": "user", "content": CANARY})
    path = written(tmp_path, short("a") + line(id="b", messages=turns))
    first, second = records(checked(path, system="be brief"))
    assert first.prompt == (Message("system", "be brief"), USER)
    assert second.prompt[0] == Message("system", "be brief") and len(second.prompt) == 4
    own = [{"role": "system", "content": CANARY}, {"role": "user", "content": "q"}]
    path = written(tmp_path, short("a") + line(id="b", messages=own))
    assert "a system message of its own" in problems(path, system="be brief")[0]


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({}, 'one of "prompt" and "messages" is needed'),
        ({"prompt": CANARY, "messages": []}, 'one of "prompt" and "messages" is needed'),
        ({"prompt": " \n"}, "the prompt is empty"),
        ({"prompt": 5}, '"prompt" must be a text'),
        ({"prompt": f"{CANARY}\0"}, "a text of it holds a NUL byte (0x00) at byte 7"),
        ({"prompt": "x", CANARY: 1}, "it has a field beside the id and"),
        ({"prompt": "x", "max_tokens": 5}, "it has a field beside the id and"),
        ({"prompt": "x", "adapter_scales": {CANARY: ["x"]}}, "adapter_scales must be a number"),
        ({"prompt": "x", "adapter_scales": {CANARY: [99]}}, "The scale of an adapter is"),
        ({"messages": CANARY}, '"messages" must be a list of objects'),
        ({"messages": [{"role": CANARY, "content": "x"}]}, 'the "role" of a message must be'),
        ({"messages": [{"role": "user", "content": f"{CANARY}\0"}]}, "a text of it holds a NUL"),
        ({"messages": [{"role": "assistant", "content": CANARY}]}, "The last message must be"),
        ({"id": None, "prompt": "x"}, 'no "id" (name the field that identifies a record'),
        ({"id": True, "prompt": "x"}, "the id must be a text or a whole number"),
        ({"id": CANARY * 29, "prompt": "x"}, "the id must have 1 to 200 characters"),
        ({"id": f"\u202e{CANARY}", "prompt": "x"}, "the id must be printable"),
        ({"id": f" {CANARY}", "prompt": "x"}, "the id must be printable, with no space at its"),
    ],
)  # fmt: skip
def test_records_that_are_none(fields: dict[str, Any], said: str, tmp_path: Path) -> None:
    (found,) = problems(written(tmp_path, line(**{"id": "a", **fields})))
    assert found.startswith(f"line 1: {said}")


def test_the_seed_of_a_record_is_documented_arithmetic() -> None:
    digest = hashlib.sha256(b"capt-local batch seed 1\n7\nnote-1").digest()
    assert record_seed(7, "note-1") == int.from_bytes(digest, "big") >> (256 - 53)
    assert len({record_seed(seed, id) for seed in range(9) for id in ("a", "b", "1\u00e9")}) == 27


def filled(template: str, **fields: Any) -> str:
    return RecordTemplate(template.encode()).render(fields)


def test_fields_are_filled_in() -> None:
    assert filled("Note:\r\n{{ note }}\n", note="a\nb", other=None) == "Note:\na\nb"
    assert filled("{{Note Text}} ({{ age }}) }}", age=7, **{"Note Text": "x"}) == "x (7) }}"


@given(st.text() | st.sampled_from(["{{ 7 * 7 }}", "{% raw %}", "{{ other }}"]), st.text())
def test_any_text_stays_text(note: str, other: str) -> None:
    """Named in docs/threat-model.md."""
    assert filled("{{ note }}|{{ other }}", note=note, other=other) == f"{note}|{other}"


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({}, 'there is no field "note", which the template names'),
        ({"note": None}, "which the template names, is null"),
        ({"note": True}, "which the template names, is true or false"),
        ({"note": [CANARY]}, "which the template names, is a list"),
        ({"note": {CANARY: 1}}, "which the template names, is an object"),
        ({"note": CANARY * 600_000}, "the prompt is larger than 4 MiB"),
    ],
)
def test_what_cannot_be_filled_in(fields: dict[str, Any], said: str) -> None:
    with pytest.raises(NotReadable) as caught:
        filled("{{ note }}", **fields)
    assert said in str(caught.value) and CANARY not in str(caught.value)


@pytest.mark.parametrize("template", ["x", "{{ note }}\n{% if a %}", "{{ note }}{# a #}", "{{\n}}"])
def test_a_template_has_fields_and_no_language(template: str) -> None:
    with pytest.raises(UsageError, match=r"written as \{\{ note|write one as \{\{ note"):
        RecordTemplate(template.encode())


def test_a_template_is_the_users_message(tmp_path: Path) -> None:
    data = b'{"id": "a", "note": "zyzzyva", "dose": 0.00005, "prompt": "p", "max_tokens": "x"}\n'
    source = checked(written(tmp_path, data), "Short: {{ note }} {{ dose }}", system="s")
    (record,) = records(source)
    # Numbers as they were written.
    assert record.prompt == (Message("system", "s"), Message("user", f"Short: {CANARY} 0.00005"))
    assert record.of == "note" and record.note is not None and record.note.text == CANARY
    assert source.described() == {
        "format": "jsonl",
        "template_sha256": hashlib.sha256(b"Short: {{ note }} {{ dose }}").hexdigest(),
        "system_sha256": hashlib.sha256(b"s").hexdigest(),
        "id_field": "id",
        "raw": False,
    }

"""Templates around the fields of a record: text stays text, and nothing is missing in silence."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from capt_local.batch.records import RecordTemplate
from capt_local.prompting.messages import Message
from capt_local.strict_json import NotReadable
from tests.batch.inputs import CANARY, checked, line, records, written


def text(template: str, **fields: Any) -> str:
    return RecordTemplate(template.encode()).render(fields)


def refusal(template: str, **fields: Any) -> str:
    with pytest.raises(NotReadable) as caught:
        text(template, **fields)
    assert CANARY not in str(caught.value)
    return str(caught.value)


def test_fields_are_filled_in() -> None:
    assert text("Note:\n{{ note }}\n", note="a\nb", other=None) == "Note:\na\nb"
    assert text('{{ record["Note Text"] }} ({{ age }})', age=7, **{"Note Text": "x"}) == "x (7)"
    assert text("{% if a is defined %}{{ a }}{% else %}-{% endif %}", b="x") == "-"
    assert text("{{ a | default('none') }}{{ b }}", b=1.5) == "none1.5"
    assert (
        text("{% for d in drugs %}\n{{ d.name }};\n{% endfor %}", drugs=[{"name": "x"}]) == "x;\n"
    )
    assert text("{{ 'yes' if smoker else 'no' }}", smoker=True) == "yes"
    assert text("{{ labs | tojson }}", labs={"k": None}) == '{"k": null}'
    assert text("{{ record.record }}", record="x") == "x"


@given(st.text() | st.sampled_from(["{{ 7 * 7 }}{% for x in y %}", "{% raw %}", "{#"]), st.text())
def test_any_text_stays_text(note: str, other: str) -> None:
    found = text("{{ note }}|{{ record['the other'] }}", note=note, **{"the other": other})
    assert found == f"{note}|{other}"


@pytest.mark.parametrize(
    ("template", "fields", "said"),
    [
        ("{{ note }}", {}, 'there is no field "note", which the template names'),
        ("{% if note %}x{% endif %}", {}, 'there is no field "note", which the template names'),
        ("{{ record.note }}", {}, "the template asks for a value that is not there"),
        ("{{ record[note] }}", {"note": CANARY}, "the template asks for a value that is not there"),
        ("{{ note }}", {"note": None}, "the template prints a value that is null"),
        ("{{ note }}", {"note": [CANARY]}, "the template prints a list"),
        ("{{ ''[note] }}", {"note": "__class__"}, "the template does what templates may not do"),
        ("{{ note.__class__ }}", {"note": "x"}, "the template does what templates may not do"),
        ("{{ note + 1 }}", {"note": CANARY}, "the template fails with a TypeError"),
        ("{% include note %}", {"note": CANARY}, "the template fails with a TypeError"),
        ("{{ note * 9999999 }}", {"note": "x"}, "the template was stopped: it makes a value"),
        ("{{ note }}", {"note": "x" * (5 << 20)}, "the template was stopped: it writes too much"),
    ],
)  # fmt: skip
def test_what_cannot_be_filled_in(template: str, fields: dict[str, Any], said: str) -> None:
    assert refusal(template, **fields).startswith(said)


def test_a_template_is_the_users_message(tmp_path: Path) -> None:
    path = written(tmp_path, line(id="a", note=CANARY, prompt="p", max_tokens=CANARY, body=[1]))
    source = checked(path, "Short: {{ note }}", system="s")
    (record,) = records(source)
    assert record.prompt == (Message("system", "s"), Message("user", f"Short: {CANARY}"))
    assert record.settings.max_tokens is None and record.custom_id is None
    assert source.described() == {
        "format": "jsonl",
        "template_sha256": hashlib.sha256(b"Short: {{ note }}").hexdigest(),
        "system_sha256": hashlib.sha256(b"s").hexdigest(),
        "id_field": "id",
        "raw": False,
    }


def test_numbers_are_printed_as_they_were_written(tmp_path: Path) -> None:
    path = written(tmp_path, b'{"id": "a", "k": 4.10, "dose": 0.00005, "n": [1E2]}\n')
    (record,) = records(checked(path, "{{ k }} {{ dose }} {{ n[0] ~ '' }}{{ '!' if k > 4 }}"))
    assert record.prompt == "4.10 0.00005 1E2!"

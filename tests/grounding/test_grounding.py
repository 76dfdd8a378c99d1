"""Facts of answers in their sources: what is found where, and what is not."""

from __future__ import annotations

import json
from importlib import resources

import pytest
from hypothesis import given
from hypothesis import strategies as st

from capt_local.decoding.structured import schema_structure
from capt_local.documents import Document
from capt_local.grounding import Grounding, Match, Source, ground
from capt_local.grounding.source import words

NOTE = (
    "Ms. Roe, 54 years old, seen on 3 May 2024. She takes lisinopril twenty milligrams daily and "
    "furosemide 40 mg, which was 20 mg until March. She denies chest pain and has no fevers. Her "
    "left knee is swollen. Blood pressure one twenty eight over eighty two, A1c six point seven.\n"
    "[doctor] any nausea or vomiting ? [patient] no . Weight 1,250.50 g of fluid, 500 mcg folate."
)


def found(answer: str, note: str = NOTE) -> Grounding:
    return ground(answer, Source(Document(note)))


def unsupported(answer: str, note: str = NOTE) -> list[str]:
    grounding = found(answer, note)
    assert all(answer[one.start : one.end] == one.text for one in grounding.facts)
    return [fact.text for fact in grounding.facts if not fact.supported]


@pytest.mark.parametrize(
    "text, numbers",
    [
        ("one twenty eight over seventy two", ["128", "72"]),
        ("July twenty ninth two thousand eight", ["29", "2008"]),
        ("six point seven, at one point; two point five", ["6.7", "2.5"]),
        ("five, fifty five and a hundred", ["5", "55", "100"]),
        ("in a month, one week, the second one", ["1", "1"]),
        ("1,250.50 .5 05.0 2nd 58-year-old 500mg", ["1250.5", "0.5", "5", "2", "58", "500"]),
        ("B12, COVID-19, T2 and x3", []),
    ],
)
def test_numbers_are_read_as_digits_and_words(text: str, numbers: list[str]) -> None:
    assert [word.key for word in words(text) if word.number] == numbers


@given(st.text(max_size=60))
def test_words_stand_where_they_say(text: str) -> None:
    """In any text words are in order, inside it, and do not overlap; none is lost twice."""
    end = 0
    for word in words(text):
        assert end <= word.start < word.end <= len(text) and word.key
        end = word.end
    assert ground(text, Source(Document(text))).of == "document"


@pytest.mark.parametrize(
    "answer, missing",
    [
        ("Lisinopril 20 mg daily, furosemide 40 milligrams.", []),
        ("Lisinopril 20 mcg daily.", ["20 mcg"]),  # another unit
        ("Lisinopril 25 mg daily.", ["25 mg"]),
        ("Seen on 05/03/2024 at 54.", []),
        ("Seen on 05/04/2024.", ["05/04/2024"]),
        ("Takes Lasix and Zestril.", []),  # brands of drugs of the note
        ("Takes warfarin.", ["warfarin"]),
        ("BP 128/82, A1c 6.7%.", []),
        ("The left knee is swollen.", []),
        ("The right knee is swollen.", ["right knee"]),
        ("Denies chest pain, fever, nausea and vomiting.", []),
        ("Denies chest pain or palpitations.", ["palpitations"]),
        ("She has a fever and vomiting.", ["fever"]),  # the note denies the one, asks for the other
        ("Fluid 1250.5 grams; folate 500 \u00b5g.", []),
    ],
)
def test_facts_of_free_text(answer: str, missing: list[str]) -> None:
    assert unsupported(answer) == missing


def test_a_number_stands_where_its_company_does() -> None:
    answer = "Furosemide was 20 mg until March."
    (number,) = [fact for fact in found(answer).facts if fact.kind == "number"]
    assert number.source is not None and NOTE[slice(*number.source)] == "20 mg"
    assert number.source[0] > NOTE.index("furosemide") and number.match is Match.EXACT


def test_statements_are_scored_and_headings_are_none() -> None:
    answer = (
        "ASSESSMENT AND PLAN\n\nRespiratory: She takes lisinopril daily. Dr. Roe agrees.\n"
        "- The colonoscopy showed two polyps of the sigmoid.\n"
    )
    first, second, third = found(answer).statements
    assert first.text == "She takes lisinopril daily." and first.supported
    assert first.source is not None and "takes lisinopril" in NOTE[slice(*first.source)]
    assert second.text == "Dr. Roe agrees." and not third.supported
    assert third.text == "The colonoscopy showed two polyps of the sigmoid."


def test_pages_are_named() -> None:
    pages = Document("Aspirin 81 mg.\n\nWarfarin 5 mg.", ((0, 14), (16, 30)))
    facts = ground("Aspirin 81 mg. Warfarin 5 mg.", Source(pages)).facts
    assert [(fact.text, fact.page) for fact in facts if fact.kind == "drug"] == [
        ("Aspirin", 1), ("Warfarin", 2)
    ]  # fmt: skip


def test_values_of_structured_answers() -> None:
    """Exact, normalised, fuzzy, of the same object, or not there; enumerations are no facts."""
    schema = {
        "type": "object",
        "properties": {
            "drugs": {"type": "array", "items": {"$ref": "#/$defs/drug"}},
            "kind": {"enum": ["visit", "call"]},
        },
        "$defs": {"drug": {"type": "object", "properties": {"status": {"const": "active"}}}},
    }
    value = {
        "kind": "call",
        "drugs": [
            {"name": "furosemide", "dose": "40 mg", "status": "active"},
            {"name": "Lisinopril", "dose": "20 mg"},
            {"name": "lisinoprill", "dose": "30 mg", "count": 54, "note": "", "x": None},
        ],
    }
    answer = json.dumps(value)
    facts = ground(answer, Source(Document(NOTE)), schema=schema).facts
    by_path = {fact.path: fact for fact in facts}
    assert {path: str(fact.match) for path, fact in by_path.items()} == {
        "drugs[0].name": "exact", "drugs[0].dose": "exact",
        "drugs[1].name": "normalised", "drugs[1].dose": "exact",
        "drugs[2].name": "fuzzy", "drugs[2].dose": "unsupported", "drugs[2].count": "exact",
    }  # fmt: skip
    assert all(answer[fact.start : fact.end] == fact.text for fact in facts)
    span = by_path["drugs[0].dose"].source
    assert span is not None and NOTE[slice(*span)] == "40 mg"


def test_a_fuzzy_match_never_changes_a_number() -> None:
    assert ground('{"a": "furosemide 46 mg"}', Source(Document(NOTE)), schema={}).unsupported
    assert not ground('{"a": "furosemid 40 mg"}', Source(Document(NOTE)), schema={}).unsupported


@pytest.mark.parametrize("name", ["medications", "problems", "labs", "social_history"])
def test_ready_schemas_can_be_used(name: str) -> None:
    data = (resources.files("capt_local") / "data" / "schemas" / f"{name}.json").read_bytes()
    assert schema_structure(data, "The schema").kind == "json-schema"

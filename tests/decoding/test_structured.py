"""Structured answers: what a JSON schema allows, and the choice of the method among that."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from typing import Any

import jsonschema
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from capt_local.decoding.baselines import Choices
from capt_local.decoding.combine import Distribution
from capt_local.decoding.ensemble import Ensemble
from capt_local.decoding.loop import Generation
from capt_local.decoding.options import CombineOptions, FinishReason, GenerateOptions, SampleOptions
from capt_local.decoding.prompt_weights import prefill
from capt_local.decoding.sampling import choose
from capt_local.decoding.structured import (
    SchemaConstraint,
    masked,
    schema_structure,
    structure_problem,
)
from capt_local.errors import ModelError, UsageError
from capt_local.strict_json import ParseError, parse_json
from capt_local.tokenization import TokenKind, Vocabulary
from tests.decoding.trios import TARGET, toy, turn, walk
from tests.fakes import make_vocabulary

CANARY = "zyzzyva"
PLAIN = make_vocabulary(['"a', '": ', "tr", "ue", ", ", "}}", " [", "é", "null", ' "', "0."])
VOCABULARY = Vocabulary(
    [*PLAIN.pieces(), b'"', b"<|tool|>"],  # two pieces of the same bytes, and a control token
    [*PLAIN.kinds.tolist(), TokenKind.NORMAL, TokenKind.CONTROL],
    end_ids=[1],
)


def constraint(schema: Any, leading_space: bytes = b"") -> SchemaConstraint:
    return SchemaConstraint(
        VOCABULARY, schema_structure(json.dumps(schema).encode()).source, leading_space
    )


def takes(schema: Any, text: str, leading_space: bytes = b"") -> bool:
    """Whether a text may be an answer, byte by byte."""
    made = constraint(schema, leading_space)
    for byte in text.encode():
        token = VOCABULARY.byte_ids[byte]
        if not made.allowed()[token]:
            return False
        made.accept(token)
    assert made.allowed()[VOCABULARY.end_ids].all() >= made.complete
    return made.complete


@pytest.mark.parametrize(
    ("schema", "said"),
    [
        ({"type": "object", "properties": {"a": {"not": {}}}}, '"not"'),
        ({"if": {"type": "null"}, "then": {}}, '"if"'),
        ({"propertyNames": {"pattern": CANARY}}, '"propertyNames"'),
        ({CANARY: 2}, "not of JSON Schema"),
        ({"x-guidance": {"lenient": True}}, "not of JSON Schema"),
        ({"type": "string", "format": CANARY}, '"format"'),
        ({"type": "string", "pattern": f"(?={CANARY})"}, '"pattern"'),
        ({"type": "string", "pattern": f"({CANARY}"}, '"pattern"'),
        ({"type": "number", "exclusiveMinimum": True}, '"exclusiveMinimum"'),
        ({"type": CANARY}, '"type"'),
        ({"enum": 3}, '"enum"'),
        ({"enum": [CANARY], "type": "integer"}, "no instance"),
        ({"type": "array", "minItems": 3, "maxItems": 2}, "no instance"),
        ({"$ref": f"https://{CANARY}/schema"}, "$ref"),
        ({"$ref": f"#/$defs/{CANARY}"}, "$ref"),
        ({"type": "object", "properties": {CANARY: {}}, "maxProperties": 2}, '"maxProperties"'),
        ([], "no object"),
        (False, "no object"),
    ],
)
def test_what_cannot_be_kept_is_refused_by_name(
    schema: Any, said: str, capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(UsageError) as told:
        schema_structure(json.dumps(schema).encode(), "The schema (--json-schema)")
    assert str(told.value).startswith("The schema (--json-schema) ")
    assert said.strip('"') in str(told.value) and CANARY not in str(told.value)
    assert "\n" not in str(told.value) and capfd.readouterr() == ("", "")
    assert told.value.__cause__ is None


@pytest.mark.parametrize(
    "text",
    [
        b"", b"zyzzyva", b"{", b'{"a": 1, "a": 2}', b'{"const": NaN}', b'{"const": 1e999}',
        b"\xff", b"[" * 100_000, b'{"const": ' + b"9" * 5000 + b"}",
    ],
    ids=range(9),
)  # fmt: skip
def test_what_is_no_json_is_refused(text: bytes) -> None:
    with pytest.raises(UsageError, match=r"^The schema is (not JSON|larger)") as told:
        schema_structure(text)
    assert CANARY not in str(told.value)


def test_a_deep_or_large_schema_is_refused() -> None:
    deep: dict[str, Any] = {}
    for _ in range(40):
        deep = {"type": "array", "items": deep}
    with pytest.raises(UsageError, match="more than 32 levels deep"):
        schema_structure(json.dumps(deep).encode())
    with pytest.raises(UsageError, match="larger than 64 KiB"):
        schema_structure(b'{"title": "' + b"a" * 70_000 + b'"}')


def test_annotations_are_left_out_and_properties_of_their_names_are_not() -> None:
    bare = {"type": "object", "properties": {"title": {"type": "null"}}}
    about = {**bare, "title": "T", "description": "D", "$schema": "https://json-schema.org/x"}
    made = schema_structure(json.dumps(about).encode())
    assert made == schema_structure(json.dumps(bare).encode()) and '"title"' in made.source


def test_described_objects_have_no_other_members_unless_it_is_said() -> None:
    inner = {"type": "object", "properties": {"a": {"type": "null"}}}
    for schema, other in (
        (inner, False),
        ({"$ref": "#/$defs/x", "$defs": {"x": inner}}, False),
        ({"anyOf": [inner, {"type": "null"}]}, False),
        ({**inner, "additionalProperties": True}, True),
        ({**inner, "anyOf": [{"required": ["a"]}, {"required": ["b"]}]}, True),
        ({"allOf": [inner, {"type": "object"}]}, True),
    ):
        assert takes(schema, '{"a":null}')
        assert takes(schema, '{"a":null,"b":1}') == other


PERSON = {
    "type": "object",
    "properties": {
        'a "b" \\ é\n': {"enum": ["x", 'y"\\', 1, None, [1, {"z": "\U0001f321"}]]},
        "age": {"type": "integer", "minimum": 0, "maximum": 120},
        "names": {"type": "array", "items": {"type": "string", "minLength": 1, "maxLength": 4},
                  "minItems": 1, "maxItems": 2},
        "more": {"$ref": "#/$defs/more"},
    },
    "required": ["age", "names"],
    "additionalProperties": False,
    "$defs": {
        # The same name as a property's, and a definition that holds itself.
        "more": {"type": "object", "properties": {"more": {"$ref": "#/$defs/more"}}},
        "age": {"type": "boolean"},
    },
}  # fmt: skip
SCHEMAS = [
    {"enum": ["yes", "no", '1/2 \u2028 "quoted"']},
    {"type": "number", "minimum": 0},
    {"type": ["integer", "null"]},
    {"anyOf": [{"type": "boolean"}, {"type": "array", "maxItems": 1, "items": {"const": "é"}}]},
    {"type": "array", "maxItems": 0},
    {"type": "string", "maxLength": 0},
    {"type": "object", "additionalProperties": {"type": "integer", "minimum": -2, "maximum": 2}},
    {
        "type": "object",
        "properties": {"a": {"type": "null"}, "b": {"type": "null"}},
        "additionalProperties": False,
    },
    {},
    PERSON,
    {"type": "string", "pattern": "^[a-c]{2,3}$"},
    {"type": "string", "format": "date"},
    {"type": "number", "exclusiveMinimum": -1, "maximum": 7},
    {"type": "integer", "minimum": -8, "maximum": 120, "multipleOf": 7},
    {
        "allOf": [
            {"type": "object", "properties": {"a": {"type": "null"}}},
            {"required": ["a"], "maxProperties": 2},
        ]
    },
    {"oneOf": [{"type": "string", "maxLength": 2}, {"type": "object", "required": ["x"]}]},
    {"type": "array", "prefixItems": [{"type": "null"}], "items": {"type": "boolean"}},
    {"type": "object", "minProperties": 1, "additionalProperties": {"type": "integer"}},
    {"type": "object", "patternProperties": {"^x": {"type": "integer"}}},
]
VALUES = [
    "yes", "no", "maybe", "1/2 \u2028 \"quoted\"", 0, 7, -7, 1.5, 1e-7, -0.25, None, True, [],
    ["é"], ["e"], ["é", "é"], "", "x", {}, {"x": 1}, {"x": 3}, {"a": None}, {"b": None},
    {"a": None, "b": None}, {"a": 1},
    {"age": 120, "names": ["Jörg"]}, {"age": 121, "names": ["a"]}, {"age": 1, "names": []},
    {"age": 1, "names": ["abcde"]}, {"age": 1, "names": ["a", "\U0001f321°"], "more": {"more": {}}},
    [None, True], [None, 1], "abc", "abcd", "2026-02-28", "2026-02-31", -8, 7.0, 120, -1,
    {"age": 1, "names": ["a"], "more": True}, {"names": ["a"]},
    *({'a "b" \\ é\n': value, "age": 0, "names": ["a\n"]} for value in ('y"\\', 1, 2, None)),
    {'a "b" \\ é\n': [1, {"z": "\U0001f321"}], "age": 0, "names": ["a"]},
]  # fmt: skip


@pytest.mark.parametrize("schema", SCHEMAS, ids=range(len(SCHEMAS)))
def test_instances_may_be_answers_and_nothing_else(schema: dict) -> None:
    for value in VALUES:
        valid = jsonschema.Draft202012Validator(
            schema, format_checker=jsonschema.FormatChecker(["date"])
        ).is_valid(value)
        text = json.dumps(value, ensure_ascii=False)
        # Numbers may be spelled in ways that no answer is.
        assert takes(schema, text) == valid or (valid and isinstance(value, float)), text
        tight = json.dumps(value, ensure_ascii=False, separators=(",", ":"))
        assert takes(schema, tight) <= valid, tight


@settings(deadline=None, max_examples=150, suppress_health_check=list(HealthCheck))
@given(seed=st.integers(0, 2**32), place=st.integers(0, len(SCHEMAS) - 1))
def test_whatever_is_allowed_becomes_an_instance(seed: int, place: int) -> None:
    """Tokens at random, as long as they are allowed."""
    rng = np.random.default_rng(seed)
    made, said = constraint(SCHEMAS[place]), b""
    every = np.arange(len(VOCABULARY))
    for _ in range(200):
        may = every[made.allowed()]
        assert len(may)
        if VOCABULARY.is_end[may].any():
            break
        # Brackets and quotation marks close sooner or later.
        closing = [t for t in may if VOCABULARY.piece(t) in (b'"', b"}", b"]", b"1", b"}}")]
        token = int(rng.choice(closing if closing and rng.random() < 0.5 else may))
        made.accept(token)
        said += VOCABULARY.piece(token)
    else:
        return  # too long; what counts is that it could go on
    jsonschema.validate(json.loads(said), SCHEMAS[place])
    try:
        parse_json(said)
    except ParseError:  # a free member may have the name of another; that is seen at the end
        assert not made.complete
    else:
        assert made.complete


DOUBLING = {f"a{n}": {"oneOf": [{"$ref": f"#/$defs/a{n + 1}"}] * 2} for n in range(40)}


@pytest.mark.parametrize(
    ("schema", "text", "instance"),
    [
        ({"oneOf": [{"type": "integer"}, {"type": "number", "minimum": 5}]}, "3", True),
        ({"oneOf": [{"type": "integer"}, {"type": "number", "minimum": 5}]}, "7", False),
        ({"type": "array", "items": {"oneOf": [{"type": "string"}, {"const": "a"}]}}, '["a"]',
         False),
        ({"oneOf": [{"type": "string", "format": "date"}, {"type": "string", "format": "time"}]},
         '"2026-02-28"', True),
        ({"type": "number", "multipleOf": 0.1}, "0.3", True),
        ({"type": "object", "additionalProperties": {"type": "integer"}}, '{"a":1,"a":2}', False),
        ({"$ref": "#/$defs/a0", "$defs": {**DOUBLING, "a40": {"type": "integer"}}}, "5", False),
    ],
    ids=["one case", "two", "two inside", "formats", "tenths", "a name twice", "without an end"],
)  # fmt: skip
def test_what_the_grammar_cannot_see_is_seen_at_the_end(
    schema: dict[str, Any], text: str, instance: bool
) -> None:
    assert takes(schema, text) == instance


@pytest.mark.parametrize(
    ("schema", "text"),
    [
        ({"pattern": "b."}, '"abc"'),
        ({"pattern": "^b"}, '"ab"'),
        ({"pattern": "^ü\\t$"}, '"ü\\t"'),
        ({"patternProperties": {"^x": {"type": "string"}}}, '{"y":1,"x1":2}'),
        ({"patternProperties": {"^x": {}}, "additionalProperties": False}, '{"x":1}'),
        ({"patternProperties": {"^x": {}}, "additionalProperties": False}, '{"y":1}'),
        ({"properties": {"y": {}}, "additionalProperties": {"type": "null"}}, '{"y":1}'),
        ({"properties": {"y": {}}, "additionalProperties": {"type": "null"}}, '{"z":1}'),
        ({"type": "integer"}, "1.0"),
        ({"type": "integer"}, "1.5"),
        ({"type": "integer", "maximum": 9007199254740992}, "9007199254740993"),
        ({"const": 0.1}, "0.1"),
        ({"pattern": "^(a+)+$"}, json.dumps("a" * 60 + "b")),  # years with Python's patterns
        ({"patternProperties": {"^(a+)+$": False}}, json.dumps({"a" * 60 + "b": 1})),
    ],
)
def test_the_cases_of_a_oneof_mean_what_they_mean_elsewhere(
    schema: dict[str, Any], text: str
) -> None:
    """An instance of a case is one of everything, too: two cases hold."""
    if "a+" in json.dumps(schema):
        valid = "pattern" not in schema
    else:
        valid = jsonschema.Draft202012Validator(schema).is_valid(json.loads(text))
    assert takes({"oneOf": [schema, {}]}, text) == (not valid)


def test_numbers_do_not_go_on_for_ever() -> None:
    schema = {"type": "array", "items": {"type": ["number", "string"]}}
    most = "1" * 16
    for text in (f"[{most}]", f"[0.{most}]", "[1e-99]", f'["{most}{most}", {most}]'):
        assert takes(schema, text)
    for text in (f"[{most}1]", f"[0.{most}1]", "[1e100]", "[1E+999]"):
        assert not takes(schema, text)


def test_strings_hold_no_control_characters_and_no_half_characters() -> None:
    schema = {"type": "string"}
    assert takes(schema, '"a\\n é"')
    for text in ('"a\n"', '"a\tb"', '"\\ud800"', '"\\x"'):
        assert not takes(schema, text)
    made = constraint(schema)
    for byte in b'"\xc3':
        made.accept(VOCABULARY.byte_ids[byte])
    assert not made.allowed()[[VOCABULARY.byte_ids[byte] for byte in (0x28, 0xFF, 0x22)]].any()


def test_control_tokens_are_no_text_and_the_end_comes_with_an_instance() -> None:
    made = constraint({"enum": ["yes"]})
    every = np.arange(len(VOCABULARY))
    control = np.flatnonzero(VOCABULARY.kinds == TokenKind.CONTROL)
    for byte in b'"yes"':
        assert not made.allowed()[control].any()
        made.accept(VOCABULARY.byte_ids[byte])
    assert made.complete and every[made.allowed()].tolist() == [1]
    with pytest.raises(ValueError, match="does not allow"):
        made.accept(VOCABULARY.byte_ids[ord("x")])
    made = constraint({"type": "string"})
    assert made.allowed()[[token for token in every if VOCABULARY.piece(token) == b'"']].all()


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "string", "pattern": "(" * 500 + "a" + ")*" * 500},
        {"$ref": "#"},
        {"$defs": {"x": {"$ref": "#/$defs/y"}, "y": {"$ref": "#/$defs/x"}}, "$ref": "#/$defs/x"},
    ],
)
def test_a_schema_without_a_bottom_is_refused(schema: dict[str, object]) -> None:
    with pytest.raises(UsageError, match="The schema"):
        schema_structure(json.dumps(schema).encode())


@pytest.mark.parametrize(
    ("structured", "finish", "told"),
    [
        (None, "stop", ""),
        ("complete", "stop", ""),
        ("incomplete", "length", "largest length"),
        ("incomplete", "stop", "not complete"),
    ],
)
def test_what_is_wrong_with_a_finished_answer(
    structured: str | None, finish: str, told: str
) -> None:
    choice = {"message": {"content": "{}"}, "finish_reason": finish}
    found = structure_problem({"choices": [choice], "capt": {"structured": structured}})
    assert told in found and bool(found) == bool(told)


def test_the_lead_may_stand_before_the_answer() -> None:
    schema = {"enum": ["yes"]}
    assert takes(schema, ' "yes"', b" ") and takes(schema, '"yes"', b" ")
    assert not takes(schema, '  "yes"', b" ") and not takes(schema, ' "yes"')


# Constrained answers: the choice of the method among what is allowed.

GREEDY = GenerateOptions(max_tokens=12)
DRAWN = SampleOptions(temperature=1.0, top_p=0.9, seed=5)


class Texts:
    """Allows the beginnings of some texts."""

    def __init__(self, vocabulary: Vocabulary, texts: Sequence[bytes]) -> None:
        self.texts, self.done = texts, b""
        self._vocabulary = vocabulary

    @property
    def complete(self) -> bool:
        return self.done in self.texts

    def allowed(self) -> np.ndarray:
        return np.array([self._may(token) for token in range(len(self._vocabulary))], np.bool_)

    def accept(self, token: int) -> None:
        assert self._may(token) and not self._vocabulary.is_end[token]
        self.done += self._vocabulary.piece(token)

    def _may(self, token: int) -> bool:
        if self._vocabulary.is_end[token]:
            return self.complete
        after = self.done + self._vocabulary.piece(token)
        text = bool(self._vocabulary.is_text[token])
        return text and any(each.startswith(after) for each in self.texts)


def started(options: CombineOptions | None = None) -> Ensemble:
    trio = toy(options)
    prompts = turn(trio)
    trio.start(prompts)
    prefill(trio, prompts)
    return trio


def walked(
    trio: Ensemble, texts: Sequence[bytes], options: GenerateOptions = GREEDY
) -> tuple[bytes, Generation, list]:
    made = walk(trio, options, constraint=Texts(TARGET, texts))
    steps = list(made)
    return b"".join(step.piece_bytes for step in steps), made, steps


@settings(deadline=None, max_examples=40)
@given(
    st.lists(st.sampled_from([b"cardiac", b"card", b"abc the", b"\n\nab", "é!".encode()]),
             min_size=1, max_size=4, unique=True),
    st.sampled_from([0.0, 1.0]),
    st.sampled_from([1e-5, 0.1, 1.0]),
)  # fmt: skip
def test_an_answer_is_one_of_the_texts(
    texts: list[bytes], temperature: float, plausibility: float
) -> None:
    combine = CombineOptions(plausibility=plausibility)
    options = GenerateOptions(max_tokens=12, sample=SampleOptions(temperature=temperature))
    said, made, steps = walked(started(combine), texts, options)
    assert said in texts
    assert (made.finish, made.structured) == (FinishReason.STOP, True)
    assert all(np.isfinite([step.logp, step.target_logp]).all() for step in steps)


def test_a_form_that_allows_everything_changes_nothing() -> None:
    class Everything(Texts):
        def _may(self, token: int) -> bool:
            return True

        def accept(self, token: int) -> None:
            pass

    for sample in (SampleOptions(), DRAWN):
        options = GenerateOptions(max_tokens=8, sample=sample, top=3)
        found = []
        for constraint in (None, Everything(TARGET, ())):
            found.append(list(walk(started(), options, constraint=constraint)))
        assert found[0] == found[1]


def test_draws_are_of_the_distribution_over_what_is_allowed() -> None:
    texts = [b"c", b"a", b"t"]
    trio = started()
    here = trio.distribution()
    tokens = [TARGET.byte_ids[text[0]] for text in texts]
    wanted = np.exp([here.token_logp(token) for token in tokens])
    wanted /= wanted.sum()
    found: Counter[bytes] = Counter()
    for seed in range(400):
        options = GenerateOptions(max_tokens=1, sample=SampleOptions(temperature=1.0, seed=seed))
        (step,) = walk(started(), options, constraint=Texts(TARGET, texts))
        found[step.piece_bytes] += 1
        assert step.logp == pytest.approx(here.token_logp(step.token))
    shares = [found[text] / 400 for text in texts]
    np.testing.assert_allclose(shares, wanted, atol=0.08)


def test_where_nothing_plausible_is_allowed_the_contrast_decides_among_what_is() -> None:
    combine = CombineOptions(alphas=(1.0,), plausibility=1.0)
    free = started(combine).distribution()
    refused = set(free.candidates.tokens.tolist())
    texts = [bytes([byte]) for byte in b"xyzq" if TARGET.byte_ids[byte] not in refused]
    said, made, steps = walked(started(combine), texts)
    assert said in texts and made._implausible_steps == 1
    # The target's own log-probability is that of its whole distribution.
    row = free.row[steps[0].token] - free.candidates.log_total
    assert steps[0].target_logp == pytest.approx(float(row))
    assert steps[0].target_choice.piece_bytes in texts


def test_a_form_that_no_token_can_go_on_is_an_error() -> None:
    class Nothing(Texts):
        def _may(self, token: int) -> bool:
            return False

    with pytest.raises(ModelError, match="has no token for what the schema"):
        list(walk(started(), GREEDY, constraint=Nothing(TARGET, ())))


def test_an_answer_that_ends_early_is_not_complete() -> None:
    _, made, _ = walked(started(), [b"cardiac" * 3], GenerateOptions(max_tokens=2))
    assert (made.finish, made.structured) == (FinishReason.LENGTH, False)
    made = walk(started(), GREEDY, cancel=lambda: True, constraint=Texts(TARGET, [b"a"]))
    assert list(made) == []
    assert (made.finish, made.structured) == (FinishReason.INTERRUPTED, False)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_token_of_probability_0_is_never_chosen(temperature: float) -> None:
    """A published method may give 0 to all that is allowed; then the leading model decides."""

    vocabulary = make_vocabulary(list("abc"), all_bytes=False)
    row = np.array([-9.0, -9.0, 1.0, 2.0, 0.5], np.float32)
    tokens = np.array([2, 3, 4], np.int32)
    nothing = np.array([0.0, -np.inf, -np.inf])
    own = Choices(tokens, nothing).over(row).candidates

    def distribution(only: Any = None, *, alone: bool = False) -> Distribution:
        logp = own.logp if alone else nothing
        return Distribution(own, np.zeros(3), logp, row, logp[None], np.empty((0, 3)))

    options = SampleOptions(temperature=temperature)
    made = masked(distribution(), np.arange(len(vocabulary)) == 4, distribution)
    logp, draws = made.here.logp, np.random.default_rng(1)
    place = choose(made.here.candidates.tokens, logp, (), options, draws, made.mask)
    assert int(tokens[place]) == 4 and np.isfinite(logp[place])

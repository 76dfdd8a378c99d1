"""Structured answers: sampling restricted to the tokens that a JSON schema allows.

llguidance compiles a schema to a mask over the vocabulary at each step (0.1 ms for 49,000 tokens,
0.3 ms for 262,000). If the mask allows no plausible candidate, the plausibility limit is applied
among the allowed tokens: the same method on the target's distribution restricted to them.
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from itertools import count
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

import numpy as np
import numpy.typing as npt

from capt_local.decoding.combine import Distribution
from capt_local.decoding.options import Structure
from capt_local.errors import ModelError, UsageError
from capt_local.strict_json import ParseError, load, parse_json, utf8
from capt_local.tokenization import BoolArray, TokenKind, Vocabulary

if TYPE_CHECKING:
    from llguidance import LLMatcher, LLTokenizer

LARGEST_SCHEMA = 1 << 16  # bytes
DEEPEST = 32
# Most keywords validated for one answer: nested references can grow exponentially.
_MOST_WORK = 50_000
# Annotations: they do not constrain an instance.
_ANNOTATIONS = {"title", "description", "$comment", "$schema", "$id", "examples", "default",
                "deprecated", "readOnly", "writeOnly", "$anchor"}  # fmt: skip
# Keywords that llguidance enforces, by where they hold subschemas.
_SCHEMA = {"items", "additionalProperties"}
_SCHEMAS = {"anyOf", "oneOf", "allOf", "prefixItems"}
_NAMED_SCHEMAS = {"properties", "patternProperties", "$defs", "definitions"}
_VALUES = {"type", "enum", "const", "$ref", "required", "minItems", "maxItems", "minLength",
           "maxLength", "minProperties", "maxProperties", "pattern", "format", "minimum",
           "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf"}  # fmt: skip
# Further keywords of JSON Schema, which an error may name; other names are the user's.
_REFUSED = {"$dynamicAnchor", "$dynamicRef", "$recursiveRef", "$vocabulary", "additionalItems",
            "contains", "contentEncoding", "contentMediaType", "contentSchema", "dependencies",
            "dependentRequired", "dependentSchemas", "else", "if", "maxContains", "minContains",
            "not", "propertyNames", "then", "unevaluatedItems", "unevaluatedProperties",
            "uniqueItems"}  # fmt: skip
_KNOWN = _VALUES | _SCHEMA | _SCHEMAS | _NAMED_SCHEMAS | _REFUSED
# At most one space between tokens of JSON: a model could write whitespace endlessly. No \\u
# escapes, since a lone surrogate is not a character.
_LAYOUT = {
    "whitespace_pattern": " ?",
    "json_allowed_escapes": '"\\bfnrt',
    "coerce_one_of": True,  # as anyOf; `_is_instance` checks at the end that only one holds
}
# Prefixes of llguidance's errors, which quote the schema, and our messages, which do not.
_REASONS = (
    ("Unsatisfiable", "has no instance"),
    ("Unknown format", 'has a "format" that is not known'),
    ("regex parse error", 'has a "pattern" that cannot be used (look-around and references '
                          "to groups cannot)"),
    ("min/maxProperties", 'has "minProperties" or "maxProperties" beside optional "properties"'),
    ("Pointer ", 'has a "$ref" to what is not there'),
    ("Resource ", 'has a "$ref" that does not begin with "#"'),
)  # fmt: skip


def schema_structure(text: bytes, name: str = "The schema") -> Structure:
    """Parses and checks a JSON schema; needs no model.

    Raises:
        UsageError: it is invalid, too large, or has a keyword that cannot be enforced. The message
            names the keyword, never a name or value of the schema.
    """
    if len(text) > LARGEST_SCHEMA:
        raise UsageError(f"{name} is larger than {LARGEST_SCHEMA >> 10} KiB.")
    try:
        schema = load(utf8(text))
    except ParseError:
        raise UsageError(f"{name} is not JSON (UTF-8, no name twice in an object).") from None
    from jsonschema import Draft202012Validator, SchemaError

    try:
        kept = _kept(schema, name, schema)
        Draft202012Validator.check_schema(kept)
        structure = Structure(json.dumps(kept, ensure_ascii=False))
        SchemaConstraint(_BYTES, structure.source)
    except SchemaError as error:
        place = _place(kept, error.absolute_path)
        raise UsageError(f"{name} is not a valid JSON schema{place}.") from None
    except _Refused as error:
        raise UsageError(f"{name} {error}.") from None
    except RecursionError:  # of the parser of patterns, or over references to themselves
        raise UsageError(f"{name} has a pattern or a reference that is nested too deep.") from None
    except ModelError:  # llguidance gave up; no model is there yet
        raise UsageError(f"{name} refers to itself without an end, or is too large.") from None
    return structure


class _Refused(Exception):
    """A schema cannot be used; the message quotes nothing of it."""


class SchemaConstraint:
    """Constrains an answer to a JSON schema from `schema_structure`, with llguidance.

    The answer may begin with `leading_space`, the leading space of the model's tokenizer.

    Raises:
        ModelError: the vocabulary has no token that ends an answer.
    """

    def __init__(self, vocabulary: Vocabulary, schema: str, leading_space: bytes = b"") -> None:
        from llguidance import LLMatcher

        if not len(vocabulary.end_ids):
            raise ModelError("The model has no token that ends an answer.")
        self._vocabulary = vocabulary
        self._schema, found = schema, json.loads(schema)
        self._lead = leading_space
        self._text = b""
        front = f"{json.dumps(leading_space.decode())}? " if leading_space else ""
        inner = {**found, "x-guidance": _LAYOUT}
        # Allow any tokenization of fixed text, not only llguidance's own.
        options = '%llguidance {"no_forcing": true}'
        lark = f"{options}\nstart: {front}form\nform: %json {json.dumps(inner, ensure_ascii=False)}"
        self._matcher = _matcher(vocabulary, LLMatcher.grammar_from_lark(lark))
        self._mask: BoolArray | None = None
        self._complete: bool | None = None
        self._numbers = _NumberLimit(vocabulary)
        if self._matcher.is_error():
            error = self._matcher.get_error()
            reasons = (said for begin, said in _REASONS if begin in error)
            raise _Refused(next(reasons, "cannot be used"))
        if not self.allowed().any():
            raise _Refused("has no instance")

    @property
    def complete(self) -> bool:
        """Whether the answer is an instance of the schema."""
        if self._complete is None:
            text = self._text.removeprefix(self._lead)
            self._complete = self._matcher.is_accepting() and _is_instance(text, self._schema)
        return self._complete

    def accept(self, token: int) -> None:
        """Appends a token of the answer; not an end token.

        Raises:
            ValueError: the token is not allowed.
            ModelError: the schema takes too much time or memory here.
        """
        if self._vocabulary.is_end[token] or not self.allowed()[token]:
            raise ValueError("the schema does not allow this token")
        self._matcher.consume_token(token)
        self._check()
        self._text += self._vocabulary.piece(token)
        self._numbers.accept(self._vocabulary.piece(token))
        self._mask = self._complete = None

    def allowed(self) -> BoolArray:
        """Mask of the allowed next tokens, shape (vocabulary,).

        End tokens are allowed where the answer may end, other control tokens never.
        """
        if self._mask is None:
            size = len(self._vocabulary)
            self._mask = np.zeros(size, np.bool_)
            if not self._matcher.is_stopped():  # then only the end can come
                bits = np.frombuffer(self._matcher.compute_bitmask(), np.uint8)
                self._mask = np.unpackbits(bits, count=size, bitorder="little").view(np.bool_)
                self._mask &= self._vocabulary.is_text
                shorter = self._mask & self._numbers.allowed()
                self._mask = shorter if shorter.any() else self._mask
            self._check()
            self._mask[self._vocabulary.end_ids] = self._matcher.is_accepting()
        return self._mask

    def _check(self) -> None:
        if self._matcher.is_error():
            raise ModelError(
                "The schema takes too much time or memory in this answer. Use a simpler one."
            )


def _is_instance(text: bytes, schema: str) -> bool:
    """Whether a text is JSON and, by jsonschema, an instance; False if that takes too many steps.

    The grammar cannot exclude two matching cases of a oneOf, or a repeated name in an object.
    Patterns and formats are matched by llguidance, as Python's `re` can take exponential time.
    """
    from jsonschema import Draft202012Validator, ValidationError
    from jsonschema.validators import extend
    from referencing import Registry
    from referencing.exceptions import Unresolvable

    own, work = Draft202012Validator.VALIDATORS, count()

    def bounded(check: Callable[..., Any]) -> Callable[..., Any]:
        def run(*arguments: Any) -> Any:
            if next(work) >= _MOST_WORK:
                raise _Refused
            return check(*arguments)

        return run

    def matching(keyword: str) -> Callable[..., Any]:
        def check(_: Any, rule: str, value: Any, schema: Any) -> Iterator[Any]:
            if isinstance(value, str) and not _matches(keyword, rule, value):
                yield ValidationError("")

        return check

    def named(validator: Any, patterns: Any, value: Any, schema: Any) -> Iterator[Any]:
        for pattern, inner in patterns.items():
            names = [name for name in _names(value) if _matches("pattern", pattern, name)]
            yield from own["properties"](validator, dict.fromkeys(names, inner), value, schema)

    def others(validator: Any, inner: Any, value: Any, schema: Any) -> Iterator[Any]:
        known = dict.fromkeys(schema.get("properties", ()))
        for pattern in schema.get("patternProperties", ()):
            known |= {name: None for name in _names(value) if _matches("pattern", pattern, name)}
        yield from own["additionalProperties"](validator, inner, value, {"properties": known})

    checks = {**own, "pattern": matching("pattern"), "format": matching("format"),
              "patternProperties": named, "additionalProperties": others}  # fmt: skip
    checks = {name: bounded(check) for name, check in checks.items()}
    kind = extend(Draft202012Validator, checks)  # type: ignore[no-untyped-call]
    try:
        parse_json(text)
        form, value = (json.loads(each, parse_float=_exact) for each in (schema, text))
        # With a registry of its own, nothing is ever fetched for a reference.
        return bool(kind(form, registry=Registry()).is_valid(value))
    except (ParseError, Unresolvable, RecursionError, _Refused):
        return False


def _names(value: object) -> Iterable[str]:
    return value if isinstance(value, dict) else ()


def _exact(number: str) -> Fraction | int:
    """A JSON number as an exact value: 0.3 is a multiple of 0.1, and 1.0 is an integer."""
    found = Fraction(number)
    return found.numerator if found.denominator == 1 else found


def _matches(keyword: str, rule: str, text: str) -> bool:
    """Whether a text matches a pattern or format, in time linear in its length."""
    matcher = _automaton(keyword, rule).deep_copy()
    data = json.dumps(text, ensure_ascii=False).encode()
    whole = matcher.try_consume_tokens(list(data)) == len(data) and matcher.is_accepting()
    if matcher.is_error():
        raise _Refused
    return whole


@lru_cache(64)
def _automaton(keyword: str, rule: str) -> LLMatcher:
    from llguidance import LLMatcher

    form = LLMatcher.grammar_from_json_schema(json.dumps({"type": "string", keyword: rule}))
    matcher = _matcher(_BYTES, form)
    if matcher.is_error():
        raise _Refused
    return matcher


def structure_problem(answer: Mapping[str, Any]) -> str:
    """Why an answer does not match its schema; empty if it does or there is none.

    Args:
        answer: as `report.json.answer_object` gives it.
    """
    if answer["capt"].get("structured") != "incomplete":
        return ""
    if answer["choices"][0]["finish_reason"] == "length":
        return "The answer reached its largest length before its form was complete."
    return "The answer is not complete, or no instance of its schema."


class _NumberLimit:
    """Limits numbers outside strings to 16 consecutive digits, and exponents to 2.

    A schema without bounds allows endless numbers, which small models write; and most JSON parsers
    read an exponent of three digits as infinity.
    """

    def __init__(self, vocabulary: Vocabulary) -> None:
        self._vocabulary = vocabulary
        self._in_string = self._escaped = False
        self._digits, self._limit = 0, _MOST_DIGITS

    def allowed(self) -> BoolArray | np.bool_:
        """Mask of the tokens within the limit, shape (vocabulary,)."""
        if self._in_string:
            return np.True_
        return np.asarray(_digits(self._vocabulary) + self._digits <= self._limit)

    def accept(self, piece: bytes) -> None:
        """Goes on."""
        for byte in piece:
            if self._in_string:
                self._in_string = self._escaped or byte != ord('"')
                self._escaped = byte == ord("\\") and not self._escaped
            elif chr(byte).isdecimal():
                self._digits += 1
            else:
                self._digits, self._in_string = 0, byte == ord('"')
                if byte not in b"+-":
                    self._limit = _MOST_IN_EXPONENT if byte in b"eE" else _MOST_DIGITS


def _digits(vocabulary: Vocabulary) -> npt.NDArray[np.int16]:
    """Number of digits each token begins with; above the limit if it holds a longer number."""
    if vocabulary not in _DIGITS:
        found = np.zeros(len(vocabulary), np.int16)
        for token, piece in enumerate(vocabulary.pieces()):
            if piece[:1].isdigit():
                found[token] = len(piece) - len(piece.lstrip(b"0123456789"))
            if _LONG_NUMBER.search(piece):
                found[token] = _MOST_DIGITS + 1
        _DIGITS[vocabulary] = found
    return _DIGITS[vocabulary]


class _Tokens:
    """A vocabulary in llguidance's tokenizer interface."""

    is_tokenizer_wrapper = True

    def __init__(self, vocabulary: Vocabulary) -> None:
        text = vocabulary.is_text.tolist()
        self.eos_token_id = int(vocabulary.end_ids[0])
        self.bos_token_id = vocabulary.bos
        self.special_token_ids = [token for token, is_text in enumerate(text) if not is_text]
        self.tokens = vocabulary.pieces()
        for token in self.special_token_ids:
            self.tokens[token] = b"\xff<%d>" % token  # not UTF-8, so never in a text

    def __call__(self, text: object) -> list[int]:
        """Tokens of a text; only needed for grammars that prescribe tokens."""
        return []


def _matcher(vocabulary: Vocabulary, grammar: str) -> LLMatcher:
    from llguidance import LLMatcher, LLParserLimits, LLTokenizer

    if vocabulary not in _TOKENIZERS:
        tokens: Any = _Tokens(vocabulary)
        ends = vocabulary.end_ids.tolist()
        _TOKENIZERS[vocabulary] = LLTokenizer(tokens, n_vocab=len(vocabulary), eos_token=ends)
    limits = LLParserLimits(verbose_errors=False)
    return LLMatcher(_TOKENIZERS[vocabulary], grammar, limits=limits, log_level=0)


_MOST_DIGITS, _MOST_IN_EXPONENT = 16, 2
_LONG_NUMBER = re.compile(rb"[0-9]{17}|[0-9][eE][+-]?[0-9]{3}|^[eE][+-]?[0-9]{3}")
_DIGITS: WeakKeyDictionary[Vocabulary, npt.NDArray[np.int16]] = WeakKeyDictionary()
_TOKENIZERS: WeakKeyDictionary[Vocabulary, LLTokenizer] = WeakKeyDictionary()
_BYTES = Vocabulary(
    [*(bytes([value]) for value in range(256)), b""],
    [*[TokenKind.BYTE] * 256, TokenKind.CONTROL],
    end_ids=[256],
)


def _place(schema: Any, path: Iterable[str | int]) -> str:
    """A path in a schema for an error message: ` at properties[2].items`.

    Property names are the user's text, so properties are numbered from 1, like list items.
    """
    text, names = "", False
    for part in path:
        if names or isinstance(part, int):
            number = list(schema).index(part) if isinstance(schema, dict) else int(part)
            text, names = f"{text}[{number + 1}]", False
        else:
            text, names = f"{text}.{part}", part in _NAMED_SCHEMAS
        schema = schema[part]
    return f" at {text.lstrip('.')} (counted from 1)" if text else ""


def _kept(
    schema: object,
    name: str,
    whole: Any,
    path: tuple[str | int, ...] = (),
    *,
    depth: int = 0,
    alone: bool = True,
) -> Any:
    """A copy of a schema without annotations, with objects closed to additional properties.

    A small model would invent members endlessly, so objects with `properties` are closed unless the
    schema explicitly allows more. Objects described in several places (allOf, anyOf, oneOf or $ref
    beside `properties`: not `alone`) are left open, and so are all objects of a schema with allOf.
    `path` is the path of this subschema in the whole schema.
    """
    if depth > DEEPEST:
        raise UsageError(f"{name} is more than {DEEPEST} levels deep.")
    if isinstance(schema, bool) and depth:
        return schema
    if not isinstance(schema, dict):
        raise UsageError(f"{name} has no object where a schema is needed{_place(whole, path)}.")

    def inner(part: object, *keys: str | int, alone: bool = True) -> Any:
        return _kept(part, name, whole, (*path, *keys), depth=depth + 1, alone=alone)

    made: dict[str, Any] = {}
    for key, value in schema.items():
        if key in _ANNOTATIONS:
            continue
        if key in _VALUES:
            made[key] = value
        elif key in _SCHEMA:
            made[key] = inner(value, key)
        elif key in _SCHEMAS and isinstance(value, list):
            within = key == "prefixItems" or (alone and "properties" not in schema)
            parts = enumerate(value)
            made[key] = [inner(each, key, number, alone=within) for number, each in parts]
        elif key in _NAMED_SCHEMAS and isinstance(value, dict):
            made[key] = {each: inner(found, key, each) for each, found in value.items()}
        else:
            shown = f'"{key}"' if key in _KNOWN else "a keyword that is not of JSON Schema"
            raise UsageError(
                f"{name} has {shown}{_place(whole, path)}, which cannot be kept here; leave it out "
                "and check it on the answer."
            )
    open_ended = made.keys() & {"anyOf", "oneOf", "$ref", "additionalProperties",
                                "patternProperties"}  # fmt: skip
    if "properties" in made and alone and not open_ended and '"allOf"' not in json.dumps(whole):
        made["additionalProperties"] = False
    return made


@dataclass(frozen=True, slots=True)
class MaskedDistribution:
    """A distribution (with `alone` that of the leading model alone) and a mask of its candidates.

    `mask`: the candidates that may be chosen, shape (n,); None: all.
    `implausible`: no plausible token is allowed, so the candidates are implausible ones.
    """

    here: Distribution
    mask: BoolArray | None = None
    alone: bool = False
    implausible: bool = False


def masked(
    here: Distribution, allowed: BoolArray, restricted: Callable[..., Distribution]
) -> MaskedDistribution:
    """Restricts a distribution to the allowed tokens with a probability above 0.

    If no plausible candidate is allowed: the same method on the target's distribution over the
    allowed tokens alone.

    Args:
        here: the distribution over all plausible candidates.
        allowed: mask of tokens, shape (vocabulary,).
        restricted: `Ensemble.distribution` at the same position: of the tokens in a mask; with
            `alone` of the leading model; with `run_all` without skipping proxies.

    Raises:
        ModelError: the vocabulary has no allowed token.
    """
    tokens = here.candidates.tokens
    if here.proxies_skipped and len(tokens) > 1 and not allowed[tokens[here.logp.argmax()]]:
        # The proxies were skipped on account of a token that is not allowed.
        here = restricted(None, run_all=True)
    mask = allowed[here.candidates.tokens]
    if np.isfinite(here.logp[mask]).any():
        return MaskedDistribution(here, mask)
    if not allowed.any():
        raise ModelError("The vocabulary has no token for what the schema requires here.")
    only = restricted(allowed)
    mask = allowed[only.candidates.tokens] & np.isfinite(only.logp)
    if not mask.any():  # the method gives all allowed tokens probability 0
        only = restricted(allowed, alone=True)
        mask = allowed[only.candidates.tokens]
    # Rescaled to the unrestricted distribution, in which excluded tokens keep their probability.
    less = only.candidates.log_total - here.candidates.log_total
    more = less + here.outside if np.isfinite(here.outside) else less
    own = dataclasses.replace(
        only.candidates,
        logp=only.candidates.logp + less,
        log_total=here.candidates.log_total,
    )
    made = dataclasses.replace(only, candidates=own, logp=only.logp + more)
    return MaskedDistribution(made, mask, implausible=True)

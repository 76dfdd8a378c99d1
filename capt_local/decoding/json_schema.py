"""From a JSON schema to a grammar whose texts are instances of it.

The part of JSON Schema that a grammar can keep exactly, and nothing else: a keyword that is not
here is refused by name, never left out. The members of an object come in the order of the schema,
white space is at most one space between parts, and numbers have at most 16 digits, so each text
is an instance but not each instance is such a text.

The converter that llama-cpp-python brings leaves out keywords without a word (minimum), lets line
ends into strings, and takes two definitions of the same name for one, so it is not used.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from itertools import chain
from typing import Any

from capt_local.decoding.json_terms import (
    ABOUT,
    FRACTION,
    GENERAL,
    KNOWN,
    OF_TYPE,
    WHOLE,
    is_of,
    literal,
)
from capt_local.errors import UsageError
from capt_local.strict.files import utf8
from capt_local.strict.json import load
from capt_local.strict.problems import NotReadable

LARGEST_SCHEMA = 1 << 16  # bytes
DEEPEST = 32
MOST = 1000  # times that something is repeated, and numbers between a minimum and a maximum


def grammar_of(schema: bytes, name: str = "The schema") -> str:
    """The grammar (GBNF) of a schema.

    Args:
        schema: a JSON text.
        name: what errors call it.

    Raises:
        UsageError: it is no JSON, too large, or says what a grammar cannot keep. Names the
            keyword, never a name or value that the schema holds.
    """
    if len(schema) > LARGEST_SCHEMA:
        raise UsageError(f"{name} is larger than {LARGEST_SCHEMA >> 10} KiB.")
    try:
        found = load(utf8(schema))
    except NotReadable:
        raise UsageError(f"{name} is not JSON (UTF-8, no name twice in an object).") from None
    return _Writer(found, name).grammar()


class _Writer:
    """Writes rules. Each is called `r` and a number, so no name of a schema is in the grammar."""

    def __init__(self, schema: object, name: str) -> None:
        self._schema = schema
        self._name = name
        self._rules: dict[str, str] = {}
        self._references: dict[str, str] = {}

    def grammar(self) -> str:
        """All rules."""
        first = self._rule(self._schema, 0)
        rules = {"root": first, **self._rules, **GENERAL}
        return "".join(f"{name} ::= {text}\n" for name, text in rules.items())

    def _rule(self, schema: object, depth: int) -> str:
        """The name of a rule for a schema."""
        if depth > DEEPEST:
            raise self._wrong(f"is more than {DEEPEST} levels deep")
        if schema is True or schema == {}:
            return "value"
        if not isinstance(schema, dict):
            raise self._wrong("has false, or no object, where a schema is needed")
        said = {key: value for key, value in schema.items() if key not in ABOUT}
        if not said:
            return "value"
        if "$ref" in said:
            self._only(said, {"$ref"})
            return self._referred(said["$ref"], depth)
        return self._new(self._text(said, depth))

    def _text(self, said: Mapping[str, Any], depth: int) -> str:
        """The right side of a rule."""
        for key in ("anyOf", "enum", "const"):
            if key in said:
                self._only(said, {key, "type"} if key != "anyOf" else {key})
                if key == "anyOf":
                    parts = self._list(said[key], key)
                    return " | ".join(self._rule(each, depth + 1) for each in parts)
                values = [said[key]] if key == "const" else self._list(said[key], key)
                return self._literals(values, said.get("type"))
        kind = said.get("type") or self._implied(said)
        if isinstance(kind, list):
            self._only(said, {"type"})
            return " | ".join(
                self._text({"type": each}, depth) for each in self._list(kind, "type")
            )
        if not isinstance(kind, str) or kind not in OF_TYPE:
            self._only(said, {"type", *chain.from_iterable(OF_TYPE.values())})
            raise self._wrong('needs a "type" (object, array, string, number, ...) everywhere')
        self._only(said, {"type", *OF_TYPE[kind]})
        if len(said) == 1 and "type" in said:
            return kind
        made: Callable[[Mapping[str, Any], int], str] = getattr(self, f"_{kind}")
        return made(said, depth)

    def _object(self, said: Mapping[str, Any], depth: int) -> str:
        properties = said.get("properties", {})
        required = said.get("required", [])
        more = said.get("additionalProperties", not properties)
        if not isinstance(properties, dict) or not isinstance(required, list):
            raise self._wrong("has properties that are no object, or required that is no list")
        if not all(isinstance(key, str) and key in properties for key in required):
            raise self._wrong("requires a property that it does not describe")
        if properties and more is not False and "additionalProperties" in said:
            # A free name could be one of those that are described.
            raise self._wrong('has "additionalProperties" beside "properties"; only false goes')
        if not properties:
            return self._free_object(more, depth)
        members = [
            (self._member(key, value, depth), key in required) for key, value in properties.items()
        ]
        return f'"{{" space {self._first(members)} "}}"'

    def _free_object(self, more: object, depth: int) -> str:
        if more is False:
            return '"{" space "}"'
        value = self._rule(more, depth + 1)
        member = self._new(f'string ":" space {value}')
        return f'"{{" space ({member} ("," space {member})* space)? "}}"'

    def _member(self, key: str, schema: object, depth: int) -> str:
        value = self._rule(schema, depth + 1)
        return self._new(f'{literal(key)} ":" space {value}')

    def _first(self, members: list[tuple[str, bool]]) -> str:
        """Members, none of which stands before: the first that comes has no comma."""
        choices, follows = [], [""]
        for member, needed in reversed(members):  # what may follow each of them
            part = f'"," space {member}'
            part = part if needed else f"({part})?"
            follows.append(self._new(f"{part} {follows[-1]}"))
        for place, (member, needed) in enumerate(members):
            choices.append(f"{member} {follows[len(members) - 1 - place]}")
            if needed:
                return f"({' | '.join(choices)}) space"
        return f"(({' | '.join(choices)}) space)?"

    def _array(self, said: Mapping[str, Any], depth: int) -> str:
        least, most = self._bounds(said, "minItems", "maxItems")
        item = self._rule(said.get("items", True), depth + 1)
        if most == 0:
            return '"[" space "]"'
        more = f'("," space {item})' + _times(max(least - 1, 0), most and most - 1)
        full = f"{item} {more} space"
        return f'"[" space {full if least else f"({full})?"} "]"'

    def _string(self, said: Mapping[str, Any], depth: int) -> str:
        least, most = self._bounds(said, "minLength", "maxLength")
        return rf'"\"" character{_times(least, most)} "\""'

    def _integer(self, said: Mapping[str, Any], depth: int) -> str:
        least, most = said.get("minimum"), said.get("maximum")
        if least == 0 and type(least) is int and most is None:
            return WHOLE
        if type(least) is not int or type(most) is not int or not 0 <= most - least < MOST:
            raise self._wrong(
                'has a "minimum" or "maximum" of an integer other than minimum 0 alone, or both '
                f"with at most {MOST} numbers between"
            )
        return self._literals(range(least, most + 1))

    def _number(self, said: Mapping[str, Any], depth: int) -> str:
        if said["minimum"] != 0 or isinstance(said["minimum"], bool):
            raise self._wrong('has a "minimum" of a number other than 0')
        return f"{WHOLE} {FRACTION}"

    def _bounds(self, said: Mapping[str, Any], low: str, high: str) -> tuple[int, int | None]:
        least, most = said.get(low, 0), said.get(high)
        for value in (least, 0 if most is None else most):
            if type(value) is not int or not 0 <= value <= MOST:
                raise self._wrong(f'has "{low}" or "{high}" outside 0 to {MOST}')
        if most is not None and most < least:
            raise self._wrong(f'has "{high}" below "{low}"')
        return least, most

    def _literals(self, values: Iterable[Any], kind: object = None) -> str:
        """Given values, written as JSON."""
        fit = [value for value in values if kind is None or is_of(value, kind)]
        if not fit:
            raise self._wrong("has a choice of nothing")
        return " | ".join(literal(value) for value in fit)

    def _referred(self, reference: object, depth: int) -> str:
        if not isinstance(reference, str) or not (reference + "/").startswith("#/"):
            raise self._wrong('has a "$ref" that does not begin with "#/"')
        if reference not in self._references:
            # Named before it is written, so that a definition may hold itself.
            name = self._references[reference] = self._new("")
            self._rules[name] = self._rule(self._found(reference), depth + 1)
            if self._rules[name] == name:
                raise self._wrong('has a "$ref" to itself')
        return self._references[reference]

    def _found(self, reference: str) -> object:
        found = self._schema
        for part in reference.split("/")[1:]:
            key = part.replace("~1", "/").replace("~0", "~")
            if not isinstance(found, dict) or key not in found:
                raise self._wrong('has a "$ref" to what is not there')
            found = found[key]
        return found

    def _new(self, text: str) -> str:
        name = f"r{len(self._rules)}"
        self._rules[name] = text
        return name

    def _implied(self, said: Mapping[str, Any]) -> str | None:
        """The type of a schema that names none, where its keywords are of one type alone."""
        fit = [kind for kind in ("object", "array") if said.keys() & OF_TYPE[kind]]
        return fit[0] if len(fit) == 1 else None

    def _list(self, value: object, key: str) -> list[Any]:
        if not isinstance(value, list) or not value:
            raise self._wrong(f'has "{key}" that is no list, or an empty one')
        return value

    def _only(self, said: Mapping[str, Any], known: set[str]) -> None:
        for key in sorted(said.keys() - known):
            shown = f'"{key}"' if key in KNOWN else "a keyword that is not of JSON Schema"
            raise self._wrong(
                f"has {shown}, which cannot be kept here; leave it out and check it on the answer, "
                "or say the form with --grammar-file"
            )

    def _wrong(self, what: str) -> UsageError:
        return UsageError(f"{self._name} {what}.")


def _times(least: int, most: int | None) -> str:
    return f"{{{least},{'' if most is None else most}}}"

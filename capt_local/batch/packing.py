"""Parameters as JSON and back: frozen dataclasses, whatever fields they have.

For what the run sends to its worker.
"""

from __future__ import annotations

import dataclasses
import types
from collections.abc import Mapping
from enum import Enum
from functools import cache
from pathlib import Path
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

_Kind = TypeVar("_Kind")
_PLAIN = (str, int, bool)


def packed(value: Any) -> Any:
    """A value as JSON has it: a dataclass as an object, a tuple as an array, a path as text."""
    if dataclasses.is_dataclass(value):
        fields = dataclasses.fields(value)
        return {field.name: packed(getattr(value, field.name)) for field in fields}
    if isinstance(value, Mapping):
        return {str(key): packed(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [packed(item) for item in value]
    if isinstance(value, Enum):
        return value.value
    return str(value) if isinstance(value, Path) else value


def unpacked(kind: type[_Kind], value: Any) -> _Kind:
    """The dataclass that was packed. A field that is not there has its default.

    Raises:
        ValueError: a field is unknown, or a value is not of its kind. Tells no value.
        UsageError: the dataclass refuses a value.
    """
    found: _Kind = _value(kind, value)
    return found


def _value(kind: Any, value: Any) -> Any:
    if dataclasses.is_dataclass(kind):
        return _dataclass(kind, value)
    origin = get_origin(kind)
    if origin in (Union, types.UnionType):
        return _any_of(get_args(kind), value)
    if origin is Literal and value in get_args(kind):
        return value
    if origin is tuple and isinstance(value, list):
        return _tuple(get_args(kind), value)
    if origin is dict and isinstance(value, dict):
        _, inner = get_args(kind)
        return {key: _value(inner, item) for key, item in value.items()}
    return _single(kind, value)


def _single(kind: Any, value: Any) -> Any:
    if kind is float and isinstance(value, int | float) and not isinstance(value, bool):
        return float(value)
    if kind is types.NoneType and value is None:
        return None
    if kind in _PLAIN and type(value) is kind:
        return value
    if isinstance(kind, type) and issubclass(kind, Enum):
        return kind(value)
    if kind is Path and isinstance(value, str):
        return Path(value)
    raise ValueError("a value is not of the kind that its field has")


def _dataclass(kind: Any, value: Any) -> Any:
    hints = _hints(kind)
    if not isinstance(value, dict) or not value.keys() <= hints.keys():
        raise ValueError(f"not the fields of {kind.__name__}")
    try:
        return kind(**{name: _value(hints[name], item) for name, item in value.items()})
    except TypeError:
        raise ValueError(f"a field of {kind.__name__} is missing") from None


def _any_of(kinds: tuple[Any, ...], value: Any) -> Any:
    for kind in kinds:
        try:
            return _value(kind, value)
        except ValueError:
            continue
    raise ValueError("a value is of none of the kinds that its field has")


def _tuple(kinds: tuple[Any, ...], value: list[Any]) -> tuple[Any, ...]:
    if len(kinds) == 2 and kinds[1] is Ellipsis:
        return tuple(_value(kinds[0], item) for item in value)
    return tuple(_value(kind, item) for kind, item in zip(kinds, value, strict=True))


@cache
def _hints(kind: Any) -> dict[str, Any]:
    known = get_type_hints(kind)
    return {field.name: known[field.name] for field in dataclasses.fields(kind)}

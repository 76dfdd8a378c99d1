"""What a chat template may use: the attributes, filters and functions that published models use.

Each one that could make a large value out of small ones is checked before it runs.
"""

from __future__ import annotations

import json
import types
from collections.abc import Callable
from string import Formatter
from typing import Any

from jinja2 import Undefined, pass_context
from jinja2.exceptions import SecurityError
from jinja2.filters import FILTERS
from jinja2.runtime import Context, LoopContext
from jinja2.utils import Namespace

from capt_local.prompt.meter import LimitReached, Meter

# fmt: off
_FILTERS = (
    "abs", "capitalize", "count", "d", "default", "dictsort", "first", "float", "indent",
    "int", "items", "join", "last", "length", "list", "lower", "map", "max", "min", "reject",
    "rejectattr", "replace", "reverse", "select", "selectattr", "sort", "title", "trim",
    "unique", "upper",
)
_STRING_METHODS = (
    "capitalize", "count", "endswith", "find", "index", "isalnum", "isalpha", "isdecimal",
    "isdigit", "islower", "isnumeric", "isspace", "istitle", "isupper", "join", "lower",
    "lstrip", "partition", "removeprefix", "removesuffix", "replace", "rfind", "rindex",
    "rpartition", "rsplit", "rstrip", "split", "splitlines", "startswith", "strip",
    "swapcase", "title", "upper",
)
_LOOP_ATTRIBUTES = (
    "changed", "cycle", "depth", "depth0", "first", "index", "index0", "last", "length",
    "nextitem", "previtem", "revindex", "revindex0",
)
# fmt: on
_ATTRIBUTES: tuple[tuple[type, frozenset[str]], ...] = (
    (str, frozenset(_STRING_METHODS)),
    (list, frozenset(("copy", "count", "index"))),
    (tuple, frozenset(("count", "index"))),
    (dict, frozenset(("copy", "get", "items", "keys", "values"))),
    (LoopContext, frozenset(_LOOP_ATTRIBUTES)),
)
_WIDEST_INDENT = 16
_LARGEST_BASE = 1 << 32
_LARGEST_POWER = 64
_MOST_BITS = 1024
_DATA = (str, int, float, list, tuple, dict, range, Undefined, type(None))


class ShortNamespace(Namespace):
    """Jinja's namespace; as text it does not show what it holds, which may hold itself."""

    def __repr__(self) -> str:
        """The same text for each."""
        return "<namespace>"


def may_read(owner: object, name: str) -> bool:
    """Whether a template may read an attribute."""
    if isinstance(owner, Namespace):
        return True
    return any(isinstance(owner, kind) and name in names for kind, names in _ATTRIBUTES)


def filters() -> dict[str, Callable[..., Any]]:
    """The filters by name. One that is not allowed fails when it is used, not before."""
    own = {"safe": as_text, "string": as_text, "tojson": _tojson}
    table = {name: _refused(name) for name in FILTERS}
    table |= {name: _metered(name, FILTERS[name]) for name in _FILTERS}
    return table | {name: _metered(name, function) for name, function in own.items()}


def as_text(value: object) -> str:
    """A value as text. Only data is printed: the text of an object says nothing to a model.

    Raises:
        LimitReached: it is not data.
    """
    if not isinstance(value, _DATA):
        raise LimitReached(f"it prints a {type(value).__name__}")
    return str(value)


def check_operation(meter: Meter, operator: str, left: object, right: object) -> None:
    """Refuses an arithmetic operation with a result that is too large.

    Raises:
        LimitReached: it is.
        SecurityError: it formats text, which has no bound.
    """
    if operator == "%" and isinstance(left, str):
        raise SecurityError("it formats with %")
    for one, other in ((left, right), (right, left)):
        if isinstance(one, str | list | tuple):
            if operator == "+" and isinstance(other, str | list | tuple):
                meter.expect(len(one) + len(other))
            elif operator == "*" and isinstance(other, int):
                meter.expect(len(one) * other)
    if operator in ("*", "**") and not _small(operator, left, right):
        raise LimitReached("it makes a number that is too large")


def check_method(meter: Meter, method: object, arguments: tuple[Any, ...]) -> None:
    """Refuses a call of a method of a text with a result that is too large.

    Raises:
        LimitReached: it is.
    """
    owner = getattr(method, "__self__", None)
    if not isinstance(method, types.BuiltinMethodType) or not isinstance(owner, str):
        return
    if method.__name__ == "replace" and len(arguments) >= 2:
        _check_replace(meter, owner, arguments[0], arguments[1])
    elif method.__name__ == "join" and arguments:
        meter.expect(len(owner) * len(arguments[0]))


def format_simply(meter: Meter, method: Any, *args: object, **kwargs: object) -> str:
    """The method `format` of a text, with plain fields alone: {}, {0}, {name}.

    Raises:
        LimitReached: the result is too large.
        SecurityError: a field has a format of its own, which has no bound.
    """
    if method.__name__ != "format":
        raise SecurityError("it formats with format_map")
    parts, size, next_field = [], 0, 0
    for literal, field, layout, conversion in Formatter().parse(method.__self__):
        parts.append(literal)
        if field is not None:
            if layout or conversion or not (field == "" or field.isidentifier() or field.isdigit()):
                raise SecurityError("it formats with more than plain fields")
            place = field or str(next_field)
            next_field += not field
            parts.append(as_text(args[int(place)] if place.isdigit() else kwargs[place]))
        size += sum(map(len, parts[-2:]))
        meter.expect(size)
    return "".join(parts)


def _metered(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    # What Jinja's own filters ask for in front of their arguments.
    wanted = getattr(function, "jinja_pass_arg", None)

    # With the context as an argument, Jinja does not call a filter while it compiles.
    @pass_context
    def metered(context: Context, *args: Any, **kwargs: Any) -> Any:
        sandbox: Any = context.environment
        sandbox.meter.step()
        if not all(isinstance(value, _DATA) for value in (*args, *kwargs.values())):
            raise LimitReached(f"it filters what is not data with {name!r}")
        _CHECKS.get(name, _no_check)(sandbox.meter, *args, **kwargs)
        front = {"context": context, "eval_context": context.eval_ctx, "environment": sandbox}
        lead = () if wanted is None else (front[wanted.name],)
        return sandbox.meter.measured(function(*lead, *args, **kwargs))

    return metered


def _refused(name: str) -> Callable[..., Any]:
    @pass_context
    def refuse(context: Context, *args: Any, **kwargs: Any) -> Any:
        raise SecurityError(f"it uses the filter {name!r}")

    return refuse


def _tojson(
    value: object,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    # As the library does that published templates are written for: no escapes for HTML.
    return json.dumps(
        value,
        ensure_ascii=ensure_ascii,
        indent=indent,
        separators=separators,
        sort_keys=sort_keys,
    )


def _small(operator: str, left: object, right: object) -> bool:
    if not isinstance(left, int | float) or not isinstance(right, int | float):
        return True
    if operator == "**":
        return abs(left) <= _LARGEST_BASE and abs(right) <= _LARGEST_POWER
    if isinstance(left, int) and isinstance(right, int):
        return left.bit_length() + right.bit_length() <= _MOST_BITS
    return True


def _no_check(meter: Meter, *args: object, **kwargs: object) -> None:
    """Most filters return about as much as they are given."""


def _check_replace(meter: Meter, s: object, old: object, new: object, *rest: object) -> None:
    whole, part, other = as_text(s), as_text(old), as_text(new)
    meter.expect(len(whole) + whole.count(part) * max(0, len(other) - len(part)))


def _check_join(meter: Meter, value: Any, d: object = "", attribute: object = None) -> None:
    meter.expect(len(as_text(d)) * len(value))


def _check_indent(meter: Meter, s: object, width: object = 4, *rest: object, **_: object) -> None:
    wide = len(width) if isinstance(width, str) else width
    if isinstance(wide, int) and wide > _WIDEST_INDENT:
        raise LimitReached("it indents too far")


def _check_tojson(
    meter: Meter,
    value: object,
    ensure_ascii: bool = False,
    indent: object = None,
    separators: object = None,
    sort_keys: bool = False,
) -> None:
    _check_indent(meter, value, indent)
    # Separators stand once for each item: they must not be long.
    if isinstance(separators, list | tuple) and any(
        len(each) > _WIDEST_INDENT for each in separators
    ):
        raise LimitReached("it separates too far")


_CHECKS: dict[str, Callable[..., None]] = {
    "replace": _check_replace,
    "join": _check_join,
    "indent": _check_indent,
    "tojson": _check_tojson,
}

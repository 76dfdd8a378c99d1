"""Sandbox for chat templates, which are untrusted programs, with limits on time and memory.

Jinja's immutable sandbox keeps a template away from Python, but does not limit its memory or time.
So the template's syntax tree is rewritten before it is compiled: each expression that makes or
reads a value passes through a `Meter`, and so does each loop iteration and each piece of output.
The size of every value is limited (characters, items and all that they contain), so that a single
operation is short; operations, allocated memory and processor time are counted. Only attributes,
filters and functions that templates of published models use are allowed; those that could make a
large value from small ones are checked before they run.
"""

from __future__ import annotations

import json
import time
import types
from collections.abc import Callable, ItemsView, Iterator, KeysView, Mapping, ValuesView
from functools import partial
from itertools import islice
from string import Formatter
from typing import Any

from jinja2 import Undefined, nodes, pass_context
from jinja2.exceptions import SecurityError, TemplateAssertionError
from jinja2.ext import Extension, LoopControlExtension
from jinja2.filters import FILTERS
from jinja2.parser import Parser
from jinja2.runtime import Context, LoopContext
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace
from jinja2.visitor import NodeTransformer


class LimitReached(Exception):
    """A template exceeded a limit; the message names only the limit."""


# Limits of one rendering. Templates of published models need a tenth of them.
_LARGEST = 1 << 16  # weight of any single value: its characters, items and bytes together
_DEEPEST = 16  # nesting of lists and dictionaries
_MOST_OUTPUT = 1 << 18  # characters written, those inside macros and blocks included
_MOST_WORK = 200_000  # operations, plus an eighth of the weight of what they make
_SECONDS = 2.5  # processor time of the rendering thread, garbage collection included
_TURNS = 50  # the limits are added once more for each so many turns of the conversation


class Meter:
    """Counts the resources of one rendering; every method raises LimitReached at a limit."""

    def __init__(self, turns: int) -> None:
        factor = 1 + turns // _TURNS
        self._work_left = _MOST_WORK * factor
        self._output_left = _MOST_OUTPUT * factor
        self._until = time.thread_time() + _SECONDS * factor

    def step(self, weight: int = 0) -> None:
        """Counts one operation with a result of this weight."""
        self._work_left -= 1 + weight // 8
        if self._work_left < 0:
            raise LimitReached("it takes too many operations")
        # Processor time, so that a busy machine does not refuse what an idle one accepts.
        if time.thread_time() > self._until:
            raise LimitReached("it takes too long")

    def written(self, length: int) -> None:
        """Counts characters of output."""
        self.step(length)
        self._output_left -= length
        if self._output_left < 0:
            raise LimitReached("it writes too much")

    def expect(self, weight: int) -> None:
        """Raises if a value about to be made would be too large."""
        if weight > _LARGEST:
            raise LimitReached("it makes a value that is too large")

    def measured(self, value: object) -> object:
        """Counts the weight of a new value and returns it; an iterator becomes a list."""
        if isinstance(value, _LAZY) and not isinstance(value, LoopContext):
            value = list(islice(value, _LARGEST + 1))
        self.step(self._weight(value, 0) if isinstance(value, _SIZED) else 0)
        return value

    def touched(self, value: object) -> object:
        """Counts the reading of a part of an existing value, or the result of a test."""
        self.step(len(value) if isinstance(value, _SIZED) and not isinstance(value, int) else 0)
        return value

    def _weight(self, value: object, depth: int) -> int:
        if isinstance(value, str):
            weight = 1 + len(value)
        elif isinstance(value, int):
            weight = 1 + value.bit_length() // 8
        elif isinstance(value, range):
            weight = 1 + len(value)
        elif value is None or isinstance(value, float | Undefined):
            weight = 1
        elif isinstance(value, _CONTAINERS):
            weight = self._weight_of_items(value, depth + 1)
        else:
            # Such an object may hold values that cannot be measured, itself included.
            raise LimitReached(f"it puts a {type(value).__name__} into a list")
        self.expect(weight)
        return weight

    def _weight_of_items(
        self, items: list[object] | tuple[object, ...] | Mapping[object, object], depth: int
    ) -> int:
        if depth > _DEEPEST:
            raise LimitReached("it nests lists too deeply")
        self.expect(len(items))
        weight = 1
        for item in items:
            weight += self._weight(item, depth)
            if isinstance(items, Mapping):
                weight += self._weight(items[item], depth)
            self.expect(weight)
        return weight


_LAZY = (Iterator, KeysView, ValuesView, ItemsView)
_CONTAINERS = (list, tuple, dict)
_SIZED = (str, int, range, *_CONTAINERS)


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
    """Jinja's namespace with a constant `repr`, as it may contain itself."""

    def __repr__(self) -> str:
        return "<namespace>"


def as_text(value: object) -> str:
    """A value as text; raises for anything but plain data."""
    if not isinstance(value, _DATA):
        raise LimitReached(f"it prints a {type(value).__name__}")
    return str(value)


def check_operation(meter: Meter, operator: str, left: object, right: object) -> None:
    """Refuses an arithmetic operation with a result that is too large."""
    if operator == "%" and isinstance(left, str):
        raise SecurityError("it formats with %")  # which has no bound
    for one, other in ((left, right), (right, left)):
        if isinstance(one, str | list | tuple):
            if operator == "+" and isinstance(other, str | list | tuple):
                meter.expect(len(one) + len(other))
            elif operator == "*" and isinstance(other, int):
                meter.expect(len(one) * other)
    if operator in ("*", "**") and not _small(operator, left, right):
        raise LimitReached("it makes a number that is too large")


def check_method(meter: Meter, method: object, arguments: tuple[Any, ...]) -> None:
    """Refuses a call of a method of a text with a result that is too large."""
    owner = getattr(method, "__self__", None)
    if not isinstance(method, types.BuiltinMethodType) or not isinstance(owner, str):
        return
    if method.__name__ == "replace" and len(arguments) >= 2:
        _check_replace(meter, owner, arguments[0], arguments[1])
    elif method.__name__ == "join" and arguments:
        meter.expect(len(owner) * len(arguments[0]))


def format_simply(meter: Meter, method: Any, *args: object, **kwargs: object) -> str:
    """`str.format` with plain fields only: {}, {0}, {name}."""
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
    # The leading argument that some of Jinja's own filters need (context, environment).
    wanted = getattr(function, "jinja_pass_arg", None)

    # `pass_context` keeps Jinja from constant-folding a filter call at compile time.
    @pass_context
    def metered(context: Context, *args: Any, **kwargs: Any) -> Any:
        sandbox: Any = context.environment
        sandbox.meter.step()
        if not all(isinstance(value, _DATA) for value in (*args, *kwargs.values())):
            raise LimitReached(f"it filters what is not data with {name!r}")
        if name in _CHECKS:
            _CHECKS[name](sandbox.meter, *args, **kwargs)
        front = {"context": context, "eval_context": context.eval_ctx, "environment": sandbox}
        leading = () if wanted is None else (front[wanted.name],)
        return sandbox.meter.measured(function(*leading, *args, **kwargs))

    return metered


def _refused(name: str) -> Callable[..., Any]:
    @pass_context
    def refuse(context: Context, *args: Any, **kwargs: Any) -> Any:
        raise SecurityError(f"it uses the filter {name!r}")

    return refuse


def _tojson(
    value: object,
    ensure_ascii: bool = False,
    indent: int | str | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """`tojson` as in Transformers, for which templates are written: no HTML escapes."""
    _refuse_wide(indent)
    # Separators stand once for each item: they must not be long.
    if any(len(each) > _WIDEST_INDENT for each in separators or ()):
        raise LimitReached("it separates too far")
    return json.dumps(
        value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )


def _refuse_wide(indent: object) -> None:
    wide = len(indent) if isinstance(indent, str) else indent
    if isinstance(wide, int) and wide > _WIDEST_INDENT:
        raise LimitReached("it indents too far")


def _small(operator: str, left: object, right: object) -> bool:
    if not isinstance(left, int | float) or not isinstance(right, int | float):
        return True
    if operator == "**":
        return abs(left) <= _LARGEST_BASE and abs(right) <= _LARGEST_POWER
    if isinstance(left, int) and isinstance(right, int):
        return left.bit_length() + right.bit_length() <= _MOST_BITS
    return True


def _check_replace(meter: Meter, s: object, old: object, new: object, *rest: object) -> None:
    whole, part, other = as_text(s), as_text(old), as_text(new)
    meter.expect(len(whole) + whole.count(part) * max(0, len(other) - len(part)))


def _check_join(meter: Meter, value: Any, d: object = "", attribute: object = None) -> None:
    meter.expect(len(as_text(d)) * len(value))


def _check_indent(meter: Meter, s: object, width: object = 4, *rest: object, **_: object) -> None:
    _refuse_wide(width)


# The results of the other filters are about as large as their arguments.
_CHECKS: dict[str, Callable[..., None]] = {
    "replace": _check_replace,
    "join": _check_join,
    "indent": _check_indent,
}
_OWN_FILTERS = {"safe": as_text, "string": as_text, "tojson": _tojson}
_FILTERS_BY_NAME = {
    # A filter that is not allowed fails when it is called, not at compile time.
    **{name: _refused(name) for name in FILTERS},
    **{name: _metered(name, FILTERS[name]) for name in _FILTERS},
    **{name: _metered(name, function) for name, function in _OWN_FILTERS.items()},
}


# Several times what the longest templates of published models have.
_MOST_NODES = 10_000


class Sandbox(ImmutableSandboxedEnvironment):
    """The Jinja environment of one rendering of a conversation with `turns` turns."""

    intercepted_binops = frozenset(("+", "-", "*", "/", "//", "**", "%"))

    def __init__(self, turns: int = 0) -> None:
        super().__init__(
            trim_blocks=True,
            lstrip_blocks=True,
            cache_size=0,
            extensions=[LoopControlExtension, _GenerationExtension],
        )
        self.meter = Meter(turns)
        self.globals = {"range": range, "dict": dict, "namespace": ShortNamespace}
        self.filters = _FILTERS_BY_NAME
        # What the rewritten tree calls.
        self.measured, self.touched = self.meter.measured, self.meter.touched

    def metered(self, source: str) -> nodes.Template:
        """The syntax tree of a template with the meter put in.

        Raises:
            jinja2.TemplateSyntaxError: it is not a template.
            LimitReached: compiling it would take seconds.
        """
        tree = self.parse(source)
        if sum(1 for _ in islice(tree.find_all(nodes.Node), _MOST_NODES + 1)) > _MOST_NODES:
            raise LimitReached("it has too many expressions")
        metered: nodes.Template = _Metering().visit(tree)
        return metered.set_environment(self)  # type: ignore[return-value]

    def is_safe_attribute(self, obj: object, attr: str, value: object) -> bool:
        if not super().is_safe_attribute(obj, attr, value):
            return False
        return isinstance(obj, Namespace) or any(
            isinstance(obj, kind) and attr in names for kind, names in _ATTRIBUTES
        )

    def unsafe_undefined(self, obj: object, attribute: str) -> Undefined:
        """Refuses at once; Jinja would wait until the value is used."""
        raise SecurityError(f"it reaches for {attribute!r} of a {type(obj).__name__}")

    def wrap_str_format(self, value: Any) -> Callable[..., str] | None:
        if super().wrap_str_format(value) is None:
            return None
        return partial(format_simply, self.meter, value)

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        self.meter.step()
        check_operation(self.meter, operator, left, right)
        return self.meter.measured(super().call_binop(context, operator, left, right))

    def call(__self, __context: Context, __obj: Any, *args: Any, **kwargs: Any) -> Any:
        """Calls a function, or one of the metering methods that the rewritten tree names."""
        if getattr(__obj, "__self__", None) in (__self, __self.meter):
            return __obj(*args)
        __self.meter.step()
        check_method(__self.meter, __obj, args)
        return __self.meter.measured(super().call(__context, __obj, *args, **kwargs))

    def iterate(self, values: Any) -> Iterator[object]:
        """The turns of a loop."""
        for value in values:
            self.meter.step()
            yield value

    def emit(self, value: object) -> str:
        """A piece of output."""
        text = as_text(value)
        self.meter.written(len(text))
        return text

    def concat_metered(self, *values: object) -> str:
        """The operator `~`."""
        texts = [as_text(value) for value in values]
        self.meter.expect(sum(map(len, texts)))
        return str(self.meter.measured("".join(texts)))


class _Metering(NodeTransformer):
    """Puts calls of the sandbox's metering methods around expressions."""

    def visit_Output(self, node: nodes.Output) -> nodes.Node:
        self.generic_visit(node)
        node.nodes = [_call("emit", [_plain(part)], part) for part in node.nodes]
        return node

    def visit_For(self, node: nodes.For) -> nodes.Node:
        if node.recursive:
            raise TemplateAssertionError("recursive loops are not allowed", node.lineno)
        self.generic_visit(node)
        node.iter = _call("iterate", [node.iter], node)
        return node

    def visit_ScopedEvalContextModifier(self, node: nodes.Node) -> nodes.Node:
        # `{% autoescape %}` makes strings of another class, whose methods are not metered.
        raise TemplateAssertionError("autoescape is not allowed", node.lineno)

    def visit_Concat(self, node: nodes.Concat) -> nodes.Node:
        self.generic_visit(node)
        return _call("concat_metered", node.nodes, node)

    def visit_Tuple(self, node: nodes.Tuple) -> nodes.Node:
        return self._made(node) if node.ctx == "load" else self.generic_visit(node)

    def _made(self, node: nodes.Expr) -> nodes.Node:
        self.generic_visit(node)
        return _call("measured", [node], node)

    def _read(self, node: nodes.Expr) -> nodes.Node:
        self.generic_visit(node)
        return _call("touched", [node], node)

    visit_List = visit_Dict = _made
    visit_Getattr = visit_Getitem = visit_Compare = visit_Test = _read


class _GenerationExtension(Extension):
    """`{% generation %}` marks answers for training; for a prompt it means nothing."""

    tags = {"generation"}  # noqa: RUF012 - the type is that of the base class

    def parse(self, parser: Parser) -> list[nodes.Node]:
        """Returns the statements inside the block."""
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def _plain(part: nodes.Expr) -> nodes.Expr:
    """Template text as a constant; Jinja would write the former straight to the output."""
    if isinstance(part, nodes.TemplateData):
        return nodes.Const(part.data, lineno=part.lineno)
    return part


def _call(method: str, arguments: list[Any], place: nodes.Node) -> nodes.Call:
    function = nodes.EnvironmentAttribute(method, lineno=place.lineno)
    return nodes.Call(function, arguments, [], None, None, lineno=place.lineno)

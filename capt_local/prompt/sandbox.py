"""Running a chat template, which is a program by strangers, within limits.

Jinja's immutable sandbox keeps a template away from Python. It does not keep it from taking all
memory or never ending, so the template's syntax tree is rewritten before it is compiled: each
expression that makes or reads a value is passed through a `Meter`, and so is each turn of a loop
and each piece of output. Attributes, filters and functions are those that templates of published
models use, and no others.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from itertools import islice
from typing import Any

from jinja2 import Undefined, nodes
from jinja2.exceptions import SecurityError, TemplateAssertionError
from jinja2.ext import Extension, LoopControlExtension
from jinja2.parser import Parser
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.visitor import NodeTransformer

from capt_local.prompt.allowed import (
    ShortNamespace,
    as_text,
    check_method,
    check_operation,
    filters,
    format_simply,
    may_read,
)
from capt_local.prompt.meter import LimitReached, Limits, Meter

# Several times what the longest templates of published models have.
_MOST_NODES = 10_000


class Sandbox(ImmutableSandboxedEnvironment):
    """The environment of one rendering.

    Args:
        limits: what it may take.
    """

    intercepted_binops = frozenset(("+", "-", "*", "/", "//", "**", "%"))

    def __init__(self, limits: Limits) -> None:
        super().__init__(
            trim_blocks=True,
            lstrip_blocks=True,
            cache_size=0,
            extensions=[LoopControlExtension, _GenerationExtension],
        )
        self.meter = Meter(limits)
        self.globals = {"range": range, "dict": dict, "namespace": ShortNamespace}
        self.filters = filters()

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
        """Allows what is on the lists above, and the variables of a namespace."""
        if not super().is_safe_attribute(obj, attr, value):
            return False
        return may_read(obj, attr)

    def unsafe_undefined(self, obj: object, attribute: str) -> Undefined:
        """Refuses at once; Jinja would wait until the value is used."""
        raise SecurityError(f"it reaches for {attribute!r} of a {type(obj).__name__}")

    def wrap_str_format(self, value: Any) -> Callable[..., str] | None:
        """Gives templates a simpler `str.format` with a bound."""
        if super().wrap_str_format(value) is None:
            return None
        return partial(format_simply, self.meter, value)

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        """Checks the size of a result before it is made."""
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

    def measured(self, value: object) -> object:
        """A value that was made."""
        return self.meter.measured(value)

    def touched(self, value: object) -> object:
        """A value that was read."""
        return self.meter.touched(value)

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
        """Gives back what stands inside."""
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

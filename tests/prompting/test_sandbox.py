"""Templates that want Python, all memory or all time. Each ends soon, with a named error."""

from __future__ import annotations

import time
import tracemalloc
from concurrent.futures import ThreadPoolExecutor

import pytest

from capt_local.errors import ModelError
from capt_local.prompting.messages import Message
from capt_local.prompting.template import ChatTemplate

TEXT = Message("user", "text")
# Processor seconds and bytes. What is refused below would take minutes or gigabytes.
MOST_SECONDS = 5.0
MOST_BYTES = 100_000_000

TOO_LARGE = "makes a value that is too large"
TOO_MUCH = "takes too many operations|takes too long|writes too much"
BIG = "{% set x = 'a' * 60000 %}"
MEMORY = {
    "{{ 'a' * 2000000000 }}": TOO_LARGE,
    "{% set x = [0] * 2000000000 %}": TOO_LARGE,
    "{{ 'a'.center(2000000000) }}": "reaches for 'center'",
    "{{ '%2000000000d' % 1 }}": "formats with %",
    "{{ '{:>2000000000}'.format(1) }}": "more than plain fields",
    "{{ '{0.__class__}'.format(1) }}": "more than plain fields",
    BIG + "{{ '" + "{0}" * 15000 + "'.format(x) }}": TOO_LARGE,
    BIG + "{{ x" + " ~ x" * 1500 + " }}": TOO_LARGE,
    BIG + "{{ x.replace('a', x) }}": TOO_LARGE,
    BIG + "{{ x | replace('a', x) }}": TOO_LARGE,
    BIG + "{{ x.join(range(9000) | map('string')) }}": TOO_LARGE,
    BIG + "{{ range(9000) | join(x) }}": TOO_LARGE,
    BIG + "{{ range(9000) | tojson(separators=(x, ':')) }}": "separates too far",
    "{{ [[1]] | tojson(indent=2000000000) }}": "indents too far",
    "{{ 'a\\nb' | indent(2000000000) }}": "indents too far",
    "{{ [1] | batch(2000000000, 'x') | list }}": "uses the filter 'batch'",
    "{% autoescape true %}{% set x %}{{ 'a' * 60000 }}{% endset %}"
    "{{ x.replace('a', 'b' * 60000) }}{% endautoescape %}": "autoescape is not allowed",
    "{{ 9 ** 9 ** 9 ** 9 }}": "a number that is too large",
    "{{ range(2000000000) | list }}": TOO_LARGE,
    "{% set ns = namespace(x='a') %}{% for i in range(99) %}{% set ns.x = ns.x ~ ns.x %}"
    "{% endfor %}": TOO_LARGE,
    "{% set ns = namespace(x=2) %}{% for i in range(99) %}{% set ns.x = ns.x * ns.x %}"
    "{% endfor %}": "a number that is too large",
    # Small in memory, endless when written, compared or printed:
    "{% set ns = namespace(x=[1]) %}{% for i in range(99) %}{% set ns.x = [ns.x, ns.x] %}"
    "{% endfor %}": "too large|too deeply",
    "{% set a = namespace() %}{% set a.a = a %}{% set l = [a] %}": "puts a ShortNamespace",
    "{% set a = namespace() %}{% set a.a = a %}{{ a }}": "prints a ShortNamespace",
    "{% set a = namespace() %}{% set a.a = a %}{{ a | upper }}": "filters what is not data",
    BIG + "{% macro f() %}{% for i in range(60000) %}{{ x }}{% endfor %}{% endmacro %}"
    "{% set y = f() %}": TOO_MUCH,
    BIG + "{% set y %}{% for i in range(60000) %}{{ x }}{% endfor %}{% endset %}": TOO_MUCH,
    "{% for i in range(60000) %}" + "y" * 60000 + "{% endfor %}": TOO_MUCH,
}
TIME = {
    "{% for i in range(60000) %}{% for j in range(60000) %}{% endfor %}{% endfor %}": TOO_MUCH,
    "{% for i in range(60000) %}{% for j in range(60000) %}{{ i }}{% endfor %}{% endfor %}": (
        TOO_MUCH
    ),
    "{% for i in range(2000000000) %}{% endfor %}": TOO_LARGE,
    "{% for i in range(60000) %}" + "{% if u %}{% endif %}" * 1000 + "{% endfor %}": TOO_MUCH,
    "{% for i in range(60000) recursive %}{{ loop(range(60000)) }}{% endfor %}": (
        "recursive loops are not allowed"
    ),
    "{% macro f(n) %}{{ f(n + 1) }}{% endmacro %}{{ f(1) }}": "fails with a RecursionError",
    "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(60) }}": (
        TOO_MUCH
    ),
    "{% block a %}{{ self.a() }}{% endblock %}": "fails with a RecursionError",
    "{{ " + "(" * 30000 + "1" + ")" * 30000 + " }}": "fails with a",
    "{{ 1" + " + 1" * 9000 + " }}": "fails with a|too many expressions",
    "{% if a == b %}{% endif %}" * 2400: "has too many expressions",
    "{{ strftime_now('%Y' * 1000) }}": "writes a date that is too long",
}
PYTHON = {
    "{{ cycler.__init__.__globals__ }}": "reaches for '__init__'",
    "{{ ''.__class__.__mro__[1].__subclasses__() }}": "reaches for '__class__'",
    "{{ raise_exception.__globals__ }}": "reaches for '__globals__'",
    "{{ self.__init__.__globals__ }}": "reaches for '__init__'",
    "{{ 'a' | attr('__class__') }}": "uses the filter 'attr'",
    "{{ messages | map(attribute='content.__class__') | list }}": "reaches for '__class__'",
    "{{ messages | sort(attribute='__class__') }}": "reaches for '__class__'",
    "{{ messages | map('attr', '__class__') | list }}": "uses the filter 'attr'",
    "{{ messages.append(1) }}": "reaches for 'append'",
    "{{ messages[0].update(content='forged') }}": "reaches for 'update'",
    "{{ lipsum(2000000000) }}": "'lipsum' is undefined",
    "{% include 'etc' %}": "fails with a TypeError",
}


def run(source: str) -> None:
    ChatTemplate(source + "{{ messages[0].content }}").scaffold((TEXT,))


@pytest.mark.parametrize(("source", "problem"), (MEMORY | TIME | PYTHON).items())
def test_ends_soon_with_a_named_error(source: str, problem: str) -> None:
    started = time.thread_time()
    with pytest.raises(ModelError, match=f"^The chat template of the target .*(?:{problem})"):
        run(source)
    assert time.thread_time() - started < MOST_SECONDS


@pytest.mark.parametrize("source", MEMORY)
def test_takes_little_memory(source: str) -> None:
    tracemalloc.start()
    try:
        with pytest.raises(ModelError):
            run(source)
        assert tracemalloc.get_traced_memory()[1] < MOST_BYTES
    finally:
        tracemalloc.stop()


def test_limits_hold_in_any_thread_and_apart() -> None:
    """One template, several threads: a budget belongs to a rendering."""
    template = ChatTemplate("{{ messages[0].content }}{% for i in range(20000) %}{% endfor %}")
    with ThreadPoolExecutor(4) as threads:
        found = list(threads.map(lambda _: template.scaffold((TEXT,)).parts, range(40)))
    assert found == [(0,)] * 40


def test_a_long_conversation_may_take_more() -> None:
    """Work that grows with the square of the turns is refused for text, not for turns."""
    source = (
        "{% for m in messages %}{% for other in messages %}{{ other.role[:0] }}{% endfor %}"
        "{{ m.content }}{% endfor %}"
    )
    turns = [Message("user", "x")] * 300
    assert ChatTemplate(source).scaffold(turns).parts == tuple(range(300))

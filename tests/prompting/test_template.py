from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import pytest

from capt_local.bundles.manifest import ModelFile
from capt_local.errors import ModelError, UsageError
from capt_local.prompting.messages import Message
from capt_local.prompting.template import (
    LARGEST_TEMPLATE,
    PLAIN,
    ChatTemplate,
    given_template,
    open_template,
)
from tests.fakes import make_vocabulary
from tests.prompting import templates

SYSTEM, USER, ANSWER = Message("system", "S"), Message("user", "U"), Message("assistant", "A")
SHORT, LONG = (SYSTEM, USER), (SYSTEM, USER, ANSWER, USER)


def shown(parts: Iterable[str | int]) -> str:
    """Scaffolding as one text, with [0], [1] in the places of the messages."""
    return "".join(part if isinstance(part, str) else f"[{part}]" for part in parts)


def scaffolding(source: str, messages: tuple[Message, ...]) -> str:
    return shown(ChatTemplate(source, bos="<s>", eos="</s>").scaffold(messages).parts)


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        (
            templates.LLAMA2,
            "<s>[INST] <<SYS>>\n[0]\n<</SYS>>\n\n[1] [/INST] [2] </s><s>[INST] [3] [/INST]",
        ),
        (
            templates.LLAMA3,
            "<s><|start_header_id|>system<|end_header_id|>\n\n[0]"
            "<|eot_id|><|start_header_id|>user<|end_header_id|>\n\n[1]"
            "<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n[2]"
            "<|eot_id|><|start_header_id|>user<|end_header_id|>\n\n[3]"
            "<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n",
        ),
    ],
    ids=["llama2", "llama3"],
)
def test_scaffolding_of_a_conversation(source: str, expected: str) -> None:
    assert scaffolding(source, LONG) == expected
    assert not ChatTemplate(source).scaffold(LONG).notices


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        (
            templates.GEMMA,
            "<s><start_of_turn>user\n[0]\n\n[1]<end_of_turn>\n<start_of_turn>model\n",
        ),
        (templates.MISTRAL, "<s>[INST] [0]\n\n[1] [/INST]"),
        (templates.WITHOUT_SYSTEM, "<|im_start|>[0]\n\n[1]"),
    ],
    ids=["refused", "refused-later", "dropped"],
)
def test_without_a_system_role_its_text_precedes_the_user_s(source: str, expected: str) -> None:
    found = ChatTemplate(source, bos="<s>", role="expert").scaffold(SHORT)
    assert shown(found.parts) == expected
    assert len(found.notices) == 1 and "the expert takes no system message" in found.notices[0]


EACH = "{%% for m in messages %%}{{ %s }}{%% endfor %%}"
MARK, MOVES = "messages[0].content[0]", "changes or moves the messages"


@pytest.mark.parametrize(
    ("source", "problem"),
    [
        ("{{ messages[-1].content }}", r"leaves out message 1 \(user\)"),
        (EACH % "m.content ~ m.content", "repeats message 1"),
        (EACH.replace("messages", "messages|reverse") % "m.content", MOVES),
        (EACH % "m.content }}{{ m.content[:1]", MOVES),
        (EACH % "m.content[1:]", "leaves out message 1"),
        # Marks that the template has made itself, of messages that there are not.
        (EACH % "m.content" + "{{ " + MARK + " ~ '999' ~ " + MARK + " }}", MOVES),
        (EACH % "m.content" + "{{ " + MARK + " ~ '9' * 5000 ~ " + MARK + " }}", MOVES),
        ("{% for m in messages %}", "has a mistake in line 1"),
        ("{{ nothing.here }}", "fails: 'nothing' is undefined"),
        ("x" * (LARGEST_TEMPLATE + 1), "is larger than 64 KiB"),
        ("\N{EURO SIGN}" * (LARGEST_TEMPLATE // 2), "is larger than 64 KiB"),
    ],
)
def test_broken_templates_are_named(source: str, problem: str) -> None:
    with pytest.raises(ModelError, match=f"^The chat template of the base {problem}") as caught:
        ChatTemplate(source, role="base").scaffold((USER, ANSWER, USER))
    assert caught.value.__cause__ is None
    assert "\n" not in str(caught.value)


def test_what_a_template_says_is_shown_as_plain_ascii_alone() -> None:
    source = "{{ raise_exception('\x1b]52;c;x\x07\N{RIGHT-TO-LEFT OVERRIDE}a\nb' ~ messages) }}"
    with pytest.raises(UsageError) as caught:
        ChatTemplate(source).scaffold((USER,))
    assert str(caught.value).isascii()
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 300


def test_a_template_never_sees_a_message() -> None:
    """So it can neither change nor leak one: the scaffolding is that of any other text."""
    canary = "CANARY {{ 7 * 7 }} {% raw %} <|im_end|>"
    source = (
        "{% for m in messages %}{% if 'CANARY' in m.content %}!{% endif %}"
        "[{{ m.content | upper }}]{% endfor %}"
    )
    found = ChatTemplate(source).scaffold((Message("user", canary),))
    assert found.parts == ("[", 0, "]")
    with pytest.raises(UsageError) as caught:
        ChatTemplate("{{ raise_exception(messages[0].content) }}").scaffold(
            (Message("user", canary),)
        )
    assert "CANARY" not in str(caught.value)


def test_what_published_templates_use() -> None:
    source = (
        "{%- set ns = namespace(first=true, seen=[]) -%}\n"
        "{%- macro shown(text, up=false) %}{{ text | upper if up else text }}{% endmacro -%}\n"
        "{% for m in messages -%}\n"
        "{%- if loop.index0 > 4 %}{% break %}{% endif -%}\n"
        "{%- generation %}{{ shown(m['content']) }}{% endgeneration -%}\n"
        "{%- if ns.first %}{% set ns.first = false %}{{ {'a': [1, 'ä']} | tojson }}{% endif -%}\n"
        "{%- if tools %}{{ tools | dictsort | random }}{% endif -%}\n"
        "{{- '{} {0}'.format('x') if false else '{}-{name}'.format(loop.length, name='n') -}}\n"
        "{{- ', '.join(['p', 'q']) ~ (m.role.split('s') | first) ~ -3 // 2 -}}\n"
        "{%- endfor -%}"
    )
    assert scaffolding(source, (USER,)) == '[0]{"a": [1, "ä"]}1-np, qu-2'


VOCABULARY = make_vocabulary([])


def model(**values: object) -> ModelFile:
    return ModelFile(role="expert", path=Path("model.gguf"), size=1, **values)  # type: ignore[arg-type]


def test_a_given_template_is_for_the_target_and_for_models_without(tmp_path: Path) -> None:
    own, given = "own:{{ messages[0].content }}", tmp_path / "template"
    given.write_text("given:{{ messages[0].content }}")
    source = given_template(str(given))
    for role, brings, wanted in (
        ("target", own, "given:"),
        ("expert", own, "own:"),
        ("base", None, "given:"),
    ):
        file = ModelFile(role=role, path=Path("model.gguf"), size=1)
        found = open_template(file, brings, VOCABULARY, given=source)
        assert found.scaffold([Message("user", "x")]).parts[0] == wanted
    assert given_template("plain") == PLAIN

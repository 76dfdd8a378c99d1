from __future__ import annotations

import pytest

from capt_local.chat.commands import COMMANDS, Call, in_block, is_open, understood
from capt_local.errors import UsageError


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command.name)
def test_every_command_is_understood(command) -> None:
    assert understood(f"/{command.name}") == Call(command.name)
    line = f"/{command.name.upper()}  a  b "
    if command.takes:
        assert understood(line) == Call(command.name, "a  b")
    else:
        with pytest.raises(UsageError, match=f"/{command.name} takes nothing"):
            understood(line)


def test_a_pasted_text_that_begins_like_a_command_forgets_nothing() -> None:
    with pytest.raises(UsageError, match="takes nothing") as caught:
        understood("/clear\nzyzzyva")
    assert "zyzzyva" not in str(caught.value)


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("What helps?", "What helps?"),
        (" /save is text behind a blank", " /save is text behind a blank"),
        ("/3 x daily\nsecond line", "/3 x daily\nsecond line"),
        ("/unknown\nsecond line", "/unknown\nsecond line"),
        ('"""/save x"""', "/save x"),
        ('"""\n/exit\n\n  two\n"""', "/exit\n\n  two"),
        ('"""never ended', '"""never ended'),
        ("/quit", Call("exit")),
        ("/?", Call("help")),
        ("/system be brief\nand kind", Call("system", "be brief\nand kind")),
    ],
)
def test_lines(line: str, said: object) -> None:
    assert understood(line) == said


@pytest.mark.parametrize(
    ("line", "hint"),
    [("/hepl", "/help"), ("/regenerate x", "/regen"), ("/sav", "/save"), ("/zzzz", "/help lists")],
)
def test_an_unknown_command_names_the_nearest_and_not_what_was_typed(line: str, hint: str) -> None:
    with pytest.raises(UsageError, match=hint) as caught:
        understood(line)
    assert line.split()[0] not in str(caught.value).replace(hint, "")


@pytest.mark.parametrize("line", ["/", "/ 3 x daily", "/3 x daily", "//"])
def test_a_slash_that_begins_no_word_is_text(line: str) -> None:
    if line == "/":
        with pytest.raises(UsageError):
            understood(line)
    else:
        assert understood(line) == line


@pytest.mark.parametrize(
    ("text", "is_it"),
    [('"""', True), ('"""a', True), ('  """\na\n', True), ('"""a"""', False), ("a", False)],
)
def test_a_block_is_open_until_it_is_ended(text: str, is_it: bool) -> None:
    assert is_open(text) is is_it
    assert in_block('""""""') == ""

"""Lines for `score`: what they mean, and what is refused, without a word of theirs."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from capt_local.errors import UsageError
from capt_local.evaluate.score import ScoreItem, read_score_items
from capt_local.prompting.messages import Message

CANARY = "zyzzyva"
TURNS = [{"role": "system", "content": "Be short."}, {"role": "user", "content": "Why?"}]


def read(folder: Path, *lines: object, **how: object) -> list[object]:
    file = folder / f"{CANARY}.jsonl"
    written = (line if isinstance(line, bytes) else json.dumps(line).encode() for line in lines)
    file.write_bytes(b"\n".join(written))
    return list(read_score_items(file, "The file", **how))  # type: ignore[arg-type]


def test_each_kind_of_line(tmp_path: Path) -> None:
    found = read(
        tmp_path,
        {"text": "fièvre"},
        b"",
        {"id": 7, "prompt": "Why?", "continuation": " so"},
        {"id": "m", "messages": TURNS, "completion": "so"},
        {"id": "q", "prompt": "Which?", "choices": ["a", "b"], "answer": "b", "note": None},
        {"id": "r", "prompt": "Which?", "choices": ["1", "0"], "answer": 0},
        b" ",
        {"prompt": "Which?", "choices": ["a", "b"]},
    )
    turns = (Message("system", "Be short."), Message("user", "Why?"))
    assert found == [
        ScoreItem("1", 1, "fièvre".encode()),
        ScoreItem("7", 3, b" so", "Why?"),
        ScoreItem("m", 4, b"so", turns),
        ScoreItem("q", 5, b"", "Which?", ("a", "b"), 1),
        ScoreItem("r", 6, b"", "Which?", ("1", "0"), 0),
        ScoreItem("8", 8, b"", "Which?", ("a", "b"), None),
    ]


def test_limits_come_after_the_check_of_all_lines(tmp_path: Path) -> None:
    (text,) = read(tmp_path, {"text": "été"}, {"text": "b"}, limit=1, size=3)
    assert text == ScoreItem("1", 1, "ét".encode(), cut=True)
    with pytest.raises(UsageError, match="line 3: not JSON"):
        read(tmp_path, {"text": "a"}, {"text": "b"}, b"{", limit=1)


def test_any_other_file_is_one_text(tmp_path: Path) -> None:
    file = tmp_path / "note.txt"
    file.write_text('{"text": "x"}\n')
    assert list(read_score_items(file, "The file")) == [ScoreItem("1", 1, b'{"text": "x"}\n')]
    file.write_bytes(b"\xff" + CANARY.encode())
    with pytest.raises(UsageError, match="The file: not UTF-8 at byte 0"):
        read_score_items(file, "The file")


ASKED = {"prompt": CANARY}
CHOICES = {**ASKED, "choices": ["yes", CANARY]}


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ([CANARY], "not a JSON object"),
        (b'{"text": "zyzzyva\xff"}', "not UTF-8 at byte 17"),
        (b'{"text": "zyzzyva \\udc00"}', "half of a character"),
        (ASKED, 'no "text", "continuation" or "choices"'),
        ({"text": CANARY, "choices": []}, '"text" and "choices" do not go together'),
        ({"text": CANARY, "prompt": CANARY}, 'name it "continuation"'),
        ({"text": 3}, "text must be a text"),
        ({"continuation": CANARY}, 'either "prompt" or "messages" is needed'),
        ({"prompt": " ", "continuation": CANARY}, "the prompt is empty"),
        ({**ASKED, "continuation": ""}, "the continuation is empty"),
        ({"messages": CANARY, "continuation": "a"}, '"messages" must be a list'),
        ({"messages": TURNS[:1], "continuation": CANARY}, "last message must be the user's"),
        ({**ASKED, "choices": [CANARY]}, "fewer than two choices"),
        ({**ASKED, "choices": [CANARY, ""]}, "a choice is empty"),
        ({**ASKED, "choices": [CANARY, CANARY]}, "two choices are the same"),
        ({**CHOICES, "answer": "zyzzyva "}, '"answer" is none of the choices'),
        ({**CHOICES, "answer": 2}, '"answer" is none of the choices'),
    ],
)
def test_a_line_that_is_wrong_is_named_without_its_text(
    line: object, said: str, tmp_path: Path
) -> None:
    with pytest.raises(UsageError) as error:
        read(tmp_path, {"id": "first", "text": "fever"}, line)
    assert str(error.value).startswith("The file, line 2: ")
    assert said in str(error.value) and CANARY not in str(error.value)


def test_what_does_not_go_with_the_flags_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match='line 1: "messages" have no raw form'):
        read(tmp_path, {"messages": TURNS, "continuation": "a"}, raw=True)
    with pytest.raises(UsageError, match="line 1: --max-bytes cuts texts alone"):
        read(tmp_path, {**ASKED, "continuation": "a"}, size=5)

"""What docs/tasks.md shows is read as it stands."""

from __future__ import annotations

import re
from pathlib import Path

from capt_local.evaluate.layouts import layout_names
from capt_local.evaluate.styles import read_style, style_names
from capt_local.evaluate.tasks import read_task

ROOT = Path(__file__).parent.parent.parent
TEXT = (ROOT / "docs" / "tasks.md").read_text("utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", TEXT, re.DOTALL | re.MULTILINE)


def test_the_items(tmp_path: Path) -> None:
    (lines,) = blocks("json")
    kinds = []
    for line in lines.splitlines():
        path = tmp_path / "task.jsonl"
        path.write_text(line, "utf-8")
        kinds.append(read_task(path).kind)
    assert kinds == ["classification", "generation", "perplexity"]


def test_the_new_task_and_the_style(tmp_path: Path) -> None:
    task, style = blocks("toml")
    (tmp_path / "task.toml").write_text(task, "utf-8")
    (tmp_path / "visits.csv").write_text(
        'visit,note,label\n1,Chest pain.,urgent\n2,"A cold, mild.",not urgent\n3,x,urgent\n'
        "4,y,urgent\n"
    )
    read = read_task(tmp_path)
    assert [item.reference for item in read.items][:2] == ["urgent", "not urgent"]
    (tmp_path / "style.toml").write_text(style, "utf-8")
    own = read_style(str(tmp_path / "style.toml"), examples=read)
    assert len(own.messages(read.items[0], read)) == 1 + 2 * 3 + 1


def test_every_style_and_layout_is_described() -> None:
    for name in style_names():
        assert f"| `{name}` |" in TEXT
    for name in layout_names():
        assert f'`layout = "{name}"`' in TEXT

"""The twenty prompts, answered by target, expert and the three together, for a person to read.

Fluent, on topic, ends by itself: the last is counted here, the others are the reader's to judge.
"""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from capt_local import FinishReason, GenerateOptions, LoadOptions, Method, Runtime

PROMPTS = Path(__file__).with_name("prompts.jsonl")
METHODS = (Method.TARGET, Method.CAPT, Method.EXPERT)


def read_prompts(path: Path = PROMPTS) -> list[dict[str, str]]:
    """Id, kind and prompt of each; all are fictitious."""
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


def ask(runtime: Runtime, prompt: str, method: Method, max_tokens: int) -> tuple[str, bool]:
    """A greedy answer, and whether it ended by itself."""
    generation = runtime.generate(prompt, GenerateOptions(method=method, max_tokens=max_tokens))
    list(generation)
    return generation.text.strip(), generation.finish is FinishReason.STOP


def ask_all(bundle: Path, threads: int, max_tokens: int) -> None:
    """Show all answers side by side."""
    console = Console()
    ended: Counter[Method] = Counter()
    prompts = read_prompts()
    with Runtime.open(bundle, load=LoadOptions(threads=threads)) as runtime:
        for asked in prompts:
            table = Table(box=box.SIMPLE, show_lines=True, expand=True)
            cells = []
            for method in METHODS:
                text, whole = ask(runtime, asked["prompt"], method, max_tokens)
                ended[method] += whole
                table.add_column(f"{method.value}{'' if whole else ' (cut)'}", ratio=1)
                cells.append(Text(text))
            table.add_row(*cells)
            console.rule(f"{asked['id']} · {asked['kind']}", align="left")
            console.print(asked["prompt"], markup=False, highlight=False)
            console.print(table)
    for method in METHODS:
        console.print(f"{method.value}: {ended[method]} of {len(prompts)} ended by themselves")

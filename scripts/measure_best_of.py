r"""Best of 8 by a scorer, by majority and by likelihood: accuracy with paired intervals.

    python -m scripts.measure_best_of draw OUT.jsonl NAME TASK.jsonl ... [--bundle demo] \
        [--method capt] [--adapter ROLE:PATH[=SCALE] ...] [--limit N]
    python -m scripts.measure_best_of table OUT.jsonl --scorer FOLDER

`draw` adds eight answers to each question of classification tasks, made by a system that is called
NAME. An answer is one of the choices, drawn by its likelihood at temperature 1 (the prompt and the
choices are read once); with --free it is a text of 16 tokens at most, and right if it names the
right choice. `table` ranks them and compares the figures of all systems. Runs can be stopped and
continued. Needs the extra "eval".
"""

from __future__ import annotations

import dataclasses
import json
import time
import zlib
from collections import defaultdict
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

from capt_local import CombineOptions, GenerateOptions, LoadOptions, Method, Runtime
from capt_local.bundles import store
from capt_local.evaluate.metrics import interval
from capt_local.evaluate.tasks import messages, read_answer, read_task
from capt_local.rerank import Scorer, ScorerFiles, best_of, draw_choices, shares
from scripts.common import records

N = 8
app = typer.Typer(help=__doc__)


@app.command()
def draw(
    out: Path,
    name: str,
    tasks: list[Path],
    bundle: str = "demo",
    method: Method = Method.CAPT,
    limit: int | None = None,
    free: bool = False,
    adapter: Annotated[list[str] | None, typer.Option(metavar="ROLE:PATH[=SCALE]")] = None,
) -> None:
    """Adds eight answers to each question of TASKS to OUT, by a system that is called NAME."""
    done = {(r["system"], r["task"], r["id"]) for r in records(out, missing_ok=True)}
    options = GenerateOptions(method=method, combine=CombineOptions(alphas=(0.5,)))
    sample = dataclasses.replace(options.sample, temperature=1.0)
    texts = dataclasses.replace(options, max_tokens=16, sample=sample)
    models = store.find(bundle).with_adapters(adapter or ())
    load = LoadOptions(threads=1, context=2048)
    with (
        Runtime.open(models, load=load, roles=method.roles, check=False) as runtime,
        out.open("a", encoding="utf-8") as file,
    ):
        for place in tasks:
            task = read_task(place, limit=limit)
            for item in task.items:
                if (name, task.name, item.id) in done:
                    continue
                started = time.perf_counter()
                runtime.forget()
                found: dict[str, Any]
                if free:
                    made = best_of(runtime, messages(item, task), texts, N).candidates
                    made = tuple(sorted(made, key=lambda one: one.seed))
                    answers = [one.generation.text for one in made]
                    said = [read_answer(text, item, task) for text in answers]
                    rates = [one.mean_logp for one in made]
                    found = {"answers": answers, "said": said, "mean_logps": rates}
                else:
                    chosen = runtime.choose(messages(item, task), item.choices, options)
                    drawn = draw_choices(chosen.logps, N, 1.0, zlib.crc32(item.id.encode()))
                    answers = [item.choices[n] for n in drawn]
                    rates = [chosen.logps[n] / chosen.scores[n].tokens for n in drawn]
                    found = {"answers": answers, "said": answers, "mean_logps": rates}
                    found["likeliest"] = item.choices[chosen.index]
                line = {
                    "system": name,
                    "task": task.name,
                    "id": item.id,
                    "question": f"{item.instruction}\n\n{item.input}",
                    "reference": item.reference,
                    **found,
                    "seconds": time.perf_counter() - started,
                }
                file.write(json.dumps(line, ensure_ascii=False) + "\n")
                file.flush()


@app.command()
def table(out: Path, scorer: Annotated[Path, typer.Option()]) -> None:
    """Prints the accuracy of each way to choose, and what the scorer gains over it."""
    rows: dict[tuple[str, str], list[dict[str, float]]] = defaultdict(list)
    with Scorer(ScorerFiles.at(scorer)) as opened:
        for line in records(out):
            said = line.get("said", line["answers"])
            right = np.array([one == line["reference"] for one in said], float)
            scores = opened.scores(line["question"], line["answers"])
            rows[line["task"], line["system"]].append(
                {
                    "scorer": right[np.argmax(scores)],
                    "first": right[0],
                    "mean of 8": right.mean(),
                    "majority": right[np.argmax(shares(said))],
                    "mean logprob": right[np.argmax(line["mean_logps"])],
                    "likeliest": float(line.get("likeliest") == line["reference"]),
                    "oracle": right.max(),
                    "seconds": line["seconds"],
                }
            )
    for (task, system), found in sorted(rows.items()):
        print(f"\n{task}, {system}: {len(found)} questions")
        values = {name: np.array([row[name] for row in found]) for name in found[0]}
        for name, column in values.items():
            gain = values["scorer"] - column
            shown = ""
            if name not in ("scorer", "seconds"):
                here = interval(lambda drawn, gain=gain: gain[drawn].mean(axis=-1), len(found))
                shown = f"  scorer {here.estimate:+.3f} [{here.low:+.3f}, {here.high:+.3f}]"
            print(f"  {name:13} {column.mean():.3f}{shown}")


if __name__ == "__main__":
    app()

"""Which weights answer best: answers to a task under several settings, judged by figures.

    python -m scripts.measure_answers TASK.jsonl BUNDLE OUT SETTING... [--limit 50] [-n 64]

A SETTING is a method such as `target`, a fixed alpha such as `0.5`, `default` (what the program
takes for turns), or alphas that the evidence of the prompt chooses among, with the target, such as
`0.25/0.5`; greedy. With `*8@0.7` behind it, eight answers are drawn at that temperature (1 where
none is given), and the one with the fewest facts that the input lacks counts. With `+fast` behind
it, expert and base are skipped as by `--speed fast`; `+fast0.5` has another `ensemble.SURE`.

Answers are kept in OUT, one file a setting, and are not made again. Printed for each: ROUGE-1, 2
and L, answers that end by themselves, the share of repeated four-word sequences, and numbers in
answers that the input lacks; then ROUGE-L minus that of the first setting, with a paired 95 %
interval. Needs the extra "eval". Choose on validation files, confirm on test files.
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Annotated, Any
from unittest import mock

import numpy as np
import typer
from rouge_score.rouge_scorer import RougeScorer

from capt_local import CombineOptions, GenerateOptions, LoadOptions, Method, Runtime, SampleOptions
from capt_local.decoding.ensemble import SURE, SkipRule
from capt_local.decoding.loop import Generation
from capt_local.decoding.options import Speed
from capt_local.documents import Document
from capt_local.grounding import missing_from
from capt_local.rerank import best_of
from scripts.common import mean_interval, prompt_of, records

Table = np.ndarray[tuple[int, int], np.dtype[np.float64]]
_NUMBER = re.compile(r"\d+(?:\.\d+)?")
_IN_NAMES = str.maketrans("/*", "+x")
_ROUGES = ("rouge1", "rouge2", "rougeL")


def options_of(setting: str, tokens: int) -> GenerateOptions:
    """The options that a setting names."""
    if setting in tuple(Method):
        return GenerateOptions(max_tokens=tokens, method=Method(setting))
    if setting == "default":
        combine = CombineOptions()
    elif "/" in setting:
        alphas = [float(part) for part in setting.split("/")]
        combine = CombineOptions(grid=((1.0, 0.0, 0.0), *((1.0, a, a) for a in alphas)))
    else:
        combine = CombineOptions(alphas=(float(setting),))
    return GenerateOptions(max_tokens=tokens, combine=combine)


def repeated(text: str) -> float:
    """The share of four-word sequences that stood before."""
    words = text.split()
    runs = [tuple(words[at : at + 4]) for at in range(len(words) - 3)]
    return 1 - len(set(runs)) / len(runs) if runs else 0.0


def kept(
    path: Path, ids: Sequence[str], answer: Callable[[str], Generation]
) -> list[dict[str, Any]]:
    """The answer to each id, which has ended; those that a file holds are not made again."""
    found = {line["id"]: line for line in records(path, missing_ok=True)}
    with path.open("a", encoding="utf-8") as file:
        for id in ids:
            if id not in found:
                made = answer(id)
                for _ in made:
                    pass
                found[id] = {"id": id, "text": made.text, "finish": str(made.finish)}
                found[id] |= {"tokens": made.stats.steps, "skipped": made.stats.proxies_skipped}
                file.write(json.dumps(found[id]) + "\n")
                file.flush()
    return [found[id] for id in ids]


def answers(
    runtime: Runtime, items: list[dict[str, Any]], setting: str, tokens: int, path: Path
) -> list[dict[str, Any]]:
    """The answer to each item under a setting."""
    weights, _, drawn = setting.partition("*")
    weights, fast, sure = weights.partition("+fast")
    number, _, temperature = drawn.partition("@")
    options = options_of(weights, tokens)
    if fast:
        options = dataclasses.replace(options, speed=Speed.FAST)
    if drawn:
        sample = SampleOptions(temperature=float(temperature or 1))
        options = dataclasses.replace(options, sample=sample)
    known = {item["id"]: item for item in items}

    def answer(id: str) -> Generation:
        item = known[id]
        if not drawn:
            return runtime.generate(prompt_of(item), options)
        unsupported = missing_from(Document(item["input"]))
        best = best_of(runtime, prompt_of(item), options, int(number), unsupported=unsupported)
        return best.candidates[0].generation

    rule = partial(SkipRule, float(sure or SURE))
    with mock.patch("capt_local.decoding.ensemble.SkipRule", rule):
        return kept(path, list(known), answer)


def rouge(items: list[dict[str, Any]], made: list[dict[str, Any]]) -> Table:
    """ROUGE-1, 2 and L of each answer, shape (items, 3)."""
    scorer = RougeScorer(_ROUGES, use_stemmer=True)
    pairs = zip(items, made, strict=True)
    scores = [scorer.score(item["reference"], answer["text"]) for item, answer in pairs]
    return np.array([[score[name].fmeasure for name in _ROUGES] for score in scores])


def figures(items: list[dict[str, Any]], made: list[dict[str, Any]], rouges: Table) -> str:
    """One line of means."""
    count, unsupported = len(items), 0
    for item, answer in zip(items, made, strict=True):
        known = set(_NUMBER.findall(item["input"] + item["instruction"]))
        unsupported += sum(number not in known for number in _NUMBER.findall(answer["text"]))
    ended = sum(answer["finish"] == "stop" for answer in made)
    again = sum(repeated(answer["text"]) for answer in made) / count
    means = " ".join(f"{mean:.4f}" for mean in rouges.mean(axis=0))
    tokens = sum(answer.get("tokens", 0) for answer in made)
    skipped = sum(answer.get("skipped", 0) for answer in made) / max(tokens, 1)
    return (
        f"{means}  ended {ended} of {count}  repeated {again:.3f}  unsupported {unsupported}  "
        f"skipped {skipped:.3f}"
    )


def main(
    task: Path,
    bundle: str,
    out: Path,
    settings: list[str],
    limit: int = 50,
    tokens: Annotated[int, typer.Option("-n")] = 64,
    threads: Annotated[int, typer.Option("-t")] = 1,
    context: Annotated[int, typer.Option("-c")] = 4096,
) -> None:
    """Prints a line for each of SETTINGS; answers are kept in OUT."""
    items = records(task, limit)
    out.mkdir(parents=True, exist_ok=True)
    with Runtime.open(bundle, load=LoadOptions(threads=threads, context=context)) as runtime:
        first = None
        for setting in settings:
            path = out / f"{task.stem}.{setting.translate(_IN_NAMES)}.jsonl"
            made = answers(runtime, items, setting, tokens, path)
            rouges = rouge(items, made)
            line = f"{setting:12} {figures(items, made, rouges)}"
            if first is not None and (rouges != first).any():
                mean, low, high = mean_interval(rouges[:, 2] - first[:, 2], 2000, 0)
                line += f"  L {mean:+.4f} [{low:+.4f}, {high:+.4f}]"
            first = rouges if first is None else first
            print(line, flush=True)


if __name__ == "__main__":
    typer.run(main)

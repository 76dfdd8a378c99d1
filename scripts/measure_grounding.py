"""How well grounding tells an answer that a source supports from one that it does not.

    python -m scripts.measure_grounding aci-note.valid.jsonl
    python -m scripts.measure_grounding mts-summary.test1.jsonl --answers capt.jsonl target.jsonl

The reference note of each visit is grounded in its own visit (supported) and in the next one of
the file (not supported). Printed: the area under the ROC curve over statements, with an interval
over visits; thresholds of the score; the share of facts that are found in both, by kind; spans of
numbers of sentences quoted from the visit (right where the span is that of the sentence); values
with a typing error (for the threshold of the fuzzy match); and seconds. With two files of answers
(`measure_answers`): the share of their facts and statements that the dialogue does not support, and
the difference with a paired interval over items.
"""

from __future__ import annotations

import random
import re
import time
from collections import Counter
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

from capt_local.documents import Document
from capt_local.grounding import Grounding, Source, ground
from capt_local.grounding.source import words
from scripts.common import records

Scores = list[list[float]]


def auc(own: Scores, other: Scores, visits: Any) -> float:
    """P(a supported statement has a higher score than an unsupported one), ties half."""
    positive = np.concatenate([own[i] for i in visits])
    negative = np.sort(np.concatenate([other[i] for i in visits]))
    below = np.searchsorted(negative, positive, "left")
    ties = np.searchsorted(negative, positive, "right") - below
    return float((below + ties / 2).mean() / len(negative))


def quoted(source: Source, draw: random.Random) -> tuple[int, int]:
    """Numbers of sentences of the source whose span is where the sentence stands, and all."""
    right = total = 0
    for match in re.finditer(r"(?:[^.?!\n]|(?<=\d)\.(?=\d)){30,300}[.?!](?!\d)", source.text):
        answer = match[0].strip()
        at = match.start() + len(match[0]) - len(match[0].lstrip())
        for fact in ground(answer, source).facts:
            if fact.kind == "number":
                total += 1
                right += fact.source is not None and fact.source[0] == at + fact.start
    return right, total


def misspelt(text: str, draw: random.Random) -> str:
    """A text with two neighbouring letters exchanged, or one left out."""
    at = draw.randrange(1, len(text) - 2)
    if draw.random() < 0.5:
        return text[:at] + text[at + 1] + text[at] + text[at + 2 :]
    return text[:at] + text[at + 1 :]


def compare(items: list[dict[str, Any]], files: tuple[Path, Path]) -> None:
    """Prints what answers have that their inputs do not."""
    counts = []
    for file in files:
        texts = {one["id"]: one["text"] for one in records(file)}
        rows = []
        for item in items:
            if item["id"] in texts:
                found = ground(texts[item["id"]], Source(Document(item["input"])))
                parts = (found.facts, found.statements)
                rows.append(
                    [f(x) for x in parts for f in (len, lambda x: sum(not o.supported for o in x))]
                )
        counts.append(np.array(rows, float))
        total = counts[-1].sum(0)
        print(f"{file.stem}: {len(rows)} answers, unsupported facts {total[1]:.0f} of "
              f"{total[0]:.0f} ({total[1] / total[0]:.3f}), statements {total[3]:.0f} of "
              f"{total[2]:.0f} ({total[3] / total[2]:.3f})")  # fmt: skip
    rng, size = np.random.default_rng(1), min(map(len, counts))
    for name, at in (("facts", 0), ("statements", 2)):
        draws = []
        for _ in range(5000):
            chosen = rng.choice(size, size)
            one, other = (c[chosen, at + 1].sum() / max(1, c[chosen, at].sum()) for c in counts)
            draws.append(one - other)
        shares = [c[:size, at + 1].sum() / c[:size, at].sum() for c in counts]
        low, high = np.quantile(draws, (0.025, 0.975))
        print(f"{name}, share unsupported, difference {shares[0] - shares[1]:+.3f} "
              f"[{low:+.3f}, {high:+.3f}]")  # fmt: skip


def main(file: Path, answers: Annotated[tuple[Path, Path] | None, typer.Option()] = None) -> None:
    """Grounds the references of FILE in their own source and in another one."""
    items = records(file)
    if answers:
        compare(items, answers)
        return
    sources = [Source(Document(item["input"])) for item in items]
    own: Scores = []
    other: Scores = []
    facts = {"own": Counter[tuple[str, bool]](), "other": Counter[tuple[str, bool]]()}
    for i, item in enumerate(items):
        for name, scores, source in (
            ("own", own, sources[i]), ("other", other, sources[(i + 1) % len(items)]),
        ):  # fmt: skip
            found: Grounding = ground(item["reference"], source)
            scores.append([one.score for one in found.statements])
            facts[name].update((fact.kind, fact.supported) for fact in found.facts)
    rng, visits = np.random.default_rng(1), np.arange(len(items))
    draws = [auc(own, other, rng.choice(visits, len(visits))) for _ in range(2000)]
    low, high = np.quantile(draws, (0.025, 0.975))
    positive, negative = np.concatenate(own), np.concatenate(other)
    print(f"statements {len(positive)}: AUC {auc(own, other, visits):.3f} [{low:.3f}, {high:.3f}]")
    for threshold in np.arange(0.25, 0.61, 0.05):
        print(f"  score below {threshold:.2f}: own {np.mean(positive < threshold):.3f}, "
              f"other {np.mean(negative < threshold):.3f}")  # fmt: skip
    for kind in ("number", "date", "drug", "side", "negation"):
        shares = []
        for counted in facts.values():
            total = counted[kind, True] + counted[kind, False]
            shares.append(f"{counted[kind, True] / max(1, total):.3f} of {total}")
        print(f"  {kind}: found in own {shares[0]}, in other {shares[1]}")
    draw = random.Random(1)
    counts = [quoted(source, draw) for source in sources]
    right, total = (sum(column) for column in zip(*counts, strict=True))
    print(f"spans of quoted numbers: {right} of {total} right ({right / max(1, total):.3f})")
    hits = wrong = values = absent = 0
    for i, source in enumerate(sources):
        said = [word for word in words(source.text) if len(word.key) > 6 and not word.number]
        for _ in range(20):
            first = draw.randrange(len(said) - 2)
            span = (said[first].start, said[first].end + draw.choice((0, 8)))
            value = source.text[slice(*span)].strip()
            if len(value) < 6 or "\n" in value:
                continue
            values += 1
            hits += source.value(misspelt(value, draw), None)[1] is not None
            another = sources[(i + 1) % len(items)]
            if value[:-2].lower() not in another.text.lower():
                absent += 1
                wrong += another.value(misspelt(value, draw), None)[1] is not None
    print(f"misspelt values found: own {hits / values:.3f} of {values}, another visit that lacks "
          f"them {wrong / absent:.3f} of {absent}")  # fmt: skip
    long = Document("\n".join(item["input"] for item in items)[:16_000])
    answer = " ".join(items[0]["reference"].split()[:300])
    started = time.perf_counter()
    for _ in range(5):
        ground(answer, Source(long))
    print(f"300 words in {len(long.text.split())} words: "
          f"{200 * (time.perf_counter() - started):.1f} ms")  # fmt: skip


if __name__ == "__main__":
    typer.run(main)

r"""What each of two adapters does: notes and answers of SmolLM2 over their scales, and a plot.

    python -m scripts.measure_adapters MODEL.gguf KNOWLEDGE.gguf ALIGNMENT.gguf OUT.json \
        --notes clinical-prose.test-a.jsonl --answers mts-summary.validation.jsonl --plot PLOT.svg

For each pair of scales: bits per byte of the first 1,000 bytes of notes, and ROUGE-L of greedy
answers of 64 tokens at most. What stands in OUT is not measured again. Needs the extra "eval", and
matplotlib for the plot.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

from capt_local import GenerateOptions, LoadOptions, Method, Request, Runtime
from capt_local.bundles.manifest import Bundle
from scripts.common import prompt_of, records

SCALES = (0.0, 0.25, 0.5, 0.75, 1.0)
PAIRS = [(k, 1.0) for k in SCALES] + [(1.0, a) for a in reversed(SCALES[:-1])] + [(0.0, 0.0)]
_BYTES, _TOKENS = 1000, 64


def main(
    model: Path,
    knowledge: Path,
    alignment: Path,
    out: Path,
    notes: Annotated[Path, typer.Option()],
    answers: Annotated[Path, typer.Option()],
    count: int = 12,
    items: int = 40,
    plot: Path | None = None,
) -> None:
    """Adds what is missing to OUT, a setting at a time: COUNT notes, and answers to ITEMS items."""
    from rouge_score.rouge_scorer import RougeScorer

    found = json.loads(out.read_text()) if out.exists() else {}
    texts = [record["text"] for record in records(notes, count)]
    asked = records(answers, items)
    rouge = RougeScorer(["rougeL"], use_stemmer=True)
    bundle = Bundle.from_paths(model).with_adapters([f"target:{knowledge}", f"target:{alignment}"])
    with Runtime.open(bundle, load=LoadOptions(threads=1, context=2048, max_rows=64)) as runtime:
        for kind in ("bits", "rougeL"):
            for pair in PAIRS:
                own = found.setdefault(f"{pair[0]:g},{pair[1]:g}", {})
                if kind in own or (kind == "rougeL" and (0.25 in pair or 0.75 in pair)):
                    continue
                options = GenerateOptions(
                    method=Method.TARGET,
                    max_tokens=_TOKENS,
                    adapter_scales=(("target", pair),),
                )
                if kind == "bits":
                    runtime.forget()
                    parts = [note.encode()[:_BYTES].decode("utf-8", "ignore") for note in texts]
                    scores = [runtime.score(part.encode(), options) for part in parts]
                    own[kind] = [one.nats / np.log(2) / one.size for one in scores]
                else:
                    requests = [Request(prompt_of(item), options) for item in asked]
                    made = sorted(
                        runtime.generate_many(requests, parallel=8), key=lambda r: r.index
                    )
                    written = [one.generation.text if one.generation else "" for one in made]
                    own[kind] = [
                        rouge.score(item["reference"], text)["rougeL"].fmeasure
                        for item, text in zip(asked, written, strict=True)
                    ]
                print(f"{pair} {kind} {np.mean(own[kind]):.4f}", flush=True)
                out.write_text(json.dumps(found))
    if plot:
        draw(found, plot)


def draw(found: dict[str, Any], place: Path) -> None:
    """Two panels, notes and answers: a line for each adapter whose scale goes from 0 to 1."""
    import matplotlib.pyplot as plt

    plt.rcParams["svg.fonttype"] = "none"
    titles = {"bits": "bits per byte of notes", "rougeL": "ROUGE-L of answers"}
    figure, panels = plt.subplots(1, 2, figsize=(8, 3), layout="constrained")
    for panel, (kind, title) in zip(panels, titles.items(), strict=True):
        for name, key in (("knowledge", "{:g},1"), ("alignment", "1,{:g}")):
            scales = [each for each in SCALES if kind in found.get(key.format(each), {})]
            means = [np.mean(found[key.format(each)][kind]) for each in scales]
            panel.plot(scales, means, "o-", label=f"scale of {name}, the other at 1")
        panel.set_title(title)
    panels[1].legend()
    figure.savefig(place, metadata={"Date": None})


if __name__ == "__main__":
    typer.run(main)

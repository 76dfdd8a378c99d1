r"""What each of two adapters does: notes and answers of SmolLM2 over their scales, and a plot.

    python -m scripts.measure_adapters MODEL.gguf KNOWLEDGE.gguf ALIGNMENT.gguf OUT.json \
        --notes clinical-prose.test-a.jsonl --answers mts-summary.validation.jsonl
    python -m scripts.measure_adapters OUT.json --plot docs/adapters.svg

For each pair of scales: bits per byte of the first 1,000 bytes of notes, and ROUGE-L of greedy
answers of 64 tokens at most. What stands in OUT is not measured again. Needs the extra "eval".
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np

from capt_local import GenerateOptions, LoadOptions, Method, Request, Runtime
from capt_local.bundles.manifest import Bundle

SCALES = (0.0, 0.25, 0.5, 0.75, 1.0)
PAIRS = [(k, 1.0) for k in SCALES] + [(1.0, a) for a in reversed(SCALES[:-1])] + [(0.0, 0.0)]
_BYTES, _TOKENS = 1000, 64


def measure(given: argparse.Namespace) -> None:
    """Adds what is missing to OUT, a setting at a time."""
    from rouge_score.rouge_scorer import RougeScorer

    found = json.loads(given.out.read_text()) if given.out.exists() else {}
    notes = [json.loads(line)["text"] for line in given.notes.open()][: given.count]
    items = [json.loads(line) for line in given.answers.open()][: given.items]
    rouge = RougeScorer(["rougeL"], use_stemmer=True)
    adapters = [f"target:{path}" for path in given.adapters]
    bundle = Bundle.from_paths(given.model).with_adapters(adapters)
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
                    parts = [note.encode()[:_BYTES].decode("utf-8", "ignore") for note in notes]
                    scores = [runtime.score(part.encode(), options) for part in parts]
                    own[kind] = [one.nats / np.log(2) / one.size for one in scores]
                else:
                    asked = [f"{item['instruction']}\n\n{item['input']}" for item in items]
                    requests = [Request(text, options) for text in asked]
                    made = sorted(
                        runtime.generate_many(requests, parallel=8), key=lambda r: r.index
                    )
                    texts = [one.generation.text if one.generation else "" for one in made]
                    own[kind] = [
                        rouge.score(item["reference"], text)["rougeL"].fmeasure
                        for item, text in zip(items, texts, strict=True)
                    ]
                print(f"{pair} {kind} {np.mean(own[kind]):.4f}", flush=True)
                given.out.write_text(json.dumps(found))


def plot(found: dict[str, Any], place: Path) -> None:
    """Two panels: notes and answers, a line for each adapter whose scale goes from 0 to 1."""
    parts = [
        '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 640 250" font-family="sans-serif" '
        'font-size="12"><rect width="640" height="250" fill="#fff"/>'
    ]
    colours = {"knowledge": "#b3261e", "alignment": "#1a5fb4"}
    for left, kind, title in (
        (50, "bits", "bits per byte of notes"),
        (370, "rougeL", "ROUGE-L of mts-summary"),
    ):
        curves = {
            name: [
                (s, float(np.mean(found[key][kind])))
                for s in SCALES
                if kind in found.get(key := (f"{s:g},1" if name == "knowledge" else f"1,{s:g}"), {})
            ]
            for name in colours
        }
        values = [y for points in curves.values() for _, y in points]
        low, high = min(values), max(values)
        span = high - low or 1.0
        parts.append(f'<text x="{left}" y="20" font-weight="bold">{title}</text>')
        parts.append(f'<path d="M{left} 40V200H{left + 220}" fill="none" stroke="#777"/>')
        for value in (low, high):
            y = 195 - 150 * (value - low) / span
            parts.append(
                f'<text x="{left - 6}" y="{y + 4:.0f}" text-anchor="end">{value:.2f}</text>'
            )
        for scale in (0, 0.5, 1):
            x = left + 10 + 200 * scale
            parts.append(f'<text x="{x:.0f}" y="216" text-anchor="middle">{scale:g}</text>')
        for name, points in curves.items():
            at = [(left + 10 + 200 * s, 195 - 150 * (y - low) / span) for s, y in points]
            line = " ".join(f"{x:.1f},{y:.1f}" for x, y in at)
            parts.append(
                f'<polyline points="{line}" fill="none" stroke="{colours[name]}" stroke-width="2"/>'
            )
            parts += [
                f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" fill="{colours[name]}"/>' for x, y in at
            ]
    for place_x, (name, colour) in zip((150, 370), colours.items(), strict=True):
        other = "alignment" if name == "knowledge" else "knowledge"
        parts.append(
            f'<text x="{place_x}" y="240" fill="{colour}">scale of {name}, {other} at 1</text>'
        )
    place.write_text("\n".join([*parts, "</svg>"]) + "\n", encoding="utf-8")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("files", type=Path, nargs="+")
    parser.add_argument("--notes", type=Path)
    parser.add_argument("--answers", type=Path)
    parser.add_argument("--count", type=int, default=12, help="notes")
    parser.add_argument("--items", type=int, default=40, help="answers")
    parser.add_argument("--plot", type=Path)
    asked = parser.parse_args()
    asked.out = asked.files[-1]
    asked.model, *asked.adapters = asked.files[:-1] or [None]
    if asked.plot:
        plot(json.loads(asked.out.read_text()), asked.plot)
    else:
        measure(asked)

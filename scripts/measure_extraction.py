"""Medications and doses out of invented notes: capt against target and expert alone.

    python -m scripts.measure_extraction BUNDLE OUT [--notes 100] [--settings capt target 1.5]

A setting is a method, or a fixed alpha. Notes are invented from a fixed seed, each with one to four
medications that are to be found and with numbers that are no doses; two notes with their answers
stand before each. Answers are instances of a schema with name and dose; those that OUT holds are
not made again. A field is a name, or a dose with its name; the figure of a note is the F1 of its
fields. Differences have paired 95 % bootstrap intervals over notes.
"""

from __future__ import annotations

import argparse
import json
import random
import re
from dataclasses import replace
from pathlib import Path

import numpy as np

from capt_local import LoadOptions, Message, Runtime
from capt_local.decoding.structured import schema_structure
from scripts.common import mean_interval
from scripts.measure_answers import kept, options_of

_DRUGS = {
    "metformin": (500, 850, 1000), "lisinopril": (5, 10, 20, 40), "amlodipine": (5, 10),
    "atorvastatin": (10, 20, 40, 80), "levothyroxine": (0.05, 0.1), "omeprazole": (20, 40),
    "metoprolol": (25, 50, 100), "losartan": (25, 50, 100), "gabapentin": (100, 300, 600),
    "sertraline": (25, 50, 100), "furosemide": (20, 40, 80), "prednisone": (5, 10, 20),
    "warfarin": (2.5, 5), "apixaban": (2.5, 5), "citalopram": (10, 20, 40), "aspirin": (81, 325),
    "allopurinol": (100, 300), "tramadol": (50, 100), "ibuprofen": (400, 600, 800),
    "amoxicillin": (250, 500, 875), "hydrochlorothiazide": (12.5, 25), "simvastatin": (10, 20, 40),
    "pantoprazole": (20, 40), "duloxetine": (30, 60), "carvedilol": (6.25, 12.5, 25),
    "spironolactone": (25, 50), "montelukast": (5, 10), "escitalopram": (5, 10, 20),
    "meloxicam": (7.5, 15), "tamsulosin": (0.4, 0.8),
}  # fmt: skip
_OFTEN = ("once daily", "twice daily", "three times a day", "at bedtime", "every morning")
_SAID = (
    "She takes {name} {dose} {often}.", "He continues {name} {dose} by mouth {often}.",
    "{Name} {dose} {often} was started for this.", "Current therapy: {name} {dose} {often}.",
    "We increased {name} to {dose} {often}.", "Refill {name} {dose}, {often}.",
)  # fmt: skip
_REST = (
    "The patient is a {age}-year-old seen for follow-up.", "Blood pressure {high}/{low} mmHg.",
    "Pulse {pulse} per minute, temperature 37.{tenth} C.", "There is no chest pain or dyspnea.",
    "Weight is {weight} kg.", "Labs from {day} March were reviewed and are stable.",
    "He walks {pulse} minutes on most days.", "Return to the clinic in {tenth} weeks.",
)  # fmt: skip
_TASK = "List every medication in the note above as JSON, with name and dose."
_SHOWN = (-1, -2)  # notes that are answered in front of the one that is asked about
_TEXT = {"type": "string", "minLength": 1, "maxLength": 40}
_SCHEMA = {
    "type": "object", "required": ["medications"], "properties": {"medications": {
        "type": "array", "maxItems": 6, "items": {"type": "object", "required": ["name", "dose"],
        "properties": {"name": _TEXT, "dose": _TEXT}}}},
}  # fmt: skip
_ITEM = re.compile(r'\{\s*"name"\s*:\s*"([^"]*)"\s*,\s*"dose"\s*:\s*"([^"]*)"')
Fields = set[tuple[str, str]]


def note(number: int) -> tuple[str, Fields]:
    """An invented note, and the fields that are to be found in it."""
    draw = random.Random(f"note {number}")
    names = draw.sample(list(_DRUGS), draw.randint(1, 4))
    chosen = {name: draw.choice(_DRUGS[name]) for name in names}
    rest = {
        "age": draw.randint(25, 90), "high": draw.randint(100, 170), "low": draw.randint(55, 99),
        "pulse": draw.randint(50, 110), "tenth": draw.randint(2, 9),
        "weight": draw.randint(50, 120), "day": draw.randint(1, 28),
    }  # fmt: skip
    lines = [line.format(**rest) for line in draw.sample(_REST[1:], 4)]
    for name, dose in chosen.items():
        said = draw.choice(_SAID)
        lines.append(
            said.format(name=name, Name=name.title(), dose=f"{dose} mg", often=draw.choice(_OFTEN))
        )
    draw.shuffle(lines)
    text = " ".join([_REST[0].format(**rest), *lines])
    doses = {(name, f"{dose} mg") for name, dose in chosen.items()}
    return text, doses | {(name, "") for name in chosen}


def found(answer: str) -> Fields:
    """The fields of an answer, also of one that broke off."""
    pairs = [(name.strip().lower(), dose.strip().lower()) for name, dose in _ITEM.findall(answer)]
    return {(name, "") for name, _ in pairs} | set(pairs)


def asked(number: int) -> list[Message]:
    """Two notes with their answers, then the note."""
    messages = []
    for one in (*_SHOWN, number):
        text, wanted = note(one)
        doses = [{"name": name, "dose": dose} for name, dose in sorted(wanted) if dose]
        messages.append(Message("user", f"{text}\n\n{_TASK}"))
        messages.append(Message("assistant", json.dumps({"medications": doses})))
    return messages[:-1]


def f1(wanted: Fields, fields: Fields) -> float:
    return 2 * len(wanted & fields) / (len(wanted) + len(fields))


def answers(runtime: Runtime, setting: str, numbers: range, path: Path, tokens: int) -> list[str]:
    """Answers to notes under a setting."""
    structure = schema_structure(json.dumps(_SCHEMA).encode(), "The schema")
    options = replace(options_of(setting, tokens), structure=structure)
    made = kept(
        path, list(map(str, numbers)), lambda one: runtime.generate(asked(int(one)), options)
    )
    return [line["text"] for line in made]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("bundle")
    parser.add_argument("out", type=Path)
    parser.add_argument("--notes", type=int, default=100)
    parser.add_argument("--settings", nargs="+", default=["capt", "target", "expert"])
    parser.add_argument("--first", type=int, default=0, help="number of the first note")
    parser.add_argument("--tokens", type=int, default=140)
    flags = parser.parse_args()
    flags.out.mkdir(parents=True, exist_ok=True)
    numbers = range(flags.first, flags.first + flags.notes)
    scores: dict[str, list[float]] = {}
    with Runtime.open(flags.bundle, load=LoadOptions(threads=1)) as runtime:
        for setting in flags.settings:
            path = flags.out / f"{setting}.jsonl"
            texts = answers(runtime, setting, numbers, path, flags.tokens)
            wanted = [note(number)[1] for number in numbers]
            fields = [found(text) for text in texts]
            scores[setting] = [f1(*pair) for pair in zip(wanted, fields, strict=True)]
            right = sum(len(w & f) for w, f in zip(wanted, fields, strict=True))
            print(f"{setting}: F1 {np.mean(scores[setting]):.3f}, fields right {right} of "
                  f"{sum(map(len, wanted))}, given {sum(map(len, fields))}, no JSON "
                  f"{sum(not one for one in fields)}")  # fmt: skip
    first, *others = flags.settings
    for other in others:
        difference = np.array(scores[first]) - np.array(scores[other])
        mean, low, high = mean_interval(difference, 9999, 1)
        print(f"{first} - {other}: {mean:+.3f} [{low:+.3f}, {high:+.3f}]")


if __name__ == "__main__":
    main()

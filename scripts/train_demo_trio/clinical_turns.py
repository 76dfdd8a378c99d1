"""Turns for the expert: health questions, dialogues to notes, notes to single facts."""

from __future__ import annotations

import random
import re
from collections.abc import Iterator, Sequence

from scripts.train_demo_trio.corpus import Document
from scripts.train_demo_trio.turns import Turn, cut, general_turns, sentences, with_system

_SYSTEM = (
    "You are a careful medical assistant.",
    "You help clinicians to write notes.",
    "Answer briefly and accurately.",
    "You answer health questions in plain language.",
)
_SECTION = (
    'Summarize the conversation as the "{}" section of a clinical note.',
    'Write the "{}" section of the clinical note from this conversation.',
    "Summarize this dialogue between doctor and patient for the {} section.",
    "Turn the conversation into the {} section of the note.",
)
_HEADER = (
    "Name the clinical note section that this conversation belongs to.",
    "Which section of a clinical note does this conversation belong to?",
)
_VISIT = (
    "Write the clinical note for this visit.",
    "Write a clinical note from this conversation.",
    "Summarize the visit as a clinical note.",
)
_SHORT = (
    "Rewrite the consumer health question as one short question.",
    "Summarize the patient's message as one question.",
    "What is the patient asking? Reply with one short question.",
)
_LETTERS = (
    "Hello, I was told that I may have {topic}. {question} Please reply soon, thank you.",
    "My mother has {topic} and we are all very worried. {question} Any help is welcome.",
    "I am {age} years old and read something about {topic} on the internet. {question}",
    "{topic}. Hi, I want to know more. {question} I could not find an answer. Thanks a lot!",
    "My doctor has treated me for {topic} for {months} months. {question}",
)
_NOTE_HEAD = re.compile(r"^([A-Z][A-Z /]{4,40}):\s*,?\s*(.+)$", re.M)


def from_medquad(document: Document, rng: random.Random) -> Iterator[Turn]:
    """The question and its answer; now and then a letter and its question, or the reverse."""
    question, _, answer = document.text.partition("\n\nAnswer:")
    question = re.sub(r"\s*\?+", "?", question.removeprefix("Question:").strip())
    answer = re.sub(r"[ \t]{2,}", " ", answer).strip()
    if len(answer) < 30:
        return
    yield Turn(question, cut(answer, rng.choice((400, 900, 1500))))
    topic = re.sub(r"^(.*?(?:\bof|\bfor|\bis \(are\)|\bis|\bare|by|have|causes) )", "", question)
    topic = topic.rstrip("?").strip()
    if rng.random() < 0.2 and 3 < len(topic) < 60:
        letter = rng.choice(_LETTERS).format(
            topic=topic, question=question, age=rng.randint(19, 85), months=rng.randint(2, 11)
        )
        yield Turn(f"{rng.choice(_SHORT)}\n\n{letter}", question)
    if rng.random() < 0.1:
        yield Turn(f"Which question does this text answer?\n\n{cut(answer, 800)}", question)


def from_dialogue(document: Document, rng: random.Random) -> Iterator[Turn]:
    """A short dialogue of MTS-Dialog to its note section, and to the section's name."""
    found = re.match(r"Dialogue:\n(.*)\n\n([A-Z/_ ]+):\n(.*)", document.text, re.S)
    if not found:
        return
    dialogue, header, summary = (part.strip() for part in found.groups())
    for form in rng.sample(_SECTION, 2):
        yield Turn(f"{form.format(header)}\n\n{dialogue}", summary)
    if rng.random() < 0.5:
        yield Turn(f"{rng.choice(_HEADER)}\n\n{dialogue}", header)


def from_visit(document: Document, rng: random.Random) -> Iterator[Turn]:
    """The opening of a visit to the opening sections of its note.

    Whole visits are longer than the context; the complaint and the history are mostly told in
    the first part of the talk.
    """
    lines = document.text.split("\n")
    talk = [line for line in lines if line.startswith("[")]
    if not talk:
        return
    note = "\n".join(lines[lines.index(talk[-1]) + 1 :]).strip()
    note = re.sub(r"^(Clinical note|NOTE|Note):?\s*", "", note)
    for size in (1400, 2000, 4500):
        opening = ""
        for line in talk:
            if len(opening) + len(line) > size:
                break
            opening += line + "\n"
        if opening and (answer := cut(note, size // 2 - 100)):
            yield Turn(f"{rng.choice(_VISIT)}\n\n{opening.strip()}", answer)


def from_note(document: Document, rng: random.Random) -> Iterator[Turn]:
    """Facts of a transcribed note under its capital headings; the patient in one sentence."""
    note = document.text[:2200].rsplit("\n", 1)[0]
    heads = [(h.strip(), v.strip(" ,")) for h, v in _NOTE_HEAD.findall(note)]
    heads = [(h, v) for h, v in heads if 4 < len(v) < 500]
    for head, value in rng.sample(heads, min(2, len(heads))):
        forms = ("What does the note say under {}?", "Give the {} from this note.")
        yield Turn(f"{rng.choice(forms).format(head.lower())}\n\n{note}", value)
    for sentence in sentences(re.sub(r": ?,", ":", note)):
        found = re.search(r"(?:The patient|This|He|She|A) [^:]*\d+[- ]year[- ]old.*", sentence)
        if found and len(found[0]) > 50:
            yield Turn(f"Summarize the patient in one sentence.\n\n{note}", found[0])
            break


def from_case(document: Document, rng: random.Random) -> Iterator[Turn]:
    """A case report to its first sentence, when that introduces the patient."""
    if not 600 < len(document.text) < 2500 or rng.random() > 0.3:
        return
    first = sentences(document.text)[0]
    if re.search(r"year[- ]old", first) and 50 < len(first) < 350:
        rest = document.text[len(first) :].strip()
        yield Turn(f"Introduce the patient of this case in one sentence.\n\n{rest}", first)


def turns_of(documents: Sequence[Document], seed: str) -> list[Turn]:
    """Turns of every source, clinical or general; the same seed makes the same turns."""
    rng = random.Random(seed)
    makers = {
        "medquad": from_medquad,
        "mts-dialog-train": from_dialogue,
        "aci-bench-train": from_visit,
        "mtsamples-noleak": from_note,
        "e3c-en-ccby": from_case,
    }
    turns: list[Turn] = []
    for document in documents:
        if maker := makers.get(document.source):
            turns += maker(document, rng)
    turns = with_system(turns, rng, _SYSTEM)
    return turns + general_turns(documents, seed)

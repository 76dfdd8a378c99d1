"""Turns made from documents: questions and answers that the text itself holds.

Textbooks offer sentences that define a term, headings over sections, review questions with their
answers, summaries; patient information its questions; dialogues their notes; notes their headings.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from scripts.train_demo_trio.corpus import TEXTBOOKS, Document

_DEFINITION = re.compile(
    r"(?P<det>(?:An?|The) )?(?P<term>[A-Za-z][A-Za-z'\u2019-]*(?: [a-z][A-Za-z'-]*){0,3})"
    r"(?: \([A-Za-z -]{2,20}\))?,? (?P<verb>is|are|refers? to|means?|occurs? when)"
    r" (?=an? |the |any |one |when |how )"
)
_NO_TOPIC = re.compile(
    r"Question|Objective|Outcome|Review|Source|Suggest|Exercis|Example|Solution|OpenStax|Preface"
    r"|Errata|Customization|Check Your|Chapter|Figure|Table|Link to|Key Terms|Further Reading"
)
_VAGUE = {
    "it", "this", "that", "these", "those", "there", "they", "he", "she", "what", "which", "who",
    "one", "we", "you", "its", "his", "her", "their", "another", "here", "such", "each", "if",
    "when", "where", "in", "for", "as", "because", "although", "while", "since", "some", "many",
    "all", "both", "most", "other", "result", "example", "first", "second", "next", "following",
    "answer", "figure", "table", "goal", "purpose", "reason", "question", "problem", "text",
}  # fmt: skip
_SYSTEM = (
    "You are a helpful assistant.",
    "Answer the user's question.",
    "Be brief and accurate.",
    "You are a careful assistant. Answer from what you know.",
)
_OPTIONS = re.compile(r"^((?:- .+\n){3,5})([A-E])$", re.M)


@dataclass(frozen=True)
class Turn:
    """One exchange; `system` may be empty."""

    user: str
    answer: str
    system: str = ""


def sentences(text: str) -> list[str]:
    """Split at sentence ends; abbreviations may split wrongly, which does no harm here."""
    return re.split(r"(?<=[.!?])\s+(?=[A-Z\"\u201c(])", text.strip())


def cut(text: str, size: int) -> str:
    """The leading whole sentences of a text within `size` characters (at least one)."""
    ends = [m.start() for m in re.finditer(r"(?<=[.!?])\s+(?=[A-Z\"\u201c(])|\n\n", text)]
    ends.append(len(text))
    return text[: max([e for e in ends if e <= size], default=ends[0])].strip()


def is_heading(line: str) -> bool:
    """A short line without an end mark, in title case."""
    words = line.split()
    return (
        1 <= len(words) <= 9
        and len(line) < 70
        and line[0].isupper()
        and line[-1] not in ".:,;!)"
        and "http" not in line
        and line
        not in {"Introduction", "Summary", "References", "Answer", "Vocabulary", "Standards"}
        and not _NO_TOPIC.search(line)
    )


def is_answer(text: str) -> bool:
    """A paragraph of prose, neither a list of options nor the next question."""
    return 25 < len(text) < 800 and text[-1] in ".)" and "\n- " not in text


def definition(sentence: str) -> tuple[str, str] | None:
    """A question and the term that a defining sentence answers, or None."""
    found = _DEFINITION.match(sentence)
    if not found or not 40 <= len(sentence) <= 400:
        return None
    det, term = found["det"] or "", found["term"]
    if set(term.lower().split()) & _VAGUE or (len(term) < 4 and not term.isupper()):
        return None
    proper = term[1:2].isupper() or (" " not in term and det == "The ")
    term = term if proper else term.lower()
    if found["verb"] == "are":
        return f"What are {term}?", term
    article = det.lower() if det != "The " else "the "
    return f"What is {article}{term}?", term


def ask(question: str, term: str, rng: random.Random) -> str:
    """The question, or another way to ask it."""
    forms = (
        f"Define {term}.", f"Explain what {term} means.", f"What does {term} mean?",
        f"Tell me about {term}.", f"Give a definition of {term}.",
    )  # fmt: skip
    return question if rng.random() < 0.6 else rng.choice(forms)


def from_paragraph(text: str, rng: random.Random) -> Iterator[Turn]:
    """Definitions, closed and open book."""
    parts = sentences(text)
    for i, sentence in enumerate(parts):
        if not (found := definition(sentence)):
            continue
        question, term = found
        answer = cut(" ".join(parts[i:]), rng.choice((len(sentence), 300, 450)))
        yield Turn(ask(question, term, rng), answer)
        if i and len(text) < 1500 and rng.random() < 0.5:
            forms = (
                "Answer the question from the text.",
                "Use the passage to answer.",
                "Read the text and answer the question.",
            )
            yield Turn(f"{rng.choice(forms)}\n\n{text}\n\nQuestion: {question}", sentence)
    if len(parts) >= 5 and len(text) < 2000 and rng.random() < 0.15:
        forms = ("Summarize the text in one sentence.", "What is this text about?")
        yield Turn(f"{rng.choice(forms)}\n\n{text}", parts[0])


def from_textbook(document: Document, rng: random.Random) -> Iterator[Turn]:
    """All turns that one textbook module offers."""
    paragraphs = [p.strip() for p in document.text.split("\n\n") if p.strip()]
    title = paragraphs[0].split("\n")[0][:80]
    for here, after in zip(paragraphs, [*paragraphs[1:], ""], strict=True):
        if len(here) > 150 and "\n- " not in here:
            yield from from_paragraph(here, rng)
        yield from _from_pair(here, after, title, rng)


def _from_pair(here: str, after: str, title: str, rng: random.Random) -> Iterator[Turn]:
    long_after = len(after) > 200 and not after.endswith("?") and "\n- " not in after
    if re.fullmatch(r"(Key Concepts and |Section |Chapter )?(Summary|Review)", here):
        if long_after:
            forms = ("Summarize the main points of {}.", "Give a summary of {}.")
            yield Turn(rng.choice(forms).format(title), cut(after, 900))
    elif is_heading(here) and long_after:
        forms = ("Tell me about {}.", "Write a short paragraph about {}.", "Explain: {}")
        yield Turn(rng.choice(forms).format(here), cut(after, 600))
        if rng.random() < 0.25:
            yield Turn(f"Give a short title for this text.\n\n{cut(after, 900)}", here)
    elif 20 < len(here) < 400 and here.endswith("?") and "\n" not in here and is_answer(after):
        yield Turn(here, after)
    if found := _OPTIONS.search(after):
        yield from _choice(here, found, rng)


def _choice(question: str, found: re.Match[str], rng: random.Random) -> Iterator[Turn]:
    options = [line[2:].strip() for line in found[1].strip().split("\n")]
    index = ord(found[2]) - ord("A")
    if len(question) > 500 or index >= len(options):
        return
    listed = "\n".join(f"{chr(65 + i)}. {o}" for i, o in enumerate(options))
    if rng.random() < 0.5:
        head = "Answer the question with the letter of the best option."
        yield Turn(f"{head}\n\n{question}\n{listed}", found[2])
    else:
        yield Turn(f"{question}\n{listed}", f"{found[2]}. {options[index]}")


def from_problem(document: Document, _rng: random.Random) -> Iterator[Turn]:
    """A worked word problem of GSM8K."""
    question, answer = document.text.split("\nAnswer: ", 1)
    answer = re.sub(r"\n#### (.+)", r"\nThe answer is \1.", answer)
    yield Turn(question.removeprefix("Question: "), answer)


# Clinical sources.

_CLINICAL_SYSTEM = (
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


_GENERAL = {
    "gsm8k-train": from_problem,
    **dict.fromkeys(("openstax-general", *TEXTBOOKS), from_textbook),
}
_CLINICAL = {
    "medquad": from_medquad,
    "mts-dialog-train": from_dialogue,
    "aci-bench-train": from_visit,
    "mtsamples-noleak": from_note,
    "e3c-en-ccby": from_case,
}


def turns_of(source: str, documents: Sequence[Document], seed: str) -> list[Turn]:
    """Turns of documents of one source, one in eight with a system message; novels offer none.

    The same seed makes the same turns.
    """
    rng = random.Random(seed)
    make = (_GENERAL | _CLINICAL).get(source)
    turns = [turn for document in documents for turn in make(document, rng)] if make else []
    lines = _CLINICAL_SYSTEM if source in _CLINICAL else _SYSTEM
    return [Turn(t.user, t.answer, rng.choice(lines)) if rng.random() < 0.125 else t for t in turns]

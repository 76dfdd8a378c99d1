"""Question/answer turns made from textbooks and word problems.

The textbooks carry no ready-made instruction data, but plenty of structure: sentences that
define a term, headings over sections, review questions with their answers, summaries.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from scripts.train_demo_trio.corpus import Document

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


def from_problem(document: Document) -> Turn:
    """A worked word problem of GSM8K."""
    question, answer = document.text.split("\nAnswer: ", 1)
    answer = re.sub(r"\n#### (.+)", r"\nThe answer is \1.", answer)
    return Turn(question.removeprefix("Question: "), answer)


def with_system(turns: list[Turn], rng: random.Random, system: tuple[str, ...] = ()) -> list[Turn]:
    """Give one turn in eight a system message."""
    lines = system or _SYSTEM
    return [Turn(t.user, t.answer, rng.choice(lines)) if rng.random() < 0.125 else t for t in turns]


def general_turns(documents: Sequence[Document], seed: str) -> list[Turn]:
    """Turns of textbooks and word problems; novels offer none."""
    rng = random.Random(seed)
    turns: list[Turn] = []
    for document in documents:
        if document.source == "gsm8k-train":
            turns.append(from_problem(document))
        elif document.source.startswith("openstax"):
            turns += from_textbook(document, rng)
    return with_system(turns, rng)

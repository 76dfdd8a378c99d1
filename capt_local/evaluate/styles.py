"""Prompt styles: how an item is put to a model, which examples are shown, and how answers are read.

A style is a TOML file. Its texts have places like `${input}`, which `string.Template` fills in one
pass: what is filled in is never looked at again, so a note may hold any sign. An answer is read
from the surest sign to the weakest; one that names two choices, or denies one, names none.
"""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from functools import cached_property
from importlib import resources
from importlib.resources.abc import Traversable
from pathlib import Path
from string import Template
from typing import Annotated, Any

import msgspec

from capt_local.bundles.manifest import NAME
from capt_local.errors import UsageError
from capt_local.evaluate.items import Item, Kind, folded
from capt_local.evaluate.layouts import Count, Name, as_struct, parse_toml
from capt_local.evaluate.metrics import library
from capt_local.evaluate.tasks import Task
from capt_local.prompting.messages import Message
from capt_local.strict_json import read_bytes


class FewShotBy(StrEnum):
    """Which examples are shown."""

    FIXED = "fixed"  # the first of the file
    NEAREST = "nearest"  # the nearest by TF-IDF, the nearest last


class FewShot:
    """Chooses examples.

    Args:
        examples: a task with the examples.
        count: how many to show.
        by: which.

    Raises:
        UsageError: there are fewer examples, or they are prose.
    """

    def __init__(self, examples: Task, count: int, by: FewShotBy = FewShotBy.FIXED) -> None:
        if examples.kind is Kind.PERPLEXITY:
            raise UsageError("The file of examples holds texts without answers.")
        if not 1 <= count <= len(examples.items):
            raise UsageError(
                f"{count} examples are asked for, but the file of examples has "
                f"{len(examples.items)}; ask for at least 1 and no more."
            )
        self.examples = examples
        self.count = count
        self.by = by

    def of(self, item: Item, task: Task) -> list[Item]:
        """The examples for an item, in the order in which they are shown.

        The item itself and any example with the same input are never among them.

        Raises:
            UsageError: too few are left, they are of another kind, or they hold no words.
        """
        if self.examples.kind is not task.kind:
            raise UsageError(f"The examples are for {self.examples.kind}, the task is {task.kind}.")
        places = self._places(item) if self.by is FewShotBy.NEAREST else range(len(self._inputs))
        same_file = self.examples is task or self.examples.digest == task.digest != ""
        own = folded(item.input)
        left = [
            place
            for place in places
            if self._inputs[place] != own
            and not (same_file and self.examples.items[place].id == item.id)
        ]
        if len(left) < self.count:
            raise UsageError(
                f"{self.count} examples are asked for, but only {len(left)} are not the question "
                "itself; ask for fewer."
            )
        chosen = left[: self.count]
        if self.by is FewShotBy.NEAREST:
            chosen.reverse()
        return [self.examples.items[place] for place in chosen]

    def _places(self, item: Item) -> list[int]:
        """All examples, the nearest first, equals in the order of the file."""
        vectorizer, matrix = self._index
        # Rows have length 1, so the product is the cosine.
        near = (matrix @ vectorizer.transform([item.input]).T).toarray()[:, 0]
        return sorted(range(len(near)), key=lambda place: (-near[place], place))

    @cached_property
    def _inputs(self) -> list[str]:
        return [folded(item.input) for item in self.examples.items]

    @cached_property
    def _index(self) -> tuple[Any, Any]:
        make = library("sklearn.feature_extraction.text").TfidfVectorizer
        vectorizer = make(sublinear_tf=True)
        try:
            return vectorizer, vectorizer.fit_transform(
                [item.input for item in self.examples.items]
            )
        except ValueError:
            raise UsageError("The examples hold no words to compare; use fixed ones.") from None


_QUOTES = "\"'`*_“”‘’«»"
_AROUND = _QUOTES + " \t.,:;!?()[]"
_LEAD_IN = re.compile(
    r"^(?:the\s+)?(?:(?:best|correct|final)\s+)?(?:answer|option|choice)\b\W*(?:is\b)?"
)
_LETTER_LEAD = r"(?:answer|option|choice)\b(?:\s+is)?\W*"
_OR = r"\s*(?:,|/|or\b|and\b)\s*(?:or\b|and\b)?\s*"
_DENIAL = re.compile(r"(?:\b(?:not|never|no|neither|nor|cannot|without)|n['’]t)\s+(?:\w+\s+)?$")
LETTERS = string.ascii_uppercase


def after_marker(answer: str, marker: str) -> str | None:
    """What stands behind the last marker, whatever its capitals; None where there is none."""
    found = list(re.finditer(re.escape(marker), answer, re.IGNORECASE))
    return answer[found[-1].end() :] if found else None


def named_choice(answer: str, choices: Sequence[str], *, letters: bool = False) -> str | None:
    """The choice that an answer names.

    Args:
        answer: of a model.
        choices: distinct.
        letters: whether the choices were shown with letters A, B, C, ... that may name them.

    Returns:
        The choice, by the first of these that holds: the answer is the choice; it begins with the
        choice as a word of its own; it has a letter in the form of an answer (as "(B)", "B." or
        "answer: B"); its first line with any choice in it has one alone, not denied. Else None.
    """
    if all(len(choice) == 1 for choice in choices):
        return _lettered(answer, {choice: choice for choice in choices}) or _whole(answer, choices)
    found = _whole(answer, choices) or _beginning(answer, choices)
    if found is None and letters:
        found = _lettered(answer, dict(zip(LETTERS, choices, strict=False)))
    return found or _within(answer, choices)


def vote(answers: Sequence[str | None]) -> str | None:
    """What most answers say; of those with as many, the one that was said first.

    Answers are the same but for capitals and spaces; None does not vote.
    """
    said = [answer for answer in answers if answer is not None]
    if not said:
        return None
    counts = Counter(folded(answer) for answer in said)
    # `max` takes the first of equals, and `said` is in the order in which they came.
    return max(said, key=lambda answer: counts[folded(answer)])


def _whole(answer: str, choices: Sequence[str]) -> str | None:
    bare = folded(answer.strip().strip(_AROUND))
    return next((choice for choice in choices if folded(choice) == bare), None)


def _beginning(answer: str, choices: Sequence[str]) -> str | None:
    text = folded(answer).lstrip(_AROUND)
    text = _LEAD_IN.sub("", text).lstrip(_AROUND)
    one = _pattern(choices).pattern
    match = re.match(one, text)
    if match is None or re.match(rf"{_OR}{one}\s*(?:$|[,/.;?]|or\b)", text[match.end() :]):
        return None
    return _of(match.group(), choices)


def _within(answer: str, choices: Sequence[str]) -> str | None:
    pattern = _pattern(choices)
    for line in answer.splitlines():
        text = folded(line)
        found = list(pattern.finditer(text))
        if found:
            named = {match.group() for match in found}
            denied = any(_DENIAL.search(text[: match.start()]) for match in found)
            return None if denied or len(named) > 1 else _of(named.pop(), choices)
    return None


def _lettered(answer: str, choices: dict[str, str]) -> str | None:
    """The choice by its letter; a bare "A" before a word is an article, not an answer."""
    one = f"[{re.escape(''.join(choices))}]"
    text = answer.strip().lstrip(_QUOTES + " ")
    if len(bare := text.strip(_AROUND)) == 1:
        # Alone, a letter means what it is, be it small.
        return choices.get(bare, choices.get(bare.upper()))
    no_other = rf"(?!\W?{_OR}\W?{one}\b)"
    forms = (
        rf"^\(?({one})(?:[.):,]|\s*$|\s*\n){no_other}",
        rf"(?i:{_LETTER_LEAD})\(?(?!A [a-z])({one})\b{no_other}",
        rf"\(({one})\)",
    )
    for form in forms:
        named = {match.group(1) for match in re.finditer(form, text)}
        if named:
            return choices[named.pop()] if len(named) == 1 else None
    return None


def _pattern(choices: Sequence[str]) -> re.Pattern[str]:
    """Any choice as words of its own; where one is a part of another, the longer one."""
    longest = sorted((folded(choice) for choice in choices), key=len, reverse=True)
    return re.compile(rf"(?<!\w)(?:{'|'.join(map(re.escape, longest))})(?!\w)")


def _of(found: str, choices: Sequence[str]) -> str:
    return next(choice for choice in choices if folded(choice) == found)


_PLACES = ("instruction", "input", "choices", "lettered", "no_answer", "marker")
_BETWEEN = "\n\n"
YES_NO = ("Yes", "No")
_LEAD = "\n\nAnswer:"


@dataclass(frozen=True, slots=True)
class Style:
    """How items are asked.

    Attributes:
        name: of the style.
        prompts: the question by kind, with places `${instruction}`, `${input}`, `${choices}` (with
            commas), `${lettered}` (one a line, with A, B, ...), `${no_answer}` and `${marker}`.
        system: text of a system message; "" for none.
        lead: for raw text: what stands between question and answer.
        marker: the answer is read behind it; "" reads all.
        few_shot: examples to show; None shows none.
        samples: answers for each item, of which most decide.
        temperature: of the samples; None leaves it to the user.
        max_tokens: the longest answer; None leaves it to the task.

    Raises:
        UsageError: a value has no meaning, or a text has an unknown place.
    """

    name: str
    prompts: dict[Kind, Template]
    system: str = ""
    lead: str = _LEAD
    marker: str = ""
    few_shot: FewShot | None = None
    samples: int = 1
    temperature: float | None = None
    max_tokens: int | None = None

    def __post_init__(self) -> None:
        """Refuses what could not be asked."""
        if not NAME.fullmatch(self.name):
            raise UsageError("The name of a style must be 1 to 64 letters, digits, '.-_'.")
        if self.samples < 1 or (self.max_tokens is not None and self.max_tokens < 1):
            raise UsageError("A style needs at least one sample and one token.")
        if self.temperature is not None and not 0 <= self.temperature <= 10:
            raise UsageError("The temperature of a style must be between 0 and 10.")
        if self.samples > 1 and self.temperature == 0:
            raise UsageError("Samples at temperature 0 are all the same; give a style more.")
        for prompt in self.prompts.values():
            if not prompt.is_valid() or not set(prompt.get_identifiers()) <= set(_PLACES):
                raise UsageError(
                    f"A prompt of the style {self.name} has a place that is not one of "
                    f"{', '.join(_PLACES)}; a dollar sign itself is $$."
                )

    @property
    def reads_text(self) -> bool:
        """Whether an answer must be a text: it is read behind a marker, or several are."""
        return bool(self.marker) or self.samples > 1

    def check(self, task: Task) -> None:
        """Whether the style can ask this task.

        Raises:
            UsageError: it cannot.
        """
        if task.kind not in self.prompts:
            raise UsageError(f"The style {self.name} has no prompt for {task.kind}.")
        if task.kind is Kind.GENERATION and self.samples > 1:
            raise UsageError(
                f"The style {self.name} takes the answer that most samples give, which long texts "
                "never share; use it for classifications."
            )
        if task.questions and self.few_shot:
            raise UsageError("A question for each label is asked without examples.")
        if self._lettered(task) and any(len(one.choices) > len(LETTERS) for one in task.items):
            raise UsageError(f"The style {self.name} has letters for {len(LETTERS)} choices.")

    def messages(self, item: Item, task: Task) -> list[Message]:
        """The conversation that asks for an answer: examples are earlier turns.

        Raises:
            UsageError: the style cannot ask this task, or has too few examples for it.
        """
        self.check(task)
        turns = [Message("system", self.system)] if self.system else []
        for shot in self._shown(item, task):
            turns += [
                Message("user", self._asked(shot, task)),
                Message("assistant", self._said(shot, task)),
            ]
        return [*turns, Message("user", self._asked(item, task))]

    def text(self, item: Item, task: Task) -> str:
        """The same as one text for a model without a chat template; the answer goes on behind it.

        Raises:
            UsageError: the style cannot ask this task, or has too few examples for it.
        """
        self.check(task)
        parts = [self.system] if self.system else []
        for shot in self._shown(item, task):
            parts.append(f"{self._asked(shot, task)}{self.lead} {self._said(shot, task)}")
        return _BETWEEN.join([*parts, self._asked(item, task) + self.lead])

    def question(self, item: Item, task: Task, label: str, *, raw: bool) -> str | list[Message]:
        """Whether one label applies, as a question that is answered with `YES_NO`."""
        options = "\n".join(f"-{answer}" for answer in YES_NO)
        text = f"{item.input}\n\n{task.questions[label]} Options:\n{options}"
        asked = replace(item, instruction="", input=text)
        return self.text(asked, task) if raw else self.messages(asked, task)

    def read(self, answer: str, item: Item, task: Task) -> str | None:
        """What an answer says: for a classification the choice that it names, else its text.

        Returns:
            None where it says nothing: no marker, no choice, or more than one.
        """
        said = after_marker(answer, self.marker) if self.marker else answer
        if said is None:
            return None
        if task.kind is not Kind.CLASSIFICATION:
            return said.strip() or None
        aliases = {word: choice for word, choice in task.aliases.items() if choice in item.choices}
        named = named_choice(said, (*item.choices, *aliases), letters=self._lettered(task))
        return aliases.get(named, named) if named is not None else None

    def choice_texts(self, item: Item, task: Task) -> tuple[str, ...]:
        """Each choice of a classification as an answer in this style says it."""
        return tuple(self._said(replace(item, reference=choice), task) for choice in item.choices)

    def _shown(self, item: Item, task: Task) -> list[Item]:
        return self.few_shot.of(item, task) if self.few_shot else []

    def _asked(self, item: Item, task: Task) -> str:
        lettered = zip(LETTERS, item.choices, strict=False)
        text = self.prompts[task.kind].substitute(
            instruction=item.instruction,
            input=item.input,
            choices=", ".join(item.choices),
            lettered="\n".join(f"{letter}. {choice}" for letter, choice in lettered),
            no_answer=task.no_answer,
            marker=self.marker,
        )
        return text if item.instruction else text.lstrip("\n")

    def _said(self, shot: Item, task: Task) -> str:
        said = shot.reference
        if self._lettered(task):
            said = LETTERS[shot.choices.index(said)]
        return f"{self.marker} {said}" if self.marker else said

    def _lettered(self, task: Task) -> bool:
        places = self.prompts[task.kind].get_identifiers()
        return task.kind is Kind.CLASSIFICATION and "lettered" in places


def style_names() -> list[str]:
    """The styles that come with the package."""
    return sorted(path.name.removesuffix(".toml") for path in _shipped().iterdir())


def read_style(
    which: str,
    *,
    examples: Task | None = None,
    shots: int | None = None,
    by: FewShotBy | None = None,
    samples: int | None = None,
) -> Style:
    """A style by its name, or from a file.

    Args:
        which: one of `style_names`, or the path of a TOML file.
        examples: what examples are taken from.
        shots: how many to show; None: as the style says; 0: none.
        by: which; None: as the style says.
        samples: answers for each item; None: as the style says.

    Raises:
        UsageError: there is no such style, it is broken, or it needs examples.
    """
    keys = _opened(which)
    count = keys.shots.count or 0 if shots is None else shots
    by = by or keys.shots.by
    style = _style_of(keys)
    if count and examples is None:
        raise UsageError(f"The style {style.name} shows {count} examples; name a file of them.")
    return replace(
        style,
        few_shot=FewShot(examples, count, by) if examples and count else None,
        samples=style.samples if samples is None else samples,
    )


def shows_examples(which: str) -> bool:
    """Whether a style shows examples where nobody says how many.

    Raises:
        UsageError: there is no such style, or its examples are not described as they should be.
    """
    return bool(_opened(which).shots.count)


class _ShotKeys(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    count: Count | None = None
    by: FewShotBy = FewShotBy.FIXED


class _PromptKeys(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    classification: str = ""
    generation: str = ""


class StyleFile(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The keys of a style file; see docs/tasks.md."""

    name: Name
    prompt: _PromptKeys = _PromptKeys()
    system: str = ""
    lead: str = _LEAD
    marker: str = ""
    shots: _ShotKeys = _ShotKeys()
    samples: Count = 1
    temperature: Annotated[float, msgspec.Meta(ge=0, le=10)] | None = None
    max_tokens: Count | None = None


def _opened(which: str) -> StyleFile:
    if NAME.fullmatch(which) and which in style_names():
        what = f"The style {which}"
        data = (_shipped() / f"{which}.toml").read_bytes()
    elif which.endswith(".toml"):
        what = "The style file"
        data = read_bytes(Path(which), what)
    else:
        raise UsageError(
            f"There is no such style; there are {', '.join(style_names())}, and files *.toml."
        )
    keys = as_struct(parse_toml(data, what), StyleFile, what)
    if not keys.prompt.classification and not keys.prompt.generation:
        raise UsageError(f"{what}: prompt needs a text for classification or generation.")
    return keys


def _style_of(keys: StyleFile) -> Style:
    texts = {
        Kind.CLASSIFICATION: keys.prompt.classification,
        Kind.GENERATION: keys.prompt.generation,
    }
    return Style(
        name=keys.name,
        prompts={kind: Template(text.strip()) for kind, text in texts.items() if text},
        system=keys.system.strip(),
        lead=keys.lead,
        marker=keys.marker.strip(),
        samples=keys.samples,
        temperature=keys.temperature,
        max_tokens=keys.max_tokens,
    )


def _shipped() -> Traversable:
    return resources.files("capt_local") / "data" / "styles"

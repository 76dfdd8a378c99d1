"""Prompt styles: how an item is put to a model, and how its answer is read.

A style is a TOML file. Its texts have places like `${input}`, which `string.Template` fills in one
pass: what is filled in is never looked at again, so a note may hold any sign.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from importlib import resources
from importlib.resources.abc import Traversable
from pathlib import Path
from string import Template

from capt_local.bundle.manifest import NAME
from capt_local.errors import UsageError
from capt_local.evaluate.reading.fields import Fields, parse_toml
from capt_local.evaluate.tasks.answers import LETTERS, after_marker, named_choice
from capt_local.evaluate.tasks.items import Item, Kind
from capt_local.evaluate.tasks.shots import Shots, ShotsBy
from capt_local.evaluate.tasks.task import Task
from capt_local.prompting.messages import Message
from capt_local.strict.files import read_bytes

_PLACES = ("instruction", "input", "choices", "lettered", "no_answer", "marker")
_BETWEEN = "\n\n"
_LEAD = "\n\nAnswer:"
_ASKED = (Kind.CLASSIFICATION, Kind.GENERATION)


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
        shots: examples to show; None shows none.
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
    shots: Shots | None = None
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
        return named_choice(said, item.choices, letters=self._lettered(task))

    def spoken(self, item: Item, task: Task) -> tuple[str, ...]:
        """Each choice of a classification as an answer in this style says it."""
        return tuple(self._said(replace(item, reference=choice), task) for choice in item.choices)

    def _shown(self, item: Item, task: Task) -> list[Item]:
        return self.shots.of(item, task) if self.shots else []

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
    by: ShotsBy | None = None,
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
    fields = _opened(which)
    count, chosen = _shots(fields)
    count = count if shots is None else shots
    by = by or chosen
    style = _parsed(fields)
    if count and examples is None:
        raise UsageError(f"The style {style.name} shows {count} examples; name a file of them.")
    return replace(
        style,
        shots=Shots(examples, count, by) if examples and count else None,
        samples=style.samples if samples is None else samples,
    )


def shows_examples(which: str) -> bool:
    """Whether a style shows examples where nobody says how many.

    Raises:
        UsageError: there is no such style, or its examples are not described as they should be.
    """
    return _shots(_opened(which))[0] > 0


def _shots(fields: Fields) -> tuple[int, ShotsBy]:
    table = fields.table("shots")
    count, by = table.count("count") or 0, table.choice("by", tuple(ShotsBy))
    table.done()
    return count, ShotsBy(by or ShotsBy.FIXED)


def _opened(which: str) -> Fields:
    if NAME.fullmatch(which) and which in style_names():
        return parse_toml((_shipped() / f"{which}.toml").read_bytes(), f"The style {which}")
    if not which.endswith(".toml"):
        raise UsageError(
            f"There is no such style; there are {', '.join(style_names())}, and files *.toml."
        )
    return parse_toml(read_bytes(Path(which), "The style file"), "The style file")


def _parsed(fields: Fields) -> Style:
    prompt = fields.table("prompt")
    prompts = {
        kind: Template(text.strip()) for kind in _ASKED if (text := prompt.optional_text(kind))
    }
    prompt.done()
    if not prompts:
        fields.fail("prompt", "needs a text for classification or generation")
    style = Style(
        name=fields.name("name"),
        prompts=prompts,
        system=fields.text("system", "").strip(),
        lead=fields.text("lead", _LEAD),
        marker=fields.text("marker", "").strip(),
        samples=fields.count("samples") or 1,
        temperature=fields.number("temperature", 0, 10),
        max_tokens=fields.count("max_tokens"),
    )
    fields.done()
    return style


def _shipped() -> Traversable:
    return resources.files("capt_local") / "data" / "styles"

"""Chat templates: which scaffolding a model expects around what people wrote.

A template never sees a message. It is rendered with a mark in the place of each message's
content, and what it wrote around the marks is the scaffolding. So no text can forge a turn, no
text is changed by a template (trimmed, cut or escaped), and no error of a template holds any.
"""

from __future__ import annotations

import datetime
import re
from collections.abc import Sequence
from dataclasses import dataclass

from jinja2 import Template
from jinja2.exceptions import SecurityError, TemplateError, TemplateSyntaxError, UndefinedError

from capt_local.bundles.manifest import ModelFile, Style
from capt_local.bundles.verify import check_template, read_template
from capt_local.errors import CaptError, ModelError, UsageError
from capt_local.prompting.messages import Message
from capt_local.prompting.sandbox import LimitReached, Limits, Sandbox
from capt_local.tokenization.vocabulary import Vocabulary

LARGEST_TEMPLATE = 1 << 16
_LONGEST_FORMAT = 200
_LONGEST_REFUSAL = 200
# Plane 15 is for private use: no text has a character of it by right.
_MARKS = range(0xF0000, 0xFFFFE)
_BETWEEN = "\n\n"
# Where templates look for the reasoning of a message.
_REASONING_KEYS = ("reasoning_content", "reasoning", "thinking", "thought")


@dataclass(frozen=True, slots=True)
class Scaffold:
    """What a template wrote around messages.

    Attributes:
        parts: scaffolding as text, and in the places of the messages their indexes; each message
            once, in order. No part is empty.
        notices: what the user should be told.
    """

    parts: tuple[str | int, ...]
    notices: tuple[str, ...] = ()


class _Refusal(Exception):
    """The template called `raise_exception`."""


class _NotInOrder(Exception):
    """A message is left out, repeated or moved; the text says which, by its role."""


class ChatTemplate:
    """A chat template in Jinja, as it stands in a GGUF file.

    Attributes:
        role: as given.
        source: as given.

    Args:
        source: of the template, at most 64 KiB.
        role: of the model, for errors.
        date: what `strftime_now` takes for today; None: today.
        bos: how the template is to write the token that begins a sequence.
        eos: how it is to write the token that ends one.
        limits: what one rendering may take.

    Raises:
        ModelError: it is too large or not a template.
    """

    def __init__(
        self,
        source: str,
        *,
        role: str = "target",
        date: datetime.date | None = None,
        bos: str = "",
        eos: str = "",
        limits: Limits | None = None,
    ) -> None:
        self.role = role
        self.source = source
        self._date = date or datetime.date.today()
        self._words = {"bos_token": bos, "eos_token": eos}
        self._limits = limits or Limits()
        if len(source.encode("utf-8", "replace")) > LARGEST_TEMPLATE:
            raise self._broken(f"is larger than {LARGEST_TEMPLATE // 1024} KiB")
        taken = set(source + bos + eos)
        self._mark = next(chr(code) for code in _MARKS if chr(code) not in taken)
        sandbox = Sandbox(self._limits)
        try:
            self._code = sandbox.compile(sandbox.metered(source))
        except Exception as error:  # a program by strangers may fail in any way
            raise self._explained(error) from None

    def scaffold(
        self, messages: Sequence[Message], *, add_generation_prompt: bool = True
    ) -> Scaffold:
        """The scaffolding for a conversation.

        If the template refuses or drops a system message in front, its text goes in front of the
        first user message, with an empty line between; a notice says so.

        Args:
            messages: of the conversation; only their roles and order matter.
            add_generation_prompt: whether the answer is to begin behind it.

        Raises:
            ModelError: the template is broken, takes too much, or drops or moves messages.
            UsageError: the template refuses this order of roles.
        """
        contents = [self._content(index) for index in range(len(messages))]
        turns = [
            {"role": message.role, "content": content}
            for message, content in zip(messages, contents, strict=True)
        ]
        try:
            return Scaffold(self._parts(turns, messages, add_generation_prompt))
        except (_Refusal, _NotInOrder) as error:
            if [message.role for message in messages[:2]] == ["system", "user"]:
                first = {"role": "user", "content": contents[0] + _BETWEEN + contents[1]}
                folded = self._folded([first, *turns[2:]], messages, add_generation_prompt)
                if folded is not None:
                    return folded
            raise self._refused(error) from None

    def behind_answers(self) -> tuple[str, ...]:
        """What the template writes behind an answer, in a conversation that goes on and at its end.

        Empty where it refuses such conversations.
        """
        found = []
        for roles in (("user", "assistant", "user"), ("user", "assistant")):
            turns = [
                {"role": role, "content": self._content(index)} for index, role in enumerate(roles)
            ]
            try:
                written = self._render(turns, False)
            except (_Refusal, ModelError):
                continue
            found.append(written.rpartition(self._content(1))[2].partition(self._mark)[0])
        return tuple(found)

    def around_reasoning(self) -> tuple[str, str, str] | None:
        """How the template writes reasoning in front of an answer.

        Returns:
            Scaffolding of a question up to where the model writes, that of the same question up
            to the reasoning, and what stands between the reasoning and the answer. None where the
            template writes no reasoning.
        """
        question, answer, reasoning = (self._content(index) for index in range(3))
        turns = [
            {"role": "user", "content": question},
            {"role": "assistant", "content": answer, **dict.fromkeys(_REASONING_KEYS, reasoning)},
        ]
        try:
            prompt, written = self._render(turns[:1], True), self._render(turns, False)
        except (_Refusal, ModelError):
            return None
        before, found, rest = written.partition(reasoning)
        between, answered, _ = rest.partition(answer)
        if not found or not answered or self._mark in between:
            return None
        return prompt.rpartition(self._mark)[2], before.rpartition(self._mark)[2], between

    def around_answer(self) -> tuple[str, str] | None:
        """Scaffolding of a question up to where the model writes, and up to a written answer."""
        question, answer = self._content(0), self._content(1)
        turns = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
        try:
            prompt, written = self._render(turns[:1], True), self._render(turns, False)
        except (_Refusal, ModelError):
            return None
        before = written.partition(answer)[0]
        return prompt.rpartition(self._mark)[2].strip(), before.rpartition(self._mark)[2].strip()

    def _folded(
        self, turns: list[dict[str, str]], messages: Sequence[Message], answer: bool
    ) -> Scaffold | None:
        try:
            parts = self._parts(turns, messages, answer)
        except (_Refusal, _NotInOrder):
            return None
        notice = (
            f"The chat template of the {self.role} takes no system message at the beginning: the "
            "system text stands in front of the first user message instead."
        )
        return Scaffold(parts, (notice,))

    def _parts(
        self, turns: list[dict[str, str]], messages: Sequence[Message], answer: bool
    ) -> tuple[str | int, ...]:
        rendered = self._render(turns, answer)
        # Every second piece is what stood between two marks, which is the index of a message.
        pieces = re.split(f"{self._mark}([0-9]+){self._mark}", rendered)
        found = [int(index) for index in pieces[1::2]]
        for index, message in enumerate(messages):
            if found.count(index) != 1:
                times = "leaves out" if index not in found else "repeats"
                raise _NotInOrder(f"{times} message {index + 1} ({message.role})")
        if found != sorted(found) or any(self._mark in piece for piece in pieces[::2]):
            raise _NotInOrder("changes or moves the messages")
        parts = [int(piece) if place % 2 else piece for place, piece in enumerate(pieces)]
        return tuple(part for part in parts if part != "")

    def _render(self, turns: list[dict[str, str]], answer: bool) -> str:
        sandbox = Sandbox(self._limits.for_messages(len(turns)))
        functions = {"raise_exception": _raise_exception, "strftime_now": self._strftime}
        template = Template.from_code(sandbox, self._code, sandbox.make_globals(functions))
        said = {"messages": turns, "add_generation_prompt": answer, **self._words}
        try:
            try:
                return template.render(said, tools=None, documents=None)
            except TypeError:  # some templates loop over their tools without a look
                return template.render(said, tools=[], documents=[])
        except _Refusal:
            raise
        except Exception as error:  # a program by strangers may fail in any way
            raise self._explained(error) from None

    def _strftime(self, form: str) -> str:
        if len(form) > _LONGEST_FORMAT:
            raise LimitReached("it writes a date that is too long")
        return datetime.datetime.combine(self._date, datetime.time()).strftime(form)

    def _content(self, index: int) -> str:
        return f"{self._mark}{index}{self._mark}"

    def _refused(self, error: _Refusal | _NotInOrder) -> CaptError:
        if isinstance(error, _NotInOrder):
            return self._broken(str(error))
        said = _plain(str(error))[:_LONGEST_REFUSAL]
        return UsageError(
            f"The chat template of the {self.role} refuses this conversation: {said or 'no reason'}"
        )

    def _explained(self, error: Exception) -> ModelError:
        if isinstance(error, TemplateSyntaxError):
            return self._broken(
                f"has a mistake in line {error.lineno}: {_plain(str(error.message))}"
            )
        if isinstance(error, LimitReached):
            return self._broken(f"was stopped: {_plain(str(error))}")
        if isinstance(error, SecurityError):
            return self._broken(f"does what templates may not do: {_plain(str(error))}")
        if isinstance(error, UndefinedError | TemplateError):
            return self._broken(f"fails: {_plain(str(error))}")
        return self._broken(f"fails with a {type(error).__name__}")

    def _broken(self, problem: str) -> ModelError:
        return ModelError(
            f"The chat template of the {self.role} {problem.rstrip('.')[:300]}. "
            "Name another template in the bundle, or use --raw."
        )


def _raise_exception(message: object) -> None:
    raise _Refusal(str(message))


def _plain(text: str) -> str:
    """Text of a stranger's program for one line of an error: printable ASCII alone."""
    return "".join(char if " " <= char <= "~" else " " for char in text).strip()


PLAIN = "{% for message in messages %}{{ message.content }}{{ '\\n\\n' }}{% endfor %}"
CHATML = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
NAMED_TEMPLATES = {"plain": PLAIN, "chatml": CHATML}


def named_template(name: str) -> str:
    """The source of a built-in template.

    Raises:
        ModelError: there is none of that name.
    """
    try:
        return NAMED_TEMPLATES[name]
    except KeyError:
        known = ", ".join(NAMED_TEMPLATES)
        raise ModelError(
            f"No built-in chat template has the name {name!r}; known: {known}."
        ) from None


def given_template(argument: str) -> str:
    """The source of the template that `--template NAME|FILE` names.

    Raises:
        UsageError: it is neither a known name nor a readable file of UTF-8.
    """
    if argument in NAMED_TEMPLATES:
        return NAMED_TEMPLATES[argument]
    try:
        with open(argument, "rb") as stream:
            return stream.read(LARGEST_TEMPLATE + 1).decode()
    except OSError as error:
        raise UsageError(
            f"--template takes {', '.join(NAMED_TEMPLATES)}, or a file, and that cannot be read: "
            f"{error.strerror}."
        ) from None
    except UnicodeDecodeError:
        raise UsageError("The file of --template is not UTF-8.") from None


def has_template(model: ModelFile, own: str | None) -> bool:
    """Whether a model can be asked without `--template` or `--raw`.

    Args:
        model: as the bundle describes it.
        own: the template in the GGUF file, if there is one.
    """
    named = model.template_file is not None or model.template is not None
    return named or model.style is Style.RAW or own is not None


def open_template(
    model: ModelFile,
    own: str | None,
    vocabulary: Vocabulary,
    *,
    given: str | None = None,
    date: datetime.date | None = None,
) -> ChatTemplate:
    """The chat template that a model is to be asked with.

    What the user gives comes first, for the target and for models that have none; then what the
    bundle names, then the one in the model's file. A model in raw style takes the text as it is;
    for a conversation that is `plain`.

    Args:
        model: as the bundle describes it.
        own: the template in the GGUF file, if there is one.
        vocabulary: of the model; says how a template writes BOS and EOS.
        given: the source of the template that the user gives; see `given_template`.
        date: what it takes for today; None: today.

    Raises:
        ModelError: there is none, it is broken, or not the one that the bundle names.
    """
    if given is not None and (model.role == "target" or not has_template(model, own)):
        source = given
    elif model.template_file is not None:
        source = read_template(model)
    elif model.template is not None:
        source = named_template(model.template)
    elif model.style is Style.RAW:
        source = PLAIN
    elif own is not None:
        check_template(model, own.encode("utf-8"))
        source = own
    else:
        raise ModelError(
            f"The {model.role} has no chat template: use --raw, give one with --template, or name "
            f'one in the bundle (template = "plain").'
        )

    def written(token: int | None) -> str:
        return "" if token is None else vocabulary.piece(token).decode("utf-8", "replace")

    bos, eos = written(vocabulary.bos), written(vocabulary.eos)
    return ChatTemplate(source, role=model.role, date=date, bos=bos, eos=eos)

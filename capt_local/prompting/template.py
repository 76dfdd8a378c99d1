"""Chat templates: the scaffolding that a model expects around messages.

A template never sees a message. It is rendered with a placeholder for the content of each message,
and its output around the placeholders is the scaffolding. So no text can forge a turn, no template
can change a text (trim, cut or escape it), and errors of templates never contain text.
"""

from __future__ import annotations

import contextlib
import datetime
import re
from collections.abc import Sequence
from typing import NamedTuple

from jinja2 import Template
from jinja2.exceptions import SecurityError, TemplateError, TemplateSyntaxError, UndefinedError

from capt_local.bundles.manifest import ModelFile, Style
from capt_local.bundles.verify import check_template, read_template
from capt_local.errors import CaptError, ModelError, UsageError
from capt_local.prompting.messages import Message
from capt_local.prompting.sandbox import LimitReached, Sandbox
from capt_local.tokenization import Vocabulary

LARGEST_TEMPLATE = 1 << 16
_LONGEST_FORMAT = 200
_LONGEST_REFUSAL = 200
# Placeholder characters, from the private use plane 15, which texts do not use.
_MARKS = range(0xF0000, 0xFFFFE)
_BETWEEN = "\n\n"
_FOLDED = (
    "The chat template of the {} takes no system message at the beginning: the system text stands "
    "in front of the first user message instead."
)
# Where templates look for the reasoning of a message.
_REASONING_KEYS = ("reasoning_content", "reasoning", "thinking", "thought")


class Scaffold(NamedTuple):
    """The scaffolding of a conversation, and messages for the user."""

    # Scaffolding as text, alternating with the indexes of the messages; each message once, in
    # order. No part is empty.
    parts: tuple[str | int, ...]
    notices: tuple[str, ...] = ()


class _Refusal(Exception):
    """The template called `raise_exception`."""


class _NotInOrder(Exception):
    """A message is left out, repeated or moved; the text says which, by its role."""


class ChatTemplate:
    """A chat template in Jinja, as in GGUF files.

    Args:
        source: of the template, at most 64 KiB.
        role: of the model, for errors.
        date: the date for `strftime_now`; None: today.
        bos: the value of `bos_token`.
        eos: the value of `eos_token`.

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
    ) -> None:
        self.role = role
        self.source = source
        self._date = date or datetime.date.today()
        self._words = {"bos_token": bos, "eos_token": eos}
        if len(source.encode("utf-8", "replace")) > LARGEST_TEMPLATE:
            raise self._broken(f"is larger than {LARGEST_TEMPLATE // 1024} KiB")
        taken = set(source + bos + eos)
        self._mark = next(chr(code) for code in _MARKS if chr(code) not in taken)
        sandbox = Sandbox()
        try:
            self._code = sandbox.compile(sandbox.metered(source))
        except Exception as error:  # a program by strangers may fail in any way
            raise self._explained(error) from None

    def scaffold(self, messages: Sequence[Message]) -> Scaffold:
        """The scaffolding of a conversation, including the generation prompt.

        If the template refuses or drops the system message, its text is put before the first user
        message, with an empty line between them; a notice says so.

        Raises:
            ModelError: the template is broken, exceeds a limit, or drops or moves messages.
            UsageError: the template refuses this order of roles.
        """
        turns = [self._turn(message.role, index) for index, message in enumerate(messages)]
        try:
            return Scaffold(self._parts(turns, messages))
        except (_Refusal, _NotInOrder) as error:
            if [message.role for message in messages[:2]] == ["system", "user"]:
                both = self._content(0) + _BETWEEN + self._content(1)
                with contextlib.suppress(_Refusal, _NotInOrder):
                    parts = self._parts([{"role": "user", "content": both}, *turns[2:]], messages)
                    return Scaffold(parts, (_FOLDED.format(self.role),))
            raise self._refused(error) from None

    def text_after_answers(self) -> tuple[str, ...]:
        """The text that the template writes after an answer: before another turn, and at the end.

        Empty if it refuses such conversations.
        """
        question, answer = self._turn("user", 0), self._turn("assistant", 1)
        found = []
        for turns in ([question, answer, self._turn("user", 2)], [question, answer]):
            written = self._try_render(turns, False)
            if written is not None:
                found.append(written.rpartition(self._content(1))[2].partition(self._mark)[0])
        return tuple(found)

    def around_answer(self, *, reasoning: bool) -> tuple[str, str, str] | None:
        """The scaffolding around an answer, with or without reasoning before it.

        Returns:
            The generation prompt after a question; the scaffolding after the same question up to
            the reasoning (without reasoning: up to the answer); and the scaffolding between
            reasoning and answer. None if the template writes no answer, or no reasoning.
        """
        question, answer = self._turn("user", 0), self._turn("assistant", 1)
        first = 2 if reasoning else 1
        if reasoning:
            answer |= dict.fromkeys(_REASONING_KEYS, self._content(first))
        prompt, written = (
            self._try_render([question], True),
            self._try_render([question, answer], False),
        )
        if prompt is None or written is None:
            return None
        before, found, rest = written.partition(self._content(first))
        between, answered, _ = rest.partition(self._content(1))
        if reasoning and (not found or not answered or self._mark in between):
            return None
        return prompt.rpartition(self._mark)[2], before.rpartition(self._mark)[2], between

    def _parts(
        self, turns: list[dict[str, str]], messages: Sequence[Message]
    ) -> tuple[str | int, ...]:
        rendered = self._render(turns, True)
        # Every second piece is the index between a pair of placeholder characters.
        pieces = re.split(f"{self._mark}([0-9]{{1,9}}){self._mark}", rendered)
        found = [int(index) for index in pieces[1::2]]
        for index, message in enumerate(messages):
            if found.count(index) != 1:
                times = "leaves out" if index not in found else "repeats"
                raise _NotInOrder(f"{times} message {index + 1} ({message.role})")
        # A template could forge placeholders from parts of the given ones.
        if found != [*range(len(messages))] or any(self._mark in piece for piece in pieces[::2]):
            raise _NotInOrder("changes or moves the messages")
        parts = [int(piece) if place % 2 else piece for place, piece in enumerate(pieces)]
        return tuple(part for part in parts if part != "")

    def _try_render(self, turns: list[dict[str, str]], answer: bool) -> str | None:
        """The rendered turns; None if the template refuses them or fails."""
        try:
            return self._render(turns, answer)
        except (_Refusal, ModelError):
            return None

    def _render(self, turns: list[dict[str, str]], answer: bool) -> str:
        sandbox = Sandbox(len(turns))
        functions = {"raise_exception": _raise_exception, "strftime_now": self._strftime}
        template = Template.from_code(sandbox, self._code, sandbox.make_globals(functions))
        context = {"messages": turns, "add_generation_prompt": answer, **self._words}
        try:
            try:
                return template.render(context, tools=None, documents=None)
            except TypeError:  # some templates loop over `tools` without checking for None
                return template.render(context, tools=[], documents=[])
        except _Refusal:
            raise
        except Exception as error:  # a program by strangers may fail in any way
            raise self._explained(error) from None

    def _strftime(self, form: str) -> str:
        if len(form) > _LONGEST_FORMAT:
            raise LimitReached("it writes a date that is too long")
        return datetime.datetime.combine(self._date, datetime.time()).strftime(form)

    def _turn(self, role: str, index: int) -> dict[str, str]:
        return {"role": role, "content": self._content(index)}

    def _content(self, index: int) -> str:
        """The placeholder for the content of a message."""
        return f"{self._mark}{index}{self._mark}"

    def _refused(self, error: _Refusal | _NotInOrder) -> CaptError:
        if isinstance(error, _NotInOrder):
            return self._broken(str(error))
        why = _plain(str(error))[:_LONGEST_REFUSAL]
        return UsageError(
            f"The chat template of the {self.role} refuses this conversation: {why or 'no reason'}"
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
    """Untrusted text for one line of an error message: printable ASCII only."""
    return "".join(char if " " <= char <= "~" else " " for char in text).strip()


PLAIN = "{% for message in messages %}{{ message.content }}{{ '\\n\\n' }}{% endfor %}"
CHATML = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
NAMED_TEMPLATES = {"plain": PLAIN, "chatml": CHATML}


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


def open_template(
    model: ModelFile,
    own: str | None,
    vocabulary: Vocabulary,
    *,
    given: str | None = None,
    date: datetime.date | None = None,
) -> ChatTemplate:
    """The chat template to use for a model.

    In order of precedence: the user's, for the target and for models without a template; that of
    the bundle; that of the GGUF file. A model in raw style reads text without scaffolding, and a
    conversation with the template `plain`.

    Args:
        model: as the bundle describes it.
        own: the template in the GGUF file, if there is one.
        vocabulary: of the model, for the values of `bos_token` and `eos_token`.
        given: the source of the user's template; see `given_template`.
        date: see `ChatTemplate`.

    Raises:
        ModelError: there is none, it is broken, or not the one that the bundle names.
    """
    without = model.template_file is None and model.template is None and own is None
    if given is not None and (model.role == "target" or (without and model.style is not Style.RAW)):
        source = given
    elif model.template_file is not None:
        source = read_template(model)
    elif model.template is not None:
        if model.template not in NAMED_TEMPLATES:
            raise ModelError(
                f"No built-in chat template has the name {model.template!r}; known: "
                f"{', '.join(NAMED_TEMPLATES)}."
            )
        source = NAMED_TEMPLATES[model.template]
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

"""Puts a question to one model: in its own template and its own tokens."""

from __future__ import annotations

import dataclasses
import datetime
from collections.abc import Sequence

from capt_local.bundle.manifest import ModelFile
from capt_local.errors import UsageError
from capt_local.prompt.build import build_chat, build_raw
from capt_local.prompt.markers import ReasoningMarkers, find_markers
from capt_local.prompt.messages import Message, Prompt
from capt_local.prompt.named import open_template
from capt_local.prompt.template import ChatTemplate
from capt_local.vocab.tokenizer import TextTokenizer


class Asker:
    """Makes the prompts of one model.

    Args:
        file: the model as the bundle describes it.
        own: the chat template in the model's file, if there is one.
        tokenizer: of the model.
        date: what the template takes for today; None: today.
    """

    def __init__(
        self,
        file: ModelFile,
        own: str | None,
        tokenizer: TextTokenizer,
        date: datetime.date | None = None,
    ) -> None:
        """Opens no template yet: raw text needs none."""
        self._file = file
        self._own = own
        self._tokenizer = tokenizer
        self._date = date
        self._template: ChatTemplate | None = None
        self._found: ReasoningMarkers | None = None
        self._looked = False

    def prompt(self, asked: str | Sequence[Message], *, raw: bool) -> Prompt:
        """The prompt of a question, a conversation, or a text to go on with.

        Raises:
            UsageError: it is empty, not text, or of the wrong form.
            ModelError: the template or the vocabulary cannot take it.
        """
        if raw:
            if not isinstance(asked, str):
                raise UsageError("A conversation has no raw form: give a text.")
            return build_raw(_utf8(asked), self._tokenizer, role=self._file.role)
        messages = [Message("user", asked)] if isinstance(asked, str) else asked
        made = build_chat(messages, self.template(), self._tokenizer)
        return dataclasses.replace(made, markers=self._markers())

    def template(self) -> ChatTemplate:
        """The chat template, opened once."""
        if self._template is None:
            vocabulary = self._tokenizer.vocabulary
            self._template = open_template(
                self._file,
                self._own,
                bos=self._written(vocabulary.bos),
                eos=self._written(vocabulary.eos),
                date=self._date,
            )
        return self._template

    def _markers(self) -> ReasoningMarkers | None:
        """Those of the model's thoughts, looked for once."""
        if not self._looked:
            found = find_markers(self._tokenizer.vocabulary, self.template().source)
            self._looked, self._found = True, found
        return self._found

    def _written(self, token: int | None) -> str:
        """How a template writes a token."""
        if token is None:
            return ""
        return self._tokenizer.vocabulary.piece(token).decode("utf-8", "replace")


def _utf8(text: str) -> bytes:
    try:
        return text.encode()
    except UnicodeEncodeError:
        # The error itself holds the text.
        raise UsageError("The prompt holds half of a character (a lone surrogate).") from None

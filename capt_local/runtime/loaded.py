"""Models that are loaded, with what is needed to ask them."""

from __future__ import annotations

import datetime
from collections.abc import Callable, Mapping, Sequence

from capt_local.bundles.manifest import Bundle, ModelFile
from capt_local.decoding.assembly import Assembly, first_pair_notice
from capt_local.decoding.cached import CachedModel
from capt_local.decoding.generation import Generation
from capt_local.decoding.options import GenerateOptions
from capt_local.decoding.prompt_evidence import Memory
from capt_local.decoding.trio import Trio
from capt_local.llama.load_models import vocabulary_notices
from capt_local.llama.model import LlamaModel
from capt_local.prompting.build import PromptBuilder, vocabulary_with_turn_ends
from capt_local.prompting.messages import Message, Prompt
from capt_local.runtime.many import Side
from capt_local.tokenization.tokenizer import TextTokenizer

Asked = str | Sequence[Message]


class Loaded:
    """The models of a bundle, their templates, and the tables between them.

    Attributes:
        bundle: what was opened.
        models: the loaded models by role.
        notices: what the user should know about the bundle.
        template: the source of the chat template that was given; None: the models' own.
    """

    def __init__(
        self,
        bundle: Bundle,
        models: Mapping[str, LlamaModel],
        date: datetime.date | None = None,
        template: str | None = None,
    ) -> None:
        """See `Runtime.open`."""
        self.bundle = bundle
        self.template = template
        self.models = dict(models)
        told = dict.fromkeys(note for model in models.values() for note in model.notes)
        self.notices = [*bundle.notices, *told, *vocabulary_notices(models)]
        if bundle.pairs > 1 and {"expert", "base"} & set(models) and "expert-2" not in models:
            self.notices.append(first_pair_notice(bundle.pairs))
        templates = {role: model.metadata.chat_template for role, model in models.items()}
        files: dict[str, ModelFile] = dict(bundle.models.items())
        self._add_turn_ends(files, templates, template)
        self._cached = {role: CachedModel(role, model) for role, model in models.items()}
        self._tokenizers: dict[str, TextTokenizer] = {
            role: TextTokenizer(model.vocabulary, model.tokenize) for role, model in models.items()
        }
        self._askers = {
            role: PromptBuilder(
                files[role], templates[role], self._tokenizers[role], date, template
            )
            for role in models
        }
        self._current: Generation | None = None
        self._memory = Memory()
        self._assembly = Assembly(self._cached, self._tokenizers, self._missing)
        self._side = Side(self.models, self._assembly, self._prompt)

    def _add_turn_ends(
        self,
        files: Mapping[str, ModelFile],
        templates: Mapping[str, str | None],
        given: str | None,
    ) -> None:
        """Has what the templates write behind answers end them; alike where vocabularies are."""
        own = {role: model.vocabulary for role, model in self.models.items()}
        made = {
            role: vocabulary_with_turn_ends(
                files[role], templates[role], own[role], model.tokenize, given
            )
            for role, model in self.models.items()
        }
        for role, model in self.models.items():
            ends = {
                token
                for other, vocabulary in made.items()
                if vocabulary is not own[other] and own[role].same_as(own[other])
                for token in vocabulary.end_ids.tolist()
            }
            if ends:
                model.weights.vocabulary = own[role].with_ends(ends)

    def _begin(
        self,
        options: GenerateOptions,
        cancel: Callable[[], bool] | None,
        *,
        scoring: bool = False,
    ) -> Trio:
        """The models for a new text; what was being made has ended."""
        self._end_current()
        trio = self._assembly.trio(options, scoring=scoring)
        trio.configure(options.combine)
        for model in self.models.values():
            model.should_stop = cancel
        return trio

    def _prompts(self, trio: Trio, asked: Asked, *, raw: bool) -> dict[str, Prompt]:
        """The prompt of each model, by role."""
        return {each.role: self._prompt(each.role, asked, raw) for each in trio.models}

    def _prompt(self, role: str, asked: Asked, raw: bool) -> Prompt:
        return self._askers[role].prompt(asked, raw=raw)

    def _end_current(self) -> None:
        """Ends an unfinished answer: the models can follow one text at a time."""
        if self._current is not None:
            self._current.end()
            self._current = None

    def _missing(self, role: str) -> str:
        """What to say where a method needs a model that is not loaded."""
        return (
            f"The bundle {self.bundle.id} has no {role}: give --expert and --base, or use "
            "--method target."
        )

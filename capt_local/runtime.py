"""The public face: open a bundle, ask, read the answer step by step.

with Runtime.open("demo") as runtime:
    for step in runtime.generate("What are the signs of asthma?", GenerateOptions()):
        ...
"""

from __future__ import annotations

import dataclasses
import datetime
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Self

from capt_local.bundle import store
from capt_local.bundle.manifest import Bundle, ModelFile
from capt_local.bundle.roles import roles as roles_of
from capt_local.bundle.verify import verify
from capt_local.decode.answers import Answers, AnswerScore, Choosing, Chosen, as_utf8
from capt_local.decode.assembly import Assembly, first_pair_notice
from capt_local.decode.cached import CachedModel, common_length
from capt_local.decode.evidence import Evidence
from capt_local.decode.generation import Generation
from capt_local.decode.options import GenerateOptions
from capt_local.decode.prompt_evidence import Memory
from capt_local.decode.score import TextScore, opening, score_text
from capt_local.decode.trio import Trio
from capt_local.engine.llama import LlamaModel
from capt_local.engine.options import LoadOptions
from capt_local.engine.several import open_models, vocabulary_notices
from capt_local.errors import UsageError
from capt_local.prompt.asking import Asker
from capt_local.prompt.messages import Message, Prompt
from capt_local.vocab.tokenizer import TextTokenizer

Progress = Callable[[str, float], None]
Asked = str | Sequence[Message]


class Runtime:
    """A bundle that is loaded and can answer. Use it as a context manager.

    Attributes:
        bundle: what was opened.
        models: the loaded models by role.
        notices: what the user should know about the bundle.
    """

    def __init__(
        self,
        bundle: Bundle,
        models: Mapping[str, LlamaModel],
        date: datetime.date | None = None,
    ) -> None:
        """See `open`."""
        self.bundle = bundle
        self.models = dict(models)
        told = dict.fromkeys(note for model in models.values() for note in model.notes)
        self.notices = [*bundle.notices, *told, *vocabulary_notices(models)]
        if bundle.pairs > 1 and {"expert", "base"} & set(models) and "expert-2" not in models:
            self.notices.append(first_pair_notice(bundle.pairs))
        self._cached = {role: CachedModel(role, model) for role, model in models.items()}
        self._tokenizers: dict[str, TextTokenizer] = {
            role: TextTokenizer(model.vocabulary, model.tokenize) for role, model in models.items()
        }
        templates = {role: model.metadata.chat_template for role, model in models.items()}
        files: dict[str, ModelFile] = dict(bundle.models.items())
        self._askers = {
            role: Asker(files[role], templates[role], self._tokenizers[role], date)
            for role in models
        }
        self._current: Generation | None = None
        self._memory = Memory()
        self._assembly = Assembly(self._cached, self._tokenizers, self._missing)

    @classmethod
    def open(
        cls,
        bundle: str | Path | Bundle = "demo",
        *,
        load: LoadOptions | None = None,
        progress: Progress | None = None,
        check: bool = True,
        date: datetime.date | None = None,
        roles: Iterable[str] | None = None,
    ) -> Runtime:
        """Loads a bundle.

        Args:
            bundle: an id ("demo" travels with the package), a path, or a bundle.
            load: how the models are loaded; a context given here wins.
            progress: called with a role and the share of its file that is checked, then loaded.
            check: whether the digests are checked first.
            date: what the templates take for today; None: today.
            roles: which models are needed; None: all.

        Raises:
            ModelError: a file is missing, broken or not the one that the manifest names.
            MemoryShortage: the models do not fit.
            UsageError: the bundle has no model for a role.
        """
        found = bundle if isinstance(bundle, Bundle) else store.find(bundle)
        wanted = set(found.models if roles is None else roles)
        if missing := wanted - set(found.models):
            raise UsageError(f"The bundle {found.id} has no {' and no '.join(sorted(missing))}.")
        files = {role: found.models[role] for role in roles_of(found.pairs) if role in wanted}
        load = load or LoadOptions()
        if load.context is None and found.context is not None:
            load = dataclasses.replace(load, context=found.context)
        if check:
            verify(dataclasses.replace(found, models=files), progress)
        paths = {role: file.path for role, file in files.items()}
        return cls(found, open_models(paths, load, progress, found.adapters), date)

    def generate(
        self,
        prompt: Asked,
        options: GenerateOptions | None = None,
        *,
        raw: bool = False,
        cancel: Callable[[], bool] | None = None,
    ) -> Generation:
        """Answers. A new answer ends the one before it.

        Args:
            prompt: one question, or a conversation that ends with the user's turn.
            options: how.
            raw: goes on with the text as it is, without a template.
            cancel: asked during long computations and between steps; true ends the answer as
                interrupted.

        Raises:
            UsageError: the prompt is empty, or the method needs models that are not there.
            ContextOverflow: the prompt does not fit; nothing was computed.
        """
        options = options or GenerateOptions()
        trio = self._begin(options, cancel)
        self._current = Generation(
            trio,
            self._prompts(trio, prompt, raw=raw),
            options,
            cancel,
            self._memory,
            self._assembly.notices(options.method),
        )
        return self._current

    def score(
        self,
        text: bytes,
        options: GenerateOptions | None = None,
        *,
        cancel: Callable[[], bool] | None = None,
    ) -> TextScore:
        """Log-likelihood of a text (UTF-8) from its beginning.

        Without a fixed alpha, its weights follow the text: each token is predicted with the
        weights that the text before it gives.

        Raises:
            Cancelled: `cancel`, which is asked at every token, said so.
        """
        options = options or GenerateOptions()
        trio = self._begin(options, cancel, scoring=True)
        evidence = None
        if trio.mixes:
            evidence = Evidence(len(trio.powers), options.combine.forgetting)
        return score_text(trio, self._tokenizers, text, evidence, cancel)

    def score_answer(
        self,
        prompt: Asked,
        continuation: bytes,
        options: GenerateOptions | None = None,
        *,
        raw: bool = False,
        cancel: Callable[[], bool] | None = None,
        end: bool = False,
    ) -> AnswerScore:
        """Log-likelihood of a given answer after a prompt; see `Answers.scores`.

        A raw prompt may be empty: the answer is then a text of its own.
        """
        return self._answers(prompt, options, cancel, raw=raw).score(continuation, end=end)

    def score_answers(
        self,
        prompt: Asked,
        continuations: Sequence[bytes],
        options: GenerateOptions | None = None,
        *,
        raw: bool = False,
        cancel: Callable[[], bool] | None = None,
        end: bool = False,
    ) -> tuple[AnswerScore, ...]:
        """As `score_answer` for several answers; what they share is computed once."""
        return self._answers(prompt, options, cancel, raw=raw).scores(continuations, end=end)

    def choose(
        self,
        prompt: Asked,
        choices: Sequence[str],
        options: GenerateOptions | None = None,
        *,
        raw: bool = False,
        cancel: Callable[[], bool] | None = None,
        how: Choosing = Choosing.LIKELIHOOD,
    ) -> Chosen:
        """Chooses one of several answers to a prompt; see `Answers.choose`."""
        answers = self._answers(prompt, options, cancel, raw=raw)
        return answers.choose([as_utf8(choice) for choice in choices], how)

    def keep(self, prompt: str | Sequence[Message]) -> dict[str, int]:
        """Takes out of the KV caches what is not the beginning of a prompt; decodes nothing.

        Returns:
            Tokens that the prompt takes in each loaded model, by role.
        """
        self._end_current()
        counts: dict[str, int] = {}
        for role, asker in self._askers.items():
            tokens, cached = list(asker.prompt(prompt, raw=False).tokens), self._cached[role]
            cached.keep(common_length(cached.tokens, tokens))
            counts[role] = len(tokens)
        return counts

    def forget(self) -> None:
        """Empties the KV caches; nothing of earlier texts is left in them."""
        self._end_current()
        self._memory.clear()
        for cached in self._cached.values():
            cached.keep(0)

    def decoded(self) -> dict[str, int]:
        """Tokens that each model has decoded so far, by role."""
        return {role: cached.decoded for role, cached in self._cached.items()}

    def close(self) -> None:
        """Frees the models."""
        self._end_current()
        for model in self.models.values():
            model.close()

    def __enter__(self) -> Self:
        """Itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Frees the models."""
        self.close()

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
        return {each.role: self._askers[each.role].prompt(asked, raw=raw) for each in trio.models}

    def _answers(
        self,
        asked: Asked,
        options: GenerateOptions | None,
        cancel: Callable[[], bool] | None,
        *,
        raw: bool,
    ) -> Answers:
        """What judges given answers to a prompt."""
        trio = self._begin(options or GenerateOptions(), cancel, scoring=True)
        if raw and not asked:
            prompts = opening(trio.models, self._tokenizers)
        else:
            prompts = self._prompts(trio, asked, raw=raw)
        return Answers(trio, self._tokenizers, prompts, cancel)

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

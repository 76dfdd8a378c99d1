"""The public face: open a bundle, ask, read the answer step by step.

with Runtime.open("demo") as runtime:
    for step in runtime.generate("What are the signs of asthma?", max_tokens=200):
        print(step.piece, end="")
"""

from __future__ import annotations

import dataclasses
import datetime
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

from capt_local.bundles import store
from capt_local.bundles.manifest import Bundle, ModelFile
from capt_local.bundles.manifest import roles as roles_of
from capt_local.bundles.verify import Check, LateDigests, Verification, verify
from capt_local.config import read_site
from capt_local.decoding.batching import BatchScheduler, Request, RequestResult
from capt_local.decoding.ensemble import Ensemble, EnsembleBuilder, first_pair_notice, read_by
from capt_local.decoding.loop import Generation
from capt_local.decoding.options import GenerateOptions, Method, with_arguments
from capt_local.decoding.prompt_weights import Memory
from capt_local.decoding.proxy import LogitsCache
from capt_local.decoding.scoring import (
    Answers,
    AnswerScore,
    Choosing,
    Chosen,
    TextScore,
    as_utf8,
    opening,
    score_text,
)
from capt_local.errors import UsageError
from capt_local.llama.batched import MOST_LANES, Lanes, open_lanes
from capt_local.llama.load_models import open_models, vocabulary_notices
from capt_local.llama.model import LlamaModel
from capt_local.llama.options import LoadOptions
from capt_local.model_checks import NOT_LOOKED_AT, check_tokenizers, is_trusted, look_first
from capt_local.policy import permitted
from capt_local.prompting.build import PromptBuilder, vocabulary_with_turn_ends
from capt_local.prompting.messages import Message, Prompt, refuse_nul
from capt_local.tokenization import TextTokenizer, common_length

Progress = Callable[[str, float], None]
Cancel = Callable[[], bool]
Asked = str | Sequence[Message | Mapping[str, str]]
Files = str | Path | Sequence[str | Path]

_CLOSED = "This runtime has been closed."
_ANOTHER = (
    "Another text was begun with the same models before this answer had ended, so it cannot go on. "
    "Read an answer to its end first, or use generate_many."
)


class Runtime:
    """A bundle that is loaded and can answer; see `open`. Use it as a context manager.

    Every method raises UsageError once the runtime has been closed.

    Attributes:
        bundle: what was opened.
        models: the loaded models by role.
        notices: what the user should know about the bundle.
        verification: what is known of the digests of its files.
        late_digests: of files that no manifest names.
        template: the source of the chat template that was given; None: the models' own.
    """

    verification = Verification()
    late_digests = LateDigests(())

    def __init__(
        self,
        bundle: Bundle,
        models: Mapping[str, LlamaModel],
        date: datetime.date | None = None,
        template: str | None = None,
    ) -> None:
        self.bundle = bundle
        self.template = template
        self.models = dict(models)
        notes = dict.fromkeys(note for model in models.values() for note in model.notes)
        self.notices = [*bundle.notices, *notes, *vocabulary_notices(models)]
        if bundle.pairs > 1 and {"expert", "base"} & set(models) and "expert-2" not in models:
            self.notices.append(first_pair_notice(bundle.pairs))
        templates = {role: model.metadata.chat_template for role, model in models.items()}
        files: dict[str, ModelFile] = dict(bundle.models.items())
        _add_turn_ends(self.models, files, templates, template)
        self._caches = {role: LogitsCache(role, model) for role, model in models.items()}
        self._tokenizers: dict[str, TextTokenizer] = {
            role: TextTokenizer(model.vocabulary, model.tokenize) for role, model in models.items()
        }
        self._prompt_builders = {
            role: PromptBuilder(
                files[role], templates[role], self._tokenizers[role], date, template
            )
            for role in models
        }
        self._current: Generation | None = None
        self._memory = Memory()
        missing = "The bundle {} has no {}: give --expert and --base, or use --method target."
        self._builder = EnsembleBuilder(
            self._caches, self._tokenizers, lambda role: missing.format(bundle.id, role)
        )
        self._open = True
        self._lanes: dict[str, Lanes] = {}
        self._lane_count = 0
        self._decoded_in_lanes: dict[str, int] = {}
        self._many: ManyResults | None = None

    @classmethod
    def open(
        cls,
        bundle: str | Path | Bundle | None = None,
        *,
        target: str | Path | None = None,
        expert: Files | None = None,
        base: Files | None = None,
        load: LoadOptions | None = None,
        progress: Progress | None = None,
        check: bool | Check = Check.CACHED,
        date: datetime.date | None = None,
        roles: Iterable[str] | None = None,
        template: str | None = None,
    ) -> Runtime:
        """Loads a bundle, or model files.

        The rules of the site (signed bundles, largest weights) and the folders with bundles that
        environment and files name hold here too; settings of options are the command line's.

        Args:
            bundle: an id ("demo" travels with the package), a path, or a bundle; "demo" where
                nothing is named.
            target: the file of a model, instead of a bundle.
            expert: the file of the expert beside it, or one for each pair.
            base: the file of its base, or one for each pair.
            load: how the models are loaded; a context given here wins.
            progress: called with a role and the share of its file that is checked, then loaded.
            check: how the digests are checked first; True is `cached`, False `never`.
            date: what the templates take for today; None: today.
            roles: which models are needed; None: all.
            template: the source of a chat template for the target, and for models that have none;
                see `prompting.template.given_template`.

        Raises:
            ModelError: a file is missing, broken or not the one that the manifest names.
            MemoryShortage: the models do not fit.
            UsageError: the bundle has no model for a role, bundle and files are named, or the site
                forbids these models.
        """
        if isinstance(check, bool):
            check = Check.CACHED if check else Check.NEVER
        found = permitted(_named(bundle, target, expert, base), check)
        wanted = set(found.models if roles is None else roles)
        placed = set(load.placements) if load is not None else set()
        if missing := (wanted | placed) - set(found.models):
            raise UsageError(f"The bundle {found.id} has no {' and no '.join(sorted(missing))}.")
        files = {role: found.models[role] for role in roles_of(found.pairs) if role in wanted}
        load = load or LoadOptions()
        if load.context is None and found.context is not None:
            load = dataclasses.replace(load, context=found.context)
        checked = verify(dataclasses.replace(found, models=files), progress, check)
        stamps = look_first(found, files, check=check, stamps=checked.stamps, progress=progress)
        check_tokenizers(files.values())
        paths = {role: file.path for role, file in files.items()}
        # Files without a digest in a manifest: it is computed while they load, for provenance.
        adapters = (one for each in found.adapters.values() for one in each)
        late = LateDigests((*files.values(), *adapters), stamps)
        models = open_models(paths, load, progress, found.adapters, stamps)
        try:
            runtime = cls(found, models, date, template)
        except BaseException:
            for model in models.values():
                model.close()
            raise
        runtime.verification, runtime.late_digests = checked, late
        if check is Check.NEVER and not is_trusted(found):
            runtime.notices.append(NOT_LOOKED_AT)
        return runtime

    def generate(
        self,
        prompt: Asked,
        options: GenerateOptions | None = None,
        *,
        raw: bool = False,
        cancel: Cancel | None = None,
        **arguments: Any,
    ) -> Generation:
        """Answers. The answer is made while its steps are read.

        runtime.generate("What is asthma?", temperature=0, max_tokens=200, alpha=0.5)

        Args:
            prompt: one question, or a conversation that ends with the user's turn: messages, or
                dictionaries with "role" and "content" as in OpenAI's interface.
            options: how.
            raw: goes on with the text as it is, without a template.
            cancel: called during long computations and between steps; true ends the answer as
                interrupted.
            arguments: single options by their names, which win over `options`: temperature, top_k,
                top_p, min_p, repeat_penalty, repeat_window, seed, max_tokens, stop, alpha, weights,
                plausibility, method, speed, top, structure, expert_in_thoughts,
                adapter_scales ({"expert": [1.0, 0.5]}).

        An answer before this one that has not ended does not go on: reading it raises UsageError.

        Raises:
            UsageError: the prompt is empty, an argument is of the wrong type or not known, or the
                method needs models that are not there.
            ContextOverflow: the prompt does not fit; nothing was computed.
        """
        options = with_arguments(options, arguments)
        asked = _messages(prompt)
        ensemble = self._begin(options, cancel)
        self._current = Generation(
            ensemble,
            self._prompts(ensemble, asked, options.method, raw=raw),
            options,
            cancel,
            self._memory,
            self._builder.notices(options.method),
            self._check_open,
        )
        return self._current

    def generate_many(
        self,
        requests: Iterable[Request | None],
        *,
        parallel: int = 8,
        cancel: Cancel | None = None,
        reuse: bool = False,
    ) -> Iterator[RequestResult]:
        """Answers many requests, several at once. A new call ends the one before it.

        Every request is answered as by `generate`: with its own options, seed and weights. In
        another batch the last bits of logits may differ, and with them, rarely, a token
        (docs/speed.md). What else runs at the same time, and in which order requests come, makes no
        difference.

        Args:
            requests: taken one by one, when there is room. None: there is none for now, and those
                that run go on for a step; where none runs, the iterator may wait for one.
            parallel: requests at once.
            cancel: called between steps and while prompts are computed; true ends what is running
                as interrupted, and takes nothing more.
            reuse: a prompt that begins as another one, earlier or running, is not read again up to
                where they differ. The last bits then depend on what was read before.

        Yields:
            The answers as they end. The error of one request leaves the others as they are.

        Raises:
            UsageError: `parallel` is not 1 to 256; while reading: another call has begun.
            MemoryShortage: so many at once do not fit; says how many would.
        """
        self._check_open()
        if isinstance(parallel, bool) or not isinstance(parallel, int):
            raise UsageError("parallel has to be a whole number.")
        if not 1 <= parallel <= MOST_LANES:
            raise UsageError(f"{parallel} requests at once are not 1 to {MOST_LANES}.")
        self._supersede_many(_ANOTHER)
        if parallel != self._lane_count:
            self._close_lanes()
            self._lanes = open_lanes(self.models, parallel)
            self._lane_count = parallel
        scheduler = BatchScheduler(
            self._lanes, parallel, self._builder, self._prompt, cancel, reuse=reuse
        )
        self._many = ManyResults(scheduler.answers(requests))
        return self._many

    def score(
        self,
        text: bytes,
        options: GenerateOptions | None = None,
        *,
        cancel: Cancel | None = None,
    ) -> TextScore:
        """Log-likelihood of a text (UTF-8) from its beginning.

        Without a fixed alpha, its weights follow the text: each token is predicted with the
        weights that the text before it gives.

        Raises:
            Cancelled: `cancel`, which is called at every token, said so.
        """
        self._check_open()
        refuse_nul(text, "The text")
        ensemble = self._begin(options or GenerateOptions(), cancel, scoring=True)
        return score_text(ensemble, self._tokenizers, text, cancel)

    def score_answer(
        self,
        prompt: Asked,
        continuation: bytes,
        options: GenerateOptions | None = None,
        *,
        raw: bool = False,
        cancel: Cancel | None = None,
        end: bool = False,
    ) -> AnswerScore:
        """Log-likelihood of a given answer after a prompt; see `Answers.scores`.

        A raw prompt may be empty: the answer is then a text of its own.
        """
        (score,) = self.score_answers(
            prompt, (continuation,), options, raw=raw, cancel=cancel, end=end
        )
        return score

    def score_answers(
        self,
        prompt: Asked,
        continuations: Sequence[bytes],
        options: GenerateOptions | None = None,
        *,
        raw: bool = False,
        cancel: Cancel | None = None,
        end: bool = False,
    ) -> tuple[AnswerScore, ...]:
        """As `score_answer` for several answers; what they share is computed once."""
        self._check_open()
        for continuation in continuations:
            refuse_nul(continuation, "An answer")
        return self._answers(prompt, options, cancel, raw=raw).scores(continuations, end=end)

    def choose(
        self,
        prompt: Asked,
        choices: Sequence[str],
        options: GenerateOptions | None = None,
        *,
        raw: bool = False,
        cancel: Cancel | None = None,
        how: Choosing = Choosing.LIKELIHOOD,
    ) -> Chosen:
        """Chooses one of several answers to a prompt; see `Answers.choose`."""
        self._check_open()
        for choice in choices:
            refuse_nul(choice, "A choice")
        answers = self._answers(prompt, options, cancel, raw=raw)
        return answers.choose([as_utf8(choice) for choice in choices], how)

    def count(self, prompt: Asked) -> dict[str, tuple[int, int]]:
        """Tokens that a prompt takes in each loaded model, and those that fit, by role."""
        self._check_open()
        asked = _messages(prompt)
        return {
            role: (len(self._prompt(role, asked, False).tokens), model.context_limit)
            for role, model in self.models.items()
        }

    def keep(self, prompt: Asked) -> dict[str, int]:
        """Takes out of the KV caches what is not the beginning of a prompt; decodes nothing.

        Returns the tokens that the prompt takes in each loaded model, by role.
        """
        self._check_open()
        self._supersede_current()
        counts: dict[str, int] = {}
        asked = _messages(prompt)
        for role, cache in self._caches.items():
            tokens = list(self._prompt(role, asked, False).tokens)
            if cache.model.can_rewind:
                cache.rewind(common_length(cache.tokens, tokens))
            counts[role] = len(tokens)
        return counts

    def forget(self) -> None:
        """Empties the KV caches and all else that holds earlier texts."""
        self._check_open()
        self._supersede_current()
        self._supersede_many(_ANOTHER)
        for lanes in self._lanes.values():
            for lane in lanes.slots:
                lane.rewind(0)
        self._memory.clear()
        for cache in self._caches.values():
            cache.clear()
        for tokenizer in self._tokenizers.values():
            tokenizer.forget()

    def decoded(self) -> dict[str, int]:
        """Tokens that each model has decoded so far, by role."""
        return {
            role: cache.decoded
            + self._decoded_in_lanes.get(role, 0)
            + (self._lanes[role].decoded if role in self._lanes else 0)
            for role, cache in self._caches.items()
        }

    def close(self) -> None:
        """Frees the models. Answers that have not ended cannot be read on."""
        if not self._open:
            return
        self._supersede_current(_CLOSED)
        self._supersede_many(_CLOSED)
        self._open = False
        self._close_lanes()
        for model in self.models.values():
            model.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _begin(
        self, options: GenerateOptions, cancel: Cancel | None, *, scoring: bool = False
    ) -> Ensemble:
        """The models for a new text; what was being made does not go on."""
        self._check_open()
        combine = options.combine
        read_site().limits.check_weights((*combine.alphas, *combine.powers))
        self._supersede_current()
        ensemble = self._builder.build(options, scoring=scoring)
        for each in ensemble.models:
            each.set_adapter_scales(options.scales_of(each.role))
        for model in self.models.values():
            model.should_stop = cancel
        return ensemble

    def _answers(
        self, prompt: Asked, options: GenerateOptions | None, cancel: Cancel | None, *, raw: bool
    ) -> Answers:
        options = options or GenerateOptions()
        ensemble = self._begin(options, cancel, scoring=True)
        asked = _messages(prompt)
        if raw and not asked:
            prompts = opening(ensemble.models, self._tokenizers)
        else:
            prompts = self._prompts(ensemble, asked, options.method, raw=raw)
        return Answers(ensemble, self._tokenizers, prompts, cancel)

    def _prompts(
        self, ensemble: Ensemble, asked: str | Sequence[Message], method: Method, *, raw: bool
    ) -> dict[str, Prompt]:
        """The prompt of each model, by role."""
        return {
            each.role: self._prompt(each.role, *read_by(method, each.role, asked, raw=raw))
            for each in ensemble.models
        }

    def _prompt(self, role: str, asked: str | Sequence[Message], raw: bool) -> Prompt:
        return self._prompt_builders[role].prompt(asked, raw=raw)

    def _check_open(self) -> None:
        if not self._open:
            raise UsageError(_CLOSED)

    def _supersede_current(self, reason: str = _ANOTHER) -> None:
        """The models can follow one text at a time: an answer that has not ended does not go on."""
        if self._current is not None:
            self._current.supersede(reason)
            self._current = None

    def _supersede_many(self, reason: str) -> None:
        if self._many is not None:
            self._many.supersede(reason)
            self._many = None

    def _close_lanes(self) -> None:
        for role, lanes in self._lanes.items():
            self._decoded_in_lanes[role] = self._decoded_in_lanes.get(role, 0) + lanes.decoded
            lanes.close()
        self._lanes.clear()
        self._lane_count = 0


class ManyResults(Iterator[RequestResult]):
    """The answers of `Runtime.generate_many`, as they end."""

    def __init__(self, results: Generator[RequestResult, None, None]) -> None:
        self._results = results
        self._done = False
        self._superseded: str | None = None

    def __next__(self) -> RequestResult:
        if self._superseded is not None:
            raise UsageError(self._superseded)
        try:
            return next(self._results)
        except BaseException:
            self._done = True
            raise

    def close(self) -> None:
        """Ends what still runs; its answers are lost."""
        self._done = True
        self._results.close()

    def supersede(self, reason: str) -> None:
        """Ends what still runs, for the sake of another call; reading on raises."""
        if not self._done:
            self.close()
            self._superseded = reason


def _add_turn_ends(
    models: Mapping[str, LlamaModel],
    files: Mapping[str, ModelFile],
    templates: Mapping[str, str | None],
    given: str | None,
) -> None:
    """Has what the templates write behind answers end them; alike where vocabularies are."""
    own = {role: model.vocabulary for role, model in models.items()}
    made = {
        role: vocabulary_with_turn_ends(
            files[role], templates[role], own[role], model.tokenize, given
        )
        for role, model in models.items()
    }
    for role, model in models.items():
        ends = {
            token
            for other, vocabulary in made.items()
            if vocabulary is not own[other] and own[role].same_as(own[other])
            for token in vocabulary.end_ids.tolist()
        }
        if ends:
            model.weights.vocabulary = own[role].with_ends(ends)


def _named(
    bundle: str | Path | Bundle | None,
    target: str | Path | None,
    expert: Files | None,
    base: Files | None,
) -> Bundle:
    """The bundle that is named, or one of files."""
    if target is None and (expert is not None or base is not None):
        raise UsageError("An expert or base needs a target beside it.")
    if target is not None:
        if bundle is not None:
            raise UsageError("Name a bundle or model files, not both.")
        return Bundle.from_paths(target, expert, base)
    if isinstance(bundle, Bundle):
        return bundle
    if not isinstance(bundle, str | Path | None):
        raise UsageError(f"bundle has to be a name, a path or a Bundle, not {_kind(bundle)}.")
    return store.find("demo" if bundle is None else bundle)


def _messages(prompt: Asked) -> str | Sequence[Message]:
    """A prompt with its dictionaries as messages; errors hold nothing of the text."""
    if isinstance(prompt, str):
        return prompt
    if not isinstance(prompt, Sequence) or isinstance(prompt, bytes | bytearray):
        raise UsageError(f"prompt has to be text or a list of messages, not {_kind(prompt)}.")
    return [_message(one) for one in prompt]


def _message(given: object) -> Message:
    if isinstance(given, Message):
        return given
    if not isinstance(given, Mapping):
        raise UsageError(f"A message of prompt has to be a dictionary, not {_kind(given)}.")
    if set(given) != {"role", "content"}:
        raise UsageError('A message of prompt has to have "role" and "content", and nothing else.')
    role, content = given["role"], given["content"]
    if role not in ("system", "user", "assistant"):
        raise UsageError('The "role" of a message has to be "system", "user" or "assistant".')
    if not isinstance(content, str):
        raise UsageError(f'The "content" of a message has to be text, not {_kind(content)}.')
    return Message(role, content)


def _kind(value: object) -> str:
    return type(value).__name__

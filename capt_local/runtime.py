"""The Python API: open a bundle, ask, read the answer step by step.

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
from capt_local.bundles.verify import BackgroundDigests, Check, Verification, verify
from capt_local.config import read_site
from capt_local.decoding.batching import BatchScheduler, Request, RequestResult
from capt_local.decoding.ensemble import (
    Ensemble,
    EnsembleBuilder,
    first_pair_notice,
    prompt_for_role,
)
from capt_local.decoding.loop import Generation
from capt_local.decoding.options import GenerateOptions, Method, with_arguments
from capt_local.decoding.prompt_weights import Memory
from capt_local.decoding.proxy import LogitsCache
from capt_local.decoding.scoring import (
    AnswerScore,
    AnswerScorer,
    ChoiceCriterion,
    ChoiceScores,
    TextScore,
    as_utf8,
    empty_prompts,
    score_text,
)
from capt_local.errors import UsageError
from capt_local.llama.batched import MAX_SEQUENCES, BatchedContext, open_batched
from capt_local.llama.load_models import open_models, vocabulary_notices
from capt_local.llama.model import LlamaModel
from capt_local.llama.options import LoadOptions
from capt_local.model_checks import NOT_PROBED, check_tokenizers, is_trusted, probe_untrusted
from capt_local.policy import permitted
from capt_local.prompting.build import PromptBuilder, vocabulary_with_turn_ends
from capt_local.prompting.messages import Message, Prompt, refuse_nul
from capt_local.tokenization import TextTokenizer, common_length

Progress = Callable[[str, float], None]
Cancel = Callable[[], bool]
PromptInput = str | Sequence[Message | Mapping[str, str]]
Files = str | Path | Sequence[str | Path]

_CLOSED = "This runtime has been closed."
_SUPERSEDED = (
    "Another text was begun with the same models before this answer had ended, so it cannot go on. "
    "Read an answer to its end first, or use generate_many."
)


class Runtime:
    """A bundle that is loaded and can answer; see `open`. Use it as a context manager.

    Every method raises UsageError once the runtime has been closed.

    Attributes:
        bundle: the opened bundle.
        models: the loaded models by role.
        notices: messages for the user about the bundle.
        verification: the result of checking the digests of its files.
        background_digests: digests of files without one in a manifest.
        template: the source of the user's chat template; None: the models' own templates.
    """

    verification = Verification()
    background_digests = BackgroundDigests(())

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
        self._batched: dict[str, BatchedContext] = {}
        self._slot_count = 0
        self._decoded_in_slots: dict[str, int] = {}
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

        Site rules (signed bundles, largest weights) and bundle folders from environment and
        configuration files apply here too; defaults of options apply to the command line only.

        Args:
            bundle: an id ("demo" comes with the package), a path, or a `Bundle`; "demo" if nothing
                is named.
            target: the target's GGUF file, instead of a bundle.
            expert: the expert's file, or one for each pair.
            base: the file of its base, or one for each pair.
            load: how the models are loaded; its context size overrides the bundle's.
            progress: called with a role and the fraction of its file checked, then loaded.
            check: how the digests are checked first; True is `cached`, False `never`.
            date: the date that chat templates see; None: today.
            roles: the models to load; None: all.
            template: the source of a chat template for the target, and for models that have none;
                see `prompting.template.given_template`.

        Raises:
            ModelError: a file is missing, broken or not the one that the manifest names.
            MemoryShortage: the models do not fit.
            UsageError: the bundle lacks a role, both a bundle and files are given, or the site
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
        stamps = probe_untrusted(
            found, files, check=check, stamps=checked.stamps, progress=progress
        )
        check_tokenizers(files.values())
        paths = {role: file.path for role, file in files.items()}
        # Digests of files without one in a manifest are computed during loading, for provenance.
        adapters = (one for each in found.adapters.values() for one in each)
        late = BackgroundDigests((*files.values(), *adapters), stamps)
        models = open_models(paths, load, progress, found.adapters, stamps)
        try:
            runtime = cls(found, models, date, template)
        except BaseException:
            for model in models.values():
                model.close()
            raise
        runtime.verification, runtime.background_digests = checked, late
        if check is Check.NEVER and not is_trusted(found):
            runtime.notices.append(NOT_PROBED)
        return runtime

    def generate(
        self,
        prompt: PromptInput,
        options: GenerateOptions | None = None,
        *,
        raw: bool = False,
        cancel: Cancel | None = None,
        **arguments: Any,
    ) -> Generation:
        """Generates an answer, token by token as its steps are consumed.

        runtime.generate("What is asthma?", temperature=0, max_tokens=200, alpha=0.5)

        Args:
            prompt: one question, or a conversation that ends with the user's turn: messages, or
                dictionaries with "role" and "content" as in OpenAI's interface.
            options: of the answer; None: the defaults.
            raw: continue the text as it is, without a chat template.
            cancel: called during long computations and between steps; true ends the answer as
                interrupted.
            arguments: single options by name, which override `options`: temperature, top_k,
                top_p, min_p, repeat_penalty, repeat_window, seed, max_tokens, stop, alpha, weights,
                plausibility, method, speed, top, structure, expert_in_thoughts,
                adapter_scales ({"expert": [1.0, 0.5]}).

        An earlier unfinished answer of this runtime ends: its next step raises UsageError.

        Raises:
            UsageError: the prompt is empty, an argument is unknown or has the wrong type, or the
                method needs models that are not loaded.
            ContextOverflow: the prompt does not fit; nothing was computed.
        """
        options = with_arguments(options, arguments)
        messages = _messages(prompt)
        ensemble = self._begin(options, cancel)
        self._current = Generation(
            ensemble,
            self._prompts(ensemble, messages, options.method, raw=raw),
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
        """Answers many requests, several at once. A new call ends an earlier one.

        Every request is answered as by `generate`: with its own options, seed and weights. Batched
        decoding may change the last bits of logits, and so, rarely, a token (docs/speed.md). The
        result does not depend on the other requests, nor on their order.

        Args:
            requests: consumed one by one, as slots become free. None means that no request is
                available yet: running ones continue; while none runs, the iterator may block.
            parallel: number of requests at once.
            cancel: called between steps and while prompts are decoded; true ends running answers
                as interrupted, and takes no more requests.
            reuse: whether a prompt reuses the KV cache of a prefix that it shares with an earlier
                or running request. The last bits of logits then depend on that request.

        Yields:
            The answers as they end. The error of one request does not affect the others.

        Raises:
            UsageError: `parallel` is not 1 to 256; while iterating: another call has begun.
            MemoryShortage: so many at once do not fit; the message says how many would.
        """
        self._check_open()
        if isinstance(parallel, bool) or not isinstance(parallel, int):
            raise UsageError("parallel has to be a whole number.")
        if not 1 <= parallel <= MAX_SEQUENCES:
            raise UsageError(f"{parallel} requests at once are not 1 to {MAX_SEQUENCES}.")
        self._supersede_many(_SUPERSEDED)
        if parallel != self._slot_count:
            self._close_slots()
            self._batched = open_batched(self.models, parallel)
            self._slot_count = parallel
        scheduler = BatchScheduler(
            self._batched, parallel, self._builder, self._prompt, cancel, reuse=reuse
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

        Without a fixed alpha, the mixture weights are updated along the text: each token is
        predicted with the weights given by the text before it.

        Raises:
            Cancelled: `cancel`, which is called at every token, returned true.
        """
        self._check_open()
        refuse_nul(text, "The text")
        ensemble = self._begin(options or GenerateOptions(), cancel, scoring=True)
        return score_text(ensemble, self._tokenizers, text, cancel)

    def score_answer(
        self,
        prompt: PromptInput,
        continuation: bytes,
        options: GenerateOptions | None = None,
        *,
        raw: bool = False,
        cancel: Cancel | None = None,
        end: bool = False,
    ) -> AnswerScore:
        """Log-likelihood of a given answer after a prompt; see `AnswerScorer.scores`.

        A raw prompt may be empty: the answer is then scored as a text from its beginning.
        """
        (score,) = self.score_answers(
            prompt, (continuation,), options, raw=raw, cancel=cancel, end=end
        )
        return score

    def score_answers(
        self,
        prompt: PromptInput,
        continuations: Sequence[bytes],
        options: GenerateOptions | None = None,
        *,
        raw: bool = False,
        cancel: Cancel | None = None,
        end: bool = False,
    ) -> tuple[AnswerScore, ...]:
        """As `score_answer` for several answers; common prefixes are decoded once."""
        self._check_open()
        for continuation in continuations:
            refuse_nul(continuation, "An answer")
        return self._answers(prompt, options, cancel, raw=raw).scores(continuations, end=end)

    def choose(
        self,
        prompt: PromptInput,
        choices: Sequence[str],
        options: GenerateOptions | None = None,
        *,
        raw: bool = False,
        cancel: Cancel | None = None,
        how: ChoiceCriterion = ChoiceCriterion.LIKELIHOOD,
    ) -> ChoiceScores:
        """Chooses one of several answers to a prompt; see `AnswerScorer.choose`."""
        self._check_open()
        for choice in choices:
            refuse_nul(choice, "A choice")
        answers = self._answers(prompt, options, cancel, raw=raw)
        return answers.choose([as_utf8(choice) for choice in choices], how)

    def count(self, prompt: PromptInput) -> dict[str, tuple[int, int]]:
        """Tokens of a prompt, and context size, in each loaded model, by role."""
        self._check_open()
        messages = _messages(prompt)
        return {
            role: (len(self._prompt(role, messages, False).tokens), model.context_limit)
            for role, model in self.models.items()
        }

    def keep(self, prompt: PromptInput) -> dict[str, int]:
        """Rewinds the KV caches to their common prefix with a prompt; decodes nothing.

        Returns the number of tokens of the prompt in each loaded model, by role.
        """
        self._check_open()
        self._supersede_current()
        counts: dict[str, int] = {}
        messages = _messages(prompt)
        for role, cache in self._caches.items():
            tokens = list(self._prompt(role, messages, False).tokens)
            if cache.model.can_rewind:
                cache.rewind(common_length(cache.tokens, tokens))
            counts[role] = len(tokens)
        return counts

    def forget(self) -> None:
        """Clears the KV caches and everything else that holds earlier texts."""
        self._check_open()
        self._supersede_current()
        self._supersede_many(_SUPERSEDED)
        for batched in self._batched.values():
            for slot in batched.slots:
                slot.rewind(0)
        self._memory.clear()
        for cache in self._caches.values():
            cache.clear()
        for tokenizer in self._tokenizers.values():
            tokenizer.forget()

    def decoded(self) -> dict[str, int]:
        """Tokens that each model has decoded so far, by role."""
        return {
            role: cache.decoded
            + self._decoded_in_slots.get(role, 0)
            + (self._batched[role].decoded if role in self._batched else 0)
            for role, cache in self._caches.items()
        }

    def close(self) -> None:
        """Frees the models. Unfinished answers cannot be continued."""
        if not self._open:
            return
        self._supersede_current(_CLOSED)
        self._supersede_many(_CLOSED)
        self._open = False
        self._close_slots()
        for model in self.models.values():
            model.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _begin(
        self, options: GenerateOptions, cancel: Cancel | None, *, scoring: bool = False
    ) -> Ensemble:
        """Builds the ensemble for a new text; ends the current answer."""
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
        self,
        prompt: PromptInput,
        options: GenerateOptions | None,
        cancel: Cancel | None,
        *,
        raw: bool,
    ) -> AnswerScorer:
        options = options or GenerateOptions()
        ensemble = self._begin(options, cancel, scoring=True)
        messages = _messages(prompt)
        if raw and not messages:
            prompts = empty_prompts(ensemble.models, self._tokenizers)
        else:
            prompts = self._prompts(ensemble, messages, options.method, raw=raw)
        return AnswerScorer(ensemble, self._tokenizers, prompts, cancel)

    def _prompts(
        self, ensemble: Ensemble, messages: str | Sequence[Message], method: Method, *, raw: bool
    ) -> dict[str, Prompt]:
        """The prompt of each model, by role."""
        return {
            each.role: self._prompt(
                each.role, *prompt_for_role(method, each.role, messages, raw=raw)
            )
            for each in ensemble.models
        }

    def _prompt(self, role: str, messages: str | Sequence[Message], raw: bool) -> Prompt:
        return self._prompt_builders[role].prompt(messages, raw=raw)

    def _check_open(self) -> None:
        if not self._open:
            raise UsageError(_CLOSED)

    def _supersede_current(self, reason: str = _SUPERSEDED) -> None:
        """Ends an unfinished answer, since the models can hold one text at a time."""
        if self._current is not None:
            self._current.supersede(reason)
            self._current = None

    def _supersede_many(self, reason: str) -> None:
        if self._many is not None:
            self._many.supersede(reason)
            self._many = None

    def _close_slots(self) -> None:
        for role, batched in self._batched.items():
            self._decoded_in_slots[role] = self._decoded_in_slots.get(role, 0) + batched.decoded
            batched.close()
        self._batched.clear()
        self._slot_count = 0


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
        """Ends the running requests; their answers are lost."""
        self._done = True
        self._results.close()

    def supersede(self, reason: str) -> None:
        """Ends the running requests because of another call; the next result raises UsageError."""
        if not self._done:
            self.close()
            self._superseded = reason


def _add_turn_ends(
    models: Mapping[str, LlamaModel],
    files: Mapping[str, ModelFile],
    templates: Mapping[str, str | None],
    template: str | None,
) -> None:
    """Adds the templates' turn ends to the end tokens; the same for equal vocabularies."""
    own = {role: model.vocabulary for role, model in models.items()}
    made = {
        role: vocabulary_with_turn_ends(
            files[role], templates[role], own[role], model.tokenize, template
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
            model.weights.vocabulary = own[role].with_end_tokens(ends)


def _named(
    bundle: str | Path | Bundle | None,
    target: str | Path | None,
    expert: Files | None,
    base: Files | None,
) -> Bundle:
    """The named bundle, or a bundle made of files."""
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


def _messages(prompt: PromptInput) -> str | Sequence[Message]:
    """Converts dictionaries in a prompt to messages; errors never quote the text."""
    if isinstance(prompt, str):
        return prompt
    if not isinstance(prompt, Sequence) or isinstance(prompt, bytes | bytearray):
        raise UsageError(f"prompt has to be text or a list of messages, not {_kind(prompt)}.")
    return [_message(one) for one in prompt]


def _message(value: object) -> Message:
    if isinstance(value, Message):
        return value
    if not isinstance(value, Mapping):
        raise UsageError(f"A message of prompt has to be a dictionary, not {_kind(value)}.")
    if set(value) != {"role", "content"}:
        raise UsageError('A message of prompt has to have "role" and "content", and nothing else.')
    role, content = value["role"], value["content"]
    if role not in ("system", "user", "assistant"):
        raise UsageError('The "role" of a message has to be "system", "user" or "assistant".')
    if not isinstance(content, str):
        raise UsageError(f'The "content" of a message has to be text, not {_kind(content)}.')
    return Message(role, content)


def _kind(value: object) -> str:
    return type(value).__name__

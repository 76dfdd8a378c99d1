"""Prompt to answer, token by token. Read this first.

    propose a draft      drafting.Drafter: likely next tokens, decoded ahead in one batch
    decode all models    ensemble.Ensemble: decodes the missing tokens (proxy.LogitsCache)
    combine              combine.Contrast: one distribution from all models' logits
    sample               sampling.choose, restricted by structured.masked
    accept or roll back  the token is appended; rejected draft tokens are dropped

A `Generation` is that loop as an iterator of steps, each the record of one sampled token.
"""

from __future__ import annotations

import codecs
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Self

import numpy as np

from capt_local.decoding.combine import softmax
from capt_local.decoding.drafting import Drafter
from capt_local.decoding.ensemble import Ensemble
from capt_local.decoding.options import (
    Choice,
    DraftStats,
    Exponents,
    FinishReason,
    GenerateOptions,
    Method,
    Speed,
    Step,
)
from capt_local.decoding.prompt_weights import Memory, prefill
from capt_local.decoding.reasoning import (
    AnswerStream,
    ReasoningParser,
    RepetitionDetector,
    TextPart,
)
from capt_local.decoding.sampling import choose, likeliest
from capt_local.decoding.structured import MaskedDistribution, SchemaConstraint, masked
from capt_local.errors import Cancelled, ContextOverflow, UsageError
from capt_local.prompting.messages import Prompt
from capt_local.tokenization import Vocabulary


class Generation:
    """An answer as it is generated: an iterator of steps.

    Args:
        ensemble: of the method; this starts it at the prompts.
        prompts: by role.
        options: of the answer.
        cancel: called before each step; true ends the answer as interrupted.
        memory: cached evidence of earlier prompts for the weights.
        notices: messages for the user.
        check: called before each step; raises if the models can no longer be used.
        drafts: whether speculative drafts may be made.

    Attributes:
        text_bytes: the answer so far; at the end, all of it.
        thoughts_bytes: the reasoning before it, between the model's markers.
        finish: why it ended; None while it has not.
        prompts, prompt_tokens: the prompts and their lengths, by role, of the models that run.
        prompt_decoded: tokens decoded for the prompts, by role: fewer than their length if a
            prefix was in the KV cache, more if a part was decoded twice.
        context_limit: tokens that the smallest context holds.
        weights: exponents (a, b, c) of T^a E^b A^-c and their mixture weights; empty for a
            method without products.
        evidence_tokens: number of prompt positions that the weights come from.
        prompt_seconds: time for the prompt, all models.
        generate_seconds: time for the answer so far, without the time between steps.
        changed: steps at which the target alone would have chosen another token.
        stats: drafted and accepted tokens, skipped proxies, decode calls.
    """

    def __init__(
        self,
        ensemble: Ensemble,
        prompts: Mapping[str, Prompt],
        options: GenerateOptions,
        cancel: Callable[[], bool] | None = None,
        memory: Memory | None = None,
        notices: Sequence[str] = (),
        check: Callable[[], None] | None = None,
        *,
        drafts: bool = True,
    ) -> None:
        ensemble.start(prompts)
        self._ensemble = ensemble
        self._options = options
        self._cancel = cancel or (lambda: False)
        self._memory = memory
        self._check = check or (lambda: None)
        self._rng = np.random.default_rng(options.sample.seed)
        own, vocabulary = prompts[ensemble.leader.role], ensemble.leader.model.vocabulary
        self._constraint: SchemaConstraint | None = None
        if options.structure is not None:
            self._constraint = SchemaConstraint(
                vocabulary, options.structure.source, own.leading_space
            )
        structured = self._constraint is not None
        parser = ReasoningParser.for_prompt(own, vocabulary, structured=structured)
        repetition = RepetitionDetector(words=not structured) if options.repetition_stop else None
        self._stream = AnswerStream(vocabulary, options.stop, parser, own.turn_ends, repetition)
        # With `top`, each step reports the proxies' probabilities, so they run at every step.
        ensemble.skip_certain = options.speed is not Speed.EXACT_STEPS and not options.top
        self.stats = DraftStats()
        drafts = drafts and options.speed is not Speed.EXACT_STEPS and ensemble.can_draft
        self._drafter = Drafter(ensemble, self.stats) if drafts else None
        self._pieces = codecs.getincrementaldecoder("utf-8")("replace")
        self._notices = [note for prompt in prompts.values() for note in prompt.notices]
        self._notices += notices
        self._prefilled = False
        self._begun_unstructured = False
        self._implausible_steps = 0  # steps at which the schema allowed no plausible token
        self._superseded: str | None = None
        self.prompts = dict(prompts)
        self.prompt_tokens = {role: len(prompt.tokens) for role, prompt in prompts.items()}
        self.prompt_decoded: dict[str, int] = {}
        self.context_limit = min(each.model.context_limit for each in ensemble.models)
        self._full: list[str] = []  # the notice that a context is full
        self.text_bytes = b""
        self.thoughts_bytes = b""
        self.finish: FinishReason | None = None
        self.weights: tuple[tuple[Exponents, float], ...] = ()
        self.evidence_tokens = 0
        self.prompt_seconds = 0.0
        self.generate_seconds = 0.0
        self.changed = 0

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Step:
        """The next step; the first one decodes the prompt.

        Raises:
            NumericalError: a model gives numbers that are not finite.
            MemoryShortage, ModelError: the backend failed.
            UsageError: another answer was begun with the same models, or they were closed.
        """
        if self._superseded is not None:
            raise UsageError(self._superseded)
        step = self._run(step=True)
        if step is None:
            raise StopIteration
        return step

    def prepare(self) -> None:
        """Decodes the prompt; without this call the first step does.

        Raises:
            NumericalError, MemoryShortage, ModelError: as for a step.
        """
        self._run(step=False)

    def _run(self, *, step: bool) -> Step | None:
        """Decodes the prompt if needed, then makes a step; None if there is none."""
        if self.finish is not None:
            return None
        self._check()
        try:
            self._prefill()
            if not step:
                return None
            if not self._cancel():
                return self._timed_step()
        except Cancelled:
            pass
        except ContextOverflow:
            if not step:
                self.end(FinishReason.ERROR)
                raise
            self._note_full_context()
            self.end(FinishReason.LENGTH)
        except BaseException:
            self.end(FinishReason.ERROR)
            raise
        self.end()
        return None

    def end(self, finish: FinishReason = FinishReason.INTERRUPTED) -> None:
        """Ends the answer here; does nothing if it has ended."""
        if self.finish is None:
            self.text_bytes += self._stream.rest()
            self.finish = finish
            self._ensemble.drop_read_ahead()

    def supersede(self, reason: str) -> None:
        """Ends an unfinished answer because another begins; its next step raises UsageError."""
        if self.finish is None:
            self.end()
            self._superseded = reason

    @property
    def text(self) -> str:
        """The answer so far as text; invalid UTF-8 becomes U+FFFD."""
        return self.text_bytes.decode("utf-8", "replace")

    @property
    def thoughts(self) -> str:
        """What the model wrote before the answer, between its markers."""
        return self.thoughts_bytes.decode("utf-8", "replace")

    @property
    def steps_done(self) -> int:
        """Tokens of the answer so far."""
        return self.stats.steps

    @property
    def context(self) -> dict[str, tuple[int, int]]:
        """Tokens of the text, and of the context, of each model that runs, by role."""
        return self._ensemble.used

    @property
    def structured(self) -> bool | None:
        """Whether the answer so far is an instance of the schema; None without a schema."""
        if self._constraint is None:
            return None
        return self._constraint.complete and not self._begun_unstructured

    @property
    def notices(self) -> list[str]:
        """What the user should know."""
        own = list(self._stream.notices)
        own += self._full
        if count := self._implausible_steps:
            own.append(
                f"At {count} token{'s' * (count > 1)} the form allowed nothing that the model "
                "finds plausible, so the likeliest that it allows were taken."
            )
        if self._options.speed is Speed.FAST and (skip_notice := self._skip_notice()):
            own.append(skip_notice)
        models = [notice for each in self._ensemble.models for notice in each.notices]
        return [*dict.fromkeys(self._notices + models + own)]

    def _skip_notice(self) -> str | None:
        """The notice about proxies skipped by `Speed.FAST`; None if the target runs alone."""
        if self._ensemble.target_alone:
            return None
        if self._ensemble.skip_rule is not None:
            return (
                f"--speed fast: expert and base took no part in {self.stats.proxies_skipped} of "
                f"{self.stats.steps} tokens. Other speeds may give another answer."
            )
        why = "--top-logprobs (and a report) shows them at every token"
        if self._options.method is not Method.CAPT:
            why = f"--method {self._options.method} needs them at every token"
        return f"--speed fast leaves expert and base out nowhere here: {why}."

    def _prefill(self) -> None:
        """Decodes the prompt in all models, and sets the mixture weights by its evidence."""
        if self._prefilled:
            return
        ensemble, started = self._ensemble, time.perf_counter()
        before = {each.role: each.decoded for each in ensemble.models}
        try:
            evidence = prefill(ensemble, self.prompts, self._memory)
        finally:
            self.prompt_seconds = time.perf_counter() - started
            self.prompt_decoded = {
                each.role: each.decoded - before[each.role] for each in ensemble.models
            }
        self._prefilled = True
        self.evidence_tokens = evidence.seen if evidence is not None else 0
        if ensemble.exponents:
            weights = ensemble.weights.tolist()
            self.weights = tuple(zip(ensemble.exponents, weights, strict=True))
        elif self._options.method is Method.CAPT:
            self.weights = (((1.0, 0.0, 0.0), 1.0),)

    def _timed_step(self) -> Step:
        """One step, with its time and decode counts recorded."""
        models, started = self._ensemble.models, time.perf_counter()
        before = [(each.passes, each.decoded) for each in models]
        try:
            step = self._step()
        finally:
            self.generate_seconds += time.perf_counter() - started
            for each, (passes, decoded) in zip(models, before, strict=True):
                self.stats.passes[each.role] += each.passes - passes
                self.stats.decoded[each.role] += each.decoded - decoded
        self.changed += step.changed
        self.stats.steps += 1
        self.stats.proxies_skipped += step.proxies_skipped
        if step.thought:
            self.thoughts_bytes += step.piece_bytes
        else:
            self.text_bytes += step.piece_bytes
        if step.finish is not None:
            self.end(step.finish)
        return step

    def _step(self) -> Step:
        """One iteration of the decoding loop."""
        ensemble, stream, options = self._ensemble, self._stream, self._options
        index = self.stats.steps
        reasoning = stream.in_reasoning or stream.in_gap
        # Propose.
        if self._drafter is not None and not reasoning:
            self._drafter.propose(options.max_tokens - index)
        # Read and combine.
        here = self._distribution()
        if self._constraint is not None and not stream.in_reasoning:
            allowed = self._constraint.allowed()
            here = masked(here.here, allowed, ensemble.distribution)
            # Not counted where the schema allows nothing but the end.
            ends = ensemble.leader.model.vocabulary.is_end[allowed].all()
            self._implausible_steps += here.implausible and not ends
        # Sample.
        tokens, logp = here.here.candidates.tokens, here.here.logp
        place = choose(tokens, logp, ensemble.tokens, options.sample, self._rng, here.mask)
        token = int(tokens[place])
        # Accept, or drop the rest of the draft.
        if self._drafter is not None:
            self._drafter.accept(token, None if here.alone else here.here)
        part, finish = self._consume(token, last=index + 1 == options.max_tokens)
        step = self._step_record(here, place, part, finish)
        if finish is not FinishReason.STOP:
            if options.expert_in_thoughts:
                ensemble.advance(token)
            else:
                ensemble.advance_with_proxy_text(token, stream.proxy_text, stream.tokens_before)
        return step

    def _distribution(self) -> MaskedDistribution:
        """The distribution; in reasoning that of the target alone, unless the proxies read it."""
        ensemble, stream = self._ensemble, self._stream
        reads_all = self._options.expert_in_thoughts or not ensemble.proxies
        if not reads_all and (stream.in_reasoning or stream.in_gap):
            alone = ensemble.distribution(alone=True)
            token = int(alone.candidates.tokens[np.argmax(alone.logp)])
            # The proxies do not read the newlines between reasoning and answer either.
            if stream.in_reasoning or not ensemble.piece(token).strip(b"\n"):
                return MaskedDistribution(alone, alone=True)
        return MaskedDistribution(ensemble.distribution())

    def _consume(self, token: int, *, last: bool) -> tuple[TextPart, FinishReason | None]:
        """Feeds a token to the stream: the text it adds, and the finish reason if it ends here."""
        stream = self._stream
        if stream.ends(token):
            return stream.flush(), FinishReason.STOP
        if self._constraint is not None and not stream.in_reasoning:
            self._constraint.accept(token)
        part = stream.feed(token, self._ensemble.piece(token))
        # One token ended the reasoning and began the answer: that text was not constrained.
        self._begun_unstructured |= stream.in_gap and stream.in_reasoning
        if stream.stopped:
            return part, FinishReason.STOP
        if stream.repeats:
            return stream.flush(part), FinishReason.REPETITION
        # The token itself must fit into every context; a proxy may need a few tokens for it.
        if last or self._ensemble.tokens_left <= 1:
            if not last:
                self._note_full_context()
            return stream.flush(part), FinishReason.LENGTH
        return part, None

    def _note_full_context(self) -> None:
        used = self._ensemble.used
        role = min(used, key=lambda each: used[each][1] - used[each][0])
        self._full = [
            f"The context of the {role} is full ({min(used[role]):,} of {used[role][1]:,} tokens), "
            "so the answer ends here. A larger --ctx-size leaves more room."
        ]

    def _step_record(
        self,
        chosen: MaskedDistribution,
        place: int,
        part: TextPart,
        finish: FinishReason | None,
    ) -> Step:
        """The record of the choice of candidate `place`.

        The target's own choice is made under the same repetition penalty and schema, so that a
        step that only these changed does not count as changed by the expert.
        """
        ensemble, options, here = self._ensemble, self._options, chosen.here
        vocabulary, own, top = ensemble.leader.model.vocabulary, here.candidates, options.top
        best, together = (
            likeliest(own.tokens, logp, ensemble.tokens, options.sample, chosen.mask)
            for logp in (own.logp, here.logp)
        )
        reported = 0 if chosen.alone or ensemble.target_alone else top
        proxies = here.proxy_logprobs[:, place].tolist() if reported else []
        return Step(
            index=self.stats.steps,
            token=int(own.tokens[place]),
            piece_bytes=part.text,
            thought=part.reasoning,
            logp=float(here.logp[place]),
            target_logp=float(own.logp[place]),
            target_rank=int(np.count_nonzero(own.logp > own.logp[place])),
            target_choice=_likeliest(vocabulary, own.tokens[[best]], own.logp[[best]], 1)[0],
            contrast=None if here.proxies_skipped else float(here.contrast[place]),
            top=_likeliest(vocabulary, own.tokens, here.logp, top),
            target_top=_likeliest(vocabulary, own.tokens, own.logp, top),
            expert_top=_proxy_choices(ensemble, "expert", reported),
            base_top=_proxy_choices(ensemble, "base", reported),
            expert_logp=proxies[0] if proxies else None,
            base_logp=proxies[1] if proxies[1:] else None,
            likeliest=None if together == place else int(own.tokens[together]),
            finish=finish,
            proxies_skipped=here.proxies_skipped,
            piece=self._pieces.decode(part.text, finish is not None),
        )


def _proxy_choices(ensemble: Ensemble, role: str, top: int) -> tuple[Choice, ...]:
    """The likeliest pieces of expert or base (of the first pair, where there are more)."""
    proxy = next((each for each in ensemble.proxies if each.cache.role == role), None)
    if proxy is None or not top:
        return ()
    row = proxy.row if ensemble.published is None else softmax(proxy.row)
    best = np.argpartition(-row, min(top, len(row) - 1))[:top]
    with np.errstate(divide="ignore"):
        return _likeliest(proxy.cache.model.vocabulary, best, np.log(row[best]), top)


def _likeliest(
    vocabulary: Vocabulary, tokens: np.ndarray, logp: np.ndarray, top: int
) -> tuple[Choice, ...]:
    if not top:  # sorting all candidates would take most of a step's time
        return ()
    order = np.argsort(-logp, kind="stable")[:top]
    chosen = zip(tokens[order].tolist(), logp[order].tolist(), strict=True)
    return tuple(Choice(token, vocabulary.piece(token), each) for token, each in chosen)

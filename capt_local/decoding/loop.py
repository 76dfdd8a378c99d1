"""The answer, token by token."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

import numpy as np

from capt_local.decoding.options import GenerateOptions
from capt_local.decoding.reasoning import AnswerStream, ReasoningParser, TextPart
from capt_local.decoding.repetition import RepetitionDetector
from capt_local.decoding.sample import choose, likeliest
from capt_local.decoding.speculate.draft import Ahead
from capt_local.decoding.step import Choice, FinishReason, Step
from capt_local.decoding.structured import Constraint, GrammarSampler, MaskedDistribution
from capt_local.decoding.trio import Trio
from capt_local.errors import Cancelled, ContextOverflow
from capt_local.tokenization.vocabulary import Vocabulary


class Walk:
    """Chooses one token after the other until the answer ends.

    Iterating yields one `Step` a token. Between steps all models stand at the same text.

    Args:
        trio: at the end of a prompt.
        options: of the answer.
        cancel: asked before each step; true ends the answer as interrupted.
        constraint: what the answer is kept to, at its beginning; None: anything.
        parser: finds the reasoning; None where all is the answer.
        turn_ends: tokens that end the answer besides those of the vocabulary.
        ahead: drafts what may come; None: every step by itself.
        force: says the token of a step, whatever was chosen; for measurements alone.

    Attributes:
        finish: why the answer ended; None while it has not.
        held: bytes at the end that no step has brought, since they might have begun a stop string
            when the answer was interrupted.
        notices: what the user should know.
    """

    def __init__(
        self,
        trio: Trio,
        options: GenerateOptions,
        cancel: Callable[[], bool] | None = None,
        constraint: Constraint | None = None,
        parser: ReasoningParser | None = None,
        turn_ends: Iterable[int] = (),
        ahead: Ahead | None = None,
        force: Callable[[int], int] | None = None,
    ) -> None:
        """Decodes nothing yet."""
        self._trio = trio
        self._options = options
        self._cancel = cancel or (lambda: False)
        self._rng = np.random.default_rng(options.sample.seed)
        vocabulary = trio.cached.model.vocabulary
        repetition = RepetitionDetector(words=constraint is None)
        self._stream = AnswerStream(
            vocabulary,
            options.stop,
            parser,
            turn_ends,
            repetition if options.repetition_stop else None,
        )
        self._grammar = (
            None if constraint is None else GrammarSampler(constraint, vocabulary, options.sample)
        )
        self._ahead = ahead
        self._force = force
        self._spoilt = False
        self.finish: FinishReason | None = None
        self.notices = self._stream.notices

    @property
    def complete(self) -> bool | None:
        """Whether the answer has the form that it is kept to; None where it is kept to none."""
        if self._grammar is None:
            return None
        return self._grammar.complete and not self._spoilt

    @property
    def beyond(self) -> int:
        """Steps at which the form allowed no plausible token."""
        return 0 if self._grammar is None else self._grammar.implausible_steps

    @property
    def held(self) -> bytes:
        """See the class."""
        return self._stream.rest()

    def __iter__(self) -> Iterator[Step]:
        """Yields the steps."""
        for index in range(self._options.max_tokens):
            try:
                step = None if self._cancel() else self._step(index)
            except Cancelled:
                step = None
            except ContextOverflow:
                self._stop_at_full_context()
                return
            if step is None:
                self.finish = FinishReason.INTERRUPTED
                return
            self.finish = step.finish
            yield step
            if step.finish is not None:
                return

    def _step(self, index: int) -> Step:
        if self._ahead is not None and not self._stream.in_reasoning and not self._stream.in_gap:
            self._ahead.prepare(self._options.max_tokens - index)
        opened = self._here()
        if self._grammar is not None and not self._stream.in_reasoning:
            opened = self._grammar.mask(
                opened.here, self._trio.tokens, lambda only: self._trio.distribution(only=only)
            )
        place = choose(
            opened.here.candidates.tokens,
            opened.here.logp,
            self._trio.tokens,
            self._options.sample,
            self._rng,
            opened.mask,
        )
        token = int(opened.here.candidates.tokens[place])
        if self._force is not None:
            token = self._force(index)
        if self._ahead is not None:
            self._ahead.chose(token, None if opened.alone else opened.here)
        part, finish = self._take(token, last=index + 1 == self._options.max_tokens)
        step = describe(self._trio, opened, place, index, part, finish, self._options)
        if finish is not FinishReason.STOP:
            reads_all = self._options.expert_in_thoughts
            read = self._trio.piece(token) if reads_all else self._stream.proxy_text
            self._trio.advance_reading(token, read)
        return step

    def _here(self) -> MaskedDistribution:
        """The distribution; that of the target alone where expert and base read no thoughts."""
        if self._options.expert_in_thoughts or not self._trio.proxies:
            return MaskedDistribution(self._trio.distribution())
        if self._stream.in_reasoning or self._stream.in_gap:
            alone = self._trio.distribution(alone=True)
            token = int(alone.candidates.tokens[np.argmax(alone.logp)])
            # Line ends between thoughts and answer are none of the expert's either.
            if self._stream.in_reasoning or not self._trio.piece(token).strip(b"\n"):
                return MaskedDistribution(alone, alone=True)
        return MaskedDistribution(self._trio.distribution())

    def _take(self, token: int, *, last: bool) -> tuple[TextPart, FinishReason | None]:
        """What a token adds to thoughts or answer, and whether it ends it."""
        if self._stream.ends(token):
            return self._stream.flush(), FinishReason.STOP
        if self._grammar is not None and not self._stream.in_reasoning:
            self._grammar.accept(token)
        part = self._stream.feed(token, self._trio.piece(token))
        # A token that ends the thoughts and begins the answer began it without the form.
        self._spoilt |= self._stream.in_gap and self._stream.in_reasoning
        if self._stream.stopped:
            return part, FinishReason.STOP
        if self._stream.repeats:
            return self._stream.flush(part), FinishReason.REPETITION
        # Room for the token itself in every context; a proxy may need a few tokens for it.
        if last or self._trio.room <= 1:
            if not last:
                self._stop_at_full_context()
            return self._stream.flush(part), FinishReason.LENGTH
        return part, None

    def _stop_at_full_context(self) -> None:
        self.finish = FinishReason.LENGTH
        self.notices.append(
            "The context is full, so the answer ends here. A larger --ctx-size leaves more room."
        )


def describe(
    trio: Trio,
    opened: MaskedDistribution,
    place: int,
    index: int,
    part: TextPart,
    finish: FinishReason | None,
    options: GenerateOptions,
) -> Step:
    """The record of the choice of candidate `place`.

    What the target alone would have chosen is subject to the same repetition penalty and the same
    form, so that a step that these changed does not count as changed by the expert.
    """
    vocabulary = trio.cached.model.vocabulary
    here, top = opened.here, options.top
    own = here.candidates
    best, together = (
        likeliest(own.tokens, logp, trio.tokens, options.sample, opened.mask)
        for logp in (own.logp, here.logp)
    )
    said = here.said[:, place].tolist() if top and not opened.alone else []
    return Step(
        index=index,
        token=int(own.tokens[place]),
        piece_bytes=part.text,
        thought=part.reasoning,
        logp=float(here.logp[place]),
        target_logp=float(own.logp[place]),
        target_rank=int(np.count_nonzero(own.logp > own.logp[place])),
        target_choice=_choice(vocabulary, int(own.tokens[best]), float(own.logp[best])),
        contrast=None if here.gated else float(here.contrast[place]),
        top=_likeliest(vocabulary, own.tokens, here.logp, top),
        target_top=_likeliest(vocabulary, own.tokens, own.logp, top),
        expert_top=_pieces_of(trio, "expert", 0 if opened.alone else top),
        base_top=_pieces_of(trio, "base", 0 if opened.alone else top),
        expert_logp=said[0] if said else None,
        base_logp=said[1] if said else None,
        likeliest=None if together == place else int(own.tokens[together]),
        finish=finish,
        gated=here.gated,
    )


def _pieces_of(trio: Trio, role: str, top: int) -> tuple[Choice, ...]:
    """The likeliest pieces of expert or base (of the first pair, where there are more)."""
    proxy = next((each for each in trio.proxies if each.cached.role == role), None)
    if proxy is None or not top:
        return ()
    return _likeliest_pieces(proxy.row, proxy.cached.model.vocabulary, top)


def _choice(vocabulary: Vocabulary, token: int, logp: float) -> Choice:
    return Choice(token, vocabulary.piece(token), logp)


def _likeliest(
    vocabulary: Vocabulary, tokens: np.ndarray, logp: np.ndarray, top: int
) -> tuple[Choice, ...]:
    if not top:  # sorting every candidate would be most of a step
        return ()
    order = np.argsort(-logp, kind="stable")[:top]
    return tuple(_choice(vocabulary, int(tokens[i]), float(logp[i])) for i in order)


def _likeliest_pieces(row: np.ndarray, vocabulary: Vocabulary, top: int) -> tuple[Choice, ...]:
    best = np.argpartition(-row, min(top, len(row) - 1))[:top]
    with np.errstate(divide="ignore"):
        return _likeliest(vocabulary, best, np.log(row[best]), top)

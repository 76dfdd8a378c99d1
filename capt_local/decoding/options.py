"""Options of an answer, and the record of each step: dataclasses that validate themselves."""

from __future__ import annotations

import hashlib
import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Any, ClassVar, TypeAlias

from capt_local.errors import UsageError

# The exponents (a, b, c) of T^a E^b A^-c; with more pairs (a, b, c, b2, c2, ...).
Exponents: TypeAlias = tuple[float, ...]


class Method(StrEnum):
    """The distribution to sample from. Those from CAPT_PAPER on are published methods.

    EXPERT_LED is CAPT over the expert's vocabulary instead of the target's; DUO is T^a E^b, without
    a base. CAPT_PAPER_RAW is CAPT_PAPER with the authors' prompts: expert and base get the text
    without a chat template. UNITE_20 is UniTE with the top 20 of each model, as the authors of CAPT
    ran it.
    """

    CAPT = "capt"
    TARGET = "target"
    EXPERT = "expert"
    BASE = "base"
    EXPERT_LED = "expert-led"
    DUO = "duo"
    CAPT_PAPER = "capt-paper"
    CAPT_PAPER_RAW = "capt-paper-raw"
    UNITE = "unite"
    UNITE_20 = "unite-20"
    SAFE = "safe"
    PROXY_TUNING = "proxy-tuning"
    CONTRASTIVE = "contrastive"

    @property
    def roles(self) -> tuple[str, ...] | None:
        """The roles that it needs, the leading model first; None: all models."""
        match self:
            case Method.CAPT:
                return None
            case Method.TARGET | Method.EXPERT | Method.BASE:
                return (self.value,)
            case Method.EXPERT_LED:
                return ("expert", "target", "base")
            case Method.DUO | Method.UNITE | Method.UNITE_20 | Method.SAFE:
                return ("target", "expert")
            case Method.CONTRASTIVE:
                return ("expert", "base")
        return ("target", "expert", "base")


class Speed(StrEnum):
    """How the steps of an answer are computed.

    EXACT_STEPS runs every model for every token. AUTO skips models that cannot change a token, and
    uses speculative drafts: the same answer, bit for bit. FAST also skips expert and base where
    they have little effect (`ensemble.SkipRule`) and samples from the target: answers may differ.
    """

    AUTO = "auto"
    EXACT_STEPS = "exact-steps"
    FAST = "fast"


# The exponents mixed by evidence when a text is continued: the target alone, weak and strong
# contrast, and nearly the expert alone. Selected by bits per byte of clinical notes and general
# prose (docs/results.md).
GRID: tuple[Exponents, ...] = (
    (1.0, 0.0, 0.0),
    (0.5, 0.5, 0.0),
    (1.0, 0.5, 0.5),
    (0.75, 1.0, 0.75),
    (0.5, 1.0, 0.5),
    (0.25, 1.0, 0.25),
    (0.0, 1.0, 0.0),
)
# The same for an answer to a chat turn: CAPT with alpha 0, 1/4 and 1/2. An expert that predicts
# notes well need not follow instructions, so the target keeps exponent 1.
# Selected by the answers to mts-summary.validation (docs/results.md).
ANSWER_GRID: tuple[Exponents, ...] = ((1.0, 0.0, 0.0), (1.0, 0.25, 0.25), (1.0, 0.5, 0.5))
# The same as GRID for the target and an expert without any base, T^a E^b.
DUO_GRID: tuple[Exponents, ...] = (
    (1.0, 0.0, 0.0),
    (0.75, 0.25, 0.0),
    (0.5, 0.5, 0.0),
    (0.25, 0.75, 0.0),
    (0.0, 1.0, 0.0),
)
# Factor on the earlier evidence at each token; 1 is a plain sum.
FORGETTING = 0.98
_LARGEST = 8.0


@dataclass(frozen=True, slots=True)
class CombineOptions:
    """The weights of the models in the combination.

    Attributes:
        alphas: fixed alpha, (alpha,) for all pairs or one for each; empty: the exponents in `grid`
            are mixed, with weights from the evidence of the prompt.
        powers: fixed exponents (a, b, c) of T^a E^b A^-c instead, or (a, b, c, b2, c2, ...).
        plausibility: tokens with p_target < plausibility * max p_target keep the target's
            probability and are never chosen.
        grid: the exponents (a, b, c) to mix, those of the target alone (1, 0, 0) among them.
            Empty: GRID to continue a text, ANSWER_GRID to answer a chat turn.
        evidence_tokens: number of last tokens of the user's text used as evidence.
        forgetting: factor on the earlier evidence at each token; 1 is a plain sum.
    """

    alphas: tuple[float, ...] = ()
    powers: Exponents = ()
    plausibility: float = 1e-5
    grid: tuple[Exponents, ...] = ()
    evidence_tokens: int = 64
    forgetting: float = FORGETTING

    def __post_init__(self) -> None:
        for alpha in self.alphas:
            if not -_LARGEST <= alpha <= _LARGEST:
                raise UsageError(f"--alpha {alpha} is not between -8 and 8.")
        if self.alphas and self.powers:
            raise UsageError("Give either --alpha or --weights.")
        if not 0.0 <= self.plausibility <= 1.0:
            raise UsageError(f"--plausibility {self.plausibility} is not between 0 and 1.")
        if not all(-_LARGEST <= power <= _LARGEST for power in self.powers):
            raise UsageError("A weight is not between -8 and 8.")
        if self.powers and (len(self.powers) < 3 or len(self.powers) % 2 == 0):
            raise UsageError("--weights takes A,B,C, and B,C once more for each further pair.")

    @property
    def mixes(self) -> bool:
        """Whether the weights come from the evidence."""
        return not self.alphas and not self.powers

    def rows(self, pairs: int, *, answer: bool = False) -> tuple[Exponents, ...]:
        """The exponents of each mixed product, shape (m, 1 + 2 * pairs).

        With several pairs there is a product for each of them alone, and one for all together with
        the exponents of expert and base divided by their number.

        Args:
            pairs: number of pairs of expert and base.
            answer: whether a chat turn is answered; otherwise a text is continued.

        Raises:
            UsageError: the number of weights does not fit the number of pairs.
        """
        if not pairs:
            return ((1.0,),)
        if self.powers or self.alphas:
            return (self._fixed(pairs),)
        nothing = (0.0, 0.0)
        rows: list[Exponents] = []
        for a, b, c in self.grid or (ANSWER_GRID if answer else GRID):
            for place in range(pairs):
                rows.append((a, *nothing * place, b, c, *nothing * (pairs - 1 - place)))
            if pairs > 1:
                rows.append((a, *(b / pairs, c / pairs) * pairs))
        return tuple(dict.fromkeys(rows))

    def duo_rows(self) -> tuple[Exponents, ...]:
        """The exponents (a, b, 0) of each mixed product of target and expert.

        A fixed alpha gives T^(1 - alpha) E^alpha.

        Raises:
            UsageError: weights give an exponent to a base, or are for several experts.
        """
        if self.powers:
            if len(self.powers) != 3 or self.powers[2]:
                raise UsageError("--method duo has no base: --weights takes A,B,0.")
            return (self.powers,)
        if self.alphas:
            if len(self.alphas) > 1:
                raise UsageError("--alpha takes one number for --method duo.")
            return ((1.0 - self.alphas[0], self.alphas[0], 0.0),)
        return DUO_GRID

    def _fixed(self, pairs: int) -> Exponents:
        if self.powers:
            if len(self.powers) != 1 + 2 * pairs:
                raise UsageError(
                    f"--weights takes {1 + 2 * pairs} numbers for {pairs} pairs of expert and base."
                )
            return self.powers
        if len(self.alphas) not in (1, pairs):
            each = f", or {pairs}: one for each pair" if pairs > 1 else ""
            raise UsageError(f"--alpha takes one number{each}.")
        alphas = self.alphas if len(self.alphas) == pairs else self.alphas * pairs
        return (1.0, *(power for alpha in alphas for power in (alpha, alpha)))


@dataclass(frozen=True, slots=True)
class SampleOptions:
    """How a token is sampled from the combined distribution.

    Attributes:
        temperature: 0 is greedy decoding.
        top_k: keep the k likeliest tokens; 0 keeps all.
        top_p: keep the smallest set of likeliest tokens with at least this total probability.
        min_p: keep tokens with at least this fraction of the largest probability.
        repeat_penalty: > 1 makes tokens of the last `repeat_window` less likely.
        seed: of the random draws; the same seed gives the same answer.
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repeat_penalty: float = 1.0
    repeat_window: int = 64
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.temperature < math.inf:
            raise UsageError(f"--temp {self.temperature} is not 0 or above.")
        if self.top_k < 0:
            raise UsageError(f"--top-k {self.top_k} is negative.")
        if not 0 < self.top_p <= 1:
            raise UsageError(f"--top-p {self.top_p} is not above 0 and at most 1.")
        if not 0 <= self.min_p <= 1:
            raise UsageError(f"--min-p {self.min_p} is not between 0 and 1.")
        if not 0 < self.repeat_penalty < math.inf:
            raise UsageError(f"--repeat-penalty {self.repeat_penalty} is not above 0.")
        if self.repeat_window < 0:
            raise UsageError(f"--repeat-last-n {self.repeat_window} is negative.")
        if self.seed < 0:
            raise UsageError(f"--seed {self.seed} is negative.")


@dataclass(frozen=True, slots=True)
class Structure:
    """The JSON schema of a structured answer.

    Attributes:
        source: a JSON schema as returned by `structured.schema_structure`.
        kind: the kind of `source`, for records.
    """

    source: str
    kind: ClassVar[str] = "json-schema"

    def __post_init__(self) -> None:
        try:
            found = json.loads(self.source)
        except (ValueError, RecursionError):
            found = None
        if not isinstance(found, dict):
            raise UsageError("A structure is a JSON schema, as `schema_structure` gives it.")

    @property
    def digest(self) -> str:
        """SHA-256 of the source."""
        return hashlib.sha256(self.source.encode()).hexdigest()


@dataclass(frozen=True, slots=True)
class GenerateOptions:
    """Everything that determines an answer besides the models and the prompt.

    Attributes:
        max_tokens: the answer ends with finish reason `length` after this many tokens.
        stop: strings that end the answer and are not part of it.
        top: number of candidates that each step reports for each model; 0 reports none.
        structure: the JSON schema that the answer must match; None: no constraint.
        expert_in_thoughts: whether expert and base read the reasoning before the answer and take
            part in sampling it.
        repetition_stop: whether endless repetition ends the answer.
        adapter_scales: the scale of each LoRA adapter, by role; a missing role has the scales that
            it was loaded with.
    """

    method: Method = Method.CAPT
    max_tokens: int = 512
    stop: tuple[str, ...] = ()
    top: int = 0
    combine: CombineOptions = field(default_factory=CombineOptions)
    sample: SampleOptions = field(default_factory=SampleOptions)
    structure: Structure | None = None
    expert_in_thoughts: bool = False
    speed: Speed = Speed.AUTO
    repetition_stop: bool = True
    adapter_scales: tuple[tuple[str, tuple[float, ...]], ...] = ()

    def __post_init__(self) -> None:
        if self.max_tokens < 1:
            raise UsageError(f"--max-tokens {self.max_tokens} is below 1.")
        if any(not text for text in self.stop):
            raise UsageError("A stop string is empty.")
        if self.stop and self.structure is not None:
            raise UsageError("A stop string would cut a structured answer; give one of the two.")
        if not all(abs(one) <= _LARGEST for _, scales in self.adapter_scales for one in scales):
            raise UsageError("The scale of an adapter is a number from -8 to 8.")  # nor NaN

    def with_seed(self, seed: int) -> GenerateOptions:
        """The same options with another seed of the draws."""
        return replace(self, sample=replace(self.sample, seed=seed))

    def scales_of(self, role: str) -> tuple[float, ...] | None:
        """The scales of the adapters of a role; None: those that it was loaded with."""
        return dict(self.adapter_scales).get(role)


def with_arguments(
    options: GenerateOptions | None, arguments: Mapping[str, Any]
) -> GenerateOptions:
    """Options with some of them replaced by keyword arguments.

    Args:
        options: the base options; None: the defaults.
        arguments: by the names listed in `Runtime.generate`.

    Raises:
        UsageError: an argument is unknown or has the wrong type; the message names it.
    """
    if options is not None and not isinstance(options, GenerateOptions):
        raise _wrong("options", "GenerateOptions", options)
    made = options or GenerateOptions()
    own: dict[str, Any] = {}
    sample: dict[str, Any] = {}
    combine: dict[str, Any] = {}
    for name, value in arguments.items():
        match name:
            case "max_tokens" | "top":
                own[name] = _checked(name, value, int, "a whole number")
            case "top_k" | "repeat_window" | "seed":
                sample[name] = _checked(name, value, int, "a whole number")
            case "temperature" | "top_p" | "min_p" | "repeat_penalty":
                sample[name] = _number(name, value)
            case "plausibility":
                combine[name] = _number(name, value)
            case "alpha":
                combine |= {"alphas": _numbers(name, value, one=True), "powers": ()}
            case "weights":
                combine |= {"powers": _numbers(name, value), "alphas": ()}
            case "stop":
                own[name] = _texts(name, value)
            case "method" | "speed":
                kind = Method if name == "method" else Speed
                if value not in list(kind):
                    raise UsageError(f"{name} has to be one of {', '.join(kind)}.")
                own[name] = kind(value)
            case "adapter_scales":
                scales = _checked(name, value, Mapping, "a mapping from roles to numbers")
                own[name] = tuple(
                    (str(role), _numbers(name, each, one=True)) for role, each in scales.items()
                )
            case "structure":
                own[name] = _checked(name, value, Structure | None, "a Structure or None")
            case "expert_in_thoughts":
                own[name] = _checked(name, value, bool, "True or False")
            case _:
                raise UsageError(f"generate has no argument {name!r}.")
    if sample:
        own["sample"] = replace(made.sample, **sample)
    if combine:
        own["combine"] = replace(made.combine, **combine)
    return replace(made, **own) if own else made


def _checked(name: str, value: Any, kind: Any, wanted: str) -> Any:
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        raise _wrong(name, wanted, value)
    return value


def _number(name: str, value: object) -> float:
    return float(_checked(name, value, int | float, "a number"))


def _numbers(name: str, values: object, *, one: bool = False) -> tuple[float, ...]:
    """A list of numbers, or where `one` is allowed a single one."""
    if not isinstance(values, Sequence) or isinstance(values, str):
        if not one:
            raise _wrong(name, "a list of numbers", values)
        values = (values,)
    return tuple(_number(name, value) for value in values)


def _texts(name: str, value: object) -> tuple[str, ...]:
    texts = (value,) if isinstance(value, str) else value
    if not isinstance(texts, Sequence) or not all(isinstance(one, str) for one in texts):
        raise _wrong(name, "a text or a list of texts", value)
    return tuple(texts)


def _wrong(name: str, wanted: str, value: object) -> UsageError:
    return UsageError(f"{name} has to be {wanted}, not {type(value).__name__}.")


class FinishReason(StrEnum):
    """Why an answer ended."""

    STOP = "stop"
    LENGTH = "length"
    REPETITION = "repetition"
    INTERRUPTED = "interrupted"
    ERROR = "error"
    ABSTAINED = "abstained"  # the answer was withheld: the source does not support it


@dataclass(frozen=True, slots=True)
class Choice:
    """A candidate token with its log-probability (nats) under one model."""

    token: int
    piece_bytes: bytes
    logp: float

    @property
    def piece(self) -> str:
        """The same as text; invalid UTF-8 becomes U+FFFD."""
        return self.piece_bytes.decode("utf-8", "replace")


@dataclass(frozen=True, slots=True)
class Step:
    """One token of an answer. All log-probabilities are natural logarithms.

    Attributes:
        index: position in the answer, from 0.
        token: id in the target's vocabulary.
        piece_bytes: the bytes that this step adds to the answer; none for an end or control token.
            A possible beginning of a stop string is held back for a later step, so that the joined
            bytes of all steps are the answer.
        logp: log-probability under the combined distribution, before temperature and filters.
        target_logp, target_rank: under the target alone; rank 0 is its likeliest token.
        target_choice: the target's likeliest token after the same text.
        contrast: logp_expert - logp_base of the token's event; 0 without proxies, None if they did
            not run.
        expert_logp, base_logp: of that event; None if `GenerateOptions.top` is 0.
        top, target_top: the likeliest tokens of the combination, and of the target.
        expert_top, base_top: the likeliest pieces of the proxies, in their own vocabularies.
        likeliest: the likeliest token of the combination, if sampling chose another one; None if
            it is `token`.
        finish: set on the last step only.
        thought: whether `piece` belongs to the reasoning, not to the answer. Tokens of the markers
            have no bytes.
        proxies_skipped: whether expert and base did not run, since they could not change the
            choice, had no weight or, with `Speed.FAST`, had little effect.
        piece: the same bytes as text. A character split across tokens belongs to the last of them,
            so that the joined pieces are the answer too.
    """

    index: int
    token: int
    piece_bytes: bytes
    logp: float
    target_logp: float
    target_rank: int
    target_choice: Choice
    contrast: float | None = 0.0
    top: tuple[Choice, ...] = ()
    target_top: tuple[Choice, ...] = ()
    expert_top: tuple[Choice, ...] = ()
    base_top: tuple[Choice, ...] = ()
    expert_logp: float | None = None
    base_logp: float | None = None
    likeliest: int | None = None
    finish: FinishReason | None = None
    thought: bool = False
    proxies_skipped: bool = False
    piece: str = field(default="", compare=False)

    @property
    def changed(self) -> bool:
        """Whether the combination's likeliest token differs from the target's own.

        At temperature 0: whether the target alone would have chosen another token.
        """
        likeliest = self.token if self.likeliest is None else self.likeliest
        return likeliest != self.target_choice.token


@dataclass(slots=True)
class DraftCount:
    """Drafts of one source: their number, the tokens in them, and the accepted tokens."""

    rounds: int = 0
    drafted: int = 0
    accepted: int = 0


@dataclass(slots=True)
class DraftStats:
    """Counts of drafts, skipped proxies and decode calls of one answer.

    Attributes:
        steps: sampled tokens.
        proxies_skipped: steps at which expert and base did not run.
        passes, decoded: decode calls for the answer, and the tokens in them, by role.
    """

    steps: int = 0
    proxies_skipped: int = 0
    by_source: dict[str, DraftCount] = field(default_factory=dict)
    passes: Counter[str] = field(default_factory=Counter)
    decoded: Counter[str] = field(default_factory=Counter)

    @property
    def drafted(self) -> int:
        """Drafted tokens of all sources."""
        return sum(count.drafted for count in self.by_source.values())

    @property
    def accepted(self) -> int:
        """Accepted tokens of all sources."""
        return sum(count.accepted for count in self.by_source.values())

    @property
    def acceptance(self) -> float | None:
        """Acceptance rate of drafted tokens; None if there were none."""
        return self.accepted / self.drafted if self.drafted else None

    def forwards_per_token(self) -> dict[str, float]:
        """Decode calls per token of the answer, by role."""
        return {role: count / max(self.steps, 1) for role, count in self.passes.items()}

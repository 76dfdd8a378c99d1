"""Best of n: several answers to one prompt, sampled in one batch, and their ranking.

The prompt is decoded once; each candidate has its own seed and shares batches with the others.
They are ranked by a scorer if there is one; structured answers by majority; else by the mean
log-probability of their tokens under the combination. If answers must be supported by a source,
those with the fewest unsupported facts come first.

A scorer estimates the probability that an answer is right: an encoder of BERT's size (GGUF) reads
"Q: question A: answer", and a linear classification head (labels wrong, right) on its pooled vector
gives the logits, as in MedAdapter (Shi et al. 2024). The head is a safetensors file beside the
encoder: `weight` (2, width) and `bias` (2,); its metadata has the digests of the encoder that it
was trained with and of the target's tokenizer.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from pathlib import Path

import numpy as np
import numpy.typing as npt

from capt_local.bundles.manifest import Bundle
from capt_local.bundles.verify import Check, file_digest
from capt_local.config import Feature, read_site
from capt_local.decoding.batching import Request, RequestResult
from capt_local.decoding.loop import Generation
from capt_local.decoding.options import FinishReason, GenerateOptions, Step
from capt_local.errors import Cancelled, ModelError, UsageError
from capt_local.llama.gguf_header import file_digests
from capt_local.llama.library import Closing
from capt_local.llama.model import Encoder
from capt_local.model_checks import is_trusted, probe_encoder
from capt_local.prompting.messages import Message
from capt_local.runtime import Runtime
from capt_local.strict_json import Stamp

Unsupported = Callable[[str], tuple[int, int]]
"""From an answer to the numbers of its facts and statements that a source does not support."""
MAX_CANDIDATES = 64
"""Candidates at most; each takes a KV cache of its own in every model."""


class RankedBy(StrEnum):
    """The criterion of the ranking."""

    SCORER = "scorer"
    MAJORITY = "majority"
    MEAN_LOGP = "mean-logprob"


@dataclass(frozen=True, slots=True)
class Candidate:
    """One of several finished answers."""

    seed: int
    generation: Generation
    steps: tuple[Step, ...]
    score: float  # the scorer's, the share of equal answers (majority), or mean_logp
    mean_logp: float  # of its tokens, in nats
    unsupported: tuple[int, int] | None = None  # facts and statements; None: not checked


@dataclass(frozen=True, slots=True)
class BestOf:
    """Candidates, the best first (ties: the smaller seed first)."""

    candidates: tuple[Candidate, ...]
    ranked_by: RankedBy
    notices: tuple[str, ...] = ()

    def as_object(self, shown: int = 1) -> dict[str, object]:
        """For `--json`: all candidates with their scores; the first `shown` without their text."""
        return {
            "ranked_by": self.ranked_by.value,
            "candidates": [
                {
                    "seed": one.seed,
                    "score": one.score,
                    "mean_logprob": one.mean_logp,
                    "tokens": len(one.steps),
                    "finish_reason": one.generation.finish,
                    **({"unsupported": one.unsupported[0]} if one.unsupported else {}),
                    **({} if place < shown else {"text": one.generation.text}),
                }
                for place, one in enumerate(self.candidates)
            ],
        }


def check_best_of(n: int, options: GenerateOptions) -> None:
    """Checks the number of candidates and the temperature.

    Raises:
        UsageError: n is not 1 to MAX_CANDIDATES, or all candidates would be the same.
    """
    if not 1 <= n <= MAX_CANDIDATES:
        raise UsageError(f"--best-of takes 1 to {MAX_CANDIDATES} candidates.")
    if n > 1 and not options.sample.temperature:
        raise UsageError(
            "Candidates at temperature 0 are all the same: give --temp, such as --temp 1."
        )


def best_of(
    runtime: Runtime,
    prompt: str | Sequence[Message],
    options: GenerateOptions,
    n: int,
    scorer: Scorer | None = None,
    *,
    raw: bool = False,
    cancel: Callable[[], bool] | None = None,
    question: str | None = None,
    unsupported: Unsupported | None = None,
) -> BestOf:
    """Samples n answers with the seeds `options.sample.seed`, + 1, ..., and ranks them.

    The scorer reads `question`, or else the user's last turn. With `unsupported`, answers with the
    fewest unsupported facts come first, then those with the fewest unsupported statements, then by
    score; empty answers and incomplete structured answers are last. For `prompt`, `raw` and
    `cancel` see `Runtime.generate`.

    Raises:
        UsageError: see `check_best_of`.
        Cancelled: `cancel` returned true.
        CaptError: the error of a candidate.
    """
    check_best_of(n, options)
    requests = candidate_requests(prompt, options, n, raw=raw)
    results: list[RequestResult] = []
    for result in runtime.generate_many(requests, parallel=n, cancel=cancel):
        if result.error is not None:
            raise result.error
        assert result.generation is not None, "it has ended without an error"
        if result.generation.finish is FinishReason.INTERRUPTED:
            raise Cancelled("The answers were stopped.")
        results.append(result)
    return ranked(prompt, options, results, scorer, question=question, unsupported=unsupported)


def candidate_requests(
    prompt: str | Sequence[Message], options: GenerateOptions, n: int, *, raw: bool = False
) -> list[Request]:
    """The requests for n answers with the seeds `options.sample.seed`, + 1, ...: one group."""
    first, group = options.sample.seed, object()
    return [
        Request(prompt, options.with_seed(seed), raw, group=group)
        for seed in range(first, first + n)
    ]


def ranked(
    prompt: str | Sequence[Message],
    options: GenerateOptions,
    results: Sequence[RequestResult],
    scorer: Scorer | None = None,
    *,
    question: str | None = None,
    unsupported: Unsupported | None = None,
) -> BestOf:
    """Ranks the answers to `candidate_requests`, in any order; see `best_of`."""
    first = min(result.index for result in results)
    made: list[tuple[int, Generation, tuple[Step, ...]]] = []
    for result in sorted(results, key=lambda result: result.index):
        assert result.generation is not None, "it has ended without an error"
        seed = options.sample.seed + result.index - first
        made.append((seed, result.generation, result.steps))
    means = [
        float(np.mean([step.logp for step in steps])) if steps else 0.0 for _, _, steps in made
    ]
    texts = [generation.text for _, generation, _ in made]
    if scorer is not None:
        by, scores = RankedBy.SCORER, scorer.scores(question or last_user_turn(prompt), texts)
    elif options.structure is not None:
        by, scores = RankedBy.MAJORITY, shares([_without_layout(text) for text in texts])
    else:
        by, scores = RankedBy.MEAN_LOGP, means
    lacks = [unsupported(text) if unsupported else None for text in texts]
    # An empty or incomplete answer would have no unsupported facts.
    broken = [
        unsupported is not None and (not each.text.strip() or each.structured is False)
        for _, each, _ in made
    ]
    candidates = [
        Candidate(*one, score, mean, lack)
        for one, score, mean, lack in zip(made, scores, means, lacks, strict=True)
    ]
    order = sorted(
        range(len(made)),
        key=lambda place: (broken[place], lacks[place] or (0, 0), -scores[place], place),
    )
    notices = tuple(scorer.notices) if scorer is not None else ()
    return BestOf(tuple(candidates[place] for place in order), by, notices)


def last_user_turn(prompt: str | Sequence[Message]) -> str:
    """The question for the scorer: the user's last turn."""
    if isinstance(prompt, str):
        return prompt
    return next((turn.content for turn in reversed(prompt) if turn.role == "user"), "")


def shares(answers: Sequence[str | None]) -> list[float]:
    """For each answer the share of equal answers; 0 for None."""
    counts = Counter(one for one in answers if one is not None)
    return [counts[one] / len(answers) if one is not None else 0.0 for one in answers]


def draw_choices(logps: Sequence[float], n: int, temperature: float, seed: int) -> list[int]:
    """Indices of n choices sampled by their log-likelihoods (nats), for multiple choice."""
    scaled = np.asarray(logps) / temperature
    weights = np.exp(scaled - scaled.max())
    rng = np.random.default_rng(seed)
    return [int(place) for place in rng.choice(len(weights), n, p=weights / weights.sum())]


def _without_layout(text: str) -> str:
    """A structured answer in canonical form, so that layout and key order do not matter."""
    try:
        return json.dumps(json.loads(text), sort_keys=True)
    except ValueError:
        return " ".join(text.split())


ROLE = "scorer"
HEAD = "head.safetensors"
ENCODER = "encoder.gguf"
_LARGEST_HEAD = 1 << 20  # bytes
_LONGEST_QUESTION = 1 << 18  # characters at its end that are tokenized; far more than are read


@dataclass(frozen=True, slots=True)
class ScorerFiles:
    """The files of a scorer: encoder (GGUF), head (safetensors); the checked encoder's stamp."""

    encoder: Path
    head: Path
    stamp: Stamp | None = None

    @classmethod
    def at(cls, place: Path) -> ScorerFiles:
        """The scorer in a folder, or of an encoder with the head beside it.

        Raises:
            ModelError: there is none.
        """
        folder = place if place.is_dir() else place.parent
        found = cls(folder / ENCODER if place.is_dir() else place, folder / HEAD)
        for path in (found.encoder, found.head):
            if not path.is_file():
                raise ModelError(f"The scorer has no {path.name}.")
        return found


def open_scorer(
    which: str | None, bundle: Bundle, check: Check = Check.CACHED, threads: int | None = None
) -> Scorer | None:
    """Opens the scorer that the user names, after the same checks as models; None for None.

    `which`: "scorer" for that of the bundle, or the path of an encoder or of a folder with both
    files. One thread is enough for an encoder of this size.

    Raises:
        UsageError: the site forbids files without a manifest.
        ModelError: there is no such scorer, or it is not one of this bundle.
    """
    if which is None:
        return None
    if which == ROLE and not Path(which).exists():
        own = bundle.scorer
        if own is None:
            raise ModelError(f"The bundle {bundle.id} has no scorer: name the folder of one.")
        for file in (own, own.head):
            if file_digest(file.path) != file.sha256:
                raise ModelError(f"The scorer's {file.path.name} is not the file of the manifest.")
        files, trusted = ScorerFiles(own.path, own.head.path), is_trusted(bundle)
    else:
        read_site().limits.refuse(Feature.UNSIGNED, "A scorer that is given by its path")
        files, trusted = ScorerFiles.at(Path(which)), False
    if not trusted:
        files = replace(files, stamp=probe_encoder(files.encoder, check))
    tokenizer = file_digests(bundle.models["target"].path).tokenizer
    return Scorer(files, tokenizer, threads or 1)


class Scorer(Closing):
    """A loaded scorer.

    `target_tokenizer` is the digest of the tokenizer of the target whose answers are scored; None
    skips the comparison. `digest` is the SHA-256 of encoder and head, `notices` are messages for
    the user.

    Raises:
        ModelError: a file is missing, damaged or not part of a scorer, the head belongs to another
            encoder, or the scorer was trained on answers of another target.
    """

    def __init__(
        self, files: ScorerFiles, target_tokenizer: str | None = None, threads: int = 1
    ) -> None:
        weight, bias, about = _read_head(files.head)
        with files.encoder.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        if about.get("encoder_sha256") != digest:
            raise ModelError(
                f"{files.head.name} was trained with another encoder than {files.encoder.name}. "
                "Get both files of the scorer from one source."
            )
        if target_tokenizer is not None and about.get("target_tokenizer") != target_tokenizer:
            raise ModelError(
                f"The scorer {files.encoder.name} was trained on answers of another target (its "
                "tokenizer differs). Use a scorer of this trio, or none."
            )
        head = hashlib.sha256(files.head.read_bytes()).hexdigest()
        self.digest = hashlib.sha256(f"{digest} {head}".encode()).hexdigest()
        self.notices: list[str] = []
        self._encoder = Encoder(files.encoder, threads, files.stamp)
        if weight.shape != (2, self._encoder.width):
            self.close()
            raise ModelError(f"{files.head.name} does not fit {files.encoder.name}.")
        self._weight, self._bias = weight, bias
        length = about.get("length", "")
        most = int(length) if length.isdecimal() and len(length) < 9 else self._encoder.limit
        self._limit = min(self._encoder.limit, most) - 2  # [CLS] and [SEP]

    def scores(self, question: str, answers: Sequence[str]) -> list[float]:
        """The probability that each answer is right; equal answers are scored once."""
        before = self._encoder.tokenize("Q:")
        own = self._encoder.tokenize(question[-_LONGEST_QUESTION:])
        cut = len(question) > _LONGEST_QUESTION
        known = {answer: self._score(before, own, answer, cut) for answer in dict.fromkeys(answers)}
        return [known[answer] for answer in answers]

    def _score(self, before: list[int], own: list[int], answer: str, cut: bool) -> float:
        encoder = self._encoder
        behind = encoder.tokenize(f"A: {answer}")
        left = self._limit - len(before) - len(behind)
        if cut or left < len(own):
            notice = (
                f"The scorer reads {self._limit} tokens, so it has not seen the beginning of the "
                "text before an answer"
            )
            if left < 0:
                notice += ", nor the end of a long answer"
            if f"{notice}." not in self.notices:
                self.notices.append(f"{notice}.")
            own, behind = own[len(own) - max(left, 0) :], behind[: self._limit - len(before)]
        logits = self._weight @ encoder.vector([*before, *own, *behind]) + self._bias
        return 0.5 + 0.5 * math.tanh(0.5 * float(logits[1] - logits[0]))  # sigmoid, no overflow

    def close(self) -> None:
        self._encoder.close()


def _read_head(
    path: Path,
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32], dict[str, str]]:
    """Weight, bias and metadata of a head.

    The format: 8 bytes of length, that many of JSON, then the numbers.
    """
    broken = ModelError(f"{path.name} is no head of a scorer. Get the file again.")
    try:
        if path.stat().st_size > _LARGEST_HEAD:
            raise broken
        data = path.read_bytes()
    except OSError as error:
        raise ModelError(f"{path.name} cannot be read: {error.strerror or 'no access'}.") from None
    try:
        size = int.from_bytes(data[:8], "little")
        header = json.loads(data[8 : 8 + size])
        found = {}
        for name in ("weight", "bias"):
            entry = header[name]
            first, last = entry["data_offsets"]
            values = np.frombuffer(data[8 + size :][first:last], "<f4")
            found[name] = values.reshape(entry["shape"])
            if entry["dtype"] != "F32" or not np.isfinite(values).all():
                raise broken
        about = {key: str(value) for key, value in header["__metadata__"].items()}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise broken from None
    if found["bias"].shape != (2,):
        raise broken
    return found["weight"], found["bias"], about

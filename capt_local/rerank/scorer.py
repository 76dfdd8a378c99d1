"""A scorer: how probable it is that an answer to a question is right.

An encoder of BERT's size (GGUF) reads "Q: question A: answer", and a head of two labels (wrong,
right) on its pooled vector says which it is, as in MedAdapter (Shi et al. 2024).

The head is a safetensors file beside the encoder: `weight` (2, width) and `bias` (2,), with the
digest of the encoder that it was trained with and that of the target's tokenizer in its metadata.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from capt_local.bundles.manifest import Bundle
from capt_local.bundles.verify import Check, file_digest
from capt_local.config import Feature, read_site
from capt_local.errors import ModelError
from capt_local.llama.encoder import Encoder
from capt_local.llama.gguf_header import file_digests
from capt_local.llama.library import Closing
from capt_local.model_checks import is_trusted, look_at_encoder
from capt_local.strict_json import Stamp

ROLE = "scorer"
HEAD = "head.safetensors"
ENCODER = "encoder.gguf"
_LARGEST_HEAD = 1 << 20  # bytes


@dataclass(frozen=True, slots=True)
class ScorerFiles:
    """Where a scorer lies: a GGUF file, and its stamp if it was checked; a safetensors file."""

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
    """The scorer that a user names, checked as models are; None where nobody names one.

    `which` is "scorer", the bundle's own, or the path of an encoder or of a folder. One thread is
    enough for an encoder of this size.

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
        files = replace(files, stamp=look_at_encoder(files.encoder, check))
    tokenizer = file_digests(bundle.models["target"].path).tokenizer
    return Scorer(files, tokenizer, threads or 1)


class Scorer(Closing):
    """A loaded scorer.

    `target_tokenizer` is the digest of the tokenizer of the target whose answers are scored; None
    is not compared. `digest` is the SHA-256 of encoder and head, `notices` what the user should
    know.

    Raises:
        ModelError: a file is missing, damaged or no part of a scorer, the head is of another
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
        """The probability that each answer is right; the same text is read once."""
        known = {answer: self._score(question, answer) for answer in dict.fromkeys(answers)}
        return [known[answer] for answer in answers]

    def _score(self, question: str, answer: str) -> float:
        encoder = self._encoder
        before, own, behind = map(encoder.tokenize, ("Q:", question, f"A: {answer}"))
        left = self._limit - len(before) - len(behind)
        if left < len(own):
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
        return 0.5 + 0.5 * math.tanh(0.5 * float(logits[1] - logits[0]))  # of any size

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

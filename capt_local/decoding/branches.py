"""Several continuations of one prompt as a tree: what they share is walked once."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

import numpy as np

from capt_local.decoding.combine import FloatArray
from capt_local.decoding.methods.choices import log_mass
from capt_local.decoding.prefill import prefill
from capt_local.decoding.rules import Distribution
from capt_local.decoding.trio import Trio
from capt_local.errors import Cancelled
from capt_local.prompt.messages import Prompt
from capt_local.vocab.vocabulary import IntArray, Vocabulary

Path = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Said:
    """What a distribution gives to one event.

    Attributes:
        logp: log-probability, in nats.
        likeliest: whether nothing else that might have come is likelier.
    """

    logp: float
    likeliest: bool


def logps(here: Distribution, tokens: IntArray) -> FloatArray:
    """Log-probabilities of any tokens under a distribution with ascending candidates, (n,)."""
    own = here.candidates
    places = np.minimum(np.searchsorted(own.tokens, tokens), len(own.tokens) - 1)
    inside = own.tokens[places] == tokens
    result: FloatArray = here.row[tokens].astype(np.float64) - own.log_total + here.outside
    result[inside] = here.logp[places[inside]]
    return result


@dataclass(slots=True)
class _Node:
    """A place in the tree: where tokens lead, what they were given, and what the end was."""

    children: dict[int, _Node] = field(default_factory=dict)
    said: dict[int, Said] = field(default_factory=dict)
    ends: bool = False
    end: Said | None = None


class Branches:
    """Walks token lists that follow one prompt.

    Args:
        trio: configured.
        prompts: by role.
        given: bytes that the first token begins with, whatever it is.
        cancel: asked at every place.
    """

    def __init__(
        self,
        trio: Trio,
        prompts: Mapping[str, Prompt],
        given: bytes = b"",
        cancel: Callable[[], bool] | None = None,
    ) -> None:
        """Decodes nothing yet."""
        self._trio = trio
        self._prompts = prompts
        self._given = given
        self._cancel = cancel or (lambda: False)

    def walk(self, paths: Iterable[Path], *, end: bool) -> list[list[Said]]:
        """What is said of each token of each list, and of the end behind it if wanted.

        The prompt is decoded once, and each place of the tree once; where the walk goes back, the
        models keep what is shared.

        Raises:
            Cancelled: `cancel` said so.
        """
        paths = list(paths)
        root = _Node()
        for path in paths:
            node = root
            for token in path:
                node = node.children.setdefault(token, _Node())
            node.ends = end
        self._visit(root)
        return [_collected(root, path, end=end) for path in paths]

    def _visit(self, root: _Node) -> None:
        """All places that lead on or end, parents first, one branch after the other."""
        trio = self._trio
        trio.start(self._prompts)
        evidence = prefill(trio, self._prompts)
        here: list[int] = []
        waiting: list[tuple[_Node, Path]] = [(root, ())]
        while waiting:
            node, path = waiting.pop()
            if self._cancel():
                raise Cancelled("The scoring was stopped.")
            if path and list(path[:-1]) != here:
                trio.start(self._prompts)
                if evidence is not None:
                    trio.observe(evidence.weights)
                here = []
            for token in path[len(here) :]:
                trio.advance(token)
            here = list(path)
            self._ask(node, first=not path)
            later = reversed(node.children.items())
            waiting += [(child, (*path, t)) for t, child in later if child.children or child.ends]

    def _ask(self, node: _Node, *, first: bool) -> None:
        """Asks for everything that may come next at one place."""
        trio, vocabulary = self._trio, self._trio.cached.model.vocabulary
        here = trio.distribution()
        likeliest, total = int(here.candidates.tokens[here.logp.argmax()]), 0.0
        if first and self._given:
            allowed = _beginning_with(self._given, vocabulary)
            known = logps(here, allowed)
            likeliest, total = int(allowed[known.argmax()]), log_mass(known)
        wanted = np.array(list(node.children), dtype=np.int32)
        if len(wanted):
            for token, logp in zip(wanted.tolist(), logps(here, wanted), strict=True):
                node.said[token] = Said(float(logp) - total, token == likeliest)
        if node.ends:
            ends = logps(here, vocabulary.end_ids)
            node.end = Said(log_mass(ends), bool(vocabulary.is_end[likeliest]))


def _beginning_with(given: bytes, vocabulary: Vocabulary) -> IntArray:
    """The text tokens that begin with these bytes."""
    pieces = enumerate(vocabulary.pieces())
    found = [token for token, piece in pieces if piece.startswith(given)]
    return np.array([token for token in found if vocabulary.is_text[token]], dtype=np.int32)


def _collected(root: _Node, path: Path, *, end: bool) -> list[Said]:
    """What was said along one list of tokens."""
    node, found = root, []
    for token in path:
        found.append(node.said[token])
        node = node.children[token]
    if end:
        assert node.end is not None
        found.append(node.end)
    return found

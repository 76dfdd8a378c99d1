"""A trio that walks a text once, and what can be asked at each place without running it again."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from capt_local.alignment.events import TargetEvents
from capt_local.alignment.fit import AnyAlignment, fit
from capt_local.alignment.kinds import Align
from capt_local.alignment.question import FloatArray, Question, View
from capt_local.bundles import store
from capt_local.decoding.cached import CachedModel
from capt_local.decoding.combine import Candidates
from capt_local.decoding.model import Rows
from capt_local.decoding.options import Powers
from capt_local.decoding.proxy import Proxy
from capt_local.decoding.scoring import opening
from capt_local.errors import UsageError
from capt_local.llama.load_models import open_models
from capt_local.llama.options import LoadOptions
from capt_local.prompting.messages import Prompt
from capt_local.tokenization.tokenizer import TextTokenizer
from capt_local.tokenization.vocabulary import IntArray

PROXIES = ("expert", "base")
# How many pieces back the views reach: further than any alignment looks.
DEEPEST = 5

_ALIGNMENTS: Mapping[str, tuple[Align, Mapping[str, bool]]] = {
    "projection": (Align.PROJECTION, {}),
    "without healing": (Align.PROJECTION, {"healing": False}),
    "without long tokens": (Align.PROJECTION, {"long_tokens": False}),
    "prefix-mass": (Align.PREFIX_MASS, {}),
    "first-piece": (Align.FIRST_PIECE, {}),
    "capt-paper": (Align.CAPT_PAPER, {}),
}
NAMES = tuple(_ALIGNMENTS)


class Onlooker:
    """An alignment that only keeps what a proxy shows. See `alignment.question.Alignment`.

    Attributes:
        view: what was shown last.
    """

    follows_tokens = False
    floor = 0.0
    most: int | None = None
    depth = DEEPEST

    def __init__(self) -> None:
        self.view = View(np.empty(0, np.float32))

    def ask(self, tokens: IntArray, prior: FloatArray, *, start: bool = False) -> Question[None]:
        """Wants nothing."""
        return Question(tokens, prior)

    def probability(self, question: Question[None], view: View) -> FloatArray:
        """Keeps the view."""
        self.view = view
        return np.zeros(len(question.wanted))


@dataclass(frozen=True, slots=True)
class Place:
    """One place of a text.

    Attributes:
        row: the target's logits, shape (vocabulary,); valid until the next place.
        before: the target's last token; None where the text begins.
        token: the one that comes.
        last: bytes of the token before, as the proxies see them.
        views: what expert and base show.
        start: whether the text begins here.
    """

    row: Rows
    before: int | None
    token: int
    last: bytes
    views: tuple[View, ...]
    start: bool


class Models:
    """Target, expert and base of a bundle. Use it as a context manager.

    Attributes:
        cached: the models by role.
        tokenizers: by role.
        events: of the target.
    """

    def __init__(self, bundle: str, threads: int = 1) -> None:
        """Loads the models.

        Raises:
            UsageError: the bundle has no expert or no base, or only one vocabulary.
        """
        found = store.find(bundle)
        files: dict[str, Path] = {
            role: found.models[role].path for role in ("target", *PROXIES) if role in found.models
        }
        if len(files) < 3:
            raise UsageError("The bundle needs a target, an expert and a base.")
        self._files = files
        self._load = LoadOptions(threads=threads, context=found.context)
        self._models = open_models(files, self._load)
        self.cached = {role: CachedModel(role, model) for role, model in self._models.items()}
        self.tokenizers = {
            role: TextTokenizer(model.vocabulary, model.tokenize)
            for role, model in self._models.items()
        }
        self.events = TargetEvents(self.tokenizers["target"])
        first = self.tokenizers["expert"].vocabulary
        if first.same_as(self.tokenizers["target"].vocabulary):
            raise UsageError("Target and expert have one vocabulary: nothing is to be aligned.")
        if not first.same_as(self.tokenizers["base"].vocabulary):
            raise UsageError("Expert and base need to have one vocabulary for these measurements.")

    def second(self, role: str) -> CachedModel:
        """The same model once more, with a cache of its own."""
        model = open_models({role: self._files[role]}, self._load)[role]
        self._models[f"{role} again"] = model
        return CachedModel(role, model)

    def alignment(self, name: str) -> AnyAlignment:
        """One of `NAMES`."""
        kind, parts = _ALIGNMENTS[name]
        return fit(self.tokenizers["expert"], self.events, kind, **parts)

    def prompts(self) -> dict[str, Prompt]:
        """What stands in front of a text, by role."""
        return opening(self.cached.values(), self.tokenizers)

    def tokens(self, text: bytes) -> list[int]:
        """The target's tokens of a text.

        Raises:
            UsageError: with the opening they do not fit into the contexts.
        """
        tokens = {
            role: tokenizer.encode(text, start=True) for role, tokenizer in self.tokenizers.items()
        }
        room = min(each.model.context_limit for each in self.cached.values()) - 32
        if max(map(len, tokens.values())) > room:
            raise UsageError("A text is longer than the context. Give a smaller --max-bytes.")
        return tokens["target"]

    def walk(self, text: bytes) -> Iterator[Place]:
        """Goes along a text (UTF-8), as `score` does."""
        prompts, tokens = self.prompts(), self.tokens(text)
        target, lead = self.cached["target"], prompts["target"].lead
        own = list(prompts["target"].tokens)
        looks = [Onlooker() for _ in PROXIES]
        proxies = [
            Proxy(self.cached[role], self.tokenizers[role], look)
            for role, look in zip(PROXIES, looks, strict=True)
        ]
        for proxy in proxies:
            proxy.start(prompts[proxy.cached.role])
        last = b""
        nothing: Question[None] = Question(np.empty(0, np.int32), np.empty(0))
        for number, token in enumerate(tokens):
            row = target.follow(own, 1)[0]
            for proxy in proxies:
                proxy.settle()
                proxy.probability(nothing)
            before = tokens[number - 1] if number else None
            views = tuple(look.view for look in looks)
            yield Place(row, before, token, last, views, number == 0)
            own.append(token)
            last = target.model.vocabulary.text((token,)).removeprefix(lead)
            for proxy in proxies:
                proxy.append(token, last)
            lead = b""

    def close(self) -> None:
        """Frees the models."""
        for model in self._models.values():
            model.close()

    def __enter__(self) -> Models:
        """Itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Frees the models."""
        self.close()


def ask(
    alignment: AnyAlignment, own: Candidates, views: Sequence[View], *, start: bool
) -> tuple[Question[object], list[FloatArray]]:
    """What the proxies say about candidates through an alignment: the question, and each answer."""
    question = alignment.ask(own.tokens, np.exp(own.logp), start=start)
    seen = [View(view.row, view.back[: alignment.depth]) for view in views]
    return question, [alignment.probability(question, view) for view in seen]


def signed(powers: Sequence[Powers]) -> FloatArray:
    """Exponents as `products` takes them, shape (m, 3)."""
    return np.array(powers) * (1.0, 1.0, -1.0)


def of_token(place: Place, own: Candidates, members: FloatArray) -> FloatArray:
    """What each product gave to the token that came, shape (m,); as `Distribution.token_logp`."""
    found = np.flatnonzero(own.tokens == place.token)
    if len(found):
        # A view would keep the members of all tokens alive.
        column: FloatArray = members[:, found[0]].copy()
        return column
    return np.full(len(members), float(place.row[place.token]) - own.log_total)

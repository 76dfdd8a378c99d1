"""The public face: open a bundle, ask, read the answer step by step.

with Runtime.open("demo") as runtime:
    for step in runtime.generate("What are the signs of asthma?", GenerateOptions()):
        ...
"""

from __future__ import annotations

import dataclasses
import datetime
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Self

from capt_local.align.events import TargetEvents
from capt_local.align.fit import fit
from capt_local.bundle import store
from capt_local.bundle.manifest import ROLES, Bundle, ModelFile, Role
from capt_local.bundle.verify import verify
from capt_local.decode.cached import CachedModel
from capt_local.decode.evidence import Evidence
from capt_local.decode.generation import Generation
from capt_local.decode.options import AlignOptions, GenerateOptions, Method
from capt_local.decode.proxy import Proxy
from capt_local.decode.score import TextScore, score_text
from capt_local.decode.trio import Trio
from capt_local.engine.header import read_header
from capt_local.engine.library import library
from capt_local.engine.llama import LlamaModel
from capt_local.engine.memory import MemoryEstimate, check_fits, estimate
from capt_local.engine.options import LoadOptions
from capt_local.errors import UsageError
from capt_local.prompt.asking import Asker
from capt_local.prompt.messages import Message
from capt_local.vocab.tokenizer import TextTokenizer

Progress = Callable[[str, float], None]


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
        self.notices = [
            *bundle.notices,
            *dict.fromkeys(n for m in models.values() for n in m.notes),
        ]
        self._cached = {role: CachedModel(role, model) for role, model in models.items()}
        self._tokenizers = {
            role: TextTokenizer(model.vocabulary, model.tokenize) for role, model in models.items()
        }
        self._askers = {
            role: Asker(
                bundle.models[role], model.metadata.chat_template, self._tokenizers[role], date
            )
            for role, model in self._loaded()
        }
        self._current: Generation | None = None
        self._proxies: dict[AlignOptions, tuple[Proxy, ...]] = {}
        proxies = [models[role].vocabulary for role in ("expert", "base") if role in models]
        if len(proxies) == 2 and not proxies[0].same_as(proxies[1]):
            self.notices.append(
                "Expert and base have different vocabularies: the contrast also holds the "
                "difference of their tokens and is less sharp."
            )

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
        files = {role: file for role, file in found.models.items() if role in wanted}
        load = load or LoadOptions()
        if load.context is None and found.context is not None:
            load = dataclasses.replace(load, context=found.context)
        if check:
            verify(dataclasses.replace(found, models=files), progress)
        needed: dict[str, MemoryEstimate] = {
            role: estimate(read_header(file.path), load) for role, file in files.items()
        }
        if not any(device.is_gpu for device in library().devices()):
            check_fits(needed)  # beside a GPU each model is weighed as it is loaded
        return cls(found, _load(files, load, progress), date)

    def generate(
        self,
        prompt: str | Sequence[Message],
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
        self._end_current()
        trio = self._trio(options)
        prompts = {
            each.role: self._askers[self._role(each.role)].prompt(prompt, raw=raw)
            for each in trio.models
        }
        for model in self.models.values():
            model.should_stop = cancel
        self._current = Generation(trio, prompts, options, cancel)
        return self._current

    def score(
        self,
        text: bytes,
        options: GenerateOptions | None = None,
        *,
        cancel: Callable[[], bool] | None = None,
    ) -> TextScore:
        """Log-likelihood of a text from its beginning.

        Without a fixed alpha, its weights follow the text: each token is predicted with the
        weights that the text before it gives.

        Args:
            text: UTF-8.
            options: the method and the weight of the contrast.
            cancel: asked at every token.

        Raises:
            Cancelled: `cancel` said so.
        """
        options = options or GenerateOptions()
        self._end_current()
        trio = self._trio(options)
        trio.configure(options.combine)
        for model in self.models.values():
            model.should_stop = cancel
        mixed = trio.proxies and options.combine.alpha is None
        evidence = Evidence(options.combine.grid) if mixed else None
        tokenizers = {each.role: self._tokenizers[self._role(each.role)] for each in trio.models}
        return score_text(trio, tokenizers, text, evidence, cancel)

    def forget(self) -> None:
        """Empties the KV caches; nothing of earlier texts is left in them."""
        self._end_current()
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

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Frees the models."""
        self.close()

    def _loaded(self) -> list[tuple[Role, LlamaModel]]:
        """The loaded models by role, in the order of the roles."""
        return [(role, self.models[role]) for role in ROLES if role in self.models]

    def _end_current(self) -> None:
        """Ends an unfinished answer: the models can follow one text at a time."""
        if self._current is not None:
            self._current.end()
            self._current = None

    def _role(self, name: str) -> Role:
        """The role of that name.

        Raises:
            UsageError: it is not loaded.
        """
        for role in ROLES:
            if role == name and role in self.models:
                return role
        raise UsageError(
            f"The bundle {self.bundle.id} has no {name}: give --expert and --base, or use "
            "--method target."
        )

    def _trio(self, options: GenerateOptions) -> Trio:
        """The models that a method needs."""
        if options.method is not Method.CAPT:
            return Trio(self._cached[self._role(options.method.value)])
        proxies = self._proxies.get(options.align)
        if proxies is None:
            proxies = self._proxies[options.align] = self._fit(options.align)
        return Trio(self._cached["target"], proxies)

    def _fit(self, how: AlignOptions) -> tuple[Proxy, ...]:
        """Expert and base, aligned to the target; one table for both if they share a vocabulary."""
        roles = (self._role("expert"), self._role("base"))
        events = TargetEvents(self._tokenizers[self._role("target")])
        expert, base = (self.models[role].vocabulary for role in roles)
        first = fit(expert, events, long_tokens=how.long_tokens, healing=how.healing)
        second = first
        if not base.same_as(expert):
            second = fit(base, events, long_tokens=how.long_tokens, healing=how.healing)
        return tuple(
            Proxy(self._cached[role], self._tokenizers[role], alignment)
            for role, alignment in zip(roles, (first, second), strict=True)
        )


def _load(
    files: Mapping[Role, ModelFile], options: LoadOptions, progress: Progress | None
) -> dict[str, LlamaModel]:
    """Loads the models, or none of them."""
    models: dict[str, LlamaModel] = {}
    try:
        for role, file in files.items():
            report = None if progress is None else partial(progress, role)
            models[role] = LlamaModel.open(file.path, options, report, name=role)
    except BaseException:
        for model in models.values():
            model.close()
        raise
    return models

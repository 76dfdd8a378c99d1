"""The public face: open a bundle, ask, read the answer step by step.

with Runtime.open("demo") as runtime:
    for step in runtime.generate("What are the signs of asthma?", GenerateOptions()):
        ...
"""

from __future__ import annotations

import dataclasses
import datetime
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Self

from capt_local.bundles import store
from capt_local.bundles.manifest import Bundle
from capt_local.bundles.manifest import roles as roles_of
from capt_local.bundles.verify import Check, LateDigests, Verification, verify
from capt_local.decoding.cached import common_length
from capt_local.decoding.generation import Generation
from capt_local.decoding.many.asks import Answered, Ask
from capt_local.decoding.options import GenerateOptions
from capt_local.errors import UsageError
from capt_local.llama.gguf_header import model_parts, read_header
from capt_local.llama.load_models import open_models
from capt_local.llama.many import MOST_LANES
from capt_local.llama.options import LoadOptions
from capt_local.prompting.messages import Message
from capt_local.runtime.first_look import NOT_LOOKED_AT, is_trusted, look_first
from capt_local.runtime.loaded import Asked
from capt_local.runtime.many import one_by_one
from capt_local.runtime.scoring import Scoring
from capt_local.runtime.tokenizers import check_tokenizers

Progress = Callable[[str, float], None]


class Runtime(Scoring):
    """A bundle that is loaded and can answer. Use it as a context manager.

    Attributes:
        verification: what is known of the digests of its files.
        late_digests: of files that no manifest names.
    """

    verification = Verification()
    late_digests = LateDigests(())

    @classmethod
    def open(
        cls,
        bundle: str | Path | Bundle = "demo",
        *,
        load: LoadOptions | None = None,
        progress: Progress | None = None,
        check: bool | Check = Check.CACHED,
        date: datetime.date | None = None,
        roles: Iterable[str] | None = None,
        template: str | None = None,
    ) -> Runtime:
        """Loads a bundle.

        Args:
            bundle: an id ("demo" travels with the package), a path, or a bundle.
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
            UsageError: the bundle has no model for a role.
        """
        found = bundle if isinstance(bundle, Bundle) else store.find(bundle)
        wanted = set(found.models if roles is None else roles)
        if missing := wanted - set(found.models):
            raise UsageError(f"The bundle {found.id} has no {' and no '.join(sorted(missing))}.")
        files = {role: found.models[role] for role in roles_of(found.pairs) if role in wanted}
        load = load or LoadOptions()
        if load.context is None and found.context is not None:
            load = dataclasses.replace(load, context=found.context)
        if isinstance(check, bool):
            check = Check.CACHED if check else Check.NEVER
        checked = verify(dataclasses.replace(found, models=files), progress, check)
        stamps = look_first(found, files, check=check, stamps=checked.stamps, progress=progress)
        check_tokenizers(files.values())
        paths = {role: file.path for role, file in files.items()}
        # Files without a digest in a manifest: it is computed while they load, for provenance.
        parts = {path: model_parts(path, read_header(path)) for path in paths.values()}
        late = LateDigests((*files.values(), *found.adapters.values()), stamps, parts)
        models = open_models(paths, load, progress, found.adapters, stamps)
        runtime = cls(found, models, date, template)
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
        trio = self._begin(options, cancel)
        self._current = Generation(
            trio,
            self._prompts(trio, prompt, raw=raw),
            options,
            cancel,
            self._memory,
            self._assembly.notices(options.method),
        )
        return self._current

    def generate_many(
        self,
        asks: Iterable[Ask],
        *,
        parallel: int = 8,
        cancel: Callable[[], bool] | None = None,
        alone: bool = False,
    ) -> Iterator[Answered]:
        """Answers many requests, several at once. A new call ends the one before it.

        Every request is answered as by `generate`: with its own options, seed and weights. In
        another batch the last bits of logits may differ, and with them, rarely, a token
        (docs/many.md). What else runs at the same time, and in which order requests come, makes no
        difference.

        Args:
            asks: taken one by one, when there is room.
            parallel: requests at once.
            cancel: asked between steps and while prompts are computed; true ends what is running
                as interrupted, and takes nothing more.
            alone: one at a time through `generate` itself, which has forgotten what came before:
                with `Speed.EXACT_STEPS` its answers to the last bit.

        Yields:
            The answers as they end. The error of one request leaves the others as they are.

        Raises:
            UsageError: `parallel` is not 1 to 256.
            MemoryShortage: so many at once do not fit; says how many would.
        """
        if not 1 <= parallel <= MOST_LANES:
            raise UsageError(f"{parallel} requests at once are not 1 to {MOST_LANES}.")
        if not alone:
            return self._side.answers(asks, parallel, cancel)

        def generate(ask: Ask) -> Generation:
            self.forget()  # or the shapes of batches would depend on the request before
            return self.generate(ask.prompt, ask.options, raw=ask.raw, cancel=cancel)

        return one_by_one(generate, asks, cancel)

    def keep(self, prompt: str | Sequence[Message]) -> dict[str, int]:
        """Takes out of the KV caches what is not the beginning of a prompt; decodes nothing.

        Returns:
            Tokens that the prompt takes in each loaded model, by role.
        """
        self._end_current()
        counts: dict[str, int] = {}
        for role, asker in self._askers.items():
            tokens, cached = list(asker.prompt(prompt, raw=False).tokens), self._cached[role]
            cached.keep(common_length(cached.tokens, tokens))
            counts[role] = len(tokens)
        return counts

    def forget(self) -> None:
        """Empties the KV caches and all else that holds earlier texts."""
        self._end_current()
        self._side.forget()
        self._memory.clear()
        for cached in self._cached.values():
            cached.forget()
        for tokenizer in self._tokenizers.values():
            tokenizer.forget()

    def decoded(self) -> dict[str, int]:
        """Tokens that each model has decoded so far, by role."""
        aside = self._side.decoded()
        return {role: cached.decoded + aside[role] for role, cached in self._cached.items()}

    def close(self) -> None:
        """Frees the models."""
        self._end_current()
        self._side.close()
        for model in self.models.values():
            model.close()

    def __enter__(self) -> Self:
        """Itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Frees the models."""
        self.close()

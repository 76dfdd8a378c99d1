"""The model class of lm-evaluation-harness."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import Any

import lm_eval.models  # noqa: F401  (else ours would be the only one that the harness knows)
from lm_eval.api.instance import Instance
from lm_eval.api.model import LM
from lm_eval.api.registry import register_model

from capt_local.cli.options import SampleFlags
from capt_local.cli.session import find_bundle, generate_options, open_session
from capt_local.cli.signals import Interrupt
from capt_local.decoding.answers import as_utf8
from capt_local.decoding.options import Speed
from capt_local.errors import UsageError
from capt_local.lm_eval.arguments import ChatText, answer_options, method_flags, model_flags
from capt_local.prompting.messages import Message
from capt_local.provenance import provenance
from capt_local.report.terminal import Screen

_KNOWN = ("bundle", "target", "expert", "base", "expert_adapter", "method", "alpha",
          "plausibility", "ctx_size", "threads", "gpu_layers", "seed")  # fmt: skip


@register_model("capt-local")
class CaptLocal(LM):
    """A bundle under one method.

    A context is raw text that the answer goes on from; with `--apply_chat_template` it is a
    conversation in each model's own template. Nothing is cut: a context and continuation that do
    not fit end the run with their token counts. Requests run one by one, whatever the batch size;
    those in a row that share a context share its computation.

    Args:
        bundle: id or path; demo where no files are named.
        target: a model file, for no bundle.
        expert: likewise; of several pairs one each, separated as in PATH.
        base: likewise, in the order of the experts.
        expert_adapter: a LoRA adapter for each expert; without experts, of the base.
        method: see `capt-local score --help`; None is the bundle's.
        alpha: weight of the contrast, or "evidence".
        plausibility: see `capt-local score --help`.
        ctx_size: tokens that the context holds.
        threads: of the CPU.
        gpu_layers: a number, "auto" or "all".
        seed: of the draws; each answer of a run has its own.
        batch_size: not used.
        max_batch_size: not used.
        device: not used: llama.cpp is built for one kind of device.
        others: anything else is refused.

    Raises:
        UsageError, ModelError, MemoryShortage: as for the command line.
    """

    def __init__(
        self,
        bundle: str | None = None,
        target: str | None = None,
        expert: str | None = None,
        base: str | None = None,
        expert_adapter: str | None = None,
        method: str | None = None,
        alpha: float | str | None = None,
        plausibility: float | None = None,
        ctx_size: int | None = None,
        threads: int | None = None,
        gpu_layers: int | str = "auto",
        seed: int = 0,
        batch_size: int | str | None = None,
        max_batch_size: int | None = None,
        device: str | None = None,
        **others: object,
    ) -> None:
        """Loads the models."""
        super().__init__()
        if others:
            raise UsageError(
                f"{len(others)} model arguments are not known here. These are: {', '.join(_KNOWN)}."
            )
        files = dict(target=target, expert=expert, base=base, expert_adapter=expert_adapter)
        flags = model_flags(bundle, files, ctx_size, threads, gpu_layers)
        found = find_bundle(flags)
        how = method_flags(method, alpha, plausibility)
        options = generate_options(found, how, SampleFlags(seed=seed), 0)
        # To the last bit the same each time; drafts may change that.
        self.options = dataclasses.replace(options, speed=Speed.EXACT_STEPS)
        self._screen = Screen.standard()
        if device is not None:
            self._screen.note("note: --device is not used; gpu_layers says what runs on a GPU.")
        self._session = open_session(
            found, flags, self._screen, Interrupt(), wanted=self.options.method
        )
        self._answers = 0
        self._told: set[str] = set()

    def loglikelihood(
        self, requests: list[Instance], disable_tqdm: bool = False
    ) -> list[tuple[float, bool]]:
        """Log-likelihood of continuations, and whether generating would give them.

        See `Runtime.score_answer`; an empty context stands for the beginning of a text.

        Args:
            requests: of (context, continuation).
            disable_tqdm: whether no progress is shown.
        """
        found: list[tuple[float, bool]] = []
        shared = groupby(requests, key=lambda request: request.args[0])
        for context, group in shared:
            texts = [request.args[1] for request in group]
            asked, raw = _asked(context)
            different = list(dict.fromkeys(texts))
            scored = self._session.runtime.score_answers(
                asked, [as_utf8(text) for text in different], self.options, raw=raw
            )
            scores = dict(zip(different, scored, strict=True))
            for text in texts:
                result = (-scores[text].nats, scores[text].greedy)
                self.cache_hook.add_partial("loglikelihood", (context, text), result)
                found.append(result)
            self._progress("log-likelihoods", len(found), len(requests), shown=not disable_tqdm)
        self._screen.clear_progress()
        return found

    def loglikelihood_rolling(
        self, requests: list[Instance], disable_tqdm: bool = False
    ) -> list[float]:
        """Log-likelihood of whole texts; see `Runtime.score`.

        A text that is longer than the context goes on afresh where the context is full, in windows
        of this program and not of the harness, whose windows overlap.

        Args:
            requests: of (text,).
            disable_tqdm: whether no progress is shown.
        """
        found: list[float] = []
        for request in requests:
            score = self._session.runtime.score(as_utf8(request.args[0]), self.options)
            found.append(-score.nats)
            self.cache_hook.add_partial("loglikelihood_rolling", request.args, found[-1])
            self._progress("texts", len(found), len(requests), shown=not disable_tqdm)
        self._screen.clear_progress()
        return found

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        """Answers, up to a stop string, which is no part of them.

        Args:
            requests: of (context, generation arguments); see `answer_options`.
            disable_tqdm: whether no progress is shown.
        """
        found: list[str] = []
        for request in requests:
            context, arguments = request.args[:2]
            found.append(self._answer(context, arguments))
            self.cache_hook.add_partial("generate_until", request.args, found[-1])
            self._progress("answers", len(found), len(requests), shown=not disable_tqdm)
        self._screen.clear_progress()
        return found

    def apply_chat_template(
        self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True
    ) -> str:
        """A conversation as a context; it becomes tokens in each model's own template.

        Raises:
            UsageError: the answer is begun already (`gen_prefix`).
        """
        if not add_generation_prompt:
            raise UsageError(
                "A chat template with a given beginning of the answer (gen_prefix) is not "
                "possible: leave out --apply_chat_template."
            )
        return ChatText.of(chat_history)

    @property
    def tokenizer_name(self) -> str:
        """What the harness keeps prepared requests by."""
        return f"capt-local-{self._session.runtime.bundle.id}"

    def get_model_info(self) -> dict[str, Any]:
        """What the harness writes beside its results: versions, digests, parameters; no text."""
        session = self._session
        return {"capt_local": provenance(session.runtime, self.options, session.load, session.date)}

    def close(self) -> None:
        """Frees the models."""
        self._session.runtime.close()

    def _answer(self, context: str, arguments: dict[str, Any]) -> str:
        seed = self.options.sample.seed + self._answers
        self._answers += 1
        asked, raw = _asked(context)
        options = answer_options(self.options, arguments, seed)
        generation = self._session.runtime.generate(asked, options, raw=raw)
        for _ in generation:
            pass
        self._screen.notes(self._new(generation.notices))
        return generation.text

    def _new(self, notices: Sequence[str]) -> Iterator[str]:
        """Each notice once."""
        for notice in notices:
            if notice not in self._told:
                self._told.add(notice)
                yield notice

    def _progress(self, label: str, done: int, total: int, *, shown: bool) -> None:
        if shown:
            self._screen.progress(label, done / total)


def _asked(context: str) -> tuple[str | list[Message], bool]:
    """What is asked, and whether it is raw text."""
    return (context.messages(), False) if isinstance(context, ChatText) else (context, True)

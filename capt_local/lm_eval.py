"""capt-local as a model of lm-evaluation-harness, and its command line with that model in it.

The harness has no way to find models of other packages, so this module registers the model, and run
as a program it hands over to the harness. Downloads are off then unless HF_HUB_OFFLINE=0 and
HF_DATASETS_OFFLINE=0 are set: a task from the hub needs them, a local one does not.

    python -m capt_local.lm_eval --model capt-local --model_args bundle=demo,method=capt \
        --include_path tasks --tasks my_task
"""

from __future__ import annotations

import dataclasses
import json
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

from capt_local.cli.exits import ExitCode, code_for, line_for
from capt_local.cli.options import MethodFlags, ModelFlags, SampleFlags
from capt_local.cli.session import find_bundle, generate_options, open_session
from capt_local.cli.signals import Interrupt
from capt_local.decoding.answers import as_utf8
from capt_local.decoding.options import GenerateOptions, Method, Speed
from capt_local.errors import CaptError, UsageError
from capt_local.prompting.messages import Message
from capt_local.provenance import provenance
from capt_local.report.terminal import Screen

if __name__ == "__main__":  # before the harness is imported
    for _name in (
        "HF_HUB_OFFLINE",
        "HF_DATASETS_OFFLINE",
        "HF_HUB_DISABLE_TELEMETRY",
        "DO_NOT_TRACK",
    ):
        os.environ.setdefault(_name, "1")
try:
    import lm_eval.models  # noqa: F401  (else ours would be the only one that the harness knows)
    from lm_eval.api.instance import Instance
    from lm_eval.api.model import LM
    from lm_eval.api.registry import register_model
except ImportError:
    _error = UsageError(
        "lm-evaluation-harness is not installed: pip install 'capt-local[lm-eval]'."
    )
    if __name__ != "__main__":
        raise _error from None
    Screen.standard().error(line_for(_error))
    sys.exit(code_for(_error))

_LENGTHS = ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens")
_DRAWING = ("do_sample", "temperature", "top_k", "top_p", "min_p")
_GENERATION_ARGUMENTS = ("until", *_LENGTHS, *_DRAWING)
_LONGEST = 256  # tokens, where a task says nothing; the harness's own default


class ChatText(str):
    """A conversation on its way through the harness, which passes texts on: JSON of its turns."""

    __slots__ = ()

    @classmethod
    def of(cls, turns: Sequence[Mapping[str, str]]) -> ChatText:
        """The text of a conversation."""
        return cls(json.dumps([dict(turn) for turn in turns]))

    def messages(self) -> list[Message]:
        """The turns."""
        return [Message(turn["role"], turn["content"]) for turn in json.loads(self)]


def model_flags(
    bundle: str | None,
    files: Mapping[str, str | None],
    ctx_size: int | None,
    threads: int | None,
    gpu_layers: int | str,
) -> ModelFlags:
    """Which models, as on the command line.

    Raises:
        UsageError: a value has no meaning.
    """
    target = files["target"]
    return ModelFlags(
        bundle=None if bundle is None else str(bundle),
        target=None if target is None else Path(str(target)),
        expert=_files(files["expert"]),
        base=_files(files["base"]),
        expert_adapter=_files(files.get("expert_adapter")),
        ctx_size=_count("ctx_size", ctx_size),
        threads=_count("threads", threads),
        gpu_layers=str(gpu_layers),
    )


def method_flags(
    method: str | None, alpha: float | str | None, plausibility: float | None
) -> MethodFlags:
    """How the models are combined, as on the command line.

    Raises:
        UsageError: there is no such method, or a value has no meaning.
    """
    if method is not None and method not in list(Method):
        raise UsageError(f"The model argument 'method' is one of {', '.join(Method)}.")
    return MethodFlags(
        method=None if method is None else Method(method),
        alpha=None if alpha is None else str(alpha),
        plausibility=_number("plausibility", plausibility),
    )


def answer_options(
    options: GenerateOptions, asked: Mapping[str, Any], seed: int
) -> GenerateOptions:
    """The options of one answer (`generate_until`).

    Args:
        options: method and weights.
        asked: the generation arguments of the task. `do_sample: false`, and leaving both it and
            `temperature` out, is temperature 0; `do_sample: true` alone is temperature 1.
        seed: of the draws.

    Raises:
        UsageError: an argument is not one of ours, or has no meaning.
    """
    if unknown := set(asked) - set(_GENERATION_ARGUMENTS):
        raise UsageError(
            f"{len(unknown)} generation arguments are not known here. These are: "
            f"{', '.join(_GENERATION_ARGUMENTS)}."
        )
    given = [_count(name, asked[name]) for name in _LENGTHS if asked.get(name) is not None]
    temperature = _number("temperature", asked.get("temperature"))
    draws = asked.get("do_sample")
    if draws is None:
        draws = bool(temperature)
    sample = dataclasses.replace(
        options.sample,
        temperature=(1.0 if temperature is None else temperature) if draws else 0.0,
        top_k=int(_number("top_k", asked.get("top_k")) or 0),
        top_p=_number("top_p", asked.get("top_p"), 1.0),
        min_p=_number("min_p", asked.get("min_p"), 0.0),
        seed=seed,
    )
    longest = next((length for length in given if length is not None), _LONGEST)
    return dataclasses.replace(
        options, max_tokens=longest, stop=_stops(asked.get("until")), sample=sample
    )


def _stops(until: object) -> tuple[str, ...]:
    texts = [] if until is None else [until] if isinstance(until, str) else until
    if not isinstance(texts, list | tuple) or not all(isinstance(text, str) for text in texts):
        raise UsageError("The generation argument 'until' is a text or a list of texts.")
    return tuple(texts)


def _files(given: str | None) -> list[Path] | None:
    return None if given is None else [Path(file) for file in str(given).split(os.pathsep)]


def _count(name: str, value: object) -> int | None:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise UsageError(f"The argument '{name}' is a whole number from 1.")
    return value


def _number(name: str, value: object, default: Any = None) -> Any:
    if value is None:
        return default
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise UsageError(f"The argument '{name}' is a number.")
    return value


_MODEL_ARGUMENTS = ("bundle", "target", "expert", "base", "expert_adapter", "method", "alpha",
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
                f"{len(others)} model arguments are not known here. These are: "
                f"{', '.join(_MODEL_ARGUMENTS)}."
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
            found, flags, self._screen, Interrupt(), wanted=self.options.method, scores=True
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


def main() -> int:
    """Runs the harness with the arguments of the process; returns the exit code."""
    from lm_eval.__main__ import cli_evaluate

    try:
        cli_evaluate()
    except (CaptError, KeyboardInterrupt) as error:
        Screen.standard().error(line_for(error))
        return code_for(error)
    return ExitCode.OK


if __name__ == "__main__":
    sys.exit(main())

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
from collections.abc import Mapping
from itertools import groupby
from pathlib import Path
from typing import Annotated, Any, TypeVar

import msgspec

from capt_local.cli.exits import ExitCode, Interrupt, code_for, line_for
from capt_local.cli.options import ModelFlags, SampleFlags
from capt_local.cli.session import find_bundle, generate_options, open_session
from capt_local.decoding.options import GenerateOptions, Method, Speed
from capt_local.decoding.scoring import as_utf8
from capt_local.errors import CaptError, UsageError
from capt_local.prompting.messages import Message
from capt_local.provenance import provenance
from capt_local.report.terminal import Screen
from capt_local.strict_json import ParseError, convert

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

_LONGEST = 256  # tokens, where a task says nothing; the harness's own default
_Count = Annotated[int, msgspec.Meta(ge=1)]


class ChatText(str):
    """A conversation as JSON text, since the harness passes contexts as strings."""

    __slots__ = ()

    def messages(self) -> list[Message]:
        return [Message(turn["role"], turn["content"]) for turn in json.loads(self)]


class GenerationArguments(msgspec.Struct, forbid_unknown_fields=True):
    """What a task says about its answers (`generate_until`).

    `do_sample: false`, and leaving both it and `temperature` out, is temperature 0; `do_sample:
    true` alone is temperature 1.
    """

    until: str | tuple[str, ...] | None = None
    max_gen_toks: _Count | None = None
    max_new_tokens: _Count | None = None
    max_tokens: _Count | None = None
    max_completion_tokens: _Count | None = None
    do_sample: bool | None = None
    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None


def answer_options(
    options: GenerateOptions, arguments: Mapping[str, Any], seed: int
) -> GenerateOptions:
    """The options of one answer: method and weights are ours, all else comes from the task."""
    given = _converted(arguments, GenerationArguments, "generation")
    draws = bool(given.temperature) if given.do_sample is None else given.do_sample
    length = given.max_gen_toks or given.max_new_tokens or given.max_tokens
    sample = dataclasses.replace(
        options.sample,
        temperature=(1.0 if given.temperature is None else given.temperature) if draws else 0.0,
        top_k=given.top_k or 0,
        top_p=1.0 if given.top_p is None else given.top_p,
        min_p=given.min_p or 0.0,
        seed=seed,
    )
    return dataclasses.replace(
        options,
        max_tokens=length or given.max_completion_tokens or _LONGEST,
        stop=(given.until,) if isinstance(given.until, str) else given.until or (),
        sample=sample,
    )


_Kind = TypeVar("_Kind")


def _converted(arguments: Mapping[str, Any], kind: type[_Kind], what: str) -> _Kind:
    try:
        return convert(dict(arguments), kind)
    except ParseError as error:
        raise UsageError(f"The {what} arguments: {error}.") from None


class ModelArguments(msgspec.Struct, forbid_unknown_fields=True):
    """The arguments of `--model_args`.

    They mean the same as the flags of `capt-local score`. Experts, bases and adapters of several
    pairs are separated as in PATH. Each answer of a run has a seed of its own. batch_size,
    max_batch_size and device are not used: requests run one by one, and llama.cpp is built for one
    kind of device.
    """

    bundle: str | None = None
    target: str | None = None
    expert: str | None = None
    base: str | None = None
    expert_adapter: str | None = None
    method: Method | None = None
    alpha: float | str | None = None
    plausibility: float | None = None
    ctx_size: _Count | None = None
    threads: _Count | None = None
    gpu_layers: int | str = "auto"
    seed: int = 0
    batch_size: Any = None
    max_batch_size: Any = None
    device: Any = None

    def flags(self) -> ModelFlags:
        def files(given: str | None) -> list[Path] | None:
            return None if given is None else [Path(file) for file in given.split(os.pathsep)]

        return ModelFlags(
            bundle=self.bundle,
            target=None if self.target is None else Path(self.target),
            expert=files(self.expert),
            base=files(self.base),
            expert_adapter=files(self.expert_adapter),
            ctx_size=self.ctx_size,
            threads=self.threads,
            gpu_layers=[str(self.gpu_layers)],
        )


@register_model("capt-local")
class CaptLocal(LM):
    """A bundle under one method.

    A context is raw text that the answer goes on from; with `--apply_chat_template` it is a
    conversation in each model's own template. Nothing is cut: a context and continuation that do
    not fit end the run with their token counts. Requests run one by one, whatever the batch size;
    those in a row that share a context share its computation.
    """

    def __init__(self, **arguments: Any) -> None:
        super().__init__()
        given = _converted(arguments, ModelArguments, "model")
        flags = given.flags()
        bundle = find_bundle(flags)
        alpha = None if given.alpha is None else str(given.alpha)
        how = SampleFlags(alpha=alpha, plausibility=given.plausibility, seed=given.seed)
        options = generate_options(bundle, how, method=given.method)
        # Without drafts, so that results are the same to the last bit.
        self.options = dataclasses.replace(options, speed=Speed.EXACT_STEPS)
        self._screen = Screen.standard()
        if given.device is not None:
            self._screen.note("note: --device is not used; gpu_layers says what runs on a GPU.")
        self._session = open_session(
            bundle, flags, self._screen, Interrupt(), wanted=self.options.method, scores=True
        )
        self._answers = 0
        self._shown: set[str] = set()

    def loglikelihood(
        self, requests: list[Instance], disable_tqdm: bool = False
    ) -> list[tuple[float, bool]]:
        """Log-likelihood of (context, continuation), and whether generating would give it.

        See `Runtime.score_answer`; an empty context stands for the beginning of a text.
        """
        found: list[tuple[float, bool]] = []
        for context, group in groupby(requests, key=lambda request: request.args[0]):
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
        return found

    def loglikelihood_rolling(
        self, requests: list[Instance], disable_tqdm: bool = False
    ) -> list[float]:
        """Log-likelihood of whole texts; see `Runtime.score`.

        A text longer than the context continues in a new window where the context is full; the
        windows are this program's, not the overlapping ones of the harness.
        """
        found: list[float] = []
        for request in requests:
            score = self._session.runtime.score(as_utf8(request.args[0]), self.options)
            found.append(-score.nats)
            self.cache_hook.add_partial("loglikelihood_rolling", request.args, found[-1])
            self._progress("texts", len(found), len(requests), shown=not disable_tqdm)
        return found

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        """Answers, up to a stop string, which is no part of them; see `answer_options`."""
        found: list[str] = []
        for request in requests:
            context, arguments = request.args[:2]
            asked, raw = _asked(context)
            options = answer_options(
                self.options, arguments, self.options.sample.seed + self._answers
            )
            self._answers += 1
            generation = self._session.runtime.generate(asked, options, raw=raw)
            for _ in generation:
                pass
            self._screen.notes(each for each in generation.notices if each not in self._shown)
            self._shown.update(generation.notices)
            found.append(generation.text)
            self.cache_hook.add_partial("generate_until", request.args, found[-1])
            self._progress("answers", len(found), len(requests), shown=not disable_tqdm)
        return found

    def apply_chat_template(
        self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True
    ) -> str:
        """A conversation as a context; it becomes tokens in each model's own template."""
        if not add_generation_prompt:
            raise UsageError(
                "A chat template with a given beginning of the answer (gen_prefix) is not "
                "possible: leave out --apply_chat_template."
            )
        return ChatText(json.dumps(chat_history))

    @property
    def tokenizer_name(self) -> str:  # what the harness keeps prepared requests by
        return f"capt-local-{self._session.runtime.bundle.id}"

    def get_model_info(self) -> dict[str, Any]:
        """What the harness writes beside its results: versions, digests, parameters; no text."""
        session = self._session
        return {"capt_local": provenance(session.runtime, self.options, session.load, session.date)}

    def close(self) -> None:
        self._session.runtime.close()

    def _progress(self, label: str, done: int, total: int, *, shown: bool) -> None:
        if shown:
            self._screen.progress(label, done / total)
        if done == total:
            self._screen.clear_progress()


def _asked(context: str) -> tuple[str | list[Message], bool]:
    """The prompt, and whether it is raw text."""
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

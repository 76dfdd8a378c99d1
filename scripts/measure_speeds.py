"""What the speeds of docs/speed.md keep of an answer, and what `fast` gains.

    python -m scripts.measure_speeds same TARGET EXPERT BASE ITEMS.jsonl... --count 300
    python -m scripts.measure_speeds curve TARGET EXPERT BASE ITEMS.jsonl... --count 12 [--texts]
    python -m scripts.measure_speeds skips TARGET EXPERT BASE ITEMS.jsonl --out SKIPS.json
    python -m scripts.measure_speeds replay TARGET EXPERT BASE ITEMS.jsonl --skips SKIPS.json

`same` counts answers of `auto` that are those of `exact-steps`, bit for bit: tokens, their
log-probabilities under the combination and under the target. `curve` reads known text (texts; with
`--texts` references, too, else behind their prompts), and skips expert and base by several rules:
bits per byte, the share of tokens at which they did not run, and the share kept of those that they
would have changed. `skips` writes down at which tokens of its answers `fast` does not run them,
and which they change; `replay` does the same at the same tokens with other models, such as random
ones, along the references, and measures the speed of all modes.
ITEMS hold "instruction" and "input" or "text" (docs/eval.md). With `--adapter` EXPERT is a LoRA of
BASE.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal
from unittest import mock

import numpy as np
import typer

from capt_local import GenerateOptions, LoadOptions, Method, Runtime
from capt_local.bundles.manifest import Bundle
from capt_local.decoding.combine import Distribution, Products, mixture
from capt_local.decoding.ensemble import MOVED, SURE, Ensemble, SkipRule
from capt_local.decoding.options import Speed
from capt_local.decoding.prompt_weights import Evidence, prefill
from capt_local.decoding.scoring import MARGIN, empty_prompts
from capt_local.evaluate.bench import AnswerTime, BenchPrompt, Mode, run_interleaved, runtime_mode
from scripts.common import prompt_of, records

_BYTES = 1200  # of a text
_SURE, _MOVED = (0.3, 0.5, 0.7, 0.8, 0.9, 0.95), (0.0, MOVED, 0.1)


def same(runtime: Runtime, asked: list[str], tokens: int) -> None:
    """Answers each item at the speeds that give the same answer."""
    equal = drafted = skipped = 0
    for prompt in asked:
        found = {}
        for speed in (Speed.AUTO, Speed.EXACT_STEPS):
            runtime.forget()
            answer = runtime.generate(prompt, max_tokens=tokens, speed=speed)
            found[speed] = [(step.token, step.logp, step.target_logp) for step in answer]
            drafted += answer.stats.drafted
            skipped += answer.stats.proxies_skipped
        equal += found[Speed.AUTO] == found[Speed.EXACT_STEPS]
    print(f"{equal} of {len(asked)} the same bits, {drafted} tokens drafted")
    print(f"proxies skipped at {skipped} steps")


@dataclasses.dataclass
class Place:
    """What all models say at a place of a known text, and what came."""

    here: Distribution  # without its row
    gains: np.ndarray  # log-probability of what came, under each combination
    own: float  # and under the target


@dataclasses.dataclass
class Text:
    """A known text; `weights` are those of its prompt, None where they follow the text."""

    places: list[Place]
    size: int
    start: int
    weights: np.ndarray | None


def read(runtime: Runtime, item: dict[str, Any], *, texts: bool, raw: bool) -> Text:
    """Runs all models along a text, or along the reference behind its prompt."""
    options = GenerateOptions()
    made: Ensemble = runtime._begin(options, None, scoring=True)
    tokenizer, weights, reserve = runtime._tokenizers["target"], None, MARGIN + 1
    text = item["text"] if "text" in item else item["reference"]
    if texts or "text" in item:
        text = text.encode()[:_BYTES].decode("utf-8", "ignore")
        made.start(empty_prompts(made.models, runtime._tokenizers), reserve, exact=False)
    else:
        prompt = prompt_of(item) + "\n\n" * raw
        prompts = runtime._prompts(made, prompt, options.method, raw=raw)
        made.start(prompts, reserve, exact=False)
        prefill(made, prompts)
        weights = made.weights
    begins = weights is None or prompts["target"].starts_text
    tokens = tokenizer.encode(text.encode(), start=begins)
    start, places = len(made.tokens), []
    for at, token in enumerate(tokens):
        if made.tokens_left <= MARGIN:
            break
        made.read_known_text(tokens[at:-1])
        here = made.distribution()
        own = float(here.row[token]) - here.candidates.log_total
        inside = token in here.candidates.tokens
        gains = here.gains(token) if inside else np.full(len(here.members), own)
        places.append(Place(dataclasses.replace(here, row=here.row[:0].copy()), gains, own))
        made.advance(token)
    pieces = [runtime.models["target"].vocabulary.piece(token) for token in tokens[: len(places)]]
    return Text(places, sum(map(len, pieces)), start, weights)


def along(text: Text, rule: SkipRule | None) -> Iterator[tuple[float, bool, bool]]:
    """Nats of each token, whether the proxies were skipped, and whether they change the token."""
    evidence = Evidence(len(text.places[0].gains))
    if rule is not None:
        rule.start(text.start)
    for place, one in enumerate(text.places, text.start):
        weights = evidence.weights if text.weights is None else text.weights
        members = Products(one.here.members, np.exp(one.here.members))
        here = dataclasses.replace(one.here, logp=mixture(members, weights))
        own = here.candidates
        changed = bool(own.logp.argmax() != here.logp.argmax())
        if rule is not None and rule.skips(own, place):
            yield -one.own, True, changed
            continue
        with np.errstate(divide="ignore"):
            yield -float(np.logaddexp.reduce(one.gains + np.log(weights))), False, changed
        if rule is not None:
            rule.observe(here, place)
        evidence.observe(one.gains)


def curve(texts: list[Text]) -> None:
    """A line for each rule."""
    size = sum(text.size for text in texts) * np.log(2)
    alone = sum(-place.own for text in texts for place in text.places) / size
    every = [step for text in texts for step in along(text, None)]
    whole = sum(nats for nats, _, _ in every) / size
    changes = [change for _, _, change in every]
    print(f"{len(texts)} texts, {len(every)} tokens, {np.mean(changes):.3f} of them changed")
    print(f"bits per byte: target {alone:.4f}, all at every token {whole:.4f}")
    for sure, moved in itertools.product(_SURE, _MOVED):
        found = [step for text in texts for step in along(text, SkipRule(sure, moved))]
        loss = sum(nats for nats, _, _ in found) / size / whole - 1
        skipped = np.array([skip for _, skip, _ in found])
        kept = 1 - skipped[changes].mean()
        default = " (default)" if (sure, moved) == (SURE, MOVED) else ""
        print(f"sure {sure:.2f} moved {moved:.2f}: bits {100 * loss:+.2f} %, skipped "
              f"{skipped.mean():.3f}, changed tokens kept {kept:.3f}{default}")  # fmt: skip


def options(tokens: int, speed: Speed) -> GenerateOptions:
    """Of the answers that are timed: they have all the same length."""
    return GenerateOptions(max_tokens=tokens, speed=speed, repetition_stop=False)


def skips(runtime: Runtime, asked: list[str], tokens: int, raw: bool, out: Path) -> None:
    """Writes down where `fast` skips, and where the token is another one, an answer a list."""
    found = []
    for prompt in asked:
        generation = runtime.generate(prompt, options(tokens, Speed.FAST), raw=raw)
        found.append([(step.proxies_skipped, step.changed) for step in generation])
    out.write_text(json.dumps(found))
    every = np.array(list(itertools.chain.from_iterable(found)))
    print(f"{len(found)} answers, {len(every)} tokens, skipped and changed", every.mean(axis=0))


def replay(runtime: Runtime, items: list[dict[str, Any]], size: int, skips: Path) -> None:
    """The speed of each mode along the references, skipped and changed as other answers were.

    Random models write random tokens, of which each takes several of a proxy: so the target is
    made to find the next token of the reference likeliest, or second where it is changed.
    """
    patterns = [one for one in json.loads(skips.read_text()) if len(one) > 8]
    tokenizer, target = runtime._tokenizers["target"], runtime.models["target"]
    texts = {item["id"]: tokenizer.encode(item["reference"].encode(), start=True) for item in items}
    texts = {name: tokens for name, tokens in texts.items() if len(tokens) > size}
    now: dict[str, Any] = {}
    start, distribution = Ensemble.start, Ensemble.distribution

    def at(place: int) -> tuple[int, bool, bool]:
        """What comes behind so many tokens, whether it is skipped, and whether changed."""
        done = max(place - now["start"], 0)
        return now["text"][done], *now["pattern"][done % len(now["pattern"])]

    def started(self: Ensemble, *arguments: Any, **more: Any) -> None:
        start(self, *arguments, **more)
        now["start"] = len(self.tokens)

    def forced(call: Any) -> Any:
        def wrapper(tokens: Any, rows: int = 1) -> np.ndarray:
            found = call(tokens, rows).copy()
            for back, row in enumerate(found[::-1]):
                token, skipped, changed = at(target.position - back)
                row[token] = row.max() + (20.0 if skipped else 0.5)
                row[token + 1] = row[token] + 0.5 if changed else row[token + 1]
            return found

        return wrapper

    def replayed(self: Ensemble, *arguments: Any, **more: Any) -> Distribution:
        found = distribution(self, *arguments, **more)
        own, token = found.candidates, at(len(self.tokens))[0]
        return dataclasses.replace(found, logp=np.where(own.tokens == token, 0.0, own.logp - 9.0))

    alone = dataclasses.replace(options(size, Speed.EXACT_STEPS), method=Method.TARGET)
    kinds = {"target": alone} | {str(speed): options(size, speed) for speed in Speed}
    modes = {name: runtime_mode(runtime, kind, lambda: False) for name, kind in kinds.items()}

    def along(mode: Mode) -> Mode:
        def answer(prompt: BenchPrompt) -> AnswerTime:
            now["text"] = texts[str(prompt.text)]
            now["pattern"] = patterns[list(texts).index(str(prompt.text)) % len(patterns)]
            asked = BenchPrompt("Doctor: How are you?\nSummary:", raw=True)
            return mode(asked)

        return answer

    with (
        mock.patch.object(Ensemble, "start", started),
        mock.patch.object(Ensemble, "distribution", replayed),
        mock.patch.object(SkipRule, "skips", lambda _rule, _own, place: at(place)[1]),
        mock.patch.object(target, "step", forced(target.step)),
        mock.patch.object(target, "extend", forced(target.extend)),
    ):
        chosen = {name: along(mode) for name, mode in modes.items()}
        result = run_interleaved(chosen, [BenchPrompt(name) for name in texts])
    for name, figures in result.figures().items():
        print(name, {key: figures[key] for key in ("generate_tokens_per_s", "positions_per_token")})
    print({name: round(ratio["median"], 3) for name, ratio in result.ratios().items()})


def main(
    what: Literal["same", "curve", "skips", "replay"],
    target: Path,
    expert: Path,
    base: Path,
    files: list[Path],
    adapter: bool = False,
    texts: bool = False,
    raw: bool = False,
    count: int = 300,
    tokens: int = 48,
    threads: int = 1,
    out: Path | None = None,
    skips_file: Annotated[Path | None, typer.Option("--skips")] = None,
) -> None:
    """Measures WHAT with COUNT items of FILES."""
    if what in ("skips", "replay") and (out if what == "skips" else skips_file) is None:
        raise typer.BadParameter("skips needs --out, and replay --skips.")
    items = list(itertools.islice(itertools.chain.from_iterable(map(records, files)), count))
    asked = list(map(prompt_of, items)) if what in ("same", "skips") else []
    bundle = Bundle.from_paths(target, None if adapter else expert, base,
                               expert if adapter else None)  # fmt: skip
    load = LoadOptions(threads=threads, context=4096)
    with Runtime.open(bundle, load=load, check=False) as runtime:
        if what == "same":
            same(runtime, asked, tokens)
        elif what == "curve":
            curve([read(runtime, item, texts=texts, raw=raw) for item in items])
        elif what == "skips" and out is not None:
            skips(runtime, asked, tokens, raw, out)
        elif skips_file is not None:
            replay(runtime, items, tokens, skips_file)


if __name__ == "__main__":
    typer.run(main)

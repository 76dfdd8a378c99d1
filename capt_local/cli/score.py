"""`capt-local score`: log-likelihoods of texts, of given answers and of choices."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import MISSING, dataclass
from pathlib import Path
from typing import Literal

from capt_local.cli.exits import ExitCode, Interrupt
from capt_local.cli.files import OutputFile, files_of
from capt_local.cli.options import (
    JsonFlags,
    MethodFlags,
    ModelFlags,
    SampleFlags,
    ViewFlags,
    argument,
    flag,
    setting,
)
from capt_local.cli.session import find_bundle, generate_options, open_session
from capt_local.errors import Cancelled
from capt_local.evaluate.score import ItemScore, bits_per_byte, measure, read_score_items
from capt_local.report.json import JsonObject, dumps
from capt_local.report.terminal import Screen
from capt_local.report.views import Table


@dataclass(frozen=True, kw_only=True)
class ScoreFlags(JsonFlags, ModelFlags, MethodFlags, ViewFlags):
    """What is scored, and how the result is shown."""

    file: Path = argument("FILE", "JSON Lines (.jsonl, see above), or one text.", MISSING)
    limit: int | None = flag("--limit N", "Only the first N items.", min=1)
    max_bytes: int | None = flag("--max-bytes N", "Only the first N bytes of each text.", min=1)
    raw: bool = setting("--raw", "Answers continue the prompt, without a chat template.", False)
    end: bool = flag("--end", "Also score that a given answer ends where it does.", False)
    normalise: Literal["none", "bytes", "tokens"] = flag(
        "--normalise none|bytes|tokens",
        "What the log-likelihood of a choice is divided by. Default: none.",
        "none",
    )
    output: Path | None = flag("-o --output PATH", "Write a line of JSON for each item here.")


def score(flags: ScoreFlags) -> int:
    """Log-likelihood and bits per byte, exact over the normalised distribution.

    Each line of FILE is {"id", "text"}, a text that is scored from its beginning; or {"id",
    "prompt", "continuation"}, a given answer after a prompt; or {"id", "prompt", "choices",
    "answer"}, of which one is chosen. "messages" may stand for "prompt". Without a fixed --alpha,
    the weights come from the prompt; in a text they are updated as it goes, each token being
    predicted from the text before it. An item longer than the context is reported and skipped.

    Examples:
      capt-local score notes.jsonl --method capt

      capt-local score questions.jsonl --normalise bytes -o items.jsonl --json
    """
    from capt_local.decoding.scoring import ChoiceCriterion  # the help needs none of it

    screen = Screen.standard(flags.verbose)
    items = read_score_items(
        flags.file, "The file (FILE)", raw=flags.raw, limit=flags.limit, size=flags.max_bytes
    )
    choosing = {
        "none": ChoiceCriterion.LIKELIHOOD,
        "bytes": ChoiceCriterion.PER_BYTE,
        "tokens": ChoiceCriterion.PER_TOKEN,
    }[flags.normalise]
    bundle = find_bundle(flags)
    output = None
    if flags.output is not None:  # tried out before anything is loaded
        output = OutputFile(flags.output, inputs=[flags.file, *files_of(bundle)])
    how = SampleFlags(alpha=flags.alpha, weights=flags.weights, plausibility=flags.plausibility)
    options = generate_options(bundle, how, method=flags.method)
    method = str(options.method)
    if cut := sum(item.cut for item in items):
        screen.note(f"{cut} of {len(items)} texts are cut to --max-bytes.")
    done: list[ItemScore] = []
    try:
        with Interrupt() as interrupt:
            session = open_session(
                bundle, flags, screen, interrupt, wanted=options.method, scores=True
            )
            with session.runtime as runtime:
                for one in measure(
                    runtime,
                    items,
                    options,
                    choosing,
                    raw=flags.raw,
                    end=flags.end,
                    cancel=interrupt,
                ):
                    if one.error:  # by its line: an id may be a patient's
                        screen.note(f"line {items[len(done)].line}: {one.error}")
                    done.append(one)
                    screen.progress("scoring", len(done) / len(items))
    except Cancelled:
        if not done:
            raise
    finally:
        screen.clear_progress()
        if output is not None and done:
            spared = None if len(done) == len(items) else output.why_kept()
            if spared is None:
                output.write("".join(dumps(_object(one, method)) + "\n" for one in done))
            else:
                screen.notes([spared])
    return _report(screen, done, len(items), method, json=flags.json)


def _report(
    screen: Screen, done: Sequence[ItemScore], total: int, method: str, *, json: bool
) -> ExitCode:
    """Prints totals and problems; returns the exit code."""
    failed, interrupted = sum(bool(one.error) for one in done), len(done) < total
    if again := sum(one.windows - 1 for one in done):
        screen.note(f"{again} times the context was full and a text went on afresh.")
    if never := sum(not math.isfinite(one.nats) for one in done):
        screen.note(
            f"{never} items have probability 0 under this method, so there is no finite sum."
        )
    result = _figures(done, method)
    if judged := [one.correct for one in done if one.correct is not None]:
        result |= {"accuracy": sum(judged) / len(judged), "questions": len(judged)}
    if json:
        result |= {"failed": failed} if failed else {}
        result |= {"interrupted": True} if interrupted else {}
        screen.line(dumps(result))
    else:
        screen.show(_table(result))
    if failed:
        screen.note(f"{failed} of {len(done)} items could not be scored.")
    if interrupted:
        screen.error(f"interrupted after {len(done)} of {total} items; the figures are of these.")
        return ExitCode.INTERRUPTED
    return ExitCode.FAILED_RECORDS if failed else ExitCode.OK


def _figures(items: Sequence[ItemScore], method: str) -> JsonObject:
    return {
        "method": method,
        "bits_per_byte": bits_per_byte(items),
        "bytes": sum(one.size for one in items),
        "tokens": sum(one.tokens for one in items),
        "nats": math.fsum(one.nats for one in items),
    }


def _object(one: ItemScore, method: str) -> JsonObject:
    """One item as JSON; keys without a value are left out."""
    if one.error:
        return {"id": one.id, "method": method, "error": one.error}
    result: JsonObject = {"id": one.id, **_figures([one], method)}
    if one.logps:
        result["logps"] = list(one.logps)
    for name in ("greedy", "chosen", "correct"):
        if (value := getattr(one, name)) is not None:
            result[name] = value
    return result


def _table(result: JsonObject) -> Table:
    bits = result["bits_per_byte"]
    cells = {
        "method": result["method"],
        "bits per byte": "-" if bits is None else f"{bits:.4f}",
        "bytes": f"{result['bytes']}",
        "tokens": f"{result['tokens']}",
        "nats": f"{result['nats']:.1f}",
    }
    if "accuracy" in result:
        cells["accuracy"] = f"{result['accuracy']:.3f} of {result['questions']}"
    return Table("", (tuple(cells.values()),), tuple(cells), right=tuple(range(1, len(cells))))

"""From the flags of `replay` to its exit code."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from typing import Any

from capt_local.batch.crew import Crew
from capt_local.batch.events import News
from capt_local.batch.fingerprint import Fingerprint, differing
from capt_local.batch.manifest import RunManifest
from capt_local.batch.output import Origin, OutputLine
from capt_local.batch.progress import Progress
from capt_local.batch.replay import (
    Comparison,
    Said,
    computed_otherwise,
    date_then,
    find_line,
    load_then,
    logprobs_then,
    options_then,
    parallel_then,
    record_then,
)
from capt_local.batch.runner import Job, Runner
from capt_local.batch.sources import Source
from capt_local.bundle import store
from capt_local.bundle.manifest import Bundle
from capt_local.cli.allowed import check_weights
from capt_local.cli.batch.input import AskFlags
from capt_local.cli.batch.replay_flags import ReplayFlags
from capt_local.cli.batch.run import hello_of, start_worker
from capt_local.cli.batch.setup import Chosen, Settled, fingerprint, form_of, opening
from capt_local.cli.batch.told import Told
from capt_local.cli.exits import ExitCode
from capt_local.cli.model_flags import ModelFlags
from capt_local.cli.options import ViewFlags
from capt_local.cli.prompts import checked
from capt_local.cli.session import find_bundle, load_options
from capt_local.cli.signals import Signals
from capt_local.cli.structured import StructureFlags, structure
from capt_local.cli.vouched import permitted
from capt_local.engine.options import LoadOptions
from capt_local.engine.private import keep_memory_private
from capt_local.errors import Cancelled, UsageError
from capt_local.report.json import dumps
from capt_local.report.screen import Screen


@dataclass(slots=True)
class OneLine:
    """An output for one line, in memory."""

    line: OutputLine | None = None

    def append(self, *lines: OutputLine) -> None:
        """Keeps it."""
        (self.line,) = lines


def work(
    what: ReplayFlags, ask: AskFlags, model: ModelFlags, form: StructureFlags, view: ViewFlags
) -> int:
    """Runs the record, and tells.

    Raises:
        CaptError: output, input or models are not there or not as they should be.
    """
    screen = Screen.standard(view.verbose)
    keep_memory_private()
    if what.id is None or what.input is None:
        raise UsageError("Which record? Give --id, and the input of the run with --input.")
    manifest, line = find_line(what.output, what.id)
    then, record = Said.of(line), record_then(line)
    flags = _chosen(what, model, form, manifest)
    fixed = Settled(str(flags.date) if flags.date else date_then(manifest), flags.parallel or 1)
    source = ask.check(what.input, options=flags.options, model=flags.bundle.id)
    place = source.place(what.id)
    if place is None:
        raise UsageError("The input (--input) has no record of that id.")
    told = Told(screen)
    with Signals() as signals:
        now, settings = _again(flags, fixed, source, place, manifest, told, signals, raw=ask.raw)
    if source.line(place)[1] != record:
        settings.insert(0, "record")
    found = Comparison(then, now)
    _tell(screen, found, settings, json=what.json)
    return ExitCode.OK if found.identical else ExitCode.FAILED_RECORDS


def _chosen(
    what: ReplayFlags, model: ModelFlags, form: StructureFlags, manifest: RunManifest
) -> Chosen:
    """The settings of that run; flags that are given win."""
    bundle = _bundle(model, manifest)
    stop = tuple(checked(text, "--stop") for text in what.stop or ())
    rules, digest = form_of(form.json_schema)
    then, given = load_then(manifest), load_options(model, bundle)
    unset = load_options(ModelFlags(), bundle)
    changed = {
        field.name: getattr(given, field.name)
        for field in dataclasses.fields(LoadOptions)
        if getattr(given, field.name) != getattr(unset, field.name)
    }
    options = options_then(manifest, stop, structure(form))
    check_weights(options.combine)  # the site may have become stricter since
    return Chosen(
        bundle=bundle,
        options=options,
        load=dataclasses.replace(then, **changed),
        check=model.check,
        date=None,
        parallel=parallel_then(manifest),
        shard=manifest.shard,
        form=rules,
        schema=form.json_schema,
        schema_sha256=digest,
        logprobs=logprobs_then(manifest),
    )


def _bundle(model: ModelFlags, manifest: RunManifest) -> Bundle:
    named = model.bundle or model.target or model.expert or model.base or model.expert_adapter
    id = manifest.fingerprint.get("bundle", {}).get("id")
    if named or id == "files":
        return find_bundle(model)
    return permitted(store.find(str(id)), model.check)


def _again(
    flags: Chosen,
    fixed: Settled,
    source: Source,
    place: int,
    manifest: RunManifest,
    told: Told,
    signals: Signals,
    *,
    raw: bool,
) -> tuple[Said, list[str]]:
    """What comes out now, and the settings that differ."""
    crew = Crew(start_worker)
    loaded: dict[str, Any] = {}

    def tell(news: News) -> None:
        if news.ready is not None:
            loaded["loaded"] = news.ready["models"]
        told.news(news)

    try:
        hello = hello_of(crew, signals)
        mark = fingerprint(flags, fixed, source, hello)
        crew.load(opening(flags, fixed, mark, raw=raw))
        output = OneLine()
        job = _job(flags, source, output, mark, place)
        runner = Runner(job, crew, Progress(1), tell=tell, stop=lambda: signals.requested)
        if not runner.run() or output.line is None:
            raise Cancelled("interrupted")
        crew.finish(lambda: signals.requested)
    finally:
        crew.kill()
        told.clear()
    settings = differing(manifest.fingerprint, mark.as_object())
    if loaded:
        settings += computed_otherwise(manifest, {"devices": hello.get("devices"), **loaded})
    return Said.of(json.loads(output.line.encode())), settings


def _job(flags: Chosen, source: Source, output: OneLine, mark: Fingerprint, place: int) -> Job:
    """One record, as its run had it."""
    return Job(
        source,
        output,
        Origin(mark),
        flags.options,
        (place,),
        logprobs=flags.logprobs,
        form=flags.form,
    )


def _tell(screen: Screen, found: Comparison, settings: list[str], *, json: bool) -> None:
    if json:
        screen.line(dumps(found.as_object() | {"settings_that_differ": settings}, indent=1))
        return
    then, now = found.then, found.now
    if found.identical and then.text is None:
        screen.line(f"identical: the record fails as it did then ({then.code}).")
    elif found.identical:
        screen.line(f"identical: the answer is the same ({then.tokens} tokens, {then.finish}).")
    elif found.same_text:
        screen.line("different: the text is the same, but not its log-probabilities.")
    elif then.text is None or now.text is None:
        screen.line(f"different: then {then.code}, now {now.code}.")
    else:
        screen.line(
            f"different: the answers part after {found.common} characters "
            f"(then {len(then.text)}, now {len(now.text)})."
        )
    screen.line(f"settings that differ: {', '.join(settings) or 'none'}.")
    if not then.untouched:
        screen.line("The text in the output is not the one that was written: its digest differs.")

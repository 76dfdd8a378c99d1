"""From the flags of a batch run to what decides its answers."""

from __future__ import annotations

import dataclasses
import datetime
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from capt_local.batch.fingerprint import Fingerprint, digest_of
from capt_local.batch.journal_place import WHAT
from capt_local.batch.manifest import RunFacts, RunManifest, read_manifest
from capt_local.batch.opening import Opening
from capt_local.batch.packing import packed
from capt_local.batch.parallel import records_at_once
from capt_local.batch.sources import Source
from capt_local.batch.structured import Form
from capt_local.bundle.manifest import Bundle
from capt_local.bundle.verify import Check
from capt_local.cli.batch.flags import AfterFlags, RunFlags
from capt_local.cli.options import MethodFlags, ModelFlags, SampleFlags
from capt_local.cli.session import find_bundle, generate_options, load_options, pinned_date
from capt_local.cli.structured import StructureFlags, structure
from capt_local.cli.thinking import QuietThoughtFlags
from capt_local.decoding.options import GenerateOptions
from capt_local.engine.options import LoadOptions
from capt_local.engine.threads import physical_cores
from capt_local.errors import UsageError
from capt_local.strict.files import read_bytes
from capt_local.strict.json import parse_json
from capt_local.strict.problems import NotReadable

_SCHEMA = "The schema (--json-schema)"


@dataclass(frozen=True, slots=True)
class Chosen:
    """What the flags say, checked; nothing has been read of the input, and nothing loaded.

    Attributes:
        bundle: that answers.
        options: of answers.
        load: how the models are loaded.
        check: how their digests are checked.
        date: what templates take for today; None where no flag says.
        parallel: records at once; None for as many as are good.
        form: what validates structured answers; None where there is no schema.
        schema: its file; None where there is none.
        schema_sha256: of that file.
        logprobs: whether lines hold log-probabilities, where a record does not say.
    """

    bundle: Bundle
    options: GenerateOptions
    load: LoadOptions
    check: Check
    date: datetime.date | None
    parallel: int | None
    form: Form | None
    schema: Path | None
    schema_sha256: str | None
    logprobs: bool = False


def chosen(
    run: RunFlags,
    model: ModelFlags,
    how: MethodFlags,
    sample: SampleFlags,
    shape: StructureFlags,
    thought: QuietThoughtFlags,
    after: AfterFlags,
) -> Chosen:
    """Checks the flags.

    Raises:
        UsageError: a value has no meaning, or some do not go together.
        ModelError: there is no such bundle, or it is broken.
    """
    if after.top_logprobs and not after.logprobs:
        raise UsageError("--top-logprobs goes with --logprobs.")
    parallel = run.at_once
    grammar = structure(shape)
    form, digest = form_of(shape.json_schema)
    bundle = find_bundle(model)
    options = generate_options(bundle, how, sample, after.top_logprobs)
    return Chosen(
        bundle=bundle,
        options=thought.added(options, grammar),
        load=load_options(model, bundle),
        check=model.check,
        date=pinned_date(model),
        parallel=parallel,
        form=form,
        schema=shape.json_schema,
        schema_sha256=digest,
        logprobs=after.logprobs,
    )


def form_of(path: Path | None) -> tuple[Form | None, str | None]:
    """What validates answers against the schema of a file, and its digest.

    Raises:
        UsageError: the file cannot be read, or is no schema.
    """
    if path is None:
        return None, None
    try:
        data = read_bytes(path, _SCHEMA)
        return Form(parse_json(data), _SCHEMA), digest_of(data.decode())
    except NotReadable as error:
        raise UsageError(f"{_SCHEMA}: {error}.") from None


@dataclass(frozen=True, slots=True)
class Settled:
    """The same with what an earlier run of the output has settled.

    Attributes:
        date: what templates take for today: that of the run's first start.
        parallel: records at once.
    """

    date: str
    parallel: int


def settled(output: Path, what: Chosen, *, new: bool) -> Settled:
    """What the flags leave open is as it was when the run began, so that it can be resumed.

    Args:
        output: of the run.
        what: the flags say.
        new: whether the output begins anew in any case.

    Raises:
        UsageError: the manifest of the output is broken.
        ModelError: a model is missing or broken.
    """
    before = None if new else read_manifest(output, WHAT)
    date = str(what.date) if what.date else _kept(before, "prompt", "date", str)
    parallel = what.parallel or _kept(before, "computing", "parallel", int)
    if parallel is None:
        cores = what.load.threads or physical_cores()
        parallel = records_at_once(what.bundle, what.options, what.load, cores=cores)
    return Settled(date or datetime.date.today().isoformat(), parallel)


def _kept(before: RunManifest | None, group: str, name: str, kind: type[Any]) -> Any:
    """A value of the fingerprint of an earlier run; None where there is none."""
    held = before.fingerprint.get(group) if before else None
    value = held.get(name) if isinstance(held, Mapping) else None
    return value if isinstance(value, kind) else None


def fingerprint(
    what: Chosen, fixed: Settled, source: Source, hello: Mapping[str, Any]
) -> Fingerprint:
    """That of the run.

    Args:
        what: the flags say.
        fixed: what they leave open.
        source: the input.
        hello: what the worker said first.

    Raises:
        ModelError: a model without a digest cannot be read.
    """
    load = what.load
    return Fingerprint.of(
        what.bundle,
        what.options,
        versions=hello["versions"],
        build=hello["build"],
        prompt={**source.how(), "date": fixed.date, "schema_sha256": what.schema_sha256},
        computing={
            "parallel": fixed.parallel,
            "threads": load.threads or physical_cores(),
            "context": load.context,
            "batch": load.batch,
            "gpu_layers": load.gpu_layers,
            "flash_attention": load.flash_attention,
            "kv_type": load.kv_type,
        },
        output={"logprobs": what.logprobs},
    )


def facts(what: Chosen, source: Source, mark: Fingerprint, hello: Mapping[str, Any]) -> RunFacts:
    """What the manifest of the run tells besides its fingerprint."""
    bundle = what.bundle
    return RunFacts(
        provenance={
            **hello,
            "bundle": {
                "id": bundle.id,
                "version": bundle.version,
                "licence": bundle.licence,
                "signer": bundle.signer.as_object() if bundle.signer else None,
            },
            "notices": list(bundle.notices),
            "loading": packed(what.load),
            "method": mark.method,
            "parameters": mark.parameters,
        },
        wanted=len(source),
        input=source.describe(),
    )


def opening(what: Chosen, fixed: Settled, mark: Fingerprint, *, raw: bool) -> dict[str, Any]:
    """What the worker is told to load: exactly the models of the fingerprint."""
    bundle = what.bundle
    models = {
        role: dataclasses.replace(file, sha256=mark.models[role]["sha256"])
        for role, file in bundle.models.items()
    }
    made = Opening(
        bundle=dataclasses.replace(bundle, models=models),
        options=what.options,
        load=what.load,
        date=fixed.date,
        check=what.check,
        raw=raw,
        parallel=fixed.parallel,
    )
    opened: dict[str, Any] = packed(made)
    return opened

"""The run's manifest, OUTPUT.run.json: which run an output belongs to.

It holds what is the same for all lines: the fingerprint, the whole provenance, the
input's digest and counts. No text of records. OpenAI's readers take every line of the output for a
record, so this cannot stand there.
"""

from __future__ import annotations

import datetime
import json
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from capt_local.batch.disk import Files, put, sibling
from capt_local.batch.fingerprint import digest_of_object
from capt_local.batch.output import AI_LABEL, HUMAN_REVIEW
from capt_local.errors import UsageError
from capt_local.strict.json import parse_json
from capt_local.strict.problems import NotReadable

ENDING = "run.json"
_MARK = "capt_run"
_VERSION = 1
_LARGEST = 16 << 20


@dataclass(frozen=True, slots=True)
class RunFacts:
    """What the run is about besides its fingerprint.

    Attributes:
        provenance: versions, platform, build, bundle, parameters, loading: all that a line of
            the output leaves out.
        wanted: how many records this output is to hold.
        input: what `Source.describe` says: counts, digest, form.
    """

    provenance: Mapping[str, Any] = field(default_factory=dict)
    wanted: int | None = None
    input: Mapping[str, Any] = field(default_factory=dict)

    def input_object(self) -> dict[str, Any]:
        """The part about the input, for JSON."""
        told: dict[str, Any] = json.loads(json.dumps({**self.input, "wanted": self.wanted}))
        return told


@dataclass(frozen=True, slots=True)
class RunManifest:
    """What OUTPUT.run.json holds.

    Attributes:
        run: a random id of the run; it stays when the run is resumed.
        created: when the run began, in UTC.
        fingerprint: as `Fingerprint.as_object` gives it.
        input: see `RunFacts.input_object`; `earlier` lists the digests that it had at earlier
            starts.
        provenance: that of the first start, and of each later one that differs from the one
            before, each with its `time`; see `RunFacts`. `loaded` is there once models were loaded.
        last: what the last run said at its end; empty while it goes on or after a kill.
    """

    run: str
    created: str
    fingerprint: Mapping[str, Any]
    input: Mapping[str, Any]
    provenance: tuple[Mapping[str, Any], ...] = ()
    last: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def new(cls, fingerprint: Mapping[str, Any], facts: RunFacts) -> RunManifest:
        """That of a run that begins."""
        run, now = f"run-{uuid.uuid4().hex}", now_text()
        begun = cls(run=run, created=now, fingerprint=fingerprint, input=facts.input_object())
        return begun.with_provenance(facts.provenance)

    def resumed(self, facts: RunFacts) -> RunManifest:
        """That of the same run, started again."""
        now, before = facts.input_object(), self.input.get("sha256")
        earlier = [*self.input.get("earlier", ()), before]
        if before is not None and before != now.get("sha256"):
            now["earlier"] = list(dict.fromkeys(earlier))
        elif earlier[:-1]:
            now["earlier"] = earlier[:-1]
        return replace(self, input=now, last={}).with_provenance(facts.provenance)

    def with_provenance(self, provenance: Mapping[str, Any]) -> RunManifest:
        """The same with an entry more, where a start has something new to tell."""
        told, before = _plain(provenance), self._latest
        if all(name in before and before[name] == value for name, value in told.items()):
            return self
        return replace(self, provenance=(*self.provenance, {"time": now_text(), **told}))

    def with_more(self, provenance: Mapping[str, Any]) -> RunManifest:
        """The same with more in the latest entry; where that says otherwise, in a new one."""
        told, before = _plain(provenance), self._latest
        if any(name in before and before[name] != value for name, value in told.items()):
            return replace(
                self, provenance=(*self.provenance, {**before, "time": now_text(), **told})
            )
        return replace(self, provenance=(*self.provenance[:-1], {**before, **told}))

    @property
    def computed(self) -> list[tuple[object, object]]:
        """On what the starts computed: devices, and the models as they were loaded; no two alike.

        Starts that loaded nothing are left out.
        """
        found: list[tuple[object, object]] = []
        for entry in self.provenance:
            place = entry.get("devices"), entry.get("loaded")
            if "loaded" in entry and place not in found:
                found.append(place)
        return found

    @property
    def _latest(self) -> Mapping[str, Any]:
        return self.provenance[-1] if self.provenance else {}

    @property
    def digest(self) -> str:
        """What `provenance.run` of each line is."""
        return digest_of_object(self.fingerprint)

    def write(self, files: Files, output: Path) -> None:
        """Puts it beside the output, on the disk, in the place of an earlier one.

        Raises:
            OSError: as the system does.
        """
        value = {
            _MARK: _VERSION,
            "run": self.run,
            "created": self.created,
            "fingerprint_sha256": self.digest,
            "fingerprint": dict(self.fingerprint),
            "input": dict(self.input),
            "provenance": [dict(entry) for entry in self.provenance],
            "last": dict(self.last),
            "ai_label": AI_LABEL,
            "human_review": HUMAN_REVIEW,
        }
        text = json.dumps(value, ensure_ascii=True, allow_nan=False, indent=1)
        put(files, sibling(output, ENDING), f"{text}\n".encode())


def read_manifest(output: Path, what: str) -> RunManifest | None:
    """The manifest beside an output; None where there is none.

    Args:
        output: the output's path.
        what: what errors call the output.

    Raises:
        UsageError: it is broken, or of another version.
    """
    path = sibling(output, ENDING)
    try:
        if path.stat().st_size > _LARGEST:
            raise NotReadable("too large")
        value = parse_json(path.read_bytes())
    except FileNotFoundError:
        return None
    except NotReadable:
        raise _broken(what) from None
    except OSError as error:
        reason = error.strerror or "no access"
        raise UsageError(f"{what}: its manifest (.{ENDING}) cannot be read: {reason}.") from None
    return _manifest(value, what)


def now_text() -> str:
    """The time in UTC, to the second."""
    return datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _plain(provenance: Mapping[str, Any]) -> dict[str, Any]:
    """As it will be read back."""
    told: dict[str, Any] = json.loads(json.dumps(dict(provenance)))
    return told


def _manifest(value: object, what: str) -> RunManifest:
    if not isinstance(value, dict) or _MARK not in value:
        raise _broken(what)
    if value[_MARK] != _VERSION:
        raise UsageError(f"{what} was written by another version of capt-local. Name a new file.")
    kinds = {"run": str, "created": str, "fingerprint": dict, "input": dict, "provenance": list}
    if not all(isinstance(value.get(name), kind) for name, kind in kinds.items()):
        raise _broken(what)
    last = value.get("last")
    found = RunManifest(
        run=value["run"],
        created=value["created"],
        fingerprint=value["fingerprint"],
        input=value["input"],
        provenance=tuple(each for each in value["provenance"] if isinstance(each, dict)),
        last=last if isinstance(last, dict) else {},
    )
    if value.get("fingerprint_sha256") != found.digest:
        raise _broken(what)
    return found


def _broken(what: str) -> UsageError:
    return UsageError(
        f"{what}: its manifest (.{ENDING}) is broken, so nobody knows which run it is of. "
        "Name a new file, or move this one aside with --force-new."
    )

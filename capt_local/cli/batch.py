"""`capt-local batch`: an answer to each record of a file; the work is in `batch_run`."""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING

from capt_local.cli.options import (
    BestOfFlags,
    EncodingFlags,
    MethodFlags,
    ModelFlags,
    ProxyReasoningFlags,
    SampleFlags,
    SourceFlags,
    StructureFlags,
    SystemFlags,
    ViewFlags,
    argument,
    flag,
    setting,
    top_logprobs_option,
)
from capt_local.config import Feature
from capt_local.errors import UsageError

if TYPE_CHECKING:
    from capt_local.batch.records import RecordParser

_LARGEST = 1 << 16  # bytes of a system text or a template
_SHORTEST_TIMEOUT = 3  # seconds; a worker reports progress every second
_MOST_PARALLEL = 255  # sequences of one llama.cpp context, one reserved


class Delimiter(StrEnum):
    """Between two cells of a table."""

    COMMA = "comma"
    SEMICOLON = "semicolon"
    TAB = "tab"
    PIPE = "pipe"

    @property
    def character(self) -> str:
        """The character itself."""
        return {"comma": ",", "semicolon": ";", "tab": "\t", "pipe": "|"}[self.value]


@dataclass(frozen=True, slots=True)
class InputFlags(EncodingFlags):
    """Which records are answered, and how they become prompts."""

    delimiter: Delimiter | None = setting(
        "--delimiter comma|semicolon|tab|pipe",
        "What separates the cells of CSV. Default: comma, and tab in *.tsv.",
    )
    template: Path | None = flag(
        "--template FILE",
        "Writes the prompt around the fields of a record: 'Summarise: {{ note }}'.",
    )
    id_field: str = setting(
        "--id-field NAME", "The field or column that identifies a record. Default: id.", "id"
    )
    document_field: str | None = flag(
        "--document-field NAME",
        "The field or column that names a document (PDF, DOCX, ..., relative to the input); "
        "its text takes the place of the name.",
    )
    raw: bool = setting("--raw", "Continue the texts as they are, without a template.", False)
    skip_invalid: bool = flag(
        "--skip-invalid",
        "Run without the records that are wrong, and list them, instead of refusing the input.",
        False,
    )
    input: Path | None = argument("INPUT", "JSON Lines, a CSV file, or a folder of documents.")

    @property
    def path(self) -> Path:
        """The input. Raises UsageError if none was given."""
        if self.input is None:
            raise UsageError("There is no input. Name a file or a folder.")
        return self.input

    def parser(self, system: str | None) -> RecordParser:
        """Reads the template; the system text stands in front of each record.

        Raises:
            UsageError: one cannot be read or used, or they do not go together.
        """
        from capt_local.batch.records import RecordParser, RecordTemplate
        from capt_local.strict_json import read_bytes

        template = None
        if self.template is not None:
            name = "The template (--template)"
            template = RecordTemplate(read_bytes(self.template, name, largest=_LARGEST, pipes=True))
        return RecordParser(template, system, self.id_field, self.raw)


@dataclass(frozen=True, slots=True)
class RunFlags:
    """Where answers go, which records are done, and by how many workers."""

    output: Path | None = flag(
        "-o --output PATH",
        "Write a line for each record here (mode 0600). The same command goes on with it.",
    )
    parallel: str = setting(
        "--parallel N|auto", "Records answered at once. Default: auto, by memory and cores.", "auto"
    )
    limit: int | None = flag("--limit N", "At most N records in this run.", min=1)
    retry_errors: bool = flag("--retry-errors", "Do records that have failed again.", False)
    force_new: bool = flag(
        "--force-new", "Move an existing output aside, and begin a new one.", False
    )
    record_timeout: int = setting(
        "--record-timeout SECONDS",
        "End a worker that reports no progress for so long, and fail the record that it "
        "hangs on. Default: 1800; 0 never does.",
        1800,
        min=0,
    )
    check: bool = flag(
        "--check", "Check flags and input, and leave: nothing is answered or written.", False
    )
    ray: str | None = flag(
        "--ray local|ADDRESS",
        "Answer on actors of Ray: on this machine, or on the cluster at ADDRESS (the extra "
        "'ray'). Records pass through Ray.",
        feature=Feature.NETWORK,
    )
    ray_actors: int | None = flag(
        "--ray-actors N",
        "Actors, each with models of its own. Default: one for each GPU, else for each machine.",
        min=1,
    )

    @property
    def records_at_once(self) -> int | None:
        """`--parallel`; None for auto. Raises UsageError if it is no number."""
        if self.parallel == "auto":
            return None
        text = self.parallel
        if not (text.isascii() and text.isdecimal() and 1 <= int(text) <= _MOST_PARALLEL):
            raise UsageError(f"--parallel takes a number from 1 to {_MOST_PARALLEL}, or auto.")
        return int(text)

    @property
    def timeout(self) -> float:
        """`--record-timeout`. Raises UsageError if a healthy worker may be silent for so long."""
        if 0 < self.record_timeout < _SHORTEST_TIMEOUT:
            raise UsageError(
                f"--record-timeout is at least {_SHORTEST_TIMEOUT} seconds, or 0: a healthy worker "
                "may be silent for a while."
            )
        return self.record_timeout or math.inf


@dataclass(frozen=True, slots=True)
class SummaryFlags:
    """What the lines hold, and what is reported of the run."""

    json: bool = setting("--json", "Write the summary to standard output as JSON.", False)
    logprobs: bool = setting("--logprobs", "Write the log-probability of each token.", False)
    top_logprobs: int = top_logprobs_option("--logprobs")
    csv: Path | None = flag(
        "--csv FILE",
        "Write the answers here as a table: a column a field, and where its note has it.",
    )


@dataclass(frozen=True, slots=True)
class Flags:
    """All groups of flags of `batch`."""

    input: InputFlags
    system: SystemFlags
    run: RunFlags
    model: ModelFlags
    method: MethodFlags
    sample: SampleFlags
    structure: StructureFlags
    thoughts: ProxyReasoningFlags
    several: BestOfFlags
    sources: SourceFlags
    report: SummaryFlags
    view: ViewFlags


def batch(
    input: InputFlags,
    system: SystemFlags,
    run: RunFlags,
    model: ModelFlags,
    method: MethodFlags,
    sample: SampleFlags,
    structure: StructureFlags,
    thoughts: ProxyReasoningFlags,
    several: BestOfFlags,
    sources: SourceFlags,
    report: SummaryFlags,
    view: ViewFlags,
) -> int:
    """Answers each record of a file; running the same command again resumes where it stopped.

    A record is a line {"id", "prompt"} or {"id", "messages"}, a row of a CSV file, or a document
    of a folder. The whole input is checked before a model loads. The
    output has a line for each record, on the disk as soon as it is finished, errors included.

    Examples:
      capt-local batch notes.jsonl -o answers.jsonl -n 300

      capt-local batch notes.csv --template ask.txt --system-file rules.txt -o answers.jsonl
    """
    # Imported here: the help needs none of it.
    from capt_local.cli.batch_run import run_batch

    groups = (input, system, run, model, method, sample, structure, thoughts, several, sources)
    return run_batch(Flags(*groups, report, view))

"""`capt-local batch`: an answer to each record of a file; the work is in `batch_run`."""

from __future__ import annotations

from capt_local.cli.batch_flags import Flags, InputFlags, RunFlags, SummaryFlags
from capt_local.cli.options import (
    BestOfFlags,
    MethodFlags,
    ModelFlags,
    ProxyReasoningFlags,
    SampleFlags,
    SourceFlags,
    StructureFlags,
    SystemFlags,
    ViewFlags,
)


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

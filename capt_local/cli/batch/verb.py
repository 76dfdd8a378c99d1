"""`capt-local batch`: a file of records, an answer to each, nothing lost and nothing twice."""

from __future__ import annotations

from capt_local.cli.batch.flags import AfterFlags, RunFlags
from capt_local.cli.batch.input import InputFlags
from capt_local.cli.options import MethodFlags, ModelFlags, SampleFlags, ViewFlags
from capt_local.cli.structured import StructureFlags
from capt_local.cli.thinking import QuietThoughtFlags


def batch(
    what: InputFlags,
    run: RunFlags,
    model: ModelFlags,
    how: MethodFlags,
    sample: SampleFlags,
    form: StructureFlags,
    thought: QuietThoughtFlags,
    after: AfterFlags,
    view: ViewFlags,
) -> int:
    """Answers each record of a file; running the same command again goes on where it stopped.

    A record is a line {"id", "prompt"} or {"id", "messages"}, a line of OpenAI's batches, a row of
    a CSV file, or a text file of a folder. The whole input is checked before a model loads. The
    output has a line for each record, on the disk as soon as it is finished, errors among them.

    Examples:
      capt-local batch notes.jsonl -o answers.jsonl -n 300

      capt-local batch notes.csv --template ask.txt --system rules.txt -o answers.jsonl
    """
    # Imported here: the help needs none of it.
    from capt_local.cli.batch.work import Groups, work

    groups = Groups(what, run, model, how, sample, form, thought, after, view)
    return work(groups)

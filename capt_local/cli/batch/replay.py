"""`capt-local replay`: one record of a batch run once more; is the answer the same?"""

from __future__ import annotations

from capt_local.cli.batch.input import AskFlags
from capt_local.cli.batch.replay_flags import ReplayFlags
from capt_local.cli.model_flags import ModelFlags
from capt_local.cli.options import ViewFlags
from capt_local.cli.structured import StructureFlags


def replay(
    what: ReplayFlags,
    ask: AskFlags,
    model: ModelFlags,
    form: StructureFlags,
    view: ViewFlags,
) -> int:
    """Runs a record of a batch again, and says whether the answer is the same.

    Method, parameters, threads and date are taken from the manifest beside the output; models are
    found by the id of the bundle, unless --bundle or --target says otherwise. Texts of which the
    manifest has a digest alone (--system, --template, --stop, --json-schema) are given again. What
    differs in the setting is named. No text is shown. Exit code 6 where the answer is another one.

    Examples:
      capt-local replay answers.jsonl --id note-17 --input notes.jsonl
    """
    # Imported here: the help needs none of it.
    from capt_local.cli.batch.replay_work import work

    return work(what, ask, model, form, view)

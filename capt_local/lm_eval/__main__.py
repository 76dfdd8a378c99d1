"""The command line of lm-evaluation-harness, with `--model capt-local`.

The harness has no way to find models of other packages, so this registers the model and hands
over. Downloads are off unless HF_HUB_OFFLINE=0 and HF_DATASETS_OFFLINE=0 are set: a task from the
hub needs them, a local one does not.

    python -m capt_local.lm_eval --model capt-local --model_args bundle=demo,method=capt \
        --include_path tasks --tasks my_task
"""

from __future__ import annotations

import os
import sys
from importlib import import_module

from capt_local.cli.exits import ExitCode, code_for, line_for
from capt_local.errors import CaptError, UsageError
from capt_local.report.terminal import Screen

_QUIET = ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE", "HF_HUB_DISABLE_TELEMETRY", "DO_NOT_TRACK")


def main() -> int:
    """Runs the harness with the arguments of the process; returns the exit code."""
    for name in _QUIET:
        os.environ.setdefault(name, "1")
    try:
        _run()
    except (CaptError, KeyboardInterrupt) as error:
        Screen.standard().error(line_for(error))
        return code_for(error)
    return ExitCode.OK


def _run() -> None:
    try:
        from lm_eval.__main__ import cli_evaluate
    except ImportError:
        raise UsageError(
            "lm-evaluation-harness is not installed: pip install 'capt-local[lm-eval]'."
        ) from None
    import_module("capt_local.lm_eval.model")  # registers itself
    cli_evaluate()


if __name__ == "__main__":
    sys.exit(main())

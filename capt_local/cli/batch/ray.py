"""`batch --ray N`: the shards of a run as actors of a Ray on this machine, then merged.

Each actor does one shard as the command line would, with a worker, a trio and an output of its own,
and Ray starts it again when it dies: the shard goes on from its output. Ray carries flags and exit
codes, no records. Its files go into a temporary folder that is removed; its usage statistics, its
dashboard and its forwarding of logs are off.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from capt_local.batch.disk import sibling
from capt_local.batch.journal_place import WHAT, check_place, holds_something
from capt_local.cli.batch.flags import AfterFlags, RunFlags
from capt_local.cli.batch.input import AskFlags, InputFlags
from capt_local.cli.batch.merge import MergeFlags, merge
from capt_local.cli.batch.setup import settled
from capt_local.cli.batch.told import Told
from capt_local.cli.batch.work import Groups, work
from capt_local.cli.exits import ExitCode, code_for, line_for
from capt_local.cli.options import ViewFlags
from capt_local.cli.signals import Signals
from capt_local.engine.parameters import physical_cores
from capt_local.engine.private import keep_memory_private
from capt_local.errors import UsageError
from capt_local.report.screen import Screen

_AGAIN = 5  # times that Ray starts an actor again
_WAIT = 0.5  # seconds until signals get their turn
_SIGNALS = 128  # from here on, exit codes of processes that a signal ended
_STORE = 80 << 20  # bytes of Ray's object store, which holds nothing here; its least
_OPEN_PORTS = (
    "Ray's processes listen on all network interfaces of this machine while the run goes on; a "
    "token of this run guards them. docs/batch.md has ways without Ray."
)


class Part:
    """An actor: one shard."""

    def run(self, groups: Groups, folder: str) -> tuple[int, str]:
        """Does the shard, or goes on with it.

        Args:
            groups: of flags.
            folder: that relative paths start from.

        Returns:
            The exit code, and the line of the error if there is one.
        """
        os.chdir(folder)
        try:
            return int(work(groups)), ""
        except Exception as error:
            return int(code_for(error)), line_for(error)


def batch_on_ray(groups: Groups) -> int:
    """Runs all shards and merges them.

    Args:
        groups: of flags.

    Raises:
        UsageError: flags do not go together, or Ray is not installed.
    """
    told = Told(Screen.standard(groups.view.verbose))
    keep_memory_private()
    what, run, after = groups.what, groups.run, groups.after
    _check(what, run, after)
    ray = _ray()
    parts = _parts(groups)
    told.notes([_OPEN_PORTS])
    with Signals() as signals, _cluster(ray, len(parts)) as share:
        actor = ray.remote(Part).options(
            max_restarts=_AGAIN, max_task_retries=_AGAIN, num_cpus=1, num_gpus=share
        )
        actors = [actor.remote() for _ in parts]
        here = os.getcwd()
        running = {
            each.run.remote(part, here): number
            for number, (each, part) in enumerate(zip(actors, parts, strict=True), 1)
        }
        code = wait_for(ray, running, told, signals)
    if signals.requested:
        told.note("stopped: the same command goes on with what is left.")
        return signals.code or ExitCode.INTERRUPTED
    if code not in (ExitCode.OK, ExitCode.FAILED_RECORDS):
        return code
    assert run.output is not None
    outputs = [shard_output(run.output, each, len(parts)) for each in range(1, len(parts) + 1)]
    ask = {field.name: getattr(what, field.name) for field in fields(AskFlags)}
    flags = MergeFlags(outputs=outputs, output=run.output, input=what.place, json=after.json)
    return merge(flags, AskFlags(**ask), ViewFlags())


def _check(what: InputFlags, run: RunFlags, after: AfterFlags) -> None:
    if run.output is None:
        raise UsageError("There is no output. Name a file with -o.")
    for name, given in (
        ("--shard", run.shard),
        ("--limit", run.limit),
        ("--force-new", run.force_new),
        ("--check", run.check),
        ("--summary", after.summary),
    ):
        if given:
            raise UsageError(f"{name} does not go with --ray.")
    if str(what.place) == "-":
        raise UsageError("With --ray the input is a file or a folder: each shard reads it.")
    check_place(run.output, [what.place])
    if holds_something(run.output):
        raise UsageError(f"{WHAT} is there already. Shards are merged into a new file.")


def _ray() -> Any:
    """Ray, kept from talking. Imported here: it is an extra, and takes a second."""
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    # Without these, Ray would put a token of its own into the home folder.
    os.environ["RAY_AUTH_MODE"] = "token"
    os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)
    try:
        import ray
    except ImportError:
        raise UsageError("--ray needs Ray: pip install 'capt-local[ray]'.") from None
    return ray


def _parts(groups: Groups) -> list[Groups]:
    """The flags of each shard; what each would settle for itself is settled once for all.

    Raises:
        CaptError: a flag has no meaning, or there is no such bundle.
    """
    run, model = groups.run, groups.model
    assert run.output is not None and run.ray is not None
    count = run.ray
    model = replace(model, threads=model.threads or max(1, physical_cores() // count))
    groups = replace(groups, model=model, after=replace(groups.after, json=False))
    outputs = [shard_output(run.output, number, count) for number in range(1, count + 1)]
    fixed = settled(outputs[0], groups.chosen(), new=False, processes=count)
    groups = replace(groups, model=replace(model, date=fixed.date))
    common = replace(run, ray=None, parallel=str(fixed.parallel))
    return [
        replace(groups, run=replace(common, shard=f"{number}/{count}", output=output))
        for number, output in enumerate(outputs, 1)
    ]


def shard_output(output: Path, number: int, count: int) -> Path:
    """Where a shard writes, as in scripts/slurm_array.sh."""
    return sibling(output, f"shard-{number}-of-{count}")


def _start(ray: Any, count: int, folder: str) -> None:
    try:
        ray.init(
            address="local",
            num_cpus=count,
            include_dashboard=False,
            log_to_driver=False,
            configure_logging=False,
            object_store_memory=_STORE,
            _temp_dir=folder,
        )
    except Exception as error:  # its own processes may fail to come up in many ways
        raise UsageError(
            f"Ray could not be started ({type(error).__name__}): the machine may be too busy, or "
            "have no room in its folder of temporary files. Try again, or use --shard."
        ) from None


@contextlib.contextmanager
def _cluster(ray: Any, count: int) -> Iterator[float]:
    """A Ray for this run alone; gives the GPUs of each actor."""
    folder = tempfile.mkdtemp(prefix="capt-ray-")
    try:
        _start(ray, count, folder)
        gpus = ray.cluster_resources().get("GPU", 0.0)
        if 0 < gpus < count:
            raise UsageError(f"--ray {count} needs {count} GPUs; Ray finds {gpus:.0f}.")
        yield 1.0 if gpus else 0.0
    finally:
        ray.shutdown()
        shutil.rmtree(folder, ignore_errors=True)


def wait_for(ray: Any, running: Mapping[Any, int], told: Told, signals: Signals) -> int:
    """Waits until all shards have ended, or a signal comes.

    Args:
        ray: the library.
        running: the number of each shard, by what `ray.get` takes.
        told: tells how each ended.
        signals: which may stop it; entered.

    Returns:
        The worst of the exit codes; of those as bad, that of the first shard.
    """
    codes: dict[int, int] = {}
    left: Sequence[Any] = list(running)
    while left and not signals.requested:
        done, left = ray.wait(left, timeout=_WAIT)
        for each in done:
            try:
                code, line = ray.get(each)
            except ray.exceptions.RayError:
                code, line = int(ExitCode.UNEXPECTED), f"its actor died {_AGAIN + 1} times."
            codes[running[each]] = code
            told.note(f"shard {running[each]}/{len(running)}: {line or _ended(code)}")
    return max((codes[number] for number in sorted(codes)), key=_badness, default=ExitCode.OK)


def _badness(code: int) -> int:
    """Of an exit code, as scripts/slurm_array.sh ranks them: errors, signals, failed records."""
    if code in (ExitCode.OK, ExitCode.FAILED_RECORDS):
        return int(code == ExitCode.FAILED_RECORDS)
    return 2 if code >= _SIGNALS else 3


def _ended(code: int) -> str:
    return "done." if code == ExitCode.OK else f"ended with exit code {code}."

"""Whether an output may be written where it is named, and what is moved out of its way."""

from __future__ import annotations

import contextlib
import io
import os
import stat
from collections.abc import Iterator, Sequence
from pathlib import Path

from capt_local.batch.disk import NEW, Files, create, put, remove, sibling, unused, write_all
from capt_local.batch.manifest import ENDING
from capt_local.errors import UsageError

WHAT = "The output (-o)"
_CHUNK = 1 << 20


def check_place(path: Path, inputs: Sequence[Path]) -> None:
    """Refuses places where no output can be.

    Args:
        path: of the output.
        inputs: files and folders that the run reads.

    Raises:
        UsageError: it is a folder, a link, a device, or one of the inputs; its folder is missing.
    """
    if str(path) == "-":
        raise UsageError(f"{WHAT} is a file: a run could not be resumed on standard output.")
    try:
        mode = os.lstat(path).st_mode
    except FileNotFoundError:
        if not path.parent.is_dir():
            raise UsageError(f"{WHAT} cannot be written: its folder is not there.") from None
    except (OSError, ValueError) as error:  # ValueError: a name with a zero byte
        raise refusal(error) from None
    else:
        if stat.S_ISDIR(mode):
            raise UsageError(f"{WHAT} is a folder. Name a file.")
        if stat.S_ISLNK(mode):
            raise UsageError(f"{WHAT} is a symbolic link. Name the file itself.")
        if not stat.S_ISREG(mode):
            raise UsageError(f"{WHAT} is not a regular file. Name another one.")
    for other in inputs:
        _check_apart(path, other)


def _check_apart(path: Path, other: Path) -> None:
    with contextlib.suppress(OSError, ValueError):  # one of them is not there
        if path.resolve() == other.resolve() or (path.exists() and path.samefile(other)):
            raise UsageError(f"{WHAT} is a file that the run reads. Name another one.")
        if would_be_read(path, other):
            raise UsageError(
                f"{WHAT} would be read as a note: it is a .txt in the folder of the notes. "
                "Name it .jsonl, or another folder."
            )


def would_be_read(path: Path, folder: Path) -> bool:
    """Whether a file would be one of the texts of a folder of notes."""
    reads = path.suffix.lower() == ".txt" and folder.is_dir()
    return reads and path.resolve().parent == folder.resolve()


def refusal(error: OSError | ValueError) -> UsageError:
    """What to raise where the system refuses, before anything is written."""
    reason = getattr(error, "strerror", None) or "no access"
    return UsageError(f"{WHAT} cannot be written: {reason}. What was there is as it was.")


@contextlib.contextmanager
def refused_by_the_disk() -> Iterator[None]:
    """Raises `refusal` where the system refuses."""
    try:
        yield
    except OSError as error:
        raise refusal(error) from None


def holds_something(path: Path) -> bool:
    """Whether there is a file that is not empty."""
    try:
        return path.stat().st_size > 0
    except FileNotFoundError:
        return False


def move_aside(files: Files, path: Path) -> str:
    """Gives an old output and its manifest another name; nothing is deleted.

    The manifest is copied first: whatever moment a kill comes in, no output is without its own.

    Returns:
        A sentence for the user, or "".

    Raises:
        OSError: as the system does.
    """
    manifest, old = sibling(path, ENDING), unused(path, "old")
    if not holds_something(path) and not manifest.exists():
        return ""
    if manifest.exists():
        put(files, sibling(old, ENDING), manifest.read_bytes())
    if path.exists():
        files.replace(path, old)
    remove(files, manifest)
    files.sync_folder(path.parent)
    return f"The output that was there is kept beside the new one, with the ending .{_end(old)}."


def tear_off(files: Files, stream: io.FileIO, path: Path, whole: int) -> str:
    """Moves what lies behind the whole lines of an output into a file of its own.

    Args:
        files: operations.
        stream: the output, open for reading and writing.
        path: of the output.
        whole: bytes of its whole lines.

    Returns:
        A sentence for the user.

    Raises:
        OSError: as the system does; the output is as it was then.
    """
    place = unused(path, "torn")
    with create(files, place) as aside:
        stream.seek(whole)
        size = 0
        while part := stream.read(_CHUNK):
            write_all(files, aside, part)
            size += len(part)
        files.fsync(aside)
    files.truncate(stream, whole)
    files.fsync(stream)
    return (
        f"The output ended in a line that was not whole; its {size} bytes are kept beside it, "
        f"with the ending .{_end(place)}, and that record is done again."
    )


def clear_leftovers(files: Files, path: Path) -> None:
    """Takes away what a killed run was writing and had not put in its place."""
    remove(files, sibling(path, NEW))


def _end(path: Path) -> str:
    return path.name.rpartition(".")[2]

"""The secret of the site, by which a log of runs can name an output without telling of its text."""

from __future__ import annotations

import hmac
from pathlib import Path

from capt_local.errors import UsageError
from capt_local.strict.files import read_bytes

_SHORTEST = 16
_LARGEST = 1 << 16
_CHUNK = 1 << 20


def read_key(path: Path) -> bytes:
    """The site's key.

    Raises:
        UsageError: it cannot be read, or is too short to be one.
    """
    what = "The site key (--site-key)"
    key = read_bytes(path, what, largest=_LARGEST).strip()
    if len(key) < _SHORTEST:
        raise UsageError(f"{what} has less than {_SHORTEST} bytes.")
    return key


def output_hmac(path: Path, key: bytes) -> str:
    """HMAC-SHA256 of a file; nobody without the key can tell by it what the file holds.

    Raises:
        OSError: it cannot be read.
    """
    made = hmac.new(key, digestmod="sha256")
    with path.open("rb") as stream:
        while part := stream.read(_CHUNK):
            made.update(part)
    return made.hexdigest()

"""The seed of each record: made of the run's seed and the record's id alone.

So a record draws the same tokens whatever its place in the input, in whichever shard, beside
whatever other records, before or after a stop.
"""

from __future__ import annotations

import hashlib

_MARK = "capt-local batch seed 1"
_BITS = 53  # a whole number that every reader of JSON keeps


def record_seed(run_seed: int, id: str) -> int:
    """The first 53 bits of SHA-256 over a mark, the run's seed and the id, apart by a newline.

    Args:
        run_seed: of --seed; 0 or above.
        id: of the record; holds no newline, so no two pairs have one text.

    Returns:
        0 to 2^53 - 1.
    """
    digest = hashlib.sha256(f"{_MARK}\n{run_seed}\n{id}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> (64 - _BITS)

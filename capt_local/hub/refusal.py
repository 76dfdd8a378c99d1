"""What a hub refuses, in our words: its own are somebody else's text."""

from __future__ import annotations

from collections.abc import Mapping

from capt_local.errors import ModelError
from capt_local.hub.passing import Passing

_PASSING = (408, 425, 429, 500, 502, 503, 504)
_LONGEST_WAIT = 1e6


def refused(status: int, headers: Mapping[str, str], what: str, known: bool) -> Exception:
    """The error for an answer that is none.

    Args:
        status: of HTTP.
        headers: of the answer.
        what: was asked for, for people.
        known: whether a token was sent.
    """
    code = headers.get("X-Error-Code", "")
    if code == "GatedRepo":
        return gated(what)
    if status in _PASSING:
        busy = "the hub has had enough requests" if status == 429 else f"the hub answers {status}"
        return Passing(busy, _wait(headers))
    if status == 401:
        why = "takes no such token" if known else "wants to know who asks"
        return ModelError(
            f"{what}: the hub {why} (401). It is private, gated or not there. A token for a mirror "
            "of your own goes into CAPT_LOCAL_HUB_TOKEN."
        )
    if status == 403:
        return ModelError(f"{what}: the hub forbids it (403).")
    if status in (404, 410):
        where = {
            "RevisionNotFound": "has no such revision of it",
            "EntryNotFound": "has no such file in it",
        }.get(code, "does not have it")
        return ModelError(
            f"{what}: the hub {where} ({status}). It may have moved or been taken away; pin "
            "another revision, or ask whoever gave you the recipe."
        )
    if status == 416:
        return ModelError(f"{what}: the hub has fewer bytes of it than it says.")
    return ModelError(f"{what}: the hub answers {status}, which is not understood.")


def gated(what: str) -> ModelError:
    """The error for models whose owner wants to know who takes them."""
    return ModelError(
        f"{what} is gated: its owner gives it to those who agree to terms under their own name. "
        "capt-local does not do that for you: get the files with an account of yours, and make the "
        "bundle with 'capt-local models create'."
    )


def _wait(headers: Mapping[str, str]) -> float | None:
    said = headers.get("Retry-After", "").strip()
    if not (said.isascii() and said.isdigit() and len(said) < 10):
        return None
    return min(float(said), _LONGEST_WAIT)

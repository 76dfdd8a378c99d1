"""A bundle that comes from a hub, as `bundle.importing` reads one.

The manifest was made from the recipe; the files come piece by piece, and after a cut from where it
was. Nothing is believed here: what comes is held against the manifest by the reader.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import httpx2

from capt_local.bundle.manifest import MANIFEST, SIGNATURE
from capt_local.errors import ModelError
from capt_local.hub.choice import Chosen
from capt_local.hub.part import SHA256
from capt_local.hub.passing import Passing
from capt_local.hub.web import Web, told_apart

_ENOUGH = 1 << 20  # bytes after which a failure counts as a new one


class HubSource:
    """A `bundle.archive.Source`.

    Args:
        web: the hub.
        manifest: of the bundle.
        files: by their names in the bundle.
    """

    def __init__(self, web: Web, manifest: bytes, files: Mapping[str, Chosen]) -> None:
        """Nothing is asked yet."""
        self._web = web
        self._manifest = manifest
        self._files = files
        self._file: _Fetched | None = None
        self._left = b""

    def begin(self, name: str, size: int | None, most: int) -> int:
        """See `Source.begin`."""
        self.close()
        self._left = self._manifest if name == MANIFEST else b""
        if name in (MANIFEST, SIGNATURE):
            return len(self._left)
        chosen = self._files[name]
        self._file = _Fetched(self._web, chosen)
        return chosen.size

    def read(self, count: int) -> bytes:
        """See `Source.read`."""
        if self._file is not None:
            return self._file.read(count)
        found, self._left = self._left[:count], self._left[count:]
        return found

    def skip(self, count: int) -> None:
        """See `Source.skip`: what is there is not asked for."""
        if self._file is not None:
            self._file.at += count

    def end(self, names: set[str]) -> None:
        """See `Source.end`: there is nothing else than what was asked for."""

    def close(self) -> None:
        """See `Source.close`."""
        if self._file is not None:
            self._file.drop()
            self._file = None


class _Fetched:
    """One file of a hub.

    Attributes:
        at: the next byte.
    """

    def __init__(self, web: Web, chosen: Chosen) -> None:
        self.at = 0
        self._web = web
        self._chosen = chosen
        self._what = f"{chosen.part.repository}: {chosen.file}"
        self._url = web.file_url(chosen.part.repository, chosen.commit, chosen.file)
        self._response: httpx2.Response | None = None
        self._chunks: Iterator[bytes] = iter(())
        self._left = b""
        self._failed, self._since_failure = 0, 0
        self._window, self._in_window = 0.0, 0

    def read(self, count: int) -> bytes:
        """The next bytes, never more than so many; after failures from where it was.

        Raises:
            ModelError: they are not to be had.
        """
        while True:
            try:
                return self._next(count)
            except Passing as error:
                self.drop()
                self._failed, self._since_failure = self._failed + 1, 0
                self._web.patience.pause(self._failed, error, self._what, self._web.tell)

    def drop(self) -> None:
        """Ends the connection."""
        if self._response is not None:
            self._response.close()
        self._response, self._chunks, self._left = None, iter(()), b""

    def _next(self, count: int) -> bytes:
        if self._response is None:
            self._open()
        if not self._left:
            with told_apart(self._what):
                self._left = next(self._chunks, b"")
            if not self._left:
                raise Passing("the connection was cut")
            self._check_speed(len(self._left))
        found, self._left = self._left[:count], self._left[count:]
        self.at += len(found)
        self._since_failure += len(found)
        if self._since_failure >= _ENOUGH:
            self._failed = 0
        return found

    def _open(self) -> None:
        self._response, first = self._web.open(self._url, self.at, self._what)
        self._check(self._response, first)
        self._window, self._in_window = self._web.patience.clock(), 0
        with told_apart(self._what):
            self._chunks = self._response.iter_raw()
            if self.at and self._response.status_code == 200:
                self._web.tell(f"{self._what}: the hub begins anew; what is there is passed over.")
                self._pass_over(self.at)

    def _pass_over(self, count: int) -> None:
        """Reads what is there already, where a hub cannot begin in the middle."""
        while count > 0:
            chunk = next(self._chunks, b"")
            if not chunk:
                raise Passing("the connection was cut")
            self._check_speed(len(chunk))
            self._left = chunk[count:]
            count -= len(chunk)

    def _check(self, response: httpx2.Response, first: httpx2.Headers) -> None:
        """Sees before a long wait that it is another file."""
        chosen, told = self._chosen, response.headers
        if response.status_code == 206:
            right = f"bytes {self.at}-{chosen.size - 1}/{chosen.size}"
            if told.get("Content-Range") != right:
                raise self._other("it has another size, or goes on elsewhere, than was asked for")
        elif told.get("Content-Length", str(chosen.size)) != str(chosen.size):
            raise self._other("it has another size than the hub has said")
        if first.get("X-Repo-Commit", chosen.commit) != chosen.commit:
            raise self._other("it is of another revision")
        linked = first.get("X-Linked-Etag", "").strip('"')
        if SHA256.fullmatch(linked) and linked != chosen.sha256:
            raise self._other("its SHA-256 differs")
        if first.get("X-Linked-Size", str(chosen.size)) != str(chosen.size):
            raise self._other("it has another size than the hub has said")

    def _check_speed(self, count: int) -> None:
        """A hub that sends drop by drop is as good as one that has stopped."""
        self._in_window += count
        now, patience = self._web.patience.clock(), self._web.patience
        if now - self._window > patience.window:
            if self._in_window < patience.least:
                raise Passing("hardly anything comes from the hub")
            self._window, self._in_window = now, 0

    def _other(self, why: str) -> ModelError:
        return ModelError(
            f"{self._what}: what the hub sends is not the file that was chosen: {why}. The store "
            "is what it was."
        )

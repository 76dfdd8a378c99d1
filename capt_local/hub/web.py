"""Requests to a hub: bounded in time and size, redirects looked at, a token for the hub alone.

`huggingface_hub` says where the hub is and how its addresses are written. The bytes go through a
client of our own, because the library's has no bounds, tells the hub what else is installed, and
repeats what a server says on the terminal.
"""

from __future__ import annotations

import re
import ssl
from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Self
from urllib.parse import quote

import httpx2
from huggingface_hub import constants, hf_hub_url

from capt_local.errors import ModelError, UsageError
from capt_local.hub.address import Hub
from capt_local.hub.passing import Passing, Patience, Tell
from capt_local.hub.refusal import refused
from capt_local.version import __version__

LARGEST_ANSWER = 8 << 20
_MOST_REDIRECTS = 5
_REDIRECTS = (301, 302, 303, 307, 308)
_TOKEN = re.compile(r"[!-~]{1,500}")


class Web:
    """A hub that can be asked. Use it as a context manager.

    Args:
        hub: that is asked.
        token: sent to the hub itself and to nobody else; None for none.
        patience: how long it is put up with.
        tell: says what is going on.

    Raises:
        UsageError: the token is none, or the environment forbids to ask.
    """

    def __init__(
        self, hub: Hub, token: str | None, tell: Tell, patience: Patience | None = None
    ) -> None:
        """Makes the client; nothing is asked yet."""
        if token is not None and not _TOKEN.fullmatch(token):
            raise UsageError("The token in the environment is none: it has odd characters.")
        if constants.HF_HUB_OFFLINE:
            raise UsageError("HF_HUB_OFFLINE or TRANSFORMERS_OFFLINE is set, so no hub is asked.")
        self.hub = hub
        self.patience = patience or Patience()
        self.tell = tell
        self._token = token
        # The environment says where a proxy is; for this machine itself it would be a detour.
        direct = dict.fromkeys(("all://", "http://", "https://")) if hub.local else None
        self._client = httpx2.Client(
            follow_redirects=False,
            timeout=self.patience.answer,
            mounts=direct,
            headers={"User-Agent": f"capt-local/{__version__}", "Accept-Encoding": "identity"},
        )

    def listing(self, repository: str, revision: str | None) -> bytes:
        """What the hub says of a repository at a revision, as JSON; None: its main branch.

        Raises:
            ModelError: it does not say, or too much.
        """
        where = f"{self.hub.url}/api/models/{repository}"
        url = (
            f"{where}/revision/{quote(revision or constants.DEFAULT_REVISION, safe='')}?blobs=true"
        )
        failed = 0
        while True:
            try:
                return self._whole(url, repository)
            except Passing as error:
                failed += 1
                self.patience.pause(failed, error, repository, self.tell)

    def file_url(self, repository: str, commit: str, file: str) -> str:
        """Where a file is asked for."""
        return hf_hub_url(repository, file, revision=commit, endpoint=self.hub.url)

    def open(self, url: str, start: int, what: str) -> tuple[httpx2.Response, httpx2.Headers]:
        """Begins to get a file; the response has status 200, or 206 where `start` is not 0.

        Args:
            url: of the file.
            start: the byte to begin with.
            what: it is, for people.

        Returns:
            The response, which the caller closes; and what the hub itself said before it sent on
            to where the file lies.

        Raises:
            Passing: it may go another time.
            ModelError: it may not be had.
        """
        with told_apart(what):
            return self._get(url, what, {"Range": f"bytes={start}-"} if start else {})

    def _whole(self, url: str, what: str) -> bytes:
        """An answer of the hub's own, which has to come from itself and at once."""
        found, began = bytearray(), self.patience.clock()
        with told_apart(what):
            response, _ = self._get(url, what, {}, own=True)
            try:
                for chunk in response.iter_raw():
                    found += chunk
                    if len(found) > LARGEST_ANSWER:
                        raise ModelError(f"{what}: what the hub says of it is far too long.")
                    if self.patience.clock() - began > self.patience.whole:
                        raise Passing("the hub is too slow")
            finally:
                response.close()
        return bytes(found)

    def _get(
        self, url: str, what: str, headers: dict[str, str], *, own: bool = False
    ) -> tuple[httpx2.Response, httpx2.Headers]:
        at, first = httpx2.URL(url), httpx2.Headers()
        for _ in range(_MOST_REDIRECTS + 1):
            response = self._send(at, headers)
            first = first or response.headers
            if response.status_code not in _REDIRECTS:
                self._check(response, what)
                return response, first
            response.close()  # what it holds is not looked at
            at = self._next(at, response)
            if own and not self.hub.is_own(at):
                raise ModelError(
                    f"{what}: the hub sends on to another host for what it says of it."
                )
        raise ModelError(f"{what}: the hub sends on and on.")

    def _send(self, url: httpx2.URL, headers: dict[str, str]) -> httpx2.Response:
        request = self._client.build_request("GET", url, headers=headers)
        if self._token is not None and self.hub.is_own(url):
            request.headers["Authorization"] = f"Bearer {self._token}"
        self._client.cookies.clear()
        return self._client.send(request, stream=True)

    def _next(self, at: httpx2.URL, response: httpx2.Response) -> httpx2.URL:
        try:
            url = at.join(response.headers["Location"])
        except (KeyError, httpx2.InvalidURL, ValueError):
            raise ModelError("The hub sends on to nowhere.") from None
        self.hub.check(url)
        return url

    def _check(self, response: httpx2.Response, what: str) -> None:
        if response.status_code not in (200, 206):
            response.close()
            raise refused(response.status_code, response.headers, what, self._token is not None)
        if response.headers.get("Content-Encoding", "identity").lower() != "identity":
            response.close()
            raise ModelError(
                f"{what}: it comes compressed, which was not asked for and is not taken: what it "
                "unpacks to has no bounds."
            )

    def __enter__(self) -> Self:
        """The hub itself."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Closes all connections."""
        self._client.close()


@contextmanager
def told_apart(what: str) -> Iterator[None]:
    """Tells failures of the network in our words; the library's hold addresses.

    Args:
        what: is asked for, for people.

    Raises:
        Passing: it may go another time.
        ModelError: it will not.
    """
    try:
        yield
    except httpx2.TimeoutException:
        raise Passing("nothing comes from the hub") from None
    except httpx2.ConnectError as error:
        if _is_tls(error):
            raise ModelError(
                f"{what}: the hub's certificate is not trusted here. Behind a proxy that opens "
                "TLS, set SSL_CERT_FILE to its authority."
            ) from None
        raise Passing("the hub cannot be reached") from None
    except httpx2.ProxyError:
        raise Passing("the proxy does not let it through") from None
    except (httpx2.TransportError, httpx2.StreamError):
        raise Passing("the connection was cut") from None
    except (httpx2.HTTPError, httpx2.InvalidURL):
        raise ModelError(f"{what}: the hub does not speak HTTP as it should.") from None


def _is_tls(error: BaseException | None) -> bool:
    while error is not None:
        if isinstance(error, ssl.SSLCertVerificationError):
            return True
        error = error.__cause__ or error.__context__
    return False

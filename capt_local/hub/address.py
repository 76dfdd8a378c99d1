"""Where requests may go: to the hub over TLS, or to this machine itself."""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass

import httpx2
from huggingface_hub import constants

from capt_local.errors import ModelError, UsageError

_HOST = re.compile(r"[A-Za-z0-9.-]+|[0-9A-Fa-f:.]+")


@dataclass(frozen=True, slots=True)
class Hub:
    """A hub or a mirror of one.

    Attributes:
        url: that all paths stand behind, without a slash at its end.
        local: whether it is this machine.
    """

    url: str
    local: bool

    @classmethod
    def at(cls, mirror: str | None) -> Hub:
        """The hub behind a mirror's URL, or the one that `huggingface_hub` knows.

        Raises:
            UsageError: the URL cannot be used; it is not repeated, since it may hold a password.
        """
        what = "The URL of the mirror" if mirror else "The URL in HF_ENDPOINT"
        try:
            url = httpx2.URL(mirror or constants.ENDPOINT)
        except (httpx2.InvalidURL, TypeError, ValueError):
            raise UsageError(f"{what} is none.") from None
        if url.userinfo:
            raise UsageError(f"{what} holds a name or password; use CAPT_LOCAL_HUB_TOKEN.")
        if url.query or url.fragment or not _HOST.fullmatch(url.host):
            raise UsageError(f"{what} must be a scheme, a host and perhaps a path.")
        local = is_this_machine(url.host)
        if url.scheme != "https" and not (url.scheme == "http" and local):
            raise UsageError(f"{what} must begin with https://; http:// is for 127.0.0.1 alone.")
        return cls(str(url).rstrip("/"), local)

    def is_own(self, url: httpx2.URL) -> bool:
        """Whether a URL is at the hub itself, where a token may go."""
        return url.origin == httpx2.URL(self.url).origin

    def check(self, url: httpx2.URL) -> None:
        """Refuses a URL that the hub sends on to but that must not be asked.

        Raises:
            ModelError: it is not TLS, or leads from elsewhere into this machine.
        """
        plain_here = url.scheme == "http" and self.local and is_this_machine(url.host)
        inward = is_nobodys(url.host) or (is_this_machine(url.host) and not self.local)
        if (url.scheme != "https" and not plain_here) or inward or url.userinfo or not url.host:
            raise ModelError(
                "The hub sends on to an address that is not used: only https is, and nothing on "
                "this machine. Nothing was asked there."
            )


def is_this_machine(host: str) -> bool:
    """Whether a host is named as this machine."""
    name, found = host.rstrip(".").lower(), _number(host)
    named = name == "localhost" or name.endswith(".localhost")
    return named or (found is not None and found.is_loopback)


def is_nobodys(host: str) -> bool:
    """Whether an address is of no machine, or of the link alone, where clouds keep secrets."""
    found = _number(host)
    return found is not None and (found.is_unspecified or found.is_link_local)


def _number(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        found = ipaddress.ip_address(host)
    except ValueError:
        return None
    return getattr(found, "ipv4_mapped", None) or found

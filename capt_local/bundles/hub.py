"""`models pull`: a bundle of files of a Hugging Face hub, named by a recipe.

A recipe is a TOML file like a manifest without the files: repositories, files, licences, and the
digests that are known. What it does not pin is pinned at the first use, in the bundle that is made.
`huggingface_hub` makes the requests and resumes what was cut. Its client gets rules of ours: TLS or
this machine alone, no address inside the network of a hub elsewhere, a token for the hub alone,
bounded and uncompressed answers. Nothing that a server says is repeated, and nothing that comes is
believed: the import checks every byte against the manifest.
"""

from __future__ import annotations

import contextlib
import ipaddress
import os
import re
import ssl
import stat
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from capt_local.bundles import store
from capt_local.bundles.create import manifest_text
from capt_local.bundles.manifest import (
    MANIFEST,
    SIGNATURE,
    Bundle,
    ModelFile,
    Role,
)
from capt_local.bundles.manifest_file import LARGEST_MANIFEST, parse_manifest
from capt_local.bundles.recipe import SOURCE, UNSTATED, WORD, Recipe, RecipePart, is_model
from capt_local.bundles.transfer import Imported, Report, Terms, import_from
from capt_local.errors import ModelError, UsageError
from capt_local.strict_json import read_regular
from capt_local.version import __version__

if TYPE_CHECKING:
    import httpx2
    from huggingface_hub import ModelInfo

_LARGEST_LISTING = 8 << 20
_MOST_REDIRECTS = 5
_LARGEST_FILE = 50_000_000_000  # that huggingface_hub gets over plain HTTP
_CHUNK = 1 << 18
_WINDOW, _LEAST = 60.0, 1 << 16  # seconds, and bytes that have to come in them
_SECONDS = 30.0  # in which something has to come
_AND = " and "
_HOST = re.compile(r"[A-Za-z0-9.-]+|[0-9A-Fa-f:.]+")
_LICENCE = re.compile(r"[a-z0-9][a-z0-9.+_-]{0,63}")
_TOKEN = re.compile(r"[!-~]{1,500}")


@dataclass(frozen=True, slots=True)
class HubFile:
    """A file that will be fetched.

    Attributes:
        part: of the recipe.
        commit: of the repository, 40 digits.
        file: its path there.
        size: bytes.
        sha256: digest in hexadecimal.
        licence: as the bundle will say it.
        known: where its digest comes from: "pinned", "as at the first use", "first use".
    """

    part: RecipePart
    commit: str
    file: str
    size: int
    sha256: str
    licence: str
    known: str


@dataclass(frozen=True, slots=True)
class Plan:
    """What a pull will do.

    Attributes:
        recipe: that it follows, with all pins.
        chosen: the files by role.
        notes: for the user.
    """

    recipe: Recipe
    chosen: Mapping[Role, HubFile]
    notes: tuple[str, ...] = ()

    @property
    def licences(self) -> dict[str, list[Role]]:
        """The licences that have to be accepted, each with its roles."""
        found: dict[str, list[Role]] = {}
        for role, chosen in self.chosen.items():
            for word in chosen.licence.split(_AND):
                found.setdefault(word.casefold(), []).append(role)
        return found

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return sum(each.size for each in self.files.values())

    @property
    def files(self) -> dict[str, HubFile]:
        """The files by their names in the bundle; one that several models share, once."""
        names = {each.sha256: f"{role}.gguf" for role, each in reversed([*self.chosen.items()])}
        return {names[each.sha256]: each for each in self.chosen.values()}

    def manifest(self) -> bytes:
        """Of the bundle; the same files, the same bytes."""
        recipe, folder = self.recipe, Path()
        names = {each.sha256: name for name, each in self.files.items()}
        models = {
            role: ModelFile(
                role=role,
                path=folder / names[each.sha256],
                size=each.size,
                sha256=each.sha256,
                licence=each.licence,
                source=f"hub:{each.part.repository}@{each.commit}/{each.file}",
                style=each.part.style,
            )
            for role, each in self.chosen.items()
        }
        weights = "; ".join(f"{role}: {each.part.weights}" for role, each in self.chosen.items())
        bundle = Bundle(
            id=recipe.id,
            models=models,
            title=recipe.title,
            version=recipe.version,
            licence=", ".join(self.licences),
            description=recipe.description,
            context=recipe.context,
            card={**recipe.card, "foundation_models": weights},
        )
        store.check_id(bundle)
        return manifest_text(bundle, folder).encode("utf-8")


class Hub:
    """A hub or a mirror of one. Use it as a context manager.

    Args:
        mirror: its URL; None: the hub that `huggingface_hub` knows.
        token: sent to the hub itself and to nobody else; None for none.

    Raises:
        UsageError: URL or token cannot be used (neither is repeated), or the environment forbids
            the network.
    """

    def __init__(self, mirror: str | None, token: str | None) -> None:
        import httpx2
        import huggingface_hub
        from huggingface_hub import constants
        from huggingface_hub.utils.tqdm import disable_progress_bars

        what = "The URL of the mirror" if mirror else "The URL in HF_ENDPOINT"
        try:
            url = httpx2.URL(mirror or constants.ENDPOINT)
        except (httpx2.InvalidURL, TypeError, ValueError):
            raise UsageError(f"{what} is none.") from None
        if url.userinfo:
            raise UsageError(f"{what} holds a name or password; use CAPT_LOCAL_HUB_TOKEN.")
        if url.query or url.fragment or not _HOST.fullmatch(url.host):
            raise UsageError(f"{what} must be a scheme, a host and perhaps a path.")
        self._local = is_this_machine(url.host)
        if url.scheme != "https" and not (url.scheme == "http" and self._local):
            raise UsageError(f"{what} must begin with https://; http:// is for 127.0.0.1 alone.")
        if token is not None and not _TOKEN.fullmatch(token):
            raise UsageError("The token in the environment is none: it has odd characters.")
        if constants.HF_HUB_OFFLINE:
            raise UsageError(
                "HF_HUB_OFFLINE or TRANSFORMERS_OFFLINE is set, so no hub is contacted."
            )
        # Xet is a client of its own, which no rule here would reach.
        constants.HF_HUB_DISABLE_XET = True
        constants.HF_HUB_DISABLE_TELEMETRY = True
        constants.DOWNLOAD_CHUNK_SIZE = _CHUNK  # what of a chunk is there is lost at a cut
        disable_progress_bars()
        huggingface_hub.logging.set_verbosity(100)  # its warnings repeat what a server says
        self._url, self._origin, self._token = str(url).rstrip("/"), url.origin, token
        self._most, self._report = _LARGEST_LISTING, None
        huggingface_hub.set_client_factory(self._client)

    _report: Callable[[int], None] | None

    def __enter__(self) -> Hub:
        """Itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Closes all connections."""
        import huggingface_hub
        from huggingface_hub.utils._http import default_client_factory

        huggingface_hub.close_session()
        huggingface_hub.set_client_factory(default_client_factory)

    def listing(self, repository: str, revision: str | None) -> ModelInfo:
        """What the hub says of a repository at a revision; None: its main branch.

        Raises:
            ModelError: it does not say, or it is not understood.
        """
        from huggingface_hub import HfApi

        self._most, self._report = _LARGEST_LISTING, None
        api = HfApi(endpoint=self._url, token=self._token or False)
        with _explained(repository):
            return api.model_info(
                repository, revision=revision, files_metadata=True, timeout=_SECONDS
            )

    def fetch(self, chosen: HubFile, place: Path, report: Callable[[int], None] | None) -> None:
        """Downloads a file, going on behind what is there.

        Args:
            chosen: the file.
            place: where it goes.
            report: called with the number of bytes that came.

        Raises:
            ModelError: it is not to be had.
            OSError: it cannot be written.
        """
        from huggingface_hub import hf_hub_url
        from huggingface_hub.file_download import http_get
        from huggingface_hub.utils._headers import build_hf_headers

        part, what = chosen.part, f"{chosen.part.repository}: {chosen.file}"
        self._most, self._report = chosen.size + (1 << 16), report
        flags = os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0)
        with os.fdopen(os.open(place, flags, 0o600), "r+b") as stream, _explained(what):
            done = stream.seek(0, os.SEEK_END)
            try:
                http_get(
                    hf_hub_url(
                        part.repository, chosen.file, revision=chosen.commit, endpoint=self._url
                    ),
                    stream,
                    resume_size=done,
                    headers=build_hf_headers(token=self._token or False),
                    expected_size=chosen.size,
                )
            except OSError as error:
                # The errors of the hub are of this class too; a wrong size has no other.
                if type(error) is not OSError or error.errno is not None:
                    raise
                raise ModelError(
                    f"{what}: what came has another size than the hub has said. Give the same "
                    "command again to go on."
                ) from None

    def _client(self) -> httpx2.Client:
        import httpx2

        # The environment says where a proxy is; for this machine itself it would be a detour.
        direct = dict.fromkeys(("all://", "http://", "https://")) if self._local else None
        return httpx2.Client(
            follow_redirects=True,
            max_redirects=_MOST_REDIRECTS,
            timeout=_SECONDS,
            mounts=direct,
            event_hooks={"request": [self._check_request], "response": [self._check_response]},
        )

    def _check_request(self, request: httpx2.Request) -> None:
        """Holds for every hop of a redirect too."""
        url = request.url
        plain_here = url.scheme == "http" and self._local and is_this_machine(url.host)
        inward = is_no_host(url.host) or (is_this_machine(url.host) and not self._local)
        if (url.scheme != "https" and not plain_here) or inward or url.userinfo or not url.host:
            raise ModelError(
                "The hub sends on to an address that is not used: only https is, and nothing on "
                "this machine. Nothing was sent there."
            )
        if url.origin != self._origin:
            request.headers.pop("Authorization", None)
        for name in ("Cookie", "X-Amzn-Trace-Id"):
            request.headers.pop(name, None)
        request.headers["User-Agent"] = f"capt-local/{__version__}"
        request.headers["Accept-Encoding"] = "identity"

    def _check_response(self, response: httpx2.Response) -> None:
        if response.headers.get("Content-Encoding", "identity").lower() != "identity":
            raise ModelError(
                "The hub's answer comes compressed, which was not requested: what it unpacks to "
                "has no bounds."
            )
        for name in ("Retry-After", "RateLimit", "RateLimit-Policy"):
            response.headers.pop(name, None)  # the library would sleep as long as a server says
        wanted = response.request.headers.get("Range", "bytes=0-")
        if response.status_code == 206 and not response.headers.get("Content-Range", "").startswith(
            wanted.replace("=", " ")
        ):
            raise ModelError("The hub goes on elsewhere in the file than was requested.")
        report = self._report if response.status_code in (200, 206) else None
        response.stream = _bounded(response.stream, self._most, report)


def _bounded(stream: Any, most: int, report: Callable[[int], None] | None) -> Any:
    """A stream that ends with an error behind so many bytes."""
    import httpx2

    class Bounded(httpx2.SyncByteStream):
        def __iter__(self) -> Iterator[bytes]:
            count, since, before = 0, time.monotonic(), 0
            for chunk in stream:
                count += len(chunk)
                if time.monotonic() - since > _WINDOW:
                    if count - before < _LEAST:
                        raise ModelError("Hardly anything comes from the hub. Try again later.")
                    since, before = time.monotonic(), count
                if count > most:
                    raise ModelError("The hub sends more than it said.")
                if report is not None:
                    report(len(chunk))
                yield chunk

        def close(self) -> None:
            stream.close()

    return Bounded()


def is_this_machine(host: str) -> bool:
    """Whether a host is named as this machine."""
    name, found = host.rstrip(".").lower(), _number(host)
    named = name == "localhost" or name.endswith(".localhost")
    return named or (found is not None and found.is_loopback)


def is_no_host(host: str) -> bool:
    """Whether an address is of no machine, or of the link alone, where clouds keep secrets."""
    found = _number(host)
    return found is not None and (found.is_unspecified or found.is_link_local)


def plan(recipe: Recipe, hub: Hub) -> Plan:
    """Asks the hub for all parts; nothing is fetched.

    Raises:
        ModelError: a part is not to be had as the recipe says.
    """
    before = [each for each in (begun(recipe.id), installed(recipe.id)) if each is not None]
    listings: dict[tuple[str, str | None], ModelInfo] = {}
    chosen: dict[Role, HubFile] = {}
    notes: list[str] = []
    for role, given in recipe.parts.items():
        part = _remembered(role, given, before)
        key = part.repository, part.revision
        if key not in listings:
            listings[key] = hub.listing(*key)
        found = choose(role, part, listings[key], notes)
        if part.sha256 is not None and given.sha256 is None:
            found = replace(found, known="as at the first use")
        chosen[role] = found
        if found.known == "first use":
            notes.append(
                f"FIRST USE of the {role}: nobody has vouched for {part.repository} {found.file}. "
                "Commit and digest are what the hub says now, and are pinned in the bundle; "
                "compare them with another source before you rely on it."
            )
    return Plan(recipe, chosen, tuple(notes))


def choose(role: Role, part: RecipePart, listing: ModelInfo, notes: list[str]) -> HubFile:
    """The file of a part.

    Args:
        role: of the model.
        part: of the recipe.
        listing: what the hub says of the repository.
        notes: for the user; some are added.

    Raises:
        ModelError: the hub has no such file, several, or another one than is pinned; the model is
            gated; or the listing is not understood.
    """
    where = part.repository
    if listing.gated:
        raise _gated(where)
    commit, named = listing.sha, listing.id
    if not (isinstance(commit, str) and re.fullmatch("[0-9a-f]{40}", commit)) or not (
        isinstance(named, str) and re.fullmatch(f"{WORD}/{WORD}", named)
    ):
        raise _not_understood(where)
    if part.revision not in (None, commit):
        raise ModelError(
            f"{where}: revision {part.revision} was requested, and the hub answers with {commit}."
        )
    siblings = [each for each in listing.siblings or () if isinstance(each.rfilename, str)]
    found = [each for each in siblings if is_model(each.rfilename) and part.names(each.rfilename)]
    if len(found) != 1:
        many = f"{len(found)} files of the name" if found else "no file of the name"
        raise ModelError(
            f"{where}: there is {many} {part.file} at {commit[:12]}. A recipe of your own can "
            "name another one."
        )
    file, lfs = found[0].rfilename, found[0].lfs
    size, digest = (lfs.size, lfs.sha256) if lfs else (found[0].size, None)
    if isinstance(size, bool) or not isinstance(size, int) or not 0 < size < 1 << 50:
        raise _not_understood(where)
    if digest is not None and not (
        isinstance(digest, str) and re.fullmatch("[0-9a-f]{64}", digest)
    ):
        raise _not_understood(where)
    if digest is not None and part.sha256 not in (None, digest):
        raise ModelError(
            f"{where}: {file} is another file now: its SHA-256 is pinned as {part.sha256}, and the "
            f"hub says {digest}. Nothing was fetched."
        )
    if size > _LARGEST_FILE:
        raise ModelError(
            f"{where}: {file} has more than 50 GB, which the hub sends by Xet alone. Get it by "
            "hand, and make the bundle with 'capt-local models create'."
        )
    sha256 = part.sha256 or digest
    if sha256 is None:
        raise ModelError(
            f"{where}: the hub has no SHA-256 of {file}. Give the one that you know: "
            f"--sha256 {role}=..."
        )
    if named.casefold() != where.casefold():
        notes.append(f"{where} is called {named} at the hub now.")
    licence, stated = part.licence, licence_word(listing.card_data, listing.tags)
    if stated is not None and stated.casefold() != licence.casefold():
        if licence != UNSTATED:
            notes.append(
                f"The {role}: the recipe says {licence}, its repository {stated}; both are asked "
                "for."
            )
        licence = stated if licence == UNSTATED else f"{licence}{_AND}{stated}"
    known = "pinned" if part.sha256 else "first use"
    return HubFile(part, commit, file, size, sha256, licence, known)


def licence_word(card: Any, tags: object) -> str | None:
    """The licence of a repository as one word in small letters; None where it names none.

    Args:
        card: of the repository, as `huggingface_hub` has read it; or None.
        tags: of the repository.
    """
    named = getattr(card, "license", None)
    if named == "other":
        named = getattr(card, "license_name", None) or named
    if named is None and isinstance(tags, list):
        prefix = "license:"
        named = [
            tag[len(prefix) :] for tag in tags if isinstance(tag, str) and tag.startswith(prefix)
        ]
    words = named if isinstance(named, list) else [named]
    if not any(words):
        return None
    # Several are one word, so that each is seen; what is no word is still a licence.
    whole = "+".join(str(word).lower().replace(" ", "-") for word in words)
    return whole if _LICENCE.fullmatch(whole) else "other"


def pull(
    planned: Plan,
    hub: Hub,
    examine: Callable[[Bundle], None],
    *,
    older: bool = False,
    report: Report | None = None,
) -> Imported:
    """Fetches the files into the store, by the way of every import.

    Args:
        planned: what is fetched.
        hub: that has it.
        examine: looks into the models when they are there; raises to refuse them.
        older: whether a version is allowed that is not newer than the installed one.
        report: called with a file's name and the share of it that is there.

    Raises:
        ModelError: a file is not to be had, or is not the one that was chosen, or the disk is too
            small; the store is what it was.
    """
    source = _HubSource(hub, planned, report)
    return import_from(source, Terms({}, unsigned=True, older=older), examine, report)


class _HubSource:
    """A `bundles.archive.BundleSource` whose files are downloaded right into the staging folder."""

    def __init__(self, hub: Hub, planned: Plan, report: Report | None) -> None:
        self._hub, self._files, self._report = hub, planned.files, report
        self._staging = store.staging_folder() / planned.recipe.id
        self._manifest, self._left = planned.manifest(), b""

    def begin(self, name: str, size: int | None, most: int) -> int:
        """See `BundleSource.begin`."""
        self._left = self._manifest if name == MANIFEST else b""
        if name in (MANIFEST, SIGNATURE):
            return len(self._left)
        chosen, place = self._files[name], self._staging / name
        with contextlib.suppress(FileNotFoundError):
            found = os.lstat(place)
            if not stat.S_ISREG(found.st_mode) or found.st_nlink > 1 or found.st_size > chosen.size:
                place.unlink()
        done = place.stat().st_size if place.exists() else 0

        def came(count: int) -> None:
            nonlocal done
            done += count
            if self._report is not None:
                self._report(name, min(done / chosen.size, 1.0))

        if done < chosen.size:
            try:
                self._hub.fetch(chosen, place, came)
            except OSError as error:
                raise ModelError(
                    f"{name} cannot be written: {error.strerror}. What came stays: give the "
                    "same command again to go on."
                ) from None
        return chosen.size

    def read(self, count: int) -> bytes:
        """See `BundleSource.read`; the import reads and checks a model that is there already."""
        found, self._left = self._left[:count], self._left[count:]
        return found

    def skip(self, count: int) -> None:
        """See `BundleSource.skip`."""

    def end(self, names: set[str]) -> None:
        """See `BundleSource.end`: there is nothing else than what was requested."""

    def close(self) -> None:
        """See `BundleSource.close`."""


def installed(name: str) -> Bundle | None:
    """The bundle of that name in the user's own store."""
    return _read(store.user_folder() / name / MANIFEST)


def begun(name: str) -> Bundle | None:
    """The bundle of that name that an earlier pull has begun."""
    return _read(store.staging_folder() / name / MANIFEST)


def _read(manifest: Path) -> Bundle | None:
    """A manifest that was written here; what cannot be read is as good as none."""
    try:
        data = read_regular(manifest, LARGEST_MANIFEST + 1)
        return parse_manifest(data, manifest, present=False)
    except (ModelError, OSError):
        return None


def _remembered(role: Role, part: RecipePart, before: list[Bundle]) -> RecipePart:
    """The part, pinned to what was fetched for it at an earlier time, the first that fits."""
    for bundle in before:
        model = bundle.models.get(role)
        if model is not None and part.made(model) and (found := SOURCE.fullmatch(model.source)):
            return msgspec.structs.replace(
                part, revision=found[2], file=found[3], sha256=model.sha256
            )
    return part


@contextlib.contextmanager
def _explained(what: str) -> Iterator[None]:
    """Errors of the library in our words: its own hold addresses and what a server said."""
    import httpx2
    from huggingface_hub import errors

    again = "What came stays: give the same command again to go on."
    try:
        yield
    except errors.GatedRepoError:
        raise _gated(what) from None
    except errors.RevisionNotFoundError:
        raise ModelError(f"{what}: the hub has no such revision of it.") from None
    except errors.EntryNotFoundError as error:
        if isinstance(error, errors.LocalEntryNotFoundError):
            raise ModelError(f"{what}: the hub cannot be reached. {again}") from None
        raise ModelError(f"{what}: the hub has no such file in it.") from None
    except errors.RepositoryNotFoundError:
        raise ModelError(
            f"{what}: the hub does not have it, or wants to know who asks. A token for a mirror of "
            "your own goes into CAPT_LOCAL_HUB_TOKEN."
        ) from None
    except errors.HfHubHTTPError as error:
        status = error.response.status_code
        busy = "has had enough requests" if status == 429 else f"answers {status}"
        raise ModelError(f"{what}: the hub {busy}. {again}") from None
    except (httpx2.HTTPError, httpx2.InvalidURL, httpx2.StreamError) as error:
        if _is_certificate(error):
            raise ModelError(
                f"{what}: the hub's certificate is not trusted here. Behind a proxy that opens "
                "TLS, set SSL_CERT_FILE to its authority."
            ) from None
        raise ModelError(f"{what}: the connection to the hub failed. {again}") from None
    except (ModelError, OSError, KeyboardInterrupt):
        raise
    except Exception:
        # The library takes what comes for what it should be, so anything may be raised in it.
        raise _not_understood(what) from None


def _is_certificate(error: BaseException | None) -> bool:
    while error is not None:
        if isinstance(error, ssl.SSLCertVerificationError):
            return True
        error = error.__cause__ or error.__context__
    return False


def _gated(what: str) -> ModelError:
    return ModelError(
        f"{what} is gated: its owner gives it to those who agree to terms under their own name. "
        "capt-local does not do that for you: get the files with an account of yours, and make the "
        "bundle with 'capt-local models create'."
    )


def _not_understood(what: str) -> ModelError:
    return ModelError(
        f"{what}: what the hub says of it is not understood. Is the mirror one of a Hugging Face "
        "hub?"
    )


def _number(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        found = ipaddress.ip_address(host)
    except ValueError:
        return None
    return getattr(found, "ipv4_mapped", None) or found

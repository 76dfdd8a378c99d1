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
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import msgspec

from capt_local.bundles import store
from capt_local.bundles.archive import Member, Report
from capt_local.bundles.create import manifest_text
from capt_local.bundles.install import drop_odd
from capt_local.bundles.manifest import (
    MANIFEST,
    SIGNATURE,
    Bundle,
    Count,
    Digest,
    ModelFile,
    Role,
    ShortName,
    Style,
    ordered_roles,
    parse_manifest,
    parse_toml,
    read_manifest,
    version_numbers,
)
from capt_local.errors import ModelError, UsageError
from capt_local.strict_json import NotReadable, convert, form, read_regular
from capt_local.version import __version__

if TYPE_CHECKING:
    import httpx2
    from huggingface_hub import ModelInfo

UNSTATED = "not-stated"
_ENDING = ".toml"
_LARGEST_RECIPE = 1 << 16
_LARGEST_LISTING = 8 << 20
_LARGEST_FILE = 50_000_000_000  # that huggingface_hub gets over plain HTTP
_MOST_REDIRECTS = 5
_CHUNK = 1 << 18
_SECONDS = 30.0  # in which something has to come
_AND = " and "
_WORD = r"[A-Za-z0-9][A-Za-z0-9._-]{0,95}"
_SOURCE = re.compile(r"hub:([^@\s]+)@([0-9a-f]{40})/(\S+)")  # of a model, in the manifest
_FILE = re.compile(r"(?:[A-Za-z0-9_][A-Za-z0-9._+-]*/)*[A-Za-z0-9_][A-Za-z0-9._+-]*\.gguf")
_HOST = re.compile(r"[A-Za-z0-9.-]+|[0-9A-Fa-f:.]+")
_TOKEN = re.compile(r"[!-~]{1,500}")


class RecipePart(msgspec.Struct, forbid_unknown_fields=True, frozen=True, kw_only=True):
    """What a recipe says of one model.

    Attributes:
        weights: the model, as its makers call it.
        licence: of the weights, as one word; `UNSTATED` where nobody says.
        repository: that has the file, as OWNER/NAME; empty where it cannot be fetched.
        file: its path there; one `*` stands for any part of a name.
        revision: the commit, 40 digits; None: not known yet.
        sha256: digest in hexadecimal; None: likewise.
        style: chat or raw.
    """

    weights: str
    licence: Annotated[
        str, form(r"[A-Za-z0-9][A-Za-z0-9.+_-]{0,63}", "must be one word of letters and digits")
    ]
    repository: Annotated[str, form(rf"(?:(?!.*\.\.){_WORD}/{_WORD})?", "must be OWNER/NAME")] = ""
    file: str = ""
    revision: (
        Annotated[str, form("[0-9a-f]{40}", "must be a commit of 40 digits; branches move")] | None
    ) = None
    sha256: Digest | None = None
    style: Style = Style.CHAT

    def names(self, file: str) -> bool:
        """Whether a path in the repository is the one that is meant."""
        pattern = re.escape(self.file).replace(r"\*", "[^/]*", 1)
        return is_model(file) and re.fullmatch(pattern, file) is not None

    def fits(self, model: ModelFile) -> bool:
        """Whether a model of a bundle was chosen as this says, as far as it says it."""
        found = _SOURCE.fullmatch(model.source)
        return (
            found is not None
            and found[1] == self.repository
            and self.names(found[3])
            and self.revision in (None, found[2])
            and self.sha256 in (None, model.sha256)
            and self.style is model.style
        )


class Recipe(msgspec.Struct, forbid_unknown_fields=True, frozen=True, kw_only=True):
    """How a bundle is made of files of a hub.

    Attributes:
        schema: of the format.
        id: of the recipe and the bundle.
        title: one line for people.
        version: of the bundle.
        models: by role.
        description: for people.
        by_hand: what to do where a model may not be fetched; empty where all may.
        context: tokens of context to use; None is the models' own.
        card: texts for the card of the bundle.
    """

    schema: Literal[1]
    id: ShortName
    title: str
    version: str
    models: dict[Role, RecipePart]
    description: str = ""
    by_hand: str = ""
    context: Count | None = None
    card: dict[str, str] = {}


def recipes() -> list[Recipe]:
    """All that travel with the package, by their names."""
    return [read_recipe(file) for file in _packaged()]


def find_recipe(reference: str) -> Recipe:
    """A recipe by its name, or of a file.

    Args:
        reference: a name; or a path, which holds a separator or ends in ".toml".

    Raises:
        ModelError: there is none, or it is broken.
    """
    if reference.endswith(_ENDING) or "/" in reference:
        return read_recipe(Path(os.path.expanduser(reference)))  # also of nobody's home
    known = {each.stem: each for each in _packaged()}
    if reference in known:
        return read_recipe(known[reference])
    raise ModelError(
        f"There is no recipe of that name; known: {', '.join(known)}. A recipe of your own is "
        f"given by its path, NAME{_ENDING}."
    )


def _packaged() -> list[Path]:
    folder = Path(str(resources.files("capt_local.bundles"))) / "recipes"
    return sorted(folder.glob(f"*{_ENDING}"))


def read_recipe(file: Path) -> Recipe:
    """Reads a recipe.

    Raises:
        ModelError: it is missing, or broken.
    """
    try:
        data = read_regular(file, _LARGEST_RECIPE + 1)
        top = parse_toml(data, _LARGEST_RECIPE, "a recipe")
        tables = convert(top.get("models", {}), dict[str, Any], "models")
        parts = {
            role: convert(tables[role], RecipePart, f"models.{role}")
            for role in ordered_roles(tables)
        }
        recipe = convert({**top, "models": parts}, Recipe)
        if version_numbers(recipe.version) is None:
            raise NotReadable("version must be numbers with dots, such as 1.2")
        for role, part in parts.items():
            plain = part.file.replace("*", "x", 1)
            if not recipe.by_hand and not (part.repository and is_model(plain)):
                raise NotReadable(
                    f"models.{role} needs a repository, and the path of a .gguf file in it with "
                    "at most one *"
                )
    except OSError as error:
        raise ModelError(f"{file}: cannot be read: {error.strerror or 'unreadable'}.") from None
    except NotReadable as error:
        raise ModelError(f"{file}: {error}.") from None
    return recipe


def is_model(path: str) -> bool:
    """Whether a path in a repository is one of those that are fetched."""
    return _FILE.fullmatch(path) is not None and ".." not in path and len(path) <= 200


class Hub:
    """A hub or a mirror of one. Use it as a context manager.

    Args:
        mirror: its URL; None: the hub that `huggingface_hub` knows.
        token: sent to the hub itself and to nobody else; None for none.

    Raises:
        UsageError: URL or token cannot be used (neither is repeated), or the environment forbids
            the network.
    """

    _report: Callable[[int], None] | None

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
        if url.userinfo or url.query or url.fragment or not _HOST.fullmatch(url.host):
            raise UsageError(
                f"{what} must be a scheme, a host and perhaps a path; a token goes into "
                "CAPT_LOCAL_HUB_TOKEN."
            )
        self._local = is_inward(url.host, link=False)
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

    def fetch(self, model: ModelFile, place: Path, report: Callable[[int], None]) -> None:
        """Downloads a model, going on behind what is there.

        Args:
            model: of a plan; its source says where it lies.
            place: where it goes.
            report: called with the number of bytes that came.

        Raises:
            ModelError: it is not to be had.
            OSError: it cannot be written.
        """
        from huggingface_hub import hf_hub_url
        from huggingface_hub.file_download import http_get
        from huggingface_hub.utils._headers import build_hf_headers

        repository, commit, file = _SOURCE.fullmatch(model.source).groups()  # type: ignore[union-attr]
        what = f"{repository}: {file}"
        self._most, self._report = model.size + (1 << 16), report
        flags = os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0)
        with os.fdopen(os.open(place, flags, 0o600), "r+b") as stream, _explained(what):
            try:
                http_get(
                    hf_hub_url(repository, file, revision=commit, endpoint=self._url),
                    stream,
                    resume_size=stream.seek(0, os.SEEK_END),
                    headers=build_hf_headers(token=self._token or False),
                    expected_size=model.size,
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
        here = self._local and is_inward(url.host, link=False)
        outward = url.scheme == "https" and url.host and not is_inward(url.host)
        if url.userinfo or not (outward or (here and url.scheme in ("http", "https"))):
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
        report = self._report if response.status_code in (200, 206) else None
        response.stream = _bounded(response.stream, self._most, report)


def _bounded(stream: Any, most: int, report: Callable[[int], None] | None) -> Any:
    """A stream that ends with an error behind so many bytes."""
    import httpx2

    class Bounded(httpx2.SyncByteStream):
        def __iter__(self) -> Iterator[bytes]:
            count = 0
            for chunk in stream:
                count += len(chunk)
                if count > most:
                    raise ModelError("The hub sends more than it said.")
                if report is not None:
                    report(len(chunk))
                yield chunk

        def close(self) -> None:
            stream.close()

    return Bounded()


def is_inward(host: str, *, link: bool = True) -> bool:
    """Whether a host is this machine; with `link` also none, or of the link, as clouds use it."""
    name = host.rstrip(".").lower()
    try:
        found = ipaddress.ip_address(host)
    except ValueError:
        return name == "localhost" or name.endswith(".localhost")
    found = getattr(found, "ipv4_mapped", None) or found
    return found.is_loopback or (link and (found.is_unspecified or found.is_link_local))


def plan(recipe: Recipe, hub: Hub) -> tuple[Bundle, list[str]]:
    """The bundle that a pull will make; the hub is asked for all parts, nothing is fetched.

    What an earlier pull of the recipe has begun or installed stays the plan: so the files of the
    first use are required from then on.

    Returns:
        The bundle, with file, commit and repository as the source of each model; notes for the
        user.

    Raises:
        ModelError: a part is not to be had as the recipe says.
    """
    for folder in (store.staging_folder(), store.user_folder()):
        file = folder / recipe.id / MANIFEST
        with contextlib.suppress(ModelError):
            earlier = parse_manifest(read_manifest(file), file, present=False)
            models, parts = earlier.models, recipe.models
            same = earlier.version == recipe.version and list(models) == list(parts)
            if same and all(part.fits(models[role]) for role, part in parts.items()):
                return earlier, []
    listings: dict[tuple[str, str | None], ModelInfo] = {}
    chosen: dict[Role, ModelFile] = {}
    names: dict[str | None, str] = {}  # a file that several models share is one
    notes: list[str] = []
    for role, part in recipe.models.items():
        key = part.repository, part.revision
        if key not in listings:
            listings[key] = hub.listing(*key)
        found = _choose(role, part, listings[key], notes)
        path = Path(names.setdefault(found.sha256, found.path.name))
        chosen[role] = replace(found, path=path)
    weights = "; ".join(f"{role}: {part.weights}" for role, part in recipe.models.items())
    bundle = Bundle(
        id=recipe.id,
        models=chosen,
        title=recipe.title,
        version=recipe.version,
        licence=", ".join(licences(chosen)),
        description=recipe.description,
        context=recipe.context,
        card={**recipe.card, "foundation_models": weights},
    )
    store.check_id(bundle)
    return bundle, notes


def licences(models: Mapping[Role, ModelFile]) -> dict[str, list[Role]]:
    """The licences that have to be accepted, each with its roles."""
    found: dict[str, list[Role]] = {}
    for role, model in models.items():
        for word in model.licence.split(_AND):
            found.setdefault(word.lower(), []).append(role)
    return found


def _choose(role: Role, part: RecipePart, listing: ModelInfo, notes: list[str]) -> ModelFile:
    """The file of a part, of what the hub says of its repository; adds notes for the user.

    Raises:
        ModelError: the hub has no such file, several, or another one than is pinned; the model is
            gated; or the listing is not understood.
    """
    where, commit, name = part.repository, listing.sha or "", listing.id
    if listing.gated:
        raise ModelError(
            f"{where} is gated: its owner gives it to those who agree to terms under their own "
            "name. capt-local does not do that for you: get the files with an account of yours, "
            "and make the bundle with 'capt-local models create'."
        )
    siblings = [each for each in listing.siblings or () if isinstance(each.rfilename, str)]
    found = [each for each in siblings if part.names(each.rfilename)]
    if len(found) != 1:
        raise ModelError(
            f"{where}: {len(found) or 'no'} files have the name {part.file}. A recipe of your own "
            "can name another one."
        )
    file, lfs = found[0].rfilename, found[0].lfs
    size, digest = (lfs.size, lfs.sha256) if lfs else (found[0].size, None)
    if not (
        _is(commit, "[0-9a-f]{40}")
        and part.revision in (None, commit)
        and _is(name, f"{_WORD}/{_WORD}")
        and type(size) is int
        and 0 < size < 1 << 50
        and _is(digest or "", "(?:[0-9a-f]{64})?")
    ):
        raise _not_understood(where)
    sha256 = part.sha256 or digest
    if sha256 is None:
        raise ModelError(
            f"{where}: the hub has no SHA-256 of {file}. Write the one that you know into a recipe "
            "of your own."
        )
    if digest not in (None, sha256):
        raise ModelError(
            f"{where}: {file} is another file now: its SHA-256 is pinned as {part.sha256}, and the "
            f"hub says {digest}. Nothing was fetched."
        )
    if size > _LARGEST_FILE:
        raise ModelError(
            f"{where}: {file} has more than 50 GB, which the hub sends by Xet alone. Get it by "
            "hand, and make the bundle with 'capt-local models create'."
        )
    if name.casefold() != where.casefold():
        notes.append(f"{where} is called {name} at the hub now.")
    if part.sha256 is None:
        notes.append(
            f"FIRST USE of the {role}: nobody has vouched for {where} {file}. Commit and digest "
            "are what the hub says now, and are pinned in the bundle; compare them with another "
            "source before you rely on it."
        )
    # Several licences, or what is no word, are still one to be accepted.
    card = getattr(listing.card_data, "license", None) or ""
    stated = card.lower() if _is(card, r"[A-Za-z0-9.+_-]{0,64}") else "other"
    licence = part.licence
    if stated and stated != licence.lower():
        licence = stated if licence == UNSTATED else f"{licence}{_AND}{stated}"
    return ModelFile(
        role=role,
        path=Path(f"{role}.gguf"),
        size=size,
        sha256=sha256,
        licence=licence,
        source=f"hub:{where}@{commit}/{file}",
        style=part.style,
    )


def _is(value: object, pattern: str) -> bool:
    return isinstance(value, str) and re.fullmatch(pattern, value) is not None


class HubSource:
    """A `bundles.archive.BundleSource` whose files are downloaded right into the staging folder.

    Args:
        hub: that has them.
        planned: the bundle; see `plan`.
        report: called with a file's name and the share of it that is there.
    """

    def __init__(self, hub: Hub, planned: Bundle, report: Report) -> None:
        self._hub, self._report = hub, report
        self._models = {model.path.name: model for model in planned.models.values()}
        self._staging = store.staging_folder() / planned.id
        # The same files, the same bytes: what an earlier pull has begun is gone on with.
        self._manifest = manifest_text(planned, planned.folder or Path()).encode("utf-8")
        self._left = b""

    def begin(self, name: str, size: int | None, most: int) -> int:
        """See `BundleSource.begin`."""
        self._left = self._manifest if name == MANIFEST else b""
        if name in (MANIFEST, SIGNATURE):
            return len(self._left)
        model, place = self._models[name], self._staging / name
        drop_odd(place, model.size)
        done = place.stat().st_size if place.exists() else 0

        def came(count: int) -> None:
            nonlocal done
            done += count
            self._report(name, min(done / model.size, 1.0))

        if done < model.size:
            try:
                self._hub.fetch(model, place, came)
            except OSError as error:
                raise ModelError(
                    f"{name} cannot be written: {error.strerror}. What came stays: give the "
                    "same command again to go on."
                ) from None
        return model.size

    def read(self, count: int) -> bytes:
        """See `BundleSource.read`; the import reads and checks a model that is there already."""
        found, self._left = self._left[:count], self._left[count:]
        return found

    def skip(self, count: int) -> None:
        """See `BundleSource.skip`."""

    def end(self) -> None:
        """See `BundleSource.end`: there is nothing else than what was requested."""

    def check(self, files: Iterable[Member]) -> None:
        """See `BundleSource.check`: what is installed already is not fetched again."""


@contextlib.contextmanager
def _explained(what: str) -> Iterator[None]:
    """Errors of the library in our words: its own hold addresses and what a server said."""
    import httpx2
    from huggingface_hub import errors

    again = "What came stays: give the same command again to go on."
    try:
        yield
    except errors.HfHubHTTPError as error:
        status = error.response.status_code
        if status in (401, 403, 404):
            raise ModelError(
                f"{what}: the hub does not have it at that revision, or wants to know who asks. A "
                "token for a mirror of your own goes into CAPT_LOCAL_HUB_TOKEN."
            ) from None
        raise ModelError(f"{what}: the hub answers {status}. {again}") from None
    except (httpx2.HTTPError, httpx2.InvalidURL, httpx2.StreamError) as error:
        cause: BaseException | None = error
        while cause is not None and not isinstance(cause, ssl.SSLCertVerificationError):
            cause = cause.__cause__ or cause.__context__
        if cause is not None:
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


def _not_understood(what: str) -> ModelError:
    return ModelError(
        f"{what}: what the hub says of it is not understood. Is the mirror one of a Hugging Face "
        "hub?"
    )

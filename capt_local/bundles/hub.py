"""`models pull`: the files of a bundle from a Hugging Face hub, named by a recipe.

A recipe names repositories, files and licences, and the commits and digests that are known.
`huggingface_hub` makes the requests, retries, and resumes downloads. It reads its environment:
HF_ENDPOINT names a mirror, HF_TOKEN is sent if it is set, HF_HUB_OFFLINE forbids the network.
Messages of a server are never shown; each file's SHA-256 is computed from the received bytes.
"""

from __future__ import annotations

import contextlib
import io
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import replace
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import msgspec

from capt_local.bundles.archive import CHUNK, check_space
from capt_local.bundles.install import Staging, assemble, wipe
from capt_local.bundles.manifest import (
    Bundle,
    Count,
    Digest,
    ModelFile,
    Role,
    ShortName,
    Style,
    VersionText,
    ordered_roles,
)
from capt_local.bundles.verify import Progress
from capt_local.errors import ModelError, UsageError
from capt_local.strict_json import (
    ParseError,
    convert,
    form,
    make_private_folder,
    parse_toml,
    read_regular,
)

if TYPE_CHECKING:
    from huggingface_hub import ModelInfo

_LARGEST_RECIPE = 1 << 16
_LARGEST_LISTING = 16 << 20  # bytes of what a hub says of a repository, or of an error
_WORD = r"[A-Za-z0-9][A-Za-z0-9._-]{0,95}"
_LICENCE = r"[A-Za-z0-9][A-Za-z0-9.+_-]{0,63}"
_SOURCE = re.compile(r"hub:(.+)@([0-9a-f]{40})/(.+)")  # repository, commit, path
_FILE = r"(?:[A-Za-z0-9_][A-Za-z0-9._+-]*/){0,4}[A-Za-z0-9_][A-Za-z0-9._+-]{0,120}\.gguf"
Commit = Annotated[str, form("[0-9a-f]{40}", "must be a commit of 40 digits; branches move")]
_PATTERN = r"(?=.{1,200}\Z)(?:[\w.+/-]*\*){0,3}[\w.+/-]*\.gguf"  # `*`: any part of a name
PathPattern = Annotated[
    str, form(_PATTERN, "must be the path of a .gguf file, with three * at most")
]


class RecipePart(msgspec.Struct, forbid_unknown_fields=True, frozen=True, kw_only=True):
    """One model of a recipe."""

    weights: str  # the model, as its makers call it
    # Of the weights, as one word; "not-stated" where nobody says.
    licence: Annotated[str, form(_LICENCE, "must be one word of letters and digits")]
    repository: Annotated[str, form(rf"(?!.*\.\.){_WORD}/{_WORD}", "must be OWNER/NAME")]
    file: PathPattern  # in the repository
    revision: Commit | None = None  # None: the newest
    sha256: Digest | None = None  # None where it is not known
    style: Style = Style.CHAT

    def names(self, path: str) -> bool:
        """Whether a path in the repository matches `file` and is a safe file name."""
        pattern = re.escape(self.file).replace(r"\*", "[^/]*")
        harmless = re.fullmatch(_FILE, path) and ".." not in path
        return harmless is not None and re.fullmatch(pattern, path) is not None


class Recipe(msgspec.Struct, forbid_unknown_fields=True, frozen=True, kw_only=True):
    """How a bundle is made of files of a hub; the fields are those of `Bundle`."""

    id: ShortName
    title: str
    version: VersionText
    models: dict[Role, RecipePart]
    schema: Literal[1] = 1
    description: str = ""
    context: Count | None = None
    card: dict[str, str] = {}


def recipes() -> dict[str, Recipe]:
    """The recipes that travel with the package, by their names."""
    place = Path(str(resources.files("capt_local.bundles") / "recipes.toml"))
    return {recipe.id: recipe for recipe in read_recipes(place)}


def find_recipe(reference: str) -> Recipe:
    """A recipe by its name; or of a file, whose path holds a separator or ends in ".toml".

    Raises:
        ModelError: there is none, or it is broken.
    """
    if reference.endswith(".toml") or "/" in reference:
        return read_recipes(Path(os.path.expanduser(reference)))[0]
    known = recipes()
    if reference not in known:
        raise ModelError(f"There is no recipe of that name; known: {', '.join(known)}.")
    return known[reference]


def read_recipes(file: Path) -> list[Recipe]:
    """The recipes of the package's file, or the one recipe of a user's file.

    Raises:
        ModelError: it cannot be read, or is broken.
    """
    found = []
    try:
        data = read_regular(file, _LARGEST_RECIPE + 1)
        top = parse_toml(data, _LARGEST_RECIPE, "a recipe")
        for table in convert(top.get("recipe", [top]), list[dict[str, Any]], "recipe"):
            parts = convert(table.get("models", {}), dict[str, Any], "models")
            models = {role: parts[role] for role in ordered_roles(parts)}
            found.append(convert({**table, "models": models}, Recipe))
    except OSError as error:
        raise ModelError(f"{file}: cannot be read: {error.strerror or 'unreadable'}.") from None
    except ParseError as error:
        raise ModelError(f"{file}: {error}.") from None
    return found


def find_files(recipe: Recipe) -> dict[Role, ModelFile]:
    """The files of a recipe, by role, as the hub has them now; nothing is downloaded.

    The digest of each is that of the recipe, or else of the hub; None where neither has it.

    Raises:
        ModelError: a repository has no such file, several, or another one than is pinned; or the
            hub does not answer.
    """
    from huggingface_hub import HfApi

    api = HfApi(token=_token())
    found = {}
    for role, part in recipe.models.items():
        with _explained(part.repository):
            listing = api.model_info(
                part.repository, revision=part.revision, files_metadata=True, timeout=30
            )
        found[role] = _choose(role, part, listing)
    return found


def _choose(role: Role, part: RecipePart, listing: ModelInfo) -> ModelFile:
    """The file of a part, of what the hub says of its repository."""
    where = part.repository
    files = [each for each in listing.siblings or () if part.names(str(each.rfilename))]
    if len(files) != 1:
        raise ModelError(
            f"{where}: {len(files) or 'no'} files have the name {part.file}. A recipe of your own "
            "can name another one."
        )
    size, lfs = files[0].size, files[0].lfs
    try:
        commit = convert(listing.sha, Commit)
        size = convert(lfs.size if lfs else size, Count)
        digest = convert(lfs.sha256, Digest) if lfs else None
    except ParseError:
        raise ModelError(f"{where}: what the hub says of it is not understood.") from None
    if part.revision not in (None, commit) or (digest and part.sha256 not in (None, digest)):
        raise ModelError(
            f"{where}: {files[0].rfilename} is another file now than the recipe pins. Nothing was "
            "downloaded."
        )
    # Several licences, or what is no word, are still one to be accepted.
    stated = getattr(listing.card_data, "license", None) or part.licence
    stated = stated if re.fullmatch(_LICENCE, str(stated)) else "other"
    file = files[0].rfilename
    return ModelFile(
        Path(file),
        size,
        part.sha256 or digest,
        role=role,
        licence=" and ".join(dict.fromkeys([part.licence.lower(), stated.lower()])),
        source=f"hub:{where}@{commit}/{file}",
        style=part.style,
    )


def download(
    recipe: Recipe,
    files: Mapping[Role, ModelFile],
    staging: Staging,
    report: Progress | None = None,
) -> Bundle:
    """Downloads the files of a recipe and brings them into the folder of a staging.

    What an earlier try has left is resumed.

    Raises:
        ModelError: a file cannot be downloaded, or is not the one that recipe or hub named.
    """
    folder = staging.downloads
    there = sum(each.lstat().st_size for each in folder.rglob("*"))
    sizes = {file.source: file.size for file in files.values()}
    check_space(folder.parent, sum(sizes.values()) - there + CHUNK)
    models = {
        role: replace(file, path=_fetch(file, folder), sha256=None) for role, file in files.items()
    }
    weights = "; ".join(f"{role}: {part.weights}" for role, part in recipe.models.items())
    wanted = Bundle(
        id=recipe.id,
        models=models,
        title=recipe.title,
        version=recipe.version,
        licence=", ".join(dict.fromkeys(file.licence for file in files.values())),
        description=recipe.description,
        context=recipe.context,
        card={**recipe.card, "foundation_models": weights},
    )
    put, _ = assemble(wanted, staging.folder, report)
    for role, file in files.items():
        found = put.models[role]
        if file.sha256 not in (None, found.sha256) or found.size != file.size:
            models[role].path.unlink()
            raise ModelError(
                f"{file.source}: what came is not the file that it should be: its SHA-256 is "
                f"{found.sha256} instead of {file.sha256}. It was deleted."
            )
    wipe(folder)
    return put


class _BoundedFile(io.BufferedRandom):
    """A file that is limited to the size the hub has announced, so that it cannot fill the disk."""

    def __init__(self, handle: int, most: int) -> None:
        super().__init__(io.FileIO(handle, "r+"))
        self._most = most

    def write(self, data: Any) -> int:
        if self.tell() + len(data) > self._most:
            raise ValueError("the hub sends more than it said")
        return super().write(data)


def _fetch(file: ModelFile, folder: Path) -> Path:
    """Downloads a file into a folder, resuming a partial download."""
    from huggingface_hub import hf_hub_url
    from huggingface_hub.file_download import http_get
    from huggingface_hub.utils._headers import build_hf_headers

    repository, commit, path = _SOURCE.fullmatch(file.source).groups()  # type: ignore[union-attr]
    folder = folder / commit
    place = folder / path.replace("/", "-")
    with _explained(f"{repository}: {path}"):
        make_private_folder(folder)
        flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW
        with _BoundedFile(os.open(place, flags, 0o600), file.size) as stream:
            there = stream.seek(0, os.SEEK_END)
            if there < file.size:
                http_get(
                    hf_hub_url(repository, path, revision=commit),
                    stream,
                    resume_size=there,
                    headers=build_hf_headers(token=_token()),
                    expected_size=file.size,
                )
    return place


def _token() -> str | bool:
    """The token for the hub, or False; also configures the library (no Xet, no telemetry)."""
    import huggingface_hub
    from huggingface_hub import constants

    # Xet is a client of its own, with a cache outside the folder of the download.
    constants.HF_HUB_DISABLE_XET = constants.HF_HUB_DISABLE_TELEMETRY = True
    huggingface_hub.logging.set_verbosity(100)  # its warnings repeat what a server says
    huggingface_hub.set_client_factory(_client)
    # Not http://127.0.0.1:x@elsewhere, which begins like this machine.
    if not re.match(r"https://|http://127\.0\.0\.1:[0-9]+(/|$)", constants.ENDPOINT):
        raise UsageError("HF_ENDPOINT must begin with https://.")
    return os.environ.get("HF_TOKEN") or False


def _client() -> Any:
    """The library's HTTP client, refusing compressed responses and endless listings."""
    import httpx2
    from huggingface_hub.utils._http import default_client_factory

    class Bounded(httpx2.SyncByteStream):
        def __init__(self, stream: Any) -> None:
            self._stream, self.close = stream, stream.close  # type: ignore[method-assign]

        def __iter__(self) -> Iterator[bytes]:
            left = _LARGEST_LISTING
            for part in self._stream:
                left -= len(part)
                if left < 0:
                    raise ValueError("the hub says too much")
                yield part

    def note(request: httpx2.Request) -> None:
        # What a redirect leads to keeps the mark of what was asked for.
        request.extensions.setdefault("listing", "/api/" in request.url.path)

    def check(response: httpx2.Response) -> None:
        if response.headers.get("content-encoding", "identity") != "identity":
            raise ValueError("the hub packs what was wanted as it is")
        if not response.is_success or response.request.extensions["listing"]:
            response.stream = Bounded(response.stream)

    client = default_client_factory()
    client.headers["accept-encoding"] = "identity"
    own = client.event_hooks
    client.event_hooks = {"request": [*own["request"], note], "response": [check]}
    return client


@contextlib.contextmanager
def _explained(what: str) -> Iterator[None]:
    """Rewords errors of the library: its messages hold addresses and texts of the server."""
    from huggingface_hub import errors

    again = "What came stays: give the same command again to go on."
    try:
        yield
    except errors.OfflineModeIsEnabled:
        raise UsageError("HF_HUB_OFFLINE is set, so no hub is contacted.") from None
    except errors.HfHubHTTPError as error:
        status = error.response.status_code
        if status in (401, 403, 404):
            again = (
                "It is not there at that revision, or only for those who agreed to its terms: put "
                "the token of such an account into HF_TOKEN."
            )
        raise ModelError(f"{what}: the hub answers {status}. {again}") from None
    except Exception as error:
        reason = f"the download failed ({type(error).__name__})"
        if isinstance(error, OSError) and error.errno is not None:
            reason = f"it cannot be written: {error.strerror}"
        elif "CERTIFICATE_VERIFY_FAILED" in str(error):
            reason = (
                "the hub's certificate is not trusted here; behind a proxy that opens TLS, set "
                "SSL_CERT_FILE to its authority"
            )
        # Else it is whatever the library raises of what comes, or of a line that is cut.
        raise ModelError(f"{what}: {reason}. {again}") from None

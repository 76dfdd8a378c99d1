"""The files of a bundle that travels: which, in which order, under which names."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from capt_local.bundle.fields import NAME
from capt_local.bundle.manifest import MANIFEST, RECEIPT, SIGNATURE, Bundle
from capt_local.bundle.packaged import PackageFile
from capt_local.errors import ModelError

LARGEST_TEMPLATE = 1 << 20
# Names that mean a device on Windows, whatever their ending.
_RESERVED = re.compile(r"(?:con|prn|aux|nul|com[0-9]|lpt[0-9])(?:\..*)?", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Member:
    """One file.

    Attributes:
        name: in the folder and in an archive.
        size: bytes; None for a template, of which the manifest has the digest alone.
        sha256: digest in hexadecimal.
        source: where it lies now.
    """

    name: str
    size: int | None
    sha256: str
    source: Path

    @property
    def most(self) -> int:
        """Bytes that it may have."""
        return LARGEST_TEMPLATE if self.size is None else self.size


def members(bundle: Bundle) -> tuple[Member, ...]:
    """The files that a manifest names besides itself, each once, in the order of the roles.

    Raises:
        ModelError: a name is not plain, a file is named in two ways, or models are mixed up.
    """
    folder = bundle.folder or Path()
    found: dict[str, Member] = {}
    for role, model in bundle.models.items():
        adapter, template = model.adapter, model.template_file
        named: list[tuple[Path, PackageFile | None, int | None, str | None]]
        named = [(model.path, model.package, model.size, model.sha256)]
        if adapter is not None:
            named.append((adapter.path, adapter.package, adapter.size, adapter.sha256))
        if template is not None:
            named.append((template, None, None, model.template_sha256))
        for path, package, size, digest in named:
            name = package.name if package else path.relative_to(folder).as_posix()
            member = Member(_plain(name, role), size, digest or "", path)
            if found.setdefault(member.name.casefold(), member) != member:
                raise ModelError(f"The bundle names {member.name} in two ways, which differ.")
    _refuse_twins(bundle)
    return tuple(found.values())


def check_id(bundle: Bundle) -> None:
    """Refuses ids that cannot be the name of a folder everywhere.

    Raises:
        ModelError: it is such a name.
    """
    if _RESERVED.fullmatch(bundle.id) or bundle.id.endswith("."):
        raise ModelError("The id of the bundle cannot be the name of a folder.")


def _plain(name: str, role: str) -> str:
    own = name.casefold() in (MANIFEST, SIGNATURE, RECEIPT)
    if not NAME.fullmatch(name) or name.endswith(".") or _RESERVED.fullmatch(name) or own:
        raise ModelError(
            f"A file of the {role} has a name that cannot travel. Files of a bundle that travels "
            "lie beside its manifest, with names of letters, digits, '.', '-' and '_'."
        )
    return name


def _refuse_twins(bundle: Bundle) -> None:
    """An expert that is its own base has nothing to say, and is a mistake of whoever made it."""
    for role, expert in bundle.models.items():
        base = bundle.models.get(role.replace("expert", "base"))
        if not role.startswith("expert") or base is None or expert.sha256 != base.sha256:
            continue
        pair = [one.adapter and (one.adapter.sha256, one.adapter.scale) for one in (expert, base)]
        if pair[0] == pair[1]:
            raise ModelError(
                f"The {role} and its base are the same model, so nothing is contrasted."
            )

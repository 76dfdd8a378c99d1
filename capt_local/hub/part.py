"""One model of a recipe: where its file lies at a hub, and what it has to be."""

from __future__ import annotations

import re
from dataclasses import dataclass

from capt_local.bundle.manifest import Role, Style
from capt_local.errors import ModelError

UNSTATED = "not-stated"
_WORD = r"[A-Za-z0-9][A-Za-z0-9._-]{0,95}"
REPOSITORY = re.compile(rf"{_WORD}/{_WORD}")
_STEP = r"[A-Za-z0-9_*][A-Za-z0-9._+*-]*"
FILE = re.compile(rf"(?:{_STEP}/)*{_STEP}")
COMMIT = re.compile(r"[0-9a-f]{40}")
SHA256 = re.compile(r"[0-9a-f]{64}")
_LICENCE = re.compile(r"[A-Za-z0-9][A-Za-z0-9.+_-]{0,63}")
_LONGEST_FILE = 200
_ENDING = ".gguf"


@dataclass(frozen=True, slots=True)
class Part:
    """What a recipe says of one model. What is not pinned is taken as the hub tells it.

    Attributes:
        role: what it does in the bundle.
        weights: the model as those call it who made it.
        licence: of the weights, as one word; `UNSTATED` where nobody says.
        repository: that has the file, as OWNER/NAME; empty where it cannot be fetched.
        file: its path there; one `*` stands for any part of a name.
        revision: the commit, 40 digits; None: not known yet.
        sha256: digest in hexadecimal; None: likewise.
        style: how the model is asked.

    Raises:
        ModelError: a value is none that it may be.
    """

    role: Role
    weights: str
    licence: str
    repository: str = ""
    file: str = ""
    revision: str | None = None
    sha256: str | None = None
    style: Style = Style.CHAT

    def __post_init__(self) -> None:
        """Refuses what is not as above."""
        if not _LICENCE.fullmatch(self.licence):
            self._refuse("licence", "is one word of letters, digits, '.', '-', '+' and '_'")
        if self.repository and (
            not REPOSITORY.fullmatch(self.repository) or ".." in self.repository
        ):
            self._refuse("repository", "is OWNER/NAME")
        if self.repository and not is_file_name(self.file.replace("*", "x", 1)):
            self._refuse("file", f"is the path of a {_ENDING} file in the repository, with one *")
        if self.revision is not None and not COMMIT.fullmatch(self.revision):
            self._refuse("revision", "is a commit of 40 hexadecimal digits; names of branches move")
        if self.sha256 is not None and not SHA256.fullmatch(self.sha256):
            self._refuse("digest", "is a SHA-256 of 64 hexadecimal digits")

    def names(self, file: str) -> bool:
        """Whether a path in the repository is the one that is meant."""
        front, star, back = self.file.partition("*")
        if not star:
            return file == self.file
        pattern = f"{re.escape(front)}[^/]*{re.escape(back)}"
        return re.fullmatch(pattern, file) is not None

    def _refuse(self, what: str, rule: str) -> None:
        raise ModelError(f"The {self.role}'s {what} cannot be used: it {rule}.")


def is_file_name(path: str) -> bool:
    """Whether a path in a repository is one of those that are fetched."""
    plain = FILE.fullmatch(path) is not None and "*" not in path
    return plain and path.endswith(_ENDING) and len(path) <= _LONGEST_FILE

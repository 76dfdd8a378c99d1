"""Digests of what a GGUF file says of its tokenizer and its chat template.

Two models with the same digests split the same text into the same tokens, and write a conversation
in the same way. That of the tokenizer is SHA-256 over every `tokenizer.` key but the templates, in
the order of the names: the length of the name, the name, the length of the value, and the value as
it stands in the file (lengths as 8 bytes, little end first; the value with its GGUF type).
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

from capt_local.engine.header import Header, read_header
from capt_local.errors import ModelError

_TOKENIZER, _TEMPLATE = "tokenizer.", "tokenizer.chat_template"


@dataclass(frozen=True, slots=True)
class FileDigests:
    """What tells whether two files take text in the same way.

    Attributes:
        tokenizer: SHA-256, see the module.
        template: SHA-256 of the chat template in UTF-8; None where the file has none.
    """

    tokenizer: str
    template: str | None


def file_digests(path: Path, header: Header | None = None) -> FileDigests:
    """The digests of a GGUF file; nothing is loaded.

    Args:
        path: of the file.
        header: of it, if it was read already.

    Raises:
        ModelError: it is not a GGUF that can be read.
    """
    header = header or read_header(path)
    digest = hashlib.sha256()
    try:
        with path.open("rb") as file:
            for key, (start, size) in sorted(header.places.items()):
                if key.startswith(_TOKENIZER) and not key.startswith(_TEMPLATE):
                    file.seek(start)
                    for part in (key.encode("utf-8", "replace"), file.read(size)):
                        digest.update(len(part).to_bytes(8, "little") + part)
    except OSError as error:
        raise ModelError(f"{path.name} cannot be read: {error.strerror}.") from None
    template = header.values.get(_TEMPLATE)
    pinned = hashlib.sha256(template.encode()).hexdigest() if isinstance(template, str) else None
    return FileDigests(digest.hexdigest(), pinned)

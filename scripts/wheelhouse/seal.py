"""The public half of a key, and a signature that openssl can check; for the trial install.

`seal.py public NAME.key NAME.pub` writes the one, `seal.py sign NAME.key FILE` the other, FILE.sig.
"""

from __future__ import annotations

import sys
from pathlib import Path

from cryptography.hazmat.primitives import serialization


def main(what: str, key: str, place: str) -> None:
    """One of the two."""
    private = serialization.load_pem_private_key(Path(key).read_bytes(), None)
    if what == "public":
        form = serialization.PublicFormat.SubjectPublicKeyInfo
        pem = private.public_key().public_bytes(serialization.Encoding.PEM, form)
        Path(place).write_bytes(pem)
    else:
        # The bytes of the file and nothing else, as openssl wants it. They are lines of digests,
        # and a signed manifest begins with words of its own, so neither passes for the other.
        Path(f"{place}.sig").write_bytes(private.sign(Path(place).read_bytes()))


if __name__ == "__main__":
    main(*sys.argv[1:])

"""Documents to text: PDF, DOCX, ODT, RTF, HTML, and plain text of a known encoding.

`read` takes bytes and returns a `Document`. Plain text is decoded here; every other kind is parsed
in a confined process of its own (`process`), which holds nothing but this one document.
"""

from capt_local.documents.document import (
    LARGEST_FILE,
    SUFFIXES,
    Document,
    DocumentError,
    read,
    read_path,
)

__all__ = ["LARGEST_FILE", "SUFFIXES", "Document", "DocumentError", "read", "read_path"]

"""The form that an answer must have, from a file."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from capt_local.cli.files import decoded
from capt_local.cli.options import option
from capt_local.decoding.options import Structure
from capt_local.errors import UsageError

_LARGEST = 1 << 20  # bytes; both kinds of file have a smaller limit of their own


@dataclass(frozen=True, slots=True)
class StructureFlags:
    """Which form the answer must have."""

    json_schema: Annotated[
        Path | None,
        option(
            "--json-schema",
            metavar="PATH",
            help="A JSON schema: the answer is an instance of it (docs/answers.md).",
        ),
    ] = None
    grammar_file: Annotated[
        Path | None,
        option(
            "--grammar-file",
            metavar="PATH",
            help="A grammar in llama.cpp's GBNF: the answer is a text of it.",
        ),
    ] = None


def structure(flags: StructureFlags) -> Structure | None:
    """The form that the flags name, checked; None where they name none. Needs no model.

    Raises:
        UsageError: both are given, or the file cannot be read or used. Nothing of it is told.
    """
    if flags.json_schema is not None and flags.grammar_file is not None:
        raise UsageError("Give either --json-schema or --grammar-file.")
    if flags.json_schema is not None:
        name = "The schema (--json-schema)"
        from capt_local.decoding.structured import schema_structure

        return schema_structure(decoded(_bytes(flags.json_schema, name), name).encode(), name)
    if flags.grammar_file is not None:
        name = "The grammar (--grammar-file)"
        text = decoded(_bytes(flags.grammar_file, name), name)
        from capt_local.llama.grammar import check_grammar

        check_grammar(text, name)
        return Structure(text)
    return None


def _bytes(path: Path, name: str) -> bytes:
    try:
        with path.open("rb") as stream:
            data = stream.read(_LARGEST + 1)
    except OSError as error:
        raise UsageError(f"{name} cannot be read: {error.strerror}.") from None
    if len(data) > _LARGEST:
        raise UsageError(f"{name} is larger than {_LARGEST >> 10} KiB.")
    return data

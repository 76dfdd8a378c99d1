"""Which records a batch run answers, and how they are asked."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from capt_local.batch.inputs import InputFormat
from capt_local.cli.files import decoded
from capt_local.cli.options import option
from capt_local.errors import UsageError
from capt_local.strict.files import read_bytes

if TYPE_CHECKING:
    from capt_local.batch.asking import Asking
    from capt_local.batch.sources import Source
    from capt_local.decoding.options import GenerateOptions

_LARGEST = 1 << 16  # bytes of a system text or a template
_SYSTEM, _TEMPLATE = "The system text (--system)", "The template (--template)"


class Delimiter(StrEnum):
    """Between two cells of a table."""

    COMMA = "comma"
    SEMICOLON = "semicolon"
    TAB = "tab"
    PIPE = "pipe"

    @property
    def character(self) -> str:
        """The character itself."""
        return {"comma": ",", "semicolon": ";", "tab": "\t", "pipe": "|"}[self.value]


@dataclass(frozen=True, slots=True)
class AskFlags:
    """How the records of an input become prompts."""

    input_format: Annotated[
        InputFormat | None,
        option(
            "--input-format",
            twin="INPUT_FORMAT",
            metavar="jsonl|csv|txt-dir",
            help="How records are written. Default: by the name of the input.",
        ),
    ] = None
    delimiter: Annotated[
        Delimiter | None,
        option(
            "--delimiter",
            twin="DELIMITER",
            metavar="comma|semicolon|tab|pipe",
            help="What stands between the cells of CSV. Default: comma, and tab in *.tsv.",
        ),
    ] = None
    system: Annotated[
        Path | None,
        option("--system", metavar="FILE", help="A system text in front of each record."),
    ] = None
    template: Annotated[
        Path | None,
        option(
            "--template",
            metavar="FILE",
            help="Writes the prompt around the fields of a record: 'Summarise: {{ note }}'.",
        ),
    ] = None
    id_field: Annotated[
        str,
        option(
            "--id-field",
            twin="ID_FIELD",
            metavar="NAME",
            help="The field or column that names a record. Default: id.",
        ),
    ] = "id"
    raw: Annotated[
        bool,
        option("--raw", twin="RAW", help="Go on with the texts as they are, without a template."),
    ] = False

    def asking(self) -> Asking:
        """Reads the files.

        Raises:
            UsageError: one cannot be read or used, or they do not go together.
        """
        from capt_local.batch.asking import Asking
        from capt_local.batch.template import RecordTemplate

        template = None
        if self.template is not None:
            data = read_bytes(self.template, _TEMPLATE, largest=_LARGEST, pipes=True)
            template = RecordTemplate(data)
        system = None if self.system is None else _system(self.system)
        return Asking(template, system, self.id_field, self.raw)

    def check(
        self,
        path: Path,
        *,
        options: GenerateOptions | None = None,
        model: str | None = None,
        progress: Callable[[float], None] | None = None,
    ) -> Source:
        """Checks all of an input; see `batch.checking.check_input`.

        Raises:
            UsageError: it cannot be read, or lines of it are wrong.
        """
        from capt_local.batch.checking import check_input

        asking = self.asking()
        return check_input(
            path,
            self.input_format,
            asking=asking,
            delimiter=None if self.delimiter is None else self.delimiter.character,
            options=options,
            model=model,
            progress=progress,
        )


@dataclass(frozen=True, slots=True)
class InputFlags(AskFlags):
    """Which records are answered, and how they are asked."""

    input: Annotated[
        Path | None,
        typer.Argument(
            metavar="INPUT",
            show_default=False,
            help="JSON Lines, a CSV file, a folder of text files, or '-' for standard input.",
        ),
    ] = None

    @property
    def place(self) -> Path:
        """The input.

        Raises:
            UsageError: none was given.
        """
        if self.input is None:
            raise UsageError("There is no input. Name a file or a folder, or '-'.")
        return self.input


def _system(path: Path) -> str:
    """The text of a file, without the line end that editors put behind the last line.

    Raises:
        UsageError: it cannot be read, is not UTF-8, or says nothing.
    """
    text = decoded(read_bytes(path, _SYSTEM, largest=_LARGEST, pipes=True), _SYSTEM)
    if not text.strip():
        raise UsageError(f"{_SYSTEM} is empty.")
    if "\0" in text:
        raise UsageError(f"{_SYSTEM} holds a zero character (NUL).")
    return text.removesuffix("\n").removesuffix("\r")

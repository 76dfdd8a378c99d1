"""`--template`: the user's message, written around the fields of a record.

The template is Jinja in the sandbox of the chat templates, with the limits of a text instead of
those of scaffolding. It is filled in one pass, so what stands in a field stays text. A field that
is not there is an error, unless the template asks whether it is; so is one that is no text.

Errors name a field only if the template does: other names may come out of a note.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

from jinja2 import StrictUndefined, Template, meta
from jinja2.exceptions import SecurityError, TemplateSyntaxError, UndefinedError

from capt_local.errors import UsageError
from capt_local.prompting.sandbox import LimitReached, Limits, Meter, Sandbox
from capt_local.strict.files import size_text, utf8
from capt_local.strict.problems import NotReadable

LARGEST_TEMPLATE = 1 << 16  # bytes
WHOLE = "record"  # by this name a template has all fields, also those whose names are no words
# A text may be as long as a line of the input, and be filtered a few times.
LIMITS = Limits(value=1 << 22, output=1 << 22, work=4_000_000, seconds=2.0)
_WHAT = "The template (--template)"


class RecordTemplate:
    """A template for the user's message.

    Attributes:
        digest: SHA-256 of its bytes.
        names: fields that it names.

    Args:
        data: of its file.
        limits: what one record may take.

    Raises:
        UsageError: it is too large, not UTF-8 or not a template, or names no field.
    """

    def __init__(self, data: bytes, limits: Limits = LIMITS) -> None:
        if len(data) > LARGEST_TEMPLATE:
            raise UsageError(f"{_WHAT} is larger than {size_text(LARGEST_TEMPLATE)}.")
        self.digest = hashlib.sha256(data).hexdigest()
        self._limits = limits
        self._sandbox = _TextSandbox(limits)
        try:
            source = utf8(data)
            self.names = frozenset(meta.find_undeclared_variables(self._sandbox.parse(source)))
            code = self._sandbox.compile(self._sandbox.metered(source))
        except NotReadable as error:
            raise UsageError(f"{_WHAT} is {error}.") from None
        except TemplateSyntaxError as error:
            # The message would hold words of it: few-shot examples may be patients'.
            raise UsageError(f"{_WHAT} has a mistake in line {error.lineno}.") from None
        except LimitReached as error:
            raise UsageError(f"{_WHAT} was refused: {error}.") from None
        except Exception as error:  # a program may fail in any way
            raise UsageError(f"{_WHAT} fails with a {type(error).__name__}.") from None
        self.names -= self._sandbox.globals.keys()
        if not self.names:
            raise UsageError(f"{_WHAT} names no field: write one as {{{{ note }}}}.")
        self._code = Template.from_code(self._sandbox, code, self._sandbox.make_globals(None))

    def text(self, fields: Mapping[str, object]) -> str:
        """The user's message for a record.

        Args:
            fields: of the record, by name.

        Raises:
            NotReadable: a field is missing or no text, or it takes too much. Says nothing of what
                stands in the record.
        """
        self._sandbox.meter = Meter(self._limits)
        try:
            return self._code.render({**fields, WHOLE: fields})
        except _NoText as error:
            raise NotReadable(str(error)) from None
        except LimitReached as error:
            raise NotReadable(f"the template was stopped: {error}") from None
        except UndefinedError as error:
            raise NotReadable(self._missing(fields, error)) from None
        except SecurityError:
            raise NotReadable("the template does what templates may not do") from None
        except Exception as error:  # a program may fail in any way
            raise NotReadable(f"the template fails with a {type(error).__name__}") from None

    def _missing(self, fields: Mapping[str, object], error: UndefinedError) -> str:
        missing = sorted(self.names - fields.keys() - {WHOLE})
        # The message of the error names it too, but may as well name a part of a note.
        named = [name for name in missing if f"'{name}' is undefined" == error.message]
        if named:
            return f'there is no field "{named[0]}", which the template names'
        return "the template asks for a value that is not there"


class _NoText(Exception):
    """A value is printed that is no text; says which kind it is."""


class _TextSandbox(Sandbox):
    """The sandbox, for the fields of a record."""

    def __init__(self, limits: Limits) -> None:
        super().__init__(limits)
        self.undefined = StrictUndefined

    def emit(self, value: object) -> str:
        """A piece of output: a text or a number."""
        return super().emit(_printable(value))

    def concat_metered(self, *values: object) -> str:
        """The operator `~`."""
        return super().concat_metered(*map(_printable, values))


def _printable(value: object) -> object:
    """Refuses what Python would print in its own way: None, True, lists."""
    kind = _KINDS.get(type(value))
    if kind is not None:
        raise _NoText(
            f"the template prints {kind}: take its parts, or write {{{{ ... | tojson }}}}"
        )
    return value


_KINDS: Mapping[type, str] = {
    type(None): "a value that is null",
    bool: "a value that is true or false",
    list: "a list",
    tuple: "a list",
    dict: "an object",
}

"""What the files of a bundle that is to be made say of themselves; nothing is loaded."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from capt_local.errors import ModelError

if TYPE_CHECKING:
    from capt_local.bundle.manifest import Bundle
    from capt_local.engine.gguf_header import FileDigests

_LONGEST = 200
_TEMPLATE, _TOKENS = "tokenizer.chat_template", "tokenizer.ggml.tokens"
_LICENCE = ("general.license.name", "general.license")
_SOURCE = (
    "general.repo_url",
    "general.url",
    "general.source.repo_url",
    "general.source.url",
    "general.source.huggingface.repository",
)


@dataclass(frozen=True, slots=True)
class Look:
    """What one file says.

    Attributes:
        title: its own name for the model; may be empty.
        licence: of the weights; may be empty.
        source: where they come from; may be empty.
        template: its chat template.
        context: tokens that the model was trained for; 0 where it does not say.
        tokens: entries of its vocabulary.
        digests: of tokenizer and template.
        adapter_licence: what the file of an adapter on it says; may be empty.
        adapter_source: likewise.
    """

    title: str
    licence: str
    source: str
    template: str | None
    context: int
    tokens: int
    digests: FileDigests
    adapter_licence: str = ""
    adapter_source: str = ""


def look_at(bundle: Bundle) -> dict[str, Look]:
    """Reads the headers of all files, by role.

    Raises:
        ModelError: one is no GGUF or damaged, or an adapter does not fit; names the role.
    """
    return {role: _look(bundle, role) for role in bundle.models}


def misfits(bundle: Bundle, looks: Mapping[str, Look]) -> Iterator[str]:
    """Pairs whose vocabularies differ in length, so that they cannot be the same."""
    from capt_local.bundle.roles import pair_roles

    for expert, base in (pair_roles(number) for number in range(1, bundle.pairs + 1)):
        ours, theirs = looks[expert].tokens, looks[base].tokens
        if ours != theirs:
            yield f"The {expert} has {ours:,} tokens and the {base} {theirs:,}"


def said(text: object) -> str:
    """A text of a stranger's file as one line of plain characters, cut where it is long."""
    if not isinstance(text, str):
        return ""
    kept = "".join(char if char.isprintable() else " " for char in text)
    return " ".join(kept.split())[:_LONGEST]


def _look(bundle: Bundle, role: str) -> Look:
    from capt_local.engine.adapters import check_adapter
    from capt_local.engine.gguf_header import file_digests, read_header

    model = bundle.models[role]
    added: Mapping[str, object] = {}
    try:
        header = read_header(model.path)
        digests = file_digests(model.path, header)
        if model.adapter is not None:
            check_adapter(model.adapter.path, header, model.path.name)
            added = read_header(model.adapter.path).values
    except ModelError as error:
        raise ModelError(f"The {role}: {error}") from None
    template = header.values.get(_TEMPLATE)
    return Look(
        title=said(header.values.get("general.name")),
        licence=_first(header.values, _LICENCE),
        source=_first(header.values, _SOURCE),
        template=template if isinstance(template, str) else None,
        context=header.number("context_length"),
        tokens=header.lengths.get(_TOKENS, 0),
        digests=digests,
        adapter_licence=_first(added, _LICENCE),
        adapter_source=_first(added, _SOURCE),
    )


def _first(values: Mapping[str, object], keys: tuple[str, ...]) -> str:
    return next((text for key in keys if (text := said(values.get(key)))), "")

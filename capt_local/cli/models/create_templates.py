"""The chat templates of a bundle that is to be made."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from capt_local.cli.models.create_flags import ALL, by_role
from capt_local.cli.models.create_look import Look
from capt_local.errors import UsageError

if TYPE_CHECKING:
    from capt_local.bundle.manifest import Bundle, ModelFile

_BUILT_IN = ("plain", "chatml")


@dataclass(frozen=True, slots=True)
class _Asked:
    """How a model is asked: by a built-in template, or by a text.

    Attributes:
        name: of the built-in one.
        text: of another; None for a built-in one.
        own: whether the text stands in the GGUF itself.
    """

    name: str | None = None
    text: str | None = None
    own: bool = False


def with_templates(
    bundle: Bundle, looks: Mapping[str, Look], given: Sequence[str]
) -> tuple[Bundle, dict[str, bytes]]:
    """The bundle with its templates, and those that go into files beside the models, by role.

    Raises:
        UsageError: a model has none, or a flag has no meaning.
        ModelError: one is broken, or does not take a plain question.
    """
    said = by_role(given, list(bundle.models), "--template")
    models: dict[str, ModelFile] = {}
    files: dict[str, bytes] = {}
    for role, model in bundle.models.items():
        value = said.get(role, said.get(ALL))
        if value is None:
            asked = _own(model, looks[role])
        elif value in bundle.models:
            asked = replace(_own(bundle.models[value], looks[value]), own=value == role)
        else:
            asked = _named(value)
        _try_out(role, asked)
        pinned = looks[role].digests.template if asked.own else None
        models[role] = replace(
            model, template=asked.name, template_file=None, template_sha256=pinned
        )
        if asked.text is not None and not asked.own:
            files[role] = asked.text.encode("utf-8")
    return replace(bundle, models=models), files


def _own(model: ModelFile, look: Look) -> _Asked:
    """What its bundle or its file says."""
    from capt_local.bundle.manifest import Style
    from capt_local.bundle.verify import check_template, read_template

    if model.template_file is not None:
        return _Asked(text=read_template(model))
    if model.template is not None:
        return _Asked(name=model.template)
    if model.style is Style.RAW:
        return _Asked(name="plain")
    if look.template is None:
        other = "base" if model.role.startswith("expert") else "expert"
        raise UsageError(
            f"The {model.role} has no chat template in its file. Give one with --template "
            f"{model.role}={other} (that of the {other}), {model.role}=plain or "
            f"{model.role}=FILE."
        )
    check_template(model, look.template.encode("utf-8"))
    return _Asked(text=look.template, own=True)


def _named(value: str) -> _Asked:
    from capt_local.prompt.template import LARGEST_TEMPLATE
    from capt_local.strict.files import read_bytes, utf8
    from capt_local.strict.problems import NotReadable

    if value in _BUILT_IN:
        return _Asked(name=value)
    data = read_bytes(Path(value), "The template (--template)", largest=LARGEST_TEMPLATE)
    try:
        return _Asked(text=utf8(data))
    except NotReadable as error:
        raise UsageError(f"The template (--template): {error}.") from None


def _try_out(role: str, asked: _Asked) -> None:
    """Renders a plain question."""
    from capt_local.prompt.messages import Message
    from capt_local.prompt.named import named_template
    from capt_local.prompt.template import ChatTemplate

    source = asked.text if asked.text is not None else named_template(asked.name or "")
    ChatTemplate(source, role=role).scaffold([Message("user", "?")])

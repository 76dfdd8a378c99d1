"""Chat templates for models that bring none, by name.

`plain` writes what was said and nothing else, each part followed by an empty line: the system
text, the user's text, and so on; the answer begins behind the last empty line.
"""

from __future__ import annotations

import datetime

from capt_local.bundle.manifest import ModelFile, Style
from capt_local.bundle.verify import check_template, read_template
from capt_local.errors import ModelError
from capt_local.prompt.template import ChatTemplate

PLAIN = "{% for message in messages %}{{ message.content }}{{ '\\n\\n' }}{% endfor %}"
CHATML = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
_NAMED = {"plain": PLAIN, "chatml": CHATML}


def named_template(name: str) -> str:
    """The source of a built-in template.

    Raises:
        ModelError: there is none of that name.
    """
    try:
        return _NAMED[name]
    except KeyError:
        known = ", ".join(_NAMED)
        raise ModelError(
            f"No built-in chat template has the name {name!r}; known: {known}."
        ) from None


def open_template(
    model: ModelFile,
    own: str | None,
    *,
    bos: str = "",
    eos: str = "",
    date: datetime.date | None = None,
) -> ChatTemplate:
    """The chat template that a model is to be asked with.

    What the bundle names comes first, then the one in the model's file. A model in raw style takes
    the text as it is; for a conversation that is `plain`.

    Args:
        model: as the bundle describes it.
        own: the template in the GGUF file, if there is one.
        bos: how a template writes the token that begins a sequence.
        eos: how it writes the token that ends one.
        date: what it takes for today; None: today.

    Raises:
        ModelError: there is none, it is broken, or not the one that the bundle names.
    """
    if model.template_file is not None:
        source = read_template(model)
    elif model.template is not None:
        source = named_template(model.template)
    elif model.style is Style.RAW:
        source = PLAIN
    elif own is not None:
        check_template(model, own.encode("utf-8"))
        source = own
    else:
        raise ModelError(
            f"The {model.role} has no chat template: use --raw, or name one in the bundle "
            f'(template = "plain").'
        )
    return ChatTemplate(source, role=model.role, date=date, bos=bos, eos=eos)

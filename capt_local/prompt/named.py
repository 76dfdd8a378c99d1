"""Chat templates for models that bring none, by name.

`plain` writes what was said and nothing else, each part followed by an empty line: the system
text, the user's text, and so on; the answer begins behind the last empty line.
"""

from __future__ import annotations

import datetime

from capt_local.bundle.manifest import ModelFile, Style
from capt_local.bundle.verify import check_template, read_template
from capt_local.errors import ModelError, UsageError
from capt_local.prompt.template import LARGEST_TEMPLATE, ChatTemplate
from capt_local.vocab.vocabulary import Vocabulary

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


def given_template(argument: str) -> str:
    """The source of the template that `--template NAME|FILE` names.

    Raises:
        UsageError: it is neither a known name nor a readable file of UTF-8.
    """
    if argument in _NAMED:
        return _NAMED[argument]
    try:
        with open(argument, "rb") as stream:
            return stream.read(LARGEST_TEMPLATE + 1).decode()
    except OSError as error:
        raise UsageError(
            f"--template takes {', '.join(_NAMED)}, or a file, and that cannot be read: "
            f"{error.strerror}."
        ) from None
    except UnicodeDecodeError:
        raise UsageError("The file of --template is not UTF-8.") from None


def has_template(model: ModelFile, own: str | None) -> bool:
    """Whether a model can be asked without `--template` or `--raw`.

    Args:
        model: as the bundle describes it.
        own: the template in the GGUF file, if there is one.
    """
    named = model.template_file is not None or model.template is not None
    return named or model.style is Style.RAW or own is not None


def open_template(
    model: ModelFile,
    own: str | None,
    vocabulary: Vocabulary,
    *,
    given: str | None = None,
    date: datetime.date | None = None,
) -> ChatTemplate:
    """The chat template that a model is to be asked with.

    What the user gives comes first, for the target and for models that have none; then what the
    bundle names, then the one in the model's file. A model in raw style takes the text as it is;
    for a conversation that is `plain`.

    Args:
        model: as the bundle describes it.
        own: the template in the GGUF file, if there is one.
        vocabulary: of the model; says how a template writes BOS and EOS.
        given: the source of the template that the user gives; see `given_template`.
        date: what it takes for today; None: today.

    Raises:
        ModelError: there is none, it is broken, or not the one that the bundle names.
    """
    if given is not None and (model.role == "target" or not has_template(model, own)):
        source = given
    elif model.template_file is not None:
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
            f"The {model.role} has no chat template: use --raw, give one with --template, or name "
            f'one in the bundle (template = "plain").'
        )

    def written(token: int | None) -> str:
        return "" if token is None else vocabulary.piece(token).decode("utf-8", "replace")

    bos, eos = written(vocabulary.bos), written(vocabulary.eos)
    return ChatTemplate(source, role=model.role, date=date, bos=bos, eos=eos)

from __future__ import annotations

import datetime
from pathlib import Path

import pytest

from capt_local.bundle.manifest import ModelFile, Style
from capt_local.errors import ModelError
from capt_local.prompt.messages import Message
from capt_local.prompt.named import PLAIN, open_template


def model(**values: object) -> ModelFile:
    return ModelFile(role="expert", path=Path("model.gguf"), size=1, **values)  # type: ignore[arg-type]


def test_which_template_a_model_is_asked_with() -> None:
    marked, user = "own:{{ messages[0].content }}", [Message("user", "x")]

    def first(found: ModelFile, own: str | None) -> object:
        return open_template(found, own).scaffold(user).parts[0]

    assert first(model(), marked) == "own:"
    assert first(model(template="chatml"), marked) == "<|im_start|>user\n"
    assert first(model(template="plain"), marked) == 0
    assert first(model(style=Style.RAW), None) == 0


def test_a_model_without_a_template_says_what_to_do() -> None:
    with pytest.raises(ModelError, match=r"The expert has no chat template: use --raw, or name"):
        open_template(model(), None)


def test_an_unknown_name_lists_the_known_ones() -> None:
    with pytest.raises(ModelError, match="known: plain, chatml"):
        open_template(model(template="other"), None)


def test_the_model_s_own_template_can_be_pinned() -> None:
    pinned = model(template_sha256="0" * 64)
    with pytest.raises(ModelError, match="template of the expert is not the one"):
        open_template(pinned, PLAIN)


def test_the_date_reaches_the_template() -> None:
    found = open_template(model(), "{{ strftime_now('%Y') }}", date=datetime.date(1999, 1, 1))
    with pytest.raises(ModelError, match="leaves out message 1"):
        found.scaffold([Message("user", "x")])
    own = "{{ strftime_now('%Y') }}{{ messages[0].content }}"
    pinned = open_template(model(), own, date=datetime.date(1999, 1, 1))
    assert pinned.scaffold([Message("user", "x")]).parts == ("1999", 0)

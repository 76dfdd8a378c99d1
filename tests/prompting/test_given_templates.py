from __future__ import annotations

import datetime
from pathlib import Path

import pytest

from capt_local.bundles.manifest import ModelFile, Style
from capt_local.errors import ModelError, UsageError
from capt_local.prompting.messages import Message
from capt_local.prompting.template import PLAIN, given_template, open_template
from tests.fakes import make_vocabulary

VOCABULARY = make_vocabulary([])


def model(**values: object) -> ModelFile:
    return ModelFile(role="expert", path=Path("model.gguf"), size=1, **values)  # type: ignore[arg-type]


def test_which_template_a_model_is_asked_with() -> None:
    marked, user = "own:{{ messages[0].content }}", [Message("user", "x")]

    def first(found: ModelFile, own: str | None) -> object:
        return open_template(found, own, VOCABULARY).scaffold(user).parts[0]

    assert first(model(), marked) == "own:"
    assert first(model(template="chatml"), marked) == "<|im_start|>user\n"
    assert first(model(template="plain"), marked) == 0
    assert first(model(style=Style.RAW), None) == 0


def test_a_model_without_a_template_says_what_to_do() -> None:
    with pytest.raises(ModelError, match="The expert has no chat template: use --raw"):
        open_template(model(), None, VOCABULARY)


def test_an_unknown_name_lists_the_known_ones() -> None:
    with pytest.raises(ModelError, match="known: plain, chatml"):
        open_template(model(template="other"), None, VOCABULARY)


def test_the_model_s_own_template_can_be_pinned() -> None:
    pinned = model(template_sha256="0" * 64)
    with pytest.raises(ModelError, match="template of the expert is not the one"):
        open_template(pinned, PLAIN, VOCABULARY)


def test_the_date_reaches_the_template() -> None:
    found = open_template(
        model(), "{{ strftime_now('%Y') }}", VOCABULARY, date=datetime.date(1999, 1, 1)
    )
    with pytest.raises(ModelError, match="leaves out message 1"):
        found.scaffold([Message("user", "x")])
    own = "{{ strftime_now('%Y') }}{{ messages[0].content }}"
    pinned = open_template(model(), own, VOCABULARY, date=datetime.date(1999, 1, 1))
    assert pinned.scaffold([Message("user", "x")]).parts == ("1999", 0)


def test_a_given_template_is_for_the_target_and_for_models_without(tmp_path: Path) -> None:
    own, given = "own:{{ messages[0].content }}", tmp_path / "template"
    given.write_text("given:{{ messages[0].content }}")
    source = given_template(str(given))
    for role, brings, wanted in (
        ("target", own, "given:"),
        ("expert", own, "own:"),
        ("base", None, "given:"),
    ):
        file = ModelFile(role=role, path=Path("model.gguf"), size=1)
        found = open_template(file, brings, VOCABULARY, given=source)
        assert found.scaffold([Message("user", "x")]).parts[0] == wanted
    assert given_template("plain") == PLAIN


def test_a_given_template_that_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / "bytes").write_bytes(b"\xff")
    for argument in ("zyzzyva", str(tmp_path), str(tmp_path / "bytes")):
        with pytest.raises(UsageError, match="--template") as caught:
            given_template(argument)
        assert "zyzzyva" not in str(caught.value)

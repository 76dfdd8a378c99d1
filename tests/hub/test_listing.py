"""Whatever a hub says, it is understood or refused in one line."""

from __future__ import annotations

import json
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from capt_local.errors import ModelError
from capt_local.hub.listing import licence_word, read_listing
from capt_local.hub.part import COMMIT, is_file_name
from capt_local.hub.passing import Passing
from capt_local.hub.refusal import refused
from tests.hub.mirror import Repository

NAME = "maker/model-GGUF"
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8) | st.just("1" * 40),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner),
    max_leaves=6,
)
KEYS = ["id", "sha", "gated", "siblings", "cardData", "tags", "lastModified", "safetensors", "lfs"]
SIBLINGS = st.lists(
    st.dictionaries(st.sampled_from(["rfilename", "size", "lfs", "blobId"]), VALUES), max_size=3
)


@settings(max_examples=300)
@given(st.dictionaries(st.sampled_from(KEYS), VALUES, max_size=4), SIBLINGS)
def test_any_listing_is_understood_or_refused(
    changes: dict[str, Any], siblings: list[dict[str, Any]]
) -> None:
    whole = Repository({"a.gguf": b"GGUF"}).described(NAME)
    whole["siblings"] = [*whole["siblings"], *siblings]
    try:
        found = read_listing(json.dumps({**whole, **changes}).encode(), NAME)
    except ModelError as error:
        assert str(error).startswith(f"{NAME}: what the hub says of it is not understood")
        return
    assert COMMIT.fullmatch(found.commit)
    for name, file in found.files.items():
        assert is_file_name(name) and ".." not in name.split("/") and file.size > 0


@given(
    st.integers(100, 999),
    st.dictionaries(
        st.sampled_from(["X-Error-Code", "X-Error-Message", "Retry-After"]), st.text(max_size=20)
    ),
    st.booleans(),
)
def test_any_refusal_has_words_of_ours(status: int, headers: dict[str, str], known: bool) -> None:
    error = refused(status, {**headers, "X-Error-Message": "SECRET"}, NAME, known)
    assert isinstance(error, ModelError | Passing)
    assert "SECRET" not in str(error) and str(error).isascii()
    if isinstance(error, Passing):
        assert error.wait is None or 0 <= error.wait <= 1e6


def test_names_of_licences() -> None:
    class Card:
        license: object = None
        license_name: object = None

    def word(license: object, tags: object = None, name: object = None) -> str | None:
        card = Card()
        card.license, card.license_name = license, name
        return licence_word(card, tags)

    assert word("Apache-2.0") == "apache-2.0"
    assert (
        word("other", name="Health AI Developer Foundations") == "health-ai-developer-foundations"
    )
    assert word("other") == "other"
    assert word(["mit"]) == "mit" and word(["mit", "llama3"]) == "mit+llama3"
    assert word(None, ["x", "license:llama3"]) == "llama3"
    assert word(None, ["license:a", "license:b"]) == "a+b"
    assert word(None) is None and word([]) is None and word("") is None
    assert word("\x1b[2J") == word("x" * 99) == word({"a": 1}) == "other"
    assert licence_word(None, None) is None

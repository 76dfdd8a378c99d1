"""What a pulled stick or a stop leaves behind."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from capt_local.bundles import store
from capt_local.bundles.manifest import Bundle
from capt_local.bundles.staging import clear, leftovers
from capt_local.errors import ModelError
from tests.bundles.travelling import Hands


@pytest.fixture
def hands(tmp_path: Path) -> Hands:
    return Hands.at(tmp_path / "hands")


def stop(hands: Hands, path: Path) -> None:
    """An import that is stopped in its first file."""

    def report(file: str, _: float) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        hands.take(path, report=report)


def test_what_is_left_is_told_and_deleted(hands: Hands) -> None:
    path = hands.export("trio.capt")
    stop(hands, path)
    (found,) = leftovers()
    assert (found.name, found.busy) == ("trio", False) and found.size > 1000
    clear("trio")
    assert leftovers() == []
    assert os.listdir(store.staging_folder()) == ["trio.lock"]
    assert hands.take(path).resumed == 0


def test_what_is_being_imported_is_never_touched(hands: Hands) -> None:
    def during(_: Bundle) -> None:
        assert [each.busy for each in leftovers()] == [True]
        with pytest.raises(ModelError, match="trio is being imported already"):
            clear("trio")

    assert hands.take(hands.export("trio.capt"), examine=during).fresh


def test_what_a_power_cut_took_out_of_the_store_goes_back(hands: Hands) -> None:
    hands.take(hands.export("trio.capt", "1"))
    os.rename(store.user_folder() / "trio", store.staging_folder() / "trio.old")
    (found,) = leftovers()
    assert found.name == "trio"
    clear("trio")
    assert store.find("trio").version == "1"
    assert leftovers() == []


def test_links_are_not_followed(hands: Hands, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "note").write_text("mine")
    store.staging_folder().mkdir(parents=True)
    (store.staging_folder() / "trio").symlink_to(tmp_path / "mine")
    clear("trio")
    assert (tmp_path / "mine" / "note").read_text() == "mine"
    assert leftovers() == []

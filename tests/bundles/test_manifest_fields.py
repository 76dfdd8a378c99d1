"""What a manifest says of a bundle besides its files: versions, dates, digests, the card."""

from __future__ import annotations

import datetime
from dataclasses import replace
from pathlib import Path

import pytest

from capt_local import __version__
from capt_local.bundles import manifest_file
from capt_local.bundles.create import describe, manifest_text, write_manifest
from capt_local.bundles.manifest import MANIFEST, Bundle
from capt_local.bundles.manifest_file import is_older, read_bundle, version_numbers
from capt_local.errors import ModelError

TODAY = datetime.date(2026, 6, 1)


@pytest.fixture
def bundle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Bundle:
    monkeypatch.setattr(manifest_file, "version", lambda _: "0.3.36")
    (tmp_path / "target.gguf").write_bytes(b"GGUF target")
    target = describe(
        "target", tmp_path / "target.gguf", tokenizer_sha256="ab" * 32, template_sha256="cd" * 32
    )
    return Bundle(
        id="one",
        models={"target": target},
        version="1.10",
        requires="0.1",
        tested_with="0.3.36",
        review_by="2026-06-01",
        card={"intended_use": "Drafts.\nFor review.", "risks": "It makes things up."},
        folder=tmp_path,
    )


def changed(bundle: Bundle, old: str, new: str) -> Path:
    """The manifest with a change in its text."""
    assert bundle.folder is not None
    text = manifest_text(bundle, bundle.folder)
    assert old in text
    file = bundle.folder / MANIFEST
    file.write_text(text.replace(old, new))
    return file


def test_what_is_written_reads_back(bundle: Bundle) -> None:
    assert bundle.folder is not None
    again = read_bundle(write_manifest(bundle, bundle.folder), TODAY)
    assert again == bundle
    assert again.models["target"].tokenizer_sha256 == "ab" * 32
    assert "review_by = 2026-06-01\n" in (bundle.folder / MANIFEST).read_text()


def test_a_review_that_is_past_is_a_notice(bundle: Bundle) -> None:
    assert bundle.folder is not None
    file = write_manifest(bundle, bundle.folder)
    assert read_bundle(file, TODAY).notices == ()
    (told,) = read_bundle(file, TODAY + datetime.timedelta(days=1)).notices
    assert "one was to be reviewed by 2026-06-01, which is past" in told


def test_the_clock_decides_where_no_day_is_given(bundle: Bundle) -> None:
    assert bundle.folder is not None
    write_manifest(replace(bundle, review_by="1999-12-31"), bundle.folder)
    assert len(read_bundle(bundle.folder).notices) == 1
    write_manifest(replace(bundle, review_by="9999-12-31"), bundle.folder)
    assert read_bundle(bundle.folder).notices == ()


def test_an_engine_that_it_was_not_tested_with_is_a_notice(bundle: Bundle) -> None:
    (told,) = read_bundle(changed(bundle, '"0.3.36"', '"0.3.9"'), TODAY).notices
    assert "tested with llama-cpp-python 0.3.9; here it runs with 0.3.36" in told


@pytest.mark.parametrize(
    ("old", "new"), [('requires = "0.1"', 'requires = "999.1"'), ("schema = 1", "schema = 2")]
)
def test_a_bundle_for_a_newer_program_is_refused_by_name(
    bundle: Bundle, old: str, new: str
) -> None:
    # What a newer format knows, this one does not: the age is told, not the unknown key.
    file = changed(bundle, old, f"{new}\nnovelty = 1")
    with pytest.raises(
        ModelError, match=r"the bundle one was made for a newer capt-local"
    ) as caught:
        read_bundle(file)
    assert "Update capt-local" in str(caught.value)


def test_a_bundle_for_this_program_is_not_for_a_newer_one(bundle: Bundle) -> None:
    file = changed(bundle, 'requires = "0.1"', f'requires = "{__version__}"')
    assert read_bundle(file, TODAY).requires == __version__


@pytest.mark.parametrize(
    ("old", "new", "problem"),
    [
        ('requires = "0.1"', 'requires = "new"', "requires must be a version"),
        ("= 2026-06-01", '= "2026-06-01"', "review_by must be a day without quotes"),
        ("= 2026-06-01", "= 2026-06-01T00:00:00", "review_by must be a day without quotes"),
        ('risks = "', "risks = 1 #", r"card\.risks must be a text"),
        ("ab" * 32, "AB" * 32, r"models\.target\.tokenizer_sha256 must be a SHA-256"),
        ('tested_with = "', "tested_with = 1 #", "tested_with must be a text"),
    ],
)
def test_bad_values_name_the_key(bundle: Bundle, old: str, new: str, problem: str) -> None:
    with pytest.raises(ModelError, match=problem):
        read_bundle(changed(bundle, old, new))


def test_versions() -> None:
    assert version_numbers("1.10.0") == (1, 10)
    assert [version_numbers(odd) for odd in ("", "1.", "v1", "1.2.3.4.5", "1-2", "1" * 10)] == [
        None
    ] * 6
    assert is_older("1.9", "1.10") and is_older("1", "1.0.1")
    assert not is_older("1.0", "1") and not is_older("2", "1.9")
    assert not is_older("new", "2") and not is_older("2", "new")

from __future__ import annotations

import hashlib
import math
import os
from pathlib import Path

import pytest

from capt_local.bundles.create import describe, manifest_text, write_manifest
from capt_local.bundles.manifest import ALPHA_LIMIT, MANIFEST, Bundle, Defaults, Style
from capt_local.bundles.manifest_file import read_bundle
from capt_local.bundles.verify import read_template, verify
from capt_local.decoding.options import CombineOptions
from capt_local.errors import ModelError, UsageError

CONTENT = {"target": b"GGUF target", "expert": b"GGUF expert", "base": b"GGUF base"}
HEAD = 'schema = 1\nid = "trio"\n'


def table(role: str, **changes: str | None) -> str:
    """One [models.*] table as text; a change of None leaves the key out."""
    values: dict[str, str | None] = {
        "file": f'"{role}.gguf"',
        "size": str(len(CONTENT.get(role, b""))),
        "sha256": f'"{hashlib.sha256(CONTENT.get(role, b"")).hexdigest()}"',
    } | changes
    lines = [f"{key} = {value}\n" for key, value in values.items() if value is not None]
    return f"[models.{role}]\n" + "".join(lines)


TARGET, PROXIES = table("target"), table("expert") + table("base")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    place = tmp_path / "trio"
    place.mkdir()
    for role, content in CONTENT.items():
        (place / f"{role}.gguf").write_bytes(content)
    (place / "chat.jinja").write_text("{{ messages[0].content }}")
    return place


def load(folder: Path, text: str | bytes) -> Bundle:
    data = text.encode() if isinstance(text, str) else text
    (folder / MANIFEST).write_bytes(data)
    return read_bundle(folder)


def test_a_whole_manifest(folder: Path) -> None:
    digest = hashlib.sha256((folder / "chat.jinja").read_bytes()).hexdigest()
    bundle = load(
        folder,
        HEAD + 'title = "T"\nversion = "1.2"\nlicence = "L"\ndescription = """a\nb"""\n'
        "context = 2048\n"
        '[defaults]\nmethod = "capt"\nalpha = 0.75\nplausibility = 0.1\ntemperature = 0\n'
        "max_tokens = 9\n"
        + table("target", template_file='"chat.jinja"', template_sha256=f'"{digest}"')
        + table("expert", style='"raw"', licence='"CC0"', source='"here"')
        + table("base", template='"plain"'),
    )
    assert (bundle.id, bundle.title, bundle.version) == ("trio", "T", "1.2")
    assert (bundle.licence, bundle.description, bundle.context) == ("L", "a\nb", 2048)
    assert bundle.defaults == Defaults("capt", (0.75,), 0.1, 0.0, 9)
    assert list(bundle.models) == ["target", "expert", "base"]
    target, expert, base = bundle.models.values()
    assert target.path == folder / "target.gguf"
    assert target.template_file == folder / "chat.jinja"
    assert target.template_sha256 == digest
    assert read_template(target) == "{{ messages[0].content }}"
    assert (expert.style, expert.licence, expert.source) == (Style.RAW, "CC0", "here")
    assert base.template == "plain"
    assert not bundle.notices
    verify(bundle)


def test_a_target_alone_is_a_bundle(folder: Path) -> None:
    bundle = load(folder, HEAD + TARGET)
    assert list(bundle.models) == ["target"]
    assert bundle.defaults == Defaults()
    assert bundle.models["target"].style is Style.CHAT


def test_alpha_has_the_bounds_of_the_decoder(folder: Path) -> None:
    text = HEAD + f"[defaults]\nalpha = {-ALPHA_LIMIT}\n" + TARGET
    CombineOptions(alphas=load(folder, text).defaults.alphas)
    with pytest.raises(UsageError):
        CombineOptions(alphas=(math.nextafter(ALPHA_LIMIT, math.inf),))


def test_alpha_from_the_evidence_can_be_named(folder: Path) -> None:
    assert load(folder, HEAD + '[defaults]\nalpha = "evidence"\n' + TARGET).defaults.alphas == ()


BAD = {
    "not toml": ("id = [", "not valid TOML"),
    "not utf-8": (b'id = "\xff"', "not UTF-8"),
    "nested without end": ("a = " + "[" * 5000, "not valid TOML"),
    "a number without end": (HEAD + f"context = {'1' * 5000}\n" + TARGET, "too many digits"),
    "too large": (b"#" * (1 << 20) + b"\n", "larger than 1 MiB"),
    "no schema": ('id = "x"\n' + TARGET, "schema must be 1"),
    "later schema": (
        'schema = 2\nid = "x"\n' + TARGET,
        "bundle x was made for a newer",
    ),
    "schema of another type": ('schema = "1"\nid = "x"\n' + TARGET, "schema must be 1"),
    "schema true": ('schema = true\nid = "x"\n' + TARGET, "schema must be 1"),
    "no id": ("schema = 1\n" + TARGET, "id is missing"),
    "id a path": ('schema = 1\nid = "../x"\n' + TARGET, "id must be 1 to 64 letters"),
    "id empty": ('schema = 1\nid = ""\n' + TARGET, "id must be 1 to 64 letters"),
    "id a number": ("schema = 1\nid = 7\n" + TARGET, "id must be a text"),
    "title with an escape": (HEAD + 'title = "\\u001b]0;x"\n' + TARGET, "title holds control"),
    "context zero": (HEAD + "context = 0\n" + TARGET, "context must be at least 1"),
    "context a fraction": (HEAD + "context = 1.5\n" + TARGET, "context must be a whole number"),
    "unknown key": (HEAD + "contxt = 1\n" + TARGET, "contxt is not known"),
    "unknown odd key": (HEAD + '"\\u001b[2J" = 1\n' + TARGET, "a key with odd characters is not"),
    "models not a table": (HEAD + "models = 1\n", "models must be a table"),
    "no models": (HEAD, "models.target is missing"),
    "no target": (HEAD + PROXIES, "models.target is missing"),
    "no base": (HEAD + TARGET + table("expert"), "models.base is missing; .* both expert and"),
    "no expert": (HEAD + TARGET + table("base"), "models.expert is missing; .* both expert and"),
    "unknown role": (HEAD + TARGET + table("judge"), "models.roles are target, expert, base"),
    "role not a table": (HEAD + 'models.target = "x"\n', "models must be a table"),
    "unknown key of a model": (HEAD + table("target", sha1='"x"'), "models.target.sha1 is not"),
    "no file": (HEAD + table("target", file=None), "models.target.file is missing"),
    "no size": (HEAD + table("target", size=None), "models.target.size is missing"),
    "no digest": (HEAD + table("target", sha256=None), "models.target.sha256 is missing"),
    "file not there": (HEAD + table("target", file='"x.gguf"'), "names x.gguf, which is not there"),
    "file a folder": (HEAD + table("target", file='"."'), "must name a file"),
    "file empty": (HEAD + table("target", file='""'), "must name a file inside"),
    "file absolute": (HEAD + table("target", file='"/etc/passwd"'), "must be a path relative"),
    "file above": (HEAD + table("target", file='"../x"'), "must name a file inside"),
    "file with backslash": (HEAD + table("target", file="'..\\x'"), "must be a path relative"),
    "file on a drive": (HEAD + table("target", file='"C:x"'), "must be a path relative"),
    "size negative": (HEAD + table("target", size="-1"), "models.target.size must be at least 1"),
    "size huge": (HEAD + table("target", size="9" * 30), "size must be|not valid TOML"),
    "digest short": (HEAD + table("target", sha256='"abc"'), "sha256 must be a SHA-256 of 64"),
    "digest upper": (HEAD + table("target", sha256=f'"{"A" * 64}"'), "sha256 must be a SHA-256"),
    "style unknown": (HEAD + table("target", style='"x"'), "target.style is none of the words"),
    "template twice": (
        HEAD + table("target", template='"plain"', template_file='"chat.jinja"'),
        "models.target.template names a built-in",
    ),
    "template file unpinned": (
        HEAD + table("target", template_file='"chat.jinja"'),
        "template_sha256 is missing",
    ),
    "defaults unknown": (HEAD + "[defaults]\ntop = 1\n" + TARGET, "defaults.top is not known"),
    "method unknown": (HEAD + '[defaults]\nmethod = "x"\n' + TARGET, "method must be one of capt"),
    "alpha a word": (
        HEAD + '[defaults]\nalpha = "x"\n' + TARGET,
        "defaults.alpha must be a number",
    ),
    "alpha large": (HEAD + "[defaults]\nalpha = 8.5\n" + TARGET, "defaults.alpha must be"),
    "alpha huge": (
        HEAD + f"[defaults]\nalpha = {'9' * 400}\n" + TARGET,
        "defaults.alpha (must be|is out of range)",
    ),
    "alpha infinite": (
        HEAD + "[defaults]\nalpha = -inf\n" + TARGET,
        "defaults.alpha (must be|is out of range)",
    ),
    "alphas huge": (
        HEAD + f"[defaults]\nalpha = [0x{'f' * 9000}]\n" + TARGET,
        "alpha is out of range",
    ),
    "alpha nan": (
        HEAD + "[defaults]\nalpha = nan\n" + TARGET,
        "defaults.alpha (must be|is out of range)",
    ),
    "alpha true": (HEAD + "[defaults]\nalpha = true\n" + TARGET, "alpha must be a number"),
    "plausibility": (
        HEAD + "[defaults]\nplausibility = 2\n" + TARGET,
        "plausibility must be at most 1",
    ),
    "temperature": (
        HEAD + "[defaults]\ntemperature = -1\n" + TARGET,
        "temperature must be at least 0",
    ),
    "max tokens": (HEAD + "[defaults]\nmax_tokens = 0\n" + TARGET, "must be at least 1"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_manifests_name_the_file_and_the_key(folder: Path, case: str) -> None:
    text, problem = BAD[case]
    with pytest.raises(ModelError, match=problem) as caught:
        load(folder, text)
    message = str(caught.value)
    assert message.startswith(str(folder / MANIFEST))
    assert "\n" not in message
    assert "\x1b" not in message
    assert caught.value.__cause__ is None


@pytest.mark.skipif(not hasattr(os, "symlink"), reason="no links on this system")
def test_a_link_may_not_leave_the_folder(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "outside.gguf").write_bytes(CONTENT["target"])
    (folder / "target.gguf").unlink()
    (folder / "target.gguf").symlink_to(tmp_path / "outside.gguf")
    with pytest.raises(ModelError, match=r"models.target.file is a link that leaves"):
        load(folder, HEAD + TARGET)


@pytest.mark.skipif(not hasattr(os, "symlink"), reason="no links on this system")
def test_a_link_that_leads_to_itself(folder: Path) -> None:
    (folder / "loop").symlink_to("loop")
    for name in ("loop", "loop/target.gguf"):
        with pytest.raises(ModelError, match=r"models\.target\.file (is a link|names loop)"):
            load(folder, HEAD + table("target", file=f'"{name}"'))


def test_a_name_that_no_file_can_have(folder: Path) -> None:
    with pytest.raises(ModelError, match=r"models\.target\.file (cannot be read|names xxx)"):
        load(folder, HEAD + table("target", file=f'"{"x" * 300}"'))


def test_a_missing_manifest(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="manifest cannot be read: No such file"):
        read_bundle(tmp_path)


def test_bundle_of_files(folder: Path) -> None:
    paths = [folder / f"{role}.gguf" for role in CONTENT]
    bundle = Bundle.from_paths(*paths)
    assert [model.path for model in bundle.models.values()] == paths
    assert all(model.sha256 is None for model in bundle.models.values())
    assert "no manifest says whether they are the right ones" in bundle.notices[0]
    verify(bundle)
    assert list(Bundle.from_paths(str(paths[0])).models) == ["target"]


@pytest.mark.parametrize(("given", "missing"), [("expert", "base"), ("base", "expert")])
def test_files_of_expert_and_base_come_together(folder: Path, given: str, missing: str) -> None:
    target = folder / "target.gguf"
    with pytest.raises(UsageError, match=f"{given} is given without the {missing}"):
        Bundle.from_paths(target, **{given: folder / f"{given}.gguf"})


def test_a_missing_file_is_named_by_its_role(folder: Path) -> None:
    files = [folder / "target.gguf", folder / "none.gguf", folder / "base.gguf"]
    with pytest.raises(ModelError, match=r"The expert model none\.gguf is not there"):
        Bundle.from_paths(*files)


def described(folder: Path, **changes: object) -> Bundle:
    models = {
        role: describe(role, folder / f"{role}.gguf") for role in ("target", "expert", "base")
    }
    return Bundle(id="trio", models=models, **changes)  # type: ignore[arg-type]


def test_what_is_written_reads_back(folder: Path) -> None:
    bundle = described(
        folder,
        title='"quoted" \\ ünï \N{GRINNING FACE}',
        description="one\ntwo\ttab",
        context=512,
        defaults=Defaults("capt", (), 1e-5, 0.0, 64),
    )
    file = write_manifest(bundle, folder)
    again = read_bundle(file)
    assert again.title == bundle.title
    assert again.description == bundle.description
    assert again.models == bundle.models
    assert again.defaults == bundle.defaults
    verify(again)
    assert sorted(path.name for path in folder.iterdir()) == sorted(
        [MANIFEST, "chat.jinja", *(f"{role}.gguf" for role in CONTENT)]
    )


def test_the_same_bundle_gives_the_same_bytes(folder: Path) -> None:
    first = write_manifest(described(folder), folder).read_bytes()
    assert write_manifest(described(folder), folder).read_bytes() == first
    assert manifest_text(described(folder), folder).encode() == first


def test_a_bundle_that_would_not_read_back_leaves_no_file(folder: Path) -> None:
    with pytest.raises(ModelError, match="title holds control characters"):
        write_manifest(described(folder, title="\x1b"), folder)
    assert not list(folder.glob(f"{MANIFEST}*"))


def test_models_of_a_bundle_lie_in_its_folder(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="does not lie in the folder"):
        write_manifest(described(folder), tmp_path / "elsewhere")


def test_files_without_a_digest_are_not_written(folder: Path) -> None:
    with pytest.raises(ModelError, match="target has no digest"):
        write_manifest(Bundle.from_paths(folder / "target.gguf"), folder)

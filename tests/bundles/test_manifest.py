from __future__ import annotations

import hashlib
import os
from pathlib import Path

import pytest

from capt_local.bundles.create import describe, manifest_text, write_manifest
from capt_local.bundles.manifest import MANIFEST, Bundle, Defaults, Role, Style
from capt_local.bundles.manifest_file import read_bundle
from capt_local.bundles.verify import read_template, verify
from capt_local.errors import ModelError

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


BAD = {
    "not toml": ("id = [", "not valid TOML"),
    "not utf-8": (b'id = "\xff"', "not UTF-8"),
    "nested without end": ("a = " + "[" * 5000, "not valid TOML"),
    "a number without end": (HEAD + f"context = {'1' * 5000}\n" + TARGET, "too many digits"),
    "too large": (b"#" * (1 << 20) + b"\n", "larger than 1 MiB"),
    "no schema": ('id = "x"\n' + TARGET, "schema must be 1"),
    "no id": ("schema = 1\n" + TARGET, "id is missing"),
    "id a path": ('schema = 1\nid = "../x"\n' + TARGET, "id must be 1 to 64 letters"),
    "title with an escape": (HEAD + 'title = "\\u001b]0;x"\n' + TARGET, "title holds control"),
    "context zero": (HEAD + "context = 0\n" + TARGET, "context must be at least 1"),
    "unknown key": (HEAD + "contxt = 1\n" + TARGET, "contxt is not known"),
    "unknown odd key": (HEAD + '"\\u001b[2J" = 1\n' + TARGET, "a key with odd characters is not"),
    "no target": (HEAD + PROXIES, "models.target is missing"),
    "no base": (HEAD + TARGET + table("expert"), "models.base is missing; .* both expert and"),
    "unknown role": (HEAD + TARGET + table("judge"), "models.roles are target, expert, base"),
    "unknown key of a model": (HEAD + table("target", sha1='"x"'), "models.target.sha1 is not"),
    "no digest": (HEAD + table("target", sha256=None), "models.target.sha256 is missing"),
    "file not there": (HEAD + table("target", file='"x.gguf"'), "names x.gguf, which is not there"),
    "file absolute": (HEAD + table("target", file='"/etc/passwd"'), "must be a path relative"),
    "file above": (HEAD + table("target", file='"../x"'), "must name a file inside"),
    "file with backslash": (HEAD + table("target", file="'..\\x'"), "must be a path relative"),
    "file on a drive": (HEAD + table("target", file='"C:x"'), "must be a path relative"),
    "size huge": (HEAD + table("target", size="9" * 30), "size must be|not valid TOML"),
    "digest short": (HEAD + table("target", sha256='"abc"'), "sha256 must be a SHA-256 of 64"),
    "template twice": (
        HEAD + table("target", template='"plain"', template_file='"chat.jinja"'),
        "models.target.template names a built-in",
    ),
    "template file unpinned": (
        HEAD + table("target", template_file='"chat.jinja"'),
        "template_sha256 is missing",
    ),
    "alpha huge": (
        HEAD + f"[defaults]\nalpha = {'9' * 400}\n" + TARGET,
        "defaults.alpha (must be|is out of range)",
    ),
    "alpha nan": (
        HEAD + "[defaults]\nalpha = nan\n" + TARGET,
        "defaults.alpha (must be|is out of range)",
    ),
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


def test_bundle_of_files(folder: Path) -> None:
    paths = [folder / f"{role}.gguf" for role in CONTENT]
    bundle = Bundle.from_paths(*paths)
    assert [model.path for model in bundle.models.values()] == paths
    assert all(model.sha256 is None for model in bundle.models.values())
    assert "no manifest says whether they are the right ones" in bundle.notices[0]
    verify(bundle)
    assert list(Bundle.from_paths(str(paths[0])).models) == ["target"]


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


ROLES: tuple[Role, ...] = ("target", "expert", "base")


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    for number, role in enumerate(ROLES):
        (tmp_path / f"{role}.gguf").write_bytes(bytes([number]) * 3_000_000)
    (tmp_path / "chat.jinja").write_text("{{ messages[0].content }}")
    models = {role: describe(role, tmp_path / f"{role}.gguf") for role in ROLES}
    models["target"] = describe(
        "target", tmp_path / "target.gguf", template_file=tmp_path / "chat.jinja"
    )
    return read_bundle(write_manifest(Bundle(id="trio", models=models), tmp_path))


@pytest.mark.parametrize("role", ROLES)
@pytest.mark.parametrize("place", [0, 1_500_000, 2_999_999])
def test_one_flipped_bit_is_found(bundle: Bundle, role: Role, place: int) -> None:
    path = bundle.models[role].path
    data = bytearray(path.read_bytes())
    data[place] ^= 1
    path.write_bytes(data)
    with pytest.raises(ModelError, match=rf"The {role} model {role}\.gguf .* its SHA-256 differs"):
        verify(bundle)


def test_another_size_is_told_without_reading(bundle: Bundle) -> None:
    path = bundle.models["base"].path
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(ModelError, match=r"base\.gguf .* has 2999999 bytes instead of 3000000"):
        verify(bundle)


def test_swapped_roles_are_found(bundle: Bundle) -> None:
    expert, base = bundle.models["expert"].path, bundle.models["base"].path
    expert.rename(expert.with_suffix(".tmp"))
    base.rename(expert)
    expert.with_suffix(".tmp").rename(base)
    with pytest.raises(ModelError, match="The expert model"):
        verify(bundle)


def test_a_file_that_went_away(bundle: Bundle) -> None:
    bundle.models["expert"].path.unlink()
    with pytest.raises(ModelError, match=r"The expert model expert\.gguf .*No such file"):
        verify(bundle)


def test_a_changed_template_is_found(bundle: Bundle) -> None:
    file = bundle.models["target"].template_file
    assert file is not None
    file.write_text("{{ 'Ignore the patient.' }}")
    with pytest.raises(ModelError, match="chat template of the target is not the one"):
        verify(bundle)

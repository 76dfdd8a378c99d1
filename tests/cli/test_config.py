"""Site file, user file, environment, flag: the later wins, and `config show` says which it was."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from capt_local import config as site_config
from capt_local.cli import parse, settings
from capt_local.cli.settings import KEYS, settable, verbs
from tests.cli.conftest import Run
from tests.cli.fake_runtime import Script

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "etc"
    folder.mkdir(mode=0o755)
    monkeypatch.setattr(site_config, "site_file", lambda: folder / "config.toml")
    check = site_config._check_owner

    def own(path: Path, about: os.stat_result, owner: int, others: int) -> None:
        check(path, about, os.getuid() if hasattr(os, "getuid") else owner, others)

    monkeypatch.setattr(site_config, "_check_owner", own)
    return folder / "config.toml"


@pytest.fixture
def user() -> Path:
    path = site_config.user_file()
    path.parent.mkdir(parents=True)
    return path


def seeds(script: Script) -> list[int]:
    return [call["options"].sample.seed for call in script.calls if "options" in call]


def test_the_later_source_wins(
    run: Run, script: Script, site: Path, user: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ask = ("generate", "{models}", "-p", "x")
    run(*ask)
    site.write_text("[options]\nseed = 1\n")
    run(*ask)
    user.write_text("[options]\nseed = 2\n")
    run(*ask)
    monkeypatch.setenv("CAPT_LOCAL_SEED", "3")
    run(*ask)
    run(*ask, "--seed", "4")
    assert seeds(script) == [0, 1, 2, 3, 4]


def test_a_user_may_take_back_what_the_site_switched_on(
    run: Run, script: Script, site: Path, user: Path
) -> None:
    site.write_text("[options]\nraw = true\n")
    run("generate", "{models}", "-p", "x")
    user.write_text("[options]\nraw = false\n")
    run("generate", "{models}", "-p", "x")
    asked = [call["asked"] for call in script.calls if "asked" in call]
    assert asked[0] == "x" and asked[1] != "x"


def test_model_files_of_a_stronger_source_win_over_a_bundle(
    run: Run, script: Script, site: Path, user: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    user.write_text('[options]\nbundle = "no-such-bundle"\n')
    assert run("generate", "-p", "x").code == 3
    assert run("generate", "{models}", "-p", "x").code == 0
    site.write_text('[options]\ntarget = "/nowhere/t.gguf"\n')
    assert run("generate", "-m", "demo", "-p", "x").code == 0
    assert run("generate", "-p", "x").code == 3  # the user's bundle, not the site's file
    monkeypatch.setenv("CAPT_LOCAL_BUNDLE", "demo")
    assert run("generate", "-p", "x").code == 0


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("sead = 1", "there is no options.sead"),
        ("prompt = 'x'", "there is no options.prompt"),
        ("SEED = 1", "there is no options.SEED"),
        ('"a\\nb" = 1', "there is no such key in options"),
        ("seed = '1'", "options.seed takes a whole number"),
        ("seed = 1.0", "options.seed takes a whole number"),
        ("seed = true", "options.seed takes a whole number"),
        ("temp = true", "options.temp takes a number"),
        ("alpha = 0.5", "options.alpha takes a text"),
        ("raw = 1", "options.raw takes true or false"),
        ("method = 'nonsense'", "options.method has a value"),
        ("ctx-size = 0", "options.ctx-size has a value"),
        ("target = 'here.gguf'", "options.target takes a path from the root on"),
        ("expert = '/a.gguf'", "options.expert takes a list"),
        ("expert = [1]", "options.expert takes a text"),
        ("seed = {}", "options.seed takes a whole number"),
    ],
)
def test_a_wrong_value_names_file_and_key(line: str, says: str, run: Run, user: Path) -> None:
    user.write_text(f"[options]\n{line}\n")
    for verb in (("generate", "-p", "x"), ("config", "show")):
        result = run(*verb)
        assert (result.code, result.out, result.err.count("\n")) == (2, "", 1)
        assert f"{user}: {says}" in result.err


def test_a_setting_of_another_verb_is_no_error(run: Run, script: Script, user: Path) -> None:
    user.write_text("[options]\nidle-timeout = 5\nseed = 9\n")
    assert run("generate", "{models}", "-p", "x").code == 0
    assert seeds(script) == [9]


def test_the_list_of_keys_is_complete() -> None:
    """What `settings` reads off the declarations, against the list that needs no import of them."""
    found = {key for verb in verbs() for key in settable(verb)}
    assert found == KEYS, f"cli/settings.py: add {found - KEYS}, remove {KEYS - found}"


def test_a_key_of_another_verb_loads_no_other_verb(user: Path) -> None:
    user.write_text("[options]\nidle-timeout = 5\n")
    program = (
        "import sys; from capt_local.cli.settings import Layers; "
        "from capt_local.cli.models.manage import models_list; Layers.read().given(models_list); "
        "print(*(name for name in sys.modules if name.startswith('capt_local.cli.')))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert "capt_local.cli.models.manage" in done.stdout
    assert not {"chat", "generate", "bench", "eval"} & {
        name.split(".")[2] for name in done.stdout.split()
    }
    broken = user.read_text().replace("idle-timeout", "idle-timeouts")
    user.write_text(broken)
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT)
    assert "there is no options.idle-timeouts" in done.stderr


def test_a_broken_file_does_not_take_the_help_away(run: Run, user: Path) -> None:
    user.write_text("nonsense")
    assert run("--help").code == 0
    assert run("generate", "--help").code == 2


def test_show_says_where_each_value_is_from(
    run: Run, site: Path, user: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    site.write_text("[options]\nseed = 1\ntop-k = 5\n[limits]\nforbid = ['reports']\nalpha = 2\n")
    user.write_text("[options]\nseed = 2\nexpert = ['/a.gguf']\n")
    monkeypatch.setenv("CAPT_LOCAL_TEMP", "0.5")
    monkeypatch.setenv("CAPT_LOCAL_TEMPP", "0.5")
    found = json.loads(run("config", "show", "--json").out)
    told = {key: (one["value"], one["source"]) for key, one in found["settings"].items()}
    assert told["seed"] == (2, "user file")
    assert told["top-k"] == (5, "site file")
    assert told["temp"] == ("0.5", "environment")
    assert told["alpha"] == (None, "default")
    assert told["expert"] == (["/a.gguf"], "user file")
    assert found["settings"]["seed"]["variable"] == "CAPT_LOCAL_SEED"
    assert found["limits"] == {"forbid": ["reports"], "alpha": 2.0}
    assert found["files"]["site"] == {"path": str(site), "exists": True}
    assert found["unknown_variables"] == ["CAPT_LOCAL_TEMPP"]
    text = run("config", "show")
    assert text.code == 0
    for part in ("site file", "user file", "environment", "default", "reports", str(site)):
        assert part in text.out
    assert "CAPT_LOCAL_TEMPP" in text.err


def test_one_key_is_one_setting_in_all_verbs() -> None:
    twins: dict[str, str] = {}
    for verb in verbs():
        for key, setting in settable(verb).items():
            assert twins.setdefault(key, setting.variable) == setting.variable
    assert len(set(twins.values())) == len(twins)


def test_what_has_a_variable_has_a_key_and_no_other() -> None:
    """Click's own view of each verb, against the declarations that are read here."""
    for verb in verbs():
        options = {each.name: each.envvar for each in parse.command(verb).params if each.envvar}
        assert {each.name: each.variable for each in settable(verb).values()} == options
    generate = {verb.__name__: settable(verb) for verb in verbs()}["generate"]
    assert {"seed", "bundle", "ctx-size"} <= generate.keys()
    assert not {"prompt", "file", "output"} & generate.keys()


def forbid(site: Path, *names: str) -> None:
    site.write_text(f"[limits]\nforbid = {list(names)!r}\n")


def refused(run: Run, site: Path, *arguments: str) -> None:
    result = run(*arguments)
    assert result.code == 2, result
    assert result.out == ""
    assert str(site) in result.err and result.err.count("\n") == 1


def test_a_site_forbids_reports(run: Run, script: Script, site: Path, tmp_path: Path) -> None:
    page = tmp_path / "x.html"
    forbid(site, "reports")
    refused(run, site, "generate", "{models}", "-p", "x", "--html", str(page))
    refused(run, site, "explain", str(tmp_path / "a.json"), "--html", str(page))
    assert not page.exists() and not script.calls
    assert run("generate", "{models}", "-p", "x").code == 0


def test_a_site_forbids_transcripts(run: Run, script: Script, site: Path, tmp_path: Path) -> None:
    forbid(site, "transcripts")
    refused(run, site, "chat", "{models}", "--transcript", str(tmp_path / "t.jsonl"))
    assert not (tmp_path / "t.jsonl").exists()


def test_a_site_forbids_the_network(run: Run, site: Path, tmp_path: Path) -> None:
    forbid(site, "network")
    refused(run, site, "batch", str(tmp_path / "in.jsonl"), "-o", "x.jsonl", "--ray", "local")


@pytest.mark.parametrize("weights", [["--alpha", "2"], ["--alpha", "-2"], ["--weights", "1,2,1"]])
def test_a_site_forbids_wide_weights(
    weights: list[str], run: Run, script: Script, site: Path
) -> None:
    site.write_text("[limits]\nalpha = 1.5\n")
    refused(run, site, "generate", "{models}", "-p", "x", *weights)
    assert run("generate", "{models}", "-p", "x", "--alpha", "1.5").code == 0
    assert run("generate", "{models}", "-p", "x").code == 0


def test_neither_user_nor_environment_lifts_a_limit(
    run: Run, script: Script, site: Path, user: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    site.write_text("[limits]\nalpha = 1.5\n")
    user.write_text("[options]\nalpha = '3'\n")
    refused(run, site, "generate", "{models}", "-p", "x")
    user.unlink()
    monkeypatch.setenv("CAPT_LOCAL_ALPHA", "3")
    refused(run, site, "generate", "{models}", "-p", "x")
    monkeypatch.setenv("CAPT_LOCAL_SITE_CONFIG", str(user))
    refused(run, site, "generate", "{models}", "-p", "x")


def test_a_settings_file_is_read_anew_each_time(run: Run, script: Script, user: Path) -> None:
    assert settings.Layers.read().user.options == {}
    user.write_text("[options]\nseed = 3\n")
    assert settings.Layers.read().user.options == {"seed": 3}

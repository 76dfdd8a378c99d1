"""Site file, user file, environment, flag: the later wins, and `config show` says which it was."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from capt_local import config as site_config
from capt_local.cli.app import VERBS, function
from capt_local.cli.parse import KEYS, options_of, unknown_variables
from capt_local.decoding.options import CombineOptions
from tests.cli.conftest import Run
from tests.cli.fake_runtime import Script


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
    assert run("generate", "{models}", "-p", "x").code == 0
    assert script.calls[-3]["bundle"].id == "files"
    monkeypatch.setenv("CAPT_LOCAL_TARGET", "/nowhere/t.gguf")  # both from the environment
    assert run("generate", "-p", "x").code == 2


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("sead = 1", "there is no options.sead"),
        ('"a\\nb" = 1', "there is no such key in options"),
        ("seed = true", "options.seed takes a whole number"),
        ("temp = true", "options.temp takes a number"),
        ("threads = 0", "options.threads takes a whole number from 1"),
        ("method = 'nonsense'", "options.method takes one of capt, target, "),
        ("target = 'here.gguf'", "options.target takes an absolute path"),
        ("threads = 1.5", "options.threads takes a whole number from 1"),
    ],
)
def test_a_wrong_value_names_file_and_key(line: str, says: str, run: Run, user: Path) -> None:
    user.write_text(f"[options]\n{line}\n")
    result = run("generate", "-p", "x")
    assert (result.code, result.out, result.err.count("\n")) == (2, "", 1)
    assert f"{user}: {says}" in result.err
    assert run("config", "show").code == (2 if "there is no" in says or "path" in says else 0)


@pytest.mark.parametrize("line", ["alpha = 0.5", "alpha = '0.5'", "alpha = [0.5]"])
def test_a_number_may_stand_where_a_flag_has_text(
    line: str, run: Run, script: Script, user: Path
) -> None:
    user.write_text(f"[options]\n{line}\n")
    assert run("generate", "{models}", "-p", "x").code == 0
    assert script.calls[1]["options"].combine.alphas == (0.5,)
    script.calls.clear()
    assert run("generate", "{models}", "-p", "x", "--weights", "1,1,1").code == 0  # a flag wins
    assert script.calls[1]["options"].combine == CombineOptions(powers=(1.0, 1.0, 1.0))


def test_the_list_of_keys_is_complete() -> None:
    """What is read off the declarations, against the list that needs no import of them."""
    verbs = [function(name) for name, (module, _) in VERBS.items() if module]
    declared = [option for verb in verbs for option in options_of(verb).values()]
    found = {option.key: option.variable for option in declared if option.variable}
    assert {*found} == KEYS, f"cli/parse.py: add {found.keys() - KEYS}, remove {KEYS - {*found}}"
    assert unknown_variables(dict.fromkeys(found.values(), "")) == []


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


@pytest.mark.parametrize("verb", [("generate", "{models}", "-p", "x"), ("models", "list")])
def test_a_variable_that_nothing_reads_is_named(
    verb: tuple[str, ...], run: Run, script: Script, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CAPT_LOCAL_TEST_CACHE", "/nowhere")
    monkeypatch.setenv("CAPT_LOCAL_CTX_SIZE", "2048")
    assert "environment" not in run(*verb).err
    monkeypatch.setenv("CAPT_LOCAL_APLHA", "0.7")
    result = run(*verb)
    told = [line for line in result.err.splitlines() if "CAPT_LOCAL_APLHA" in line]
    assert (result.code, len(told)) == (0, 1)
    assert "0.7" not in told[0]


def forbid(site: Path, *names: str) -> None:
    site.write_text(f"[limits]\nforbid = {list(names)!r}\n")


def refused(run: Run, site: Path, *arguments: str) -> None:
    result = run(*arguments)
    assert result.code == 2, result
    assert result.out == ""
    errors = [line for line in result.err.splitlines() if not line.startswith("note: ")]
    assert len(errors) == 1 and str(site) in errors[0]


def test_a_site_forbids_features(run: Run, script: Script, site: Path, tmp_path: Path) -> None:
    page = tmp_path / "x.html"
    forbid(site, "reports", "network")
    refused(run, site, "generate", "{models}", "-p", "x", "--html", str(page))
    refused(run, site, "explain", str(tmp_path / "a.json"), "--html", str(page))
    refused(run, site, "batch", str(tmp_path / "in.jsonl"), "-o", "x.jsonl", "--ray", "local")
    assert not page.exists() and not script.calls
    assert run("generate", "{models}", "-p", "x").code == 0


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

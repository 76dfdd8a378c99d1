"""Site file, user file, environment, flag: the later wins, and `config show` says which it was."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from capt_local import CombineOptions, GenerateOptions, Runtime
from capt_local import config as site_config
from capt_local.cli.app import VERBS, function
from capt_local.cli.parse import KEYS, options_of, unknown_variables
from capt_local.config import Feature, SiteLimits, read_site, read_user
from capt_local.errors import UsageError
from tests.cli.conftest import CANARY, Run
from tests.cli.fake_runtime import Script
from tests.conftest import real_site_file
from tests.small_trio import SMALL_TRIO

ASK = ("generate", "{models}", "-p", "x")


def test_the_later_source_wins(
    run: Run, script: Script, site: Path, user: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(*ASK)
    site.write_text("[options]\nseed = 1\n")
    run(*ASK)
    user.write_text("[options]\nseed = 2\n")
    run(*ASK)
    monkeypatch.setenv("CAPT_LOCAL_SEED", "3")
    run(*ASK)
    run(*ASK, "--seed", "4")
    seeds = [call["options"].sample.seed for call in script.calls if "options" in call]
    assert seeds == [0, 1, 2, 3, 4]


def test_model_files_of_a_stronger_source_win_over_a_bundle(
    run: Run, script: Script, site: Path, user: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    user.write_text('[options]\nbundle = "no-such-bundle"\n')
    assert run("generate", "-p", "x").code == 3
    assert run(*ASK).code == 0
    site.write_text('[options]\ntarget = "/nowhere/t.gguf"\n')
    assert run("generate", "-m", "demo", "-p", "x").code == 0
    assert run("generate", "-p", "x").code == 3  # the user's bundle, not the site's file
    monkeypatch.setenv("CAPT_LOCAL_BUNDLE", "demo")
    assert run("generate", "-p", "x").code == 0
    assert run(*ASK).code == 0
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
    assert run(*ASK).code == 0
    assert script.calls[1]["options"].combine.alphas == (0.5,)
    script.calls.clear()
    assert run(*ASK, "--weights", "1,1,1").code == 0  # a flag wins
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
    assert told.items() >= {
        ("seed", (2, "user file")), ("top-k", (5, "site file")), ("temp", ("0.5", "environment")),
        ("alpha", (None, "default")),
    }  # fmt: skip
    assert told["expert"] == (["/a.gguf"], "user file")
    assert found["settings"]["seed"]["variable"] == "CAPT_LOCAL_SEED"
    assert found["limits"] == {"forbid": ["reports"], "alpha": 2.0}
    assert found["files"]["site"] == {"path": str(site), "exists": True}
    assert found["unknown_variables"] == ["CAPT_LOCAL_TEMPP"]
    text = run("config", "show")
    assert text.code == 0 and "CAPT_LOCAL_TEMPP" in text.err
    for part in ("site file", "user file", "environment", "default", "reports", str(site)):
        assert part in text.out


def test_a_variable_that_nothing_reads_is_named(
    run: Run, script: Script, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CAPT_LOCAL_TEST_CACHE", "/nowhere")
    monkeypatch.setenv("CAPT_LOCAL_CTX_SIZE", "2048")
    assert "environment" not in run(*ASK).err
    monkeypatch.setenv("CAPT_LOCAL_APLHA", "0.7")
    for verb in (ASK, ("models", "list")):
        result = run(*verb)
        (told,) = [line for line in result.err.splitlines() if "CAPT_LOCAL_APLHA" in line]
        assert result.code == 0 and "0.7" not in told


# What a site forbids.


def refused(run: Run, site: Path, *arguments: str) -> None:
    result = run(*arguments)
    errors = [line for line in result.err.splitlines() if not line.startswith("note: ")]
    assert (result.code, result.out, len(errors)) == (2, "", 1), result
    assert str(site) in errors[0]


def test_a_site_forbids_features(run: Run, script: Script, site: Path, tmp_path: Path) -> None:
    page = tmp_path / "x.html"
    site.write_text("[limits]\nforbid = ['reports', 'network']\n")
    refused(run, site, *ASK, "--html", str(page))
    refused(run, site, "explain", str(tmp_path / "a.json"), "--html", str(page))
    refused(run, site, "batch", str(tmp_path / "in.jsonl"), "-o", "x.jsonl", "--ray", "local")
    assert not page.exists() and not script.calls
    assert run(*ASK).code == 0


def test_a_site_forbids_wide_weights_and_nobody_lifts_that(
    run: Run, script: Script, site: Path, user: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    site.write_text("[limits]\nalpha = 1.5\n")
    for weights in (["--alpha", "2"], ["--alpha", "-2"], ["--weights", "1,2,1"]):
        refused(run, site, *ASK, *weights)
    assert run(*ASK, "--alpha", "1.5").code == run(*ASK).code == 0
    user.write_text("[options]\nalpha = '3'\n")
    refused(run, site, *ASK)
    user.unlink()
    monkeypatch.setenv("CAPT_LOCAL_ALPHA", "3")
    monkeypatch.setenv("CAPT_LOCAL_SITE_CONFIG", str(user))
    refused(run, site, *ASK)


def test_the_python_interface_follows_the_rules_of_the_site(
    site: Path, user: Path, tmp_path: Path
) -> None:
    site.write_text("[limits]\nunsigned-bundles = false\nalpha = 1.5\n")
    for named in (
        {"bundle": SMALL_TRIO},
        {"target": SMALL_TRIO / "target.gguf"},
        {"bundle": "demo", "check": False},
    ):
        with pytest.raises(UsageError, match="forbids unsigned-bundles"):
            Runtime.open(**named)
    site.write_text("[limits]\nalpha = 1.5\n")
    (tmp_path / "demo-tests").symlink_to(SMALL_TRIO)
    user.write_text(f"[options]\nmodels = ['{tmp_path}']\n")
    with Runtime.open("demo-tests") as runtime:  # in a folder that a file of settings names
        for call in (runtime.generate, runtime.score_answer):
            more = (b"x",) if call == runtime.score_answer else ()
            with pytest.raises(UsageError, match=r"limits\.alpha"):
                call("x", *more, GenerateOptions(combine=CombineOptions(alphas=(2.0,))))
        assert runtime.generate("x", alpha=1.5, max_tokens=1)


# The files: whatever is not understood or not to be trusted is one line with file and key.


def test_a_whole_file(site: Path) -> None:
    site.write_text(
        "[options]\nctx-size = 2048\n[limits]\nforbid = ['reports', 'network']\nalpha = 1.5\n"
    )
    found = read_site()
    assert found.options == {"ctx-size": 2048}
    forbidden = frozenset({Feature.REPORTS, Feature.NETWORK})
    assert found.limits == SiteLimits(site, forbidden, 1.5)


def test_the_environment_does_not_move_the_sites_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = real_site_file()
    for name in ("XDG_CONFIG_DIRS", "XDG_CONFIG_HOME", "HOME", "CAPT_LOCAL_SITE_CONFIG"):
        monkeypatch.setenv(name, str(tmp_path))
    assert real_site_file() == before and before.is_absolute()


def test_no_test_reads_the_files_of_this_machine(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Neither here nor in a process that a test starts, whatever its folder."""
    ours = tmp_path_factory.getbasetemp()
    for file in (site_config.site_file(), site_config.user_file(), *site_config.key_folders()):
        assert file.is_relative_to(ours)
    program = "from capt_local import config as p; print(p.site_file(), *p.key_folders())"
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd="/"
    )
    found = [str(each) for each in (site_config.site_file(), *site_config.key_folders())]
    assert done.stdout.split() == found


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("[option]\n", ["option", "[options] or [limits]"]),
        ("alpha = 1\n", ["alpha", "under [options]", "[limits]"]),
        ("[limits]\nforbid = 'reports'\n", ["limits.forbid"]),
        (f"[limits]\nforbid = ['{CANARY}']\n", ["limits.forbid", "transcripts"]),
        ("[limits]\nalpha = '1'\n", ["limits.alpha must be a number"]),
        ("[limits]\nalpha = 0.5\n", ["limits.alpha", "at least 1"]),
        ("[limits]\nalpha = nan\n", ["limits.alpha"]),
        ("[limits]\nbeta = 1\n", ["limits.beta", "unsigned-bundles"]),
        (f"[limits]\n\n{CANARY}\n", ["not TOML", "line 3"]),
        ("a = " + "[" * 30_000, ["not TOML"]),
        (f"[limits]\nalpha = {'1' * 5000}\n", ["not TOML"]),
        ("# \udcff\n", ["not UTF-8 at byte 2"]),
        ("#" * 70_000, ["larger than 64 KiB"]),
    ],
    ids=range(13),
)
def test_what_is_not_understood_names_file_and_key(text: str, names: list[str], site: Path) -> None:
    site.write_bytes(text.encode("utf-8", "surrogateescape"))
    is_wrong(read_site, str(site), *names)


def is_wrong(read: Callable[[], object], *names: str) -> None:
    with pytest.raises(UsageError) as caught:
        read()
    line = str(caught.value)
    assert "\n" not in line and CANARY not in line and all(name in line for name in names), line


def test_what_stands_outside_the_tables_of_a_users_file(user: Path) -> None:
    user.write_text("alpha = 0.7\n")
    is_wrong(read_user, str(user), "alpha", "[options].")
    user.write_text("[limits]\nforbid = []\n")
    is_wrong(read_user, str(user), "limits", "site's")


def test_a_file_that_others_can_write_is_not_trusted(
    site: Path, user: Path, tmp_path: Path
) -> None:
    site.write_text("")
    for mode in (0o664, 0o602):
        site.chmod(mode)
        is_wrong(read_site, f"{site} can be written by others", "chmod go-w")
    site.chmod(0o644)
    site.parent.chmod(0o777)
    is_wrong(read_site, f"{site.parent} can be written by others")
    site.parent.chmod(0o755)
    (other := tmp_path / "other").mkdir()
    site.rename(other / "real.toml")
    site.symlink_to(other / "real.toml")
    assert read_site().exists
    other.chmod(0o777)
    is_wrong(read_site, "other can be written by others")
    user.write_text("[options]\n")
    user.chmod(0o664)  # as many systems make files: the group is the user's own
    assert read_user().exists
    user.chmod(0o666)
    is_wrong(read_user, "chmod o-w")


@pytest.mark.skipif(os.getuid() != 0, reason="only root makes files of others")
@pytest.mark.parametrize("place", ["file", "folder", "user"])
def test_a_file_of_another_account_is_not_trusted(place: str, site: Path, user: Path) -> None:
    site.write_text("")
    user.write_text("")
    os.chown({"file": site, "folder": site.parent, "user": user}[place], 65534, -1)
    is_wrong(read_user if place == "user" else read_site, "does not belong to")


def test_what_cannot_be_read_is_not_ignored(site: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    os.mkfifo(site)
    is_wrong(read_site, "not a file")

    def refused(*_: object) -> int:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "open", refused)
    is_wrong(read_site, f"{site} cannot be read: Permission denied")

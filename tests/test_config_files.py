"""The two files: whatever is not understood or not to be trusted is one line with file and key."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from capt_local import CombineOptions, GenerateOptions, Runtime
from capt_local import config as site_config
from capt_local.config import Feature, SiteLimits, read_site, read_user
from capt_local.errors import UsageError
from tests.conftest import real_site_file
from tests.small_trio import SMALL_TRIO

ROOT = Path(__file__).resolve().parents[2]
CANARY = "zyzzyva-canary"
AS_ROOT = pytest.mark.skipif(os.getuid() != 0, reason="only root makes files of others")


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A site's file that this account may write as if it were root."""
    folder = tmp_path / "etc"
    folder.mkdir(mode=0o755)
    monkeypatch.setattr(site_config, "site_file", lambda: folder / "config.toml")
    tables = site_config._tables

    def own(path: Path, known: tuple[str, ...], *, owner: int, others: int) -> object:
        return tables(path, known, owner=os.getuid(), others=others)

    monkeypatch.setattr(site_config, "_tables", own)
    return folder / "config.toml"


@pytest.fixture
def user() -> Path:
    path = site_config.user_file()
    path.parent.mkdir(parents=True)
    return path


def test_a_whole_file(site: Path) -> None:
    site.write_text(
        "[options]\nctx-size = 2048\n[limits]\nforbid = ['reports', 'network']\nalpha = 1.5\n"
    )
    found = read_site()
    assert found.options == {"ctx-size": 2048}
    forbidden = frozenset({Feature.REPORTS, Feature.NETWORK})
    assert found.limits == SiteLimits(site, forbidden, 1.5)


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
            Runtime.open(**named)  # type: ignore[arg-type]
    site.write_text("[limits]\nalpha = 1.5\n")
    (tmp_path / "demo-tests").symlink_to(SMALL_TRIO)
    user.write_text(f"[options]\nmodels = ['{tmp_path}']\n")
    with Runtime.open("demo-tests") as runtime:  # in a folder that a file of settings names
        for call in (runtime.generate, runtime.score_answer):
            more = (b"x",) if call == runtime.score_answer else ()
            with pytest.raises(UsageError, match=r"limits\.alpha"):
                call("x", *more, GenerateOptions(combine=CombineOptions(alphas=(2.0,))))
        assert runtime.generate("x", alpha=1.5, max_tokens=1)


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
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=ROOT
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
    with pytest.raises(UsageError) as caught:
        read_site()
    line = str(caught.value)
    assert str(site) in line and "\n" not in line and CANARY not in line
    assert all(name in line for name in names), line


@pytest.mark.parametrize(
    ("text", "says"),
    [("alpha = 0.7\n", r"alpha .*\[options\]\.$"), ("[limits]\nforbid = []\n", "limits .*site's")],
)
def test_what_stands_outside_the_tables_of_a_users_file(text: str, says: str, user: Path) -> None:
    user.write_text(text)
    with pytest.raises(UsageError, match=rf"config\.toml: .*{says}"):
        read_user()


@pytest.mark.parametrize("mode", [0o664, 0o602])
def test_a_sites_file_that_others_can_write_is_not_trusted(mode: int, site: Path) -> None:
    site.write_text("")
    site.chmod(mode)
    with pytest.raises(UsageError, match=r"config\.toml can be written by others.*chmod go-w"):
        read_site()
    site.chmod(0o644)
    site.parent.chmod(0o777)
    with pytest.raises(UsageError, match=r"etc can be written by others"):
        read_site()


def test_a_link_into_a_folder_of_others_is_not_trusted(site: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    (other / "real.toml").write_text("")
    site.symlink_to(other / "real.toml")
    assert read_site().exists
    other.chmod(0o777)
    with pytest.raises(UsageError, match=r"other can be written by others"):
        read_site()


@AS_ROOT
@pytest.mark.parametrize("place", ["file", "folder", "user"])
def test_a_file_of_another_account_is_not_trusted(place: str, site: Path, user: Path) -> None:
    site.write_text("")
    user.write_text("")
    os.chown({"file": site, "folder": site.parent, "user": user}[place], 65534, -1)
    with pytest.raises(UsageError, match="does not belong to"):
        read_site()
        read_user()


def test_a_users_file_that_everybody_can_write_is_not_trusted(user: Path) -> None:
    user.write_text("[options]\n")
    user.chmod(0o664)  # as many systems make files: the group is the user's own
    assert read_user().exists
    user.chmod(0o666)
    with pytest.raises(UsageError, match="chmod o-w"):
        read_user()


def test_what_cannot_be_read_is_not_ignored(site: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    os.mkfifo(site)
    with pytest.raises(UsageError, match="not a file"):
        read_site()

    def refused(*_: object) -> int:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "open", refused)
    with pytest.raises(UsageError, match=r"config\.toml cannot be read: Permission denied"):
        read_site()

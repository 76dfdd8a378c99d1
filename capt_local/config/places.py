"""Where the two files lie.

The site's place is fixed: nothing in the environment of a user moves it, or its limits would be
worth nothing.
"""

from __future__ import annotations

import sys
from pathlib import Path

from platformdirs import user_config_path

NAME = "config.toml"
KEYS = "keys"


def site_file() -> Path:
    """The file of the machine's administrator; it need not exist."""
    match sys.platform:
        case "win32":
            # platformdirs' own function for this folder listens to the environment.
            from platformdirs.windows import get_win_folder_via_ctypes

            return Path(get_win_folder_via_ctypes("CSIDL_COMMON_APPDATA")) / "capt-local" / NAME
        case "darwin":
            return Path("/Library/Application Support/capt-local") / NAME
        case _:
            return Path("/etc/capt-local") / NAME


def user_file() -> Path:
    """The file of the user, as $XDG_CONFIG_HOME/capt-local/config.toml; it need not exist."""
    return user_config_path("capt-local", appauthor=False) / NAME


def key_folders() -> tuple[Path, Path]:
    """Where public keys lie that are trusted: the site's, the user's; they need not exist."""
    return site_file().parent / KEYS, user_file().parent / KEYS

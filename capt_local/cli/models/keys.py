"""`capt-local models keygen` and `trust`: who signs bundles, and whose are taken in."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from capt_local.cli.exits import ExitCode
from capt_local.cli.options import ViewFlags, option
from capt_local.config.limits import Feature
from capt_local.config.places import key_folders
from capt_local.config.read import read_site
from capt_local.report.terminal import Screen


@dataclass(frozen=True, slots=True)
class KeygenFlags:
    """Where the keys go."""

    output: Annotated[
        Path,
        option("-o", "--output", metavar="NAME", help="Writes NAME.key (0600) and NAME.pub."),
    ]


@dataclass(frozen=True, slots=True)
class TrustFlags:
    """Which key is trusted."""

    key: Annotated[Path, typer.Argument(metavar="FILE.pub", help="A public key, as PEM.")]


def models_keygen(what: KeygenFlags, view: ViewFlags) -> int:
    """Makes a pair of Ed25519 keys. Keep NAME.key secret; carry NAME.pub to those who import.

    The public key has to come by another way than the bundles: compare the fingerprint by phone.
    """
    from capt_local.bundle.signing import new_key

    screen = Screen.standard(view.verbose)
    private, public, fingerprint = new_key(what.output)
    screen.line(f"private key  {private}\npublic key   {public}\nfingerprint  {fingerprint}")
    return ExitCode.OK


def models_trust(what: TrustFlags, view: ViewFlags) -> int:
    """Installs a public key for this user: bundles that it has signed are taken in from now on."""
    from capt_local.bundle.signing import install

    screen = Screen.standard(view.verbose)
    key = install(what.key, key_folders()[-1])
    screen.line(f"trusted from now on: {key.fingerprint}")
    limits = read_site().limits
    if limits.forbids(Feature.UNSIGNED):
        screen.note(f"note: {limits.file} forbids bundles that no key of the site has signed.")
    return ExitCode.OK

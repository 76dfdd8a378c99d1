"""`capt-local serve`: an OpenAI-compatible server on this machine, and a page for clinicians."""

from __future__ import annotations

import contextlib
import os
import secrets
from dataclasses import dataclass
from pathlib import Path

from capt_local.cli.exits import ExitCode, Signals
from capt_local.cli.files import read_text
from capt_local.cli.options import (
    MethodFlags,
    ModelFlags,
    SampleFlags,
    TemplateFlags,
    ViewFlags,
    setting,
)
from capt_local.cli.session import find_bundle, generate_options, open_session
from capt_local.config import Feature, read_site
from capt_local.errors import Cancelled, UsageError
from capt_local.report.terminal import Screen

_SHORTEST_KEY, _FORGET_AFTER, _WAITING = 16, 10.0, 32  # characters, minutes, requests
_FEWEST_CHARACTERS = 8  # different ones in a key


@dataclass(frozen=True, kw_only=True)
class ServeFlags(ModelFlags, TemplateFlags, MethodFlags, SampleFlags, ViewFlags):
    """Where the server listens, for whom, and for how many at once."""

    port: int = setting(
        "--port N", "The port; 0 takes a free one. Default: 8080.", 8080, min=0, max=65535
    )
    host: str = setting(
        "--host ADDRESS",
        "The address to listen on; another than loopback needs --api-key-file, --tls-cert and "
        "--tls-key. Default: 127.0.0.1.",
        "127.0.0.1",
    )
    parallel: int = setting(
        "--parallel N",
        "Requests that are answered at once; each takes memory for its context in all models. "
        "Default: 4.",
        4,
        min=1,
        max=256,
    )
    api_key_file: Path | None = setting(
        "--api-key-file PATH",
        "A file with a key on each line, readable by you alone. Default: a new key, in the address "
        "that is printed.",
    )
    tls_cert: Path | None = setting("--tls-cert PATH", "A certificate (PEM).")
    tls_key: Path | None = setting("--tls-key PATH", "Its key (PEM).")
    allow_host: list[str] | None = setting(
        "--allow-host NAME",
        "A further name that the server answers to; may be given several times.",
    )
    allow_origin: list[str] | None = setting(
        "--allow-origin URL",
        "A site whose pages may use the server, such as https://ehr.example.",
    )
    scorer: str | None = setting(
        "--scorer scorer|PATH",
        "What ranks the answers of best_of: 'scorer', that of the bundle, or the folder of one.",
    )
    tasks: Path | None = setting(
        "--tasks FOLDER", "Further tasks for the page, a TOML file each (docs/serve.md)."
    )
    idle_timeout: float | None = setting(
        "--idle-timeout MINUTES",
        "Clear all texts from the models after so long without a request. Default: 10.",
    )


def serve(flags: ServeFlags) -> int:
    """A server on this machine: a page for clinicians, and OpenAI's interface. Ctrl-C ends it.

    Examples:
      capt-local serve

      capt-local serve -m my-bundle --port 9000 --parallel 8 --api-key-file keys.txt
    """
    screen, keys = Screen.standard(flags.verbose), _keys(flags)
    from capt_local.rerank import open_scorer
    from capt_local.serve.app import PUBLIC_PATHS, Service, library
    from capt_local.serve.engine import Engine
    from capt_local.serve.server import Guard, listen, run

    tasks, bundle, template = library(flags.tasks), find_bundle(flags), flags.template_source()
    options = generate_options(bundle, flags)
    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(listen(flags.host, flags.port))
        signals = stack.enter_context(Signals())
        try:
            session = open_session(bundle, flags, screen, signals, wanted=None, template=template)
        except Cancelled:
            return signals.code or ExitCode.INTERRUPTED
        runtime = stack.enter_context(session.runtime)
        scorer = open_scorer(flags.scorer, bundle, flags.verify)
        stack.enter_context(scorer or contextlib.nullcontext())
        engine = Engine(
            runtime, options, parallel=flags.parallel, waiting=_WAITING,
            forget_after=60 * (flags.idle_timeout or _FORGET_AFTER), report=screen.note,
        )  # fmt: skip
        engine.start()
        stack.callback(engine.stop)
        limits = read_site().limits
        service = Service(
            engine, options, session.load, tasks,
            lambda made: limits.check_weights((*made.combine.alphas, *made.combine.powers)),
            scorer=scorer, reports=not limits.forbids(Feature.REPORTS),
        )  # fmt: skip
        names = ("127.0.0.1", "localhost", "[::1]", flags.host, *(flags.allow_host or ()))
        origins = [each.rstrip("/").lower() for each in flags.allow_origin or ()]
        scheme = "https" if flags.tls_cert else "http"
        address = f"{scheme}://{flags.host}:{listener.getsockname()[1]}"
        screen.line(f"{address}/" if flags.api_key_file else f"{address}/#key={keys[0]}")
        screen.note(
            f"The page is at this address, OpenAI's interface at {address}/v1 (key: "
            f"{'of your file' if flags.api_key_file else 'behind #key='}). Nothing is logged or "
            "stored; Ctrl-C ends it."
        )
        guard = Guard(service.app, hosts=map(str.lower, names), keys=keys, origins=origins,
                      public_paths=PUBLIC_PATHS, report=screen.note)  # fmt: skip
        run(guard, listener, leave=signals, stop=engine.stop, certificate=flags.tls_cert,
            key=flags.tls_key)  # fmt: skip
    return signals.code or ExitCode.INTERRUPTED


def _keys(flags: ServeFlags) -> tuple[str, ...]:
    """The API keys; refuses what the site forbids, and unprotected access from other machines."""
    from capt_local.serve.server import is_loopback

    limits, path = read_site().limits, flags.api_key_file
    limits.refuse(Feature.SERVE, "capt-local serve")
    if (flags.tls_cert is None) != (flags.tls_key is None):
        raise UsageError("--tls-cert and --tls-key go together.")
    if not is_loopback(flags.host):
        limits.refuse(Feature.NETWORK, "--host with another address than loopback")
        if path is None or flags.tls_cert is None:
            raise UsageError(
                f"--host {flags.host} can be reached from other machines: give --api-key-file, "
                "--tls-cert and --tls-key."
            )
    if flags.idle_timeout is not None and not 0 < flags.idle_timeout <= 1e6:
        raise UsageError("--idle-timeout takes minutes above 0.")
    if path is None:
        return (secrets.token_urlsafe(24),)
    lines = read_text(path, "The file of --api-key-file", largest=1 << 16).splitlines()
    if os.stat(path).st_mode & 0o077:
        raise UsageError("The file of --api-key-file can be read by others: chmod 600 it.")
    found = tuple(line.strip() for line in lines if line.strip())
    # /proof needs no key, so short keys could be found by brute force.
    plain = all(key.isascii() and len(key) >= _SHORTEST_KEY for key in found)
    if not found or not plain or any(len(set(key)) < _FEWEST_CHARACTERS for key in found):
        raise UsageError(
            f"The file of --api-key-file needs keys of at least {_SHORTEST_KEY} random plain "
            "characters, one a line, such as `openssl rand -base64 24` makes."
        )
    return found

"""`capt-local doctor`: checks of build, machine and bundle; and `config show`."""

from __future__ import annotations

import os
import platform
import stat
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from capt_local.bundles.verify import Check
from capt_local.cli.app import VERBS, function
from capt_local.cli.exits import ExitCode, code_for
from capt_local.cli.files import files_of
from capt_local.cli.models import described, mebibytes, signed_bundles
from capt_local.cli.options import JsonFlags, ModelFlags, TemplateFlags, ViewFlags
from capt_local.cli.parse import (
    SITE,
    USER,
    DeclaredOption,
    options_of,
    unknown_variables,
    values_of,
)
from capt_local.cli.session import find_bundle, load_options
from capt_local.config import MODELS_VARIABLE, ConfigFile, key_folders, read_site, read_user
from capt_local.errors import CaptError, MemoryShortage, ModelError
from capt_local.policy import signer_text
from capt_local.report.json import dumps
from capt_local.report.terminal import Screen
from capt_local.report.views import Table
from capt_local.version import __version__

if TYPE_CHECKING:
    from capt_local.bundles.manifest import Bundle, ModelFile
    from capt_local.llama.devices import Layers
    from capt_local.llama.options import LoadOptions
    from capt_local.llama.resources import MemoryEstimate
    from capt_local.llama.weights import Weights
    from capt_local.strict_json import Stamp


Facts = dict[str, Any]
_CHECKED = {
    Check.ALWAYS: "verified",
    Check.CACHED: "verified, now or since they last changed",
    Check.NEVER: "not checked",
}
_WATCHED = 0.3  # seconds over which the CPU load of other programs is measured
_SWAPS, _BLOCK = Path("/proc/swaps"), Path("/sys/class/block")
# During prefill, each evidence position stores the log-probabilities of all models for the target's
# plausible tokens: bytes per token and position, and the largest number of plausible tokens, both
# measured.
_BYTES_OF_A_CANDIDATE = 96
_CANDIDATES = 8192


@dataclass(frozen=True, kw_only=True)
class DoctorFlags(JsonFlags, ModelFlags, TemplateFlags, ViewFlags):
    """Which bundle is looked at, and how findings are shown."""


@dataclass(frozen=True, kw_only=True)
class ConfigFlags(JsonFlags, ViewFlags):
    """How settings are shown."""


def doctor(flags: DoctorFlags) -> int:
    """What runs here: versions, backend, memory; whether a bundle is whole and fits.

    Exit code 0 without problems, 3 when the bundle is broken, 4 when it does not fit into memory, 2
    when the site forbids it or a file of settings is not understood.
    """
    screen = Screen.standard(flags.verbose)
    found = Diagnosis()
    found.examine(flags, flags.template_source())
    if flags.json:
        about = {"ok": not found.problems, "exit_code": int(found.code), **found.facts}
        about |= {"warnings": found.warnings, "problems": found.problems}
        screen.line(dumps(about, indent=2))
        return found.code
    for section, facts in found.facts.items():
        rows = tuple(
            (name, {True: "yes", False: "no"}[value] if isinstance(value, bool) else str(value))
            for name, value in facts.items()
            if value not in ("", None) and not name.endswith(" bytes")
        )
        screen.show(Table(section, rows))
    for line in found.warnings:
        screen.line(f"warning: {line}")
    for line in found.problems or ["no problems found."]:
        screen.line(f"problem: {line}" if found.problems else line.capitalize())
    return found.code


class Diagnosis:
    """Facts by section; problems, and warnings about what works; the code of the first problem."""

    def __init__(self) -> None:
        self.facts: dict[str, Facts] = {}
        self.problems: list[str] = []
        self.warnings: list[str] = []
        self.code = ExitCode.OK
        self._stamps: dict[Path, Stamp] = {}  # of the model files that were checked

    def examine(self, flags: ModelFlags, template: str | None = None) -> None:
        """Runs all checks; a failed one does not hide the others."""
        self._attempt("software", self._software)
        if self.problems:
            return
        self._attempt("backend", self._backend)
        self._attempt("memory", self._memory)
        self._attempt("processor", self._processor)
        self._attempt("private memory", self._private_memory)
        self._attempt("probe of model files", self._confinement)
        self._attempt("settings", self._settings)
        self._attempt("trusted keys", self._keys)
        self._attempt("store", self._store)
        try:
            bundle = find_bundle(flags)
            options = load_options(flags, bundle)
        except CaptError as error:
            self._problem(error)
            return
        self.warnings.extend(bundle.notices)
        self._attempt("bundle", lambda: self._bundle(bundle, flags.verify))
        self._attempt("files", lambda: self._modes(bundle))
        if self.problems:  # a file that is not the right one never reaches llama.cpp
            return
        self._attempt("memory of the bundle", lambda: self._fit(bundle, options))
        before = len(self.problems)
        self._attempt("model files", lambda: self._probe(bundle, flags.verify))
        if len(self.problems) == before:
            self._attempt("roles", lambda: self._roles(bundle, template))

    def _problem(self, error: CaptError) -> None:
        if str(error) not in self.problems:
            self.problems.append(str(error))
        if self.code is ExitCode.OK:
            self.code = code_for(error)

    def _attempt(self, section: str, find: Callable[[], Facts]) -> None:
        """Fills a section, or records its error as a problem."""
        try:
            self.facts[section] = find()
        except CaptError as error:
            self._problem(error)

    # The machine.

    def _software(self) -> Facts:
        from capt_local.llama.library import library

        build = library().build_info()
        return {
            "capt-local": __version__,
            "llama-cpp-python": build.binding,
            "llama.cpp": build.llama_cpp,
            "Python": platform.python_version(),
            "platform": f"{platform.system()} {platform.machine()}",
            "build flags": build.system_info,
        }

    def _backend(self) -> Facts:
        """Devices, and whether each of them computes correctly."""
        from capt_local.llama.devices import device_computes
        from capt_local.llama.library import library

        build = library().build_info()
        gpus = [device for device in build.devices if device.is_gpu]
        facts: Facts = {"in use": gpus[0].name if gpus else "CPU"}
        facts["GPU support in this build"] = build.gpu_offload
        facts["weight formats that crash it"] = ", ".join(build.left_out) or "none"
        for index, device in enumerate(build.devices):
            there = f", {_mib(device.free)} of {_mib(device.total)} free"
            free = there if device.total else ""
            right = device_computes(library().function, index)
            facts[device.name] = f"{device.kind}: {device.description}{free}"
            facts[f"{device.name} computes correctly"] = right
            if device.total:
                facts[f"{device.name} free bytes"] = device.free
            if not right:
                self._problem(
                    ModelError(
                        f"The product of two small matrices on {device.name} is wrong, so answers "
                        "would be. Update its driver, or build llama.cpp without it."
                    )
                )
        return facts

    def _memory(self) -> Facts:
        import psutil

        from capt_local.llama.resources import available_memory

        total, free = int(psutil.virtual_memory().total), available_memory()
        facts: Facts = {"total": _mib(total), "available": _mib(free)}
        return facts | {"total bytes": total, "available bytes": free}

    def _processor(self) -> Facts:
        """Cores, and the load of other programs."""
        from capt_local.llama.resources import BusyCores, physical_cores

        busy = BusyCores()
        time.sleep(_WATCHED)
        threads = busy.threads()
        if threads < physical_cores():
            self.warnings.append(
                f"Other programs use {busy.others:.1f} of {busy.cores} processor cores now: "
                f"answers are slower, and computed with {threads} of {physical_cores()} threads "
                "until they end."
            )
        return {
            "cores": physical_cores(),
            "used by other programs now": f"{busy.others:.1f}",
            "threads": threads,
        }

    def _private_memory(self) -> Facts:
        """Where the memory of the process could be written to: swap and core dumps."""
        import psutil

        from capt_local.hardening import memory_is_private

        total = int(psutil.swap_memory().total)
        plain = [name for name, safe in _swaps() if not safe]
        if total and (plain or not _SWAPS.exists()):
            where = f" ({', '.join(plain)})" if plain else ""
            self.warnings.append(
                f"There is swap that is not known to be encrypted{where}: text in memory may get "
                "to the disk. Encrypt it, or switch it off."
            )
        private = memory_is_private()
        if private is False:
            self.warnings.append("A core dump of this process can be written, with text in it.")
        dumps = {True: "off", False: "possible", None: "not known"}[private]
        swap = _mib(total) if total else "none"
        return {"swap": swap, "core dumps of this process": dumps}

    def _confinement(self) -> Facts:
        """Whether the kernel confines the process that opens untrusted files first."""
        from capt_local.llama.probe import seccomp_is_enforced

        forbidden = seccomp_is_enforced()
        if not forbidden and sys.platform == "linux":
            self.warnings.append(
                "The kernel does not restrict the system calls of the process that probes model "
                "files: a hostile file could reach beyond it. Use bundles that a trusted key "
                "signed."
            )
        return {"system calls restricted": forbidden}

    def _settings(self) -> Facts:
        site, user = read_site(), read_user()
        return {
            "site file": str(site.path) if site.exists else "none",
            "user file": str(user.path) if user.exists else "none",
            "forbidden by the site": ", ".join(sorted(site.limits.forbidden)) or "nothing",
        }

    def _keys(self) -> Facts:
        facts = {}
        for name, folder in zip(("of the site", "of the user"), key_folders(), strict=True):
            keys = []
            if folder.is_dir():  # else nothing of cryptography is loaded
                from capt_local.bundles.sign import trusted_keys

                for key in trusted_keys([folder]).values():
                    keys.append(f"{key.name} {key.fingerprint[:16]}...".lstrip())
            facts[name] = ", ".join(keys) or "none"
        return facts

    def _store(self) -> Facts:
        """The bundles that can be named by their id; each that is broken is a warning."""
        from capt_local.bundles import store
        from capt_local.bundles.install import leftovers

        found, broken = signed_bundles()
        self.warnings.extend(map(str, broken))
        left = ", ".join(f"{name} ({_mib(size)})" for name, size in leftovers().items())
        if left:
            self.warnings.append(
                f"Imports or pulls that did not end have left files: {left}. Delete them: "
                "capt-local models clean. A pull that is given again goes on with them."
            )
        return {
            "folder": str(store.user_folder()),
            "bundles": ", ".join(bundle.id for bundle in found),
            "broken": len(broken),
            "incomplete imports": left or "none",
        }

    # The bundle.

    def _bundle(self, bundle: Bundle, check: Check) -> Facts:
        """What the bundle is, its files checked against its manifest."""
        from capt_local.bundles.verify import verify

        self._stamps = verify(bundle, check=check).stamps
        return {
            "id": bundle.id,
            "version": bundle.version,
            "roles": ", ".join(bundle.models),
            "digests": _CHECKED[check] if all(bundle.digests.values()) else "none known",
            "signer": signer_text(bundle),
        }

    def _modes(self, bundle: Bundle) -> Facts:
        """Who can write the files of a bundle."""
        files = set(files_of(bundle))
        writable = []
        for path in files | {each.parent for each in files}:
            try:
                if path.stat().st_mode & (stat.S_IWGRP | stat.S_IWOTH):
                    writable.append(str(path))
            except OSError:
                continue  # a missing one is a problem of its own
        if writable:
            self.warnings.append(
                f"Other accounts can write {', '.join(sorted(writable))}, and so change what is "
                "loaded: chmod go-w."
            )
        return {"writable by others": len(writable)}

    def _fit(self, bundle: Bundle, options: LoadOptions) -> Facts:
        """The memory that a run needs on each device; a problem if it does not fit."""
        import psutil

        from capt_local.decoding.options import CombineOptions
        from capt_local.llama import resources
        from capt_local.llama.devices import GPU_RESERVE
        from capt_local.llama.library import library
        from capt_local.llama.load_models import estimates, in_main_memory, planned

        paths = {role: model.path for role, model in bundle.models.items()}
        each = estimates(paths, options, bundle.adapters)
        layers = planned(paths, options, each)
        program, available = int(psutil.Process().memory_info().rss), resources.available_memory()
        # What the evidence of a prompt takes while it is read; nothing where weights are fixed.
        reading = 0
        if len(bundle.models) > 1 and not bundle.defaults.alphas:
            reading = CombineOptions().evidence_tokens * _CANDIDATES * _BYTES_OF_A_CANDIDATE
        # Main memory that is still needed, by the same check as when models are loaded.
        to_come = in_main_memory(each, layers)
        to_come["reading a prompt"] = resources.MemoryEstimate(0, 0, reading)
        fits = True
        try:
            resources.check_fits(to_come, available)
        except MemoryShortage as error:
            fits = False
            self._problem(error)
        # The peak of the whole process on all devices.
        needed = program + reading + sum(one.total for one in each.values())
        context = f"{options.context:,}" if options.context else "the models' own, at most 4,096"
        facts: Facts = {"context": context, "program": _mib(program)}
        for role, one in each.items():
            # The weights of a file that several models share are counted with the first of them.
            weights = f"weights {_mib(one.weights)}" if one.weights else "weights shared"
            adapter = f", adapter {_mib(one.adapters)}" if one.adapters else ""
            facts[role] = (
                f"{_mib(one.total)}: {weights}{adapter}, KV cache {_mib(one.kv_cache)}, "
                f"compute {_mib(one.buffers)}"
            )
        if reading:
            facts["reading a prompt"] = _mib(reading)
        gpus = {one.name: one.free for one in library().devices() if one.is_gpu}
        for name, free in gpus.items():
            taken = sum(one.on_gpus(layers[role]).get(name, 0) for role, one in each.items())
            facts[f"on {name}"] = f"{_mib(taken)} of {_mib(free)}"
            if taken > max(0, free - GPU_RESERVE):
                self.warnings.append(
                    f"{name} has {_mib(free)} free, and {_mib(taken + GPU_RESERVE)} are needed for "
                    "the layers that were asked for: loading may fail."
                )
        return facts | {
            "needed": _mib(needed),
            "available": _mib(available),
            "needed bytes": needed,
            "available bytes": available,
            "fits": fits,
            "layers on the GPU": _placed(layers, each) if gpus else "none: there is no GPU",
        }

    def _probe(self, bundle: Bundle, check: Check) -> Facts:
        """Whether a trusted manifest names the files, else the result of probing them."""
        from capt_local.model_checks import NOT_PROBED, is_trusted, probe_untrusted

        if is_trusted(bundle):
            return {"probe": "not needed, a trusted manifest names them"}
        if check is Check.NEVER:
            self.warnings.append(NOT_PROBED)
            return {"probe": "left out"}
        self._stamps = probe_untrusted(bundle, check=check, stamps=self._stamps)
        return {"probe": "loaded in a process of their own, now or since they last changed"}

    def _roles(self, bundle: Bundle, template: str | None) -> Facts:
        """How the models of a bundle go together; only their vocabularies are loaded."""
        from capt_local.model_checks import check_tokenizers
        from capt_local.prompting.build import PromptBuilder
        from capt_local.tokenization import TextTokenizer

        # As from the other verbs, so that what they would refuse (no chat template, one that takes
        # no question) is a problem here.
        def ask(model: ModelFile, weights: Weights) -> None:
            self.warnings.extend(weights.notes)
            tokenizer = TextTokenizer(weights.vocabulary, weights.tokenize)
            own = weights.metadata.chat_template
            builder = PromptBuilder(model, own, tokenizer, given=template)
            try:
                self.warnings.extend(builder.prompt("What is asthma?", raw=False).notices)
            except CaptError as error:
                self._problem(error)

        check_tokenizers(bundle.models.values())
        found = described(bundle, self._stamps, ask)
        facts: Facts = {
            role: f"{about['architecture']}, {about['quantization']}, "
            f"{about['vocabulary']:,} tokens, trained for {about['trained_context']:,}"
            + "".join(f", {adapter}" for adapter in bundle.models[role].adapters)
            for role, about in found["models"].items()
        }
        for expert, fit in found["fit"].items():
            pair = f"{expert} and {fit['base']}"
            facts[f"{pair}: same vocabulary"] = fit["same_vocabulary"]
            facts[f"{pair}: same chat template"] = fit["same_template"]
            facts[f"target's pieces that the {expert} has too"] = f"{100 * fit['overlap']:.0f} %"
            if not fit["same_vocabulary"]:
                self.warnings.append(
                    f"{pair.capitalize()} have different vocabularies: this works, but the "
                    "contrast also holds the difference of their tokens."
                )
        return facts


def _placed(layers: Mapping[str, Layers], each: Mapping[str, MemoryEstimate]) -> str:
    """Layers of all models by device, for people."""
    lines = []
    for role, found in layers.items():
        where = ", ".join(f"{name} {count}" for name, count in found.items())
        all_of_them = f"{role} {sum(found.values())} of {each[role].layers}"
        lines.append(all_of_them + (f" ({where})" if where else ""))
    return ", ".join(lines)


def _mib(count: int) -> str:
    return mebibytes(count, 0)


def _swaps() -> Iterator[tuple[str, bool]]:
    """Swap devices and files of Linux, and whether they are encrypted, or compressed memory."""
    try:
        lines = _SWAPS.read_text("utf-8", "replace").splitlines()[1:]
    except OSError:
        return
    for line in lines:
        name = line.split()[0]
        device = Path(os.path.realpath(name)).name
        try:
            uuid = (_BLOCK / device / "dm" / "uuid").read_text("ascii", "replace")
        except OSError:
            uuid = ""
        yield name, device.startswith("zram") or uuid.startswith("CRYPT-")


def config_show(flags: ConfigFlags) -> int:
    """Every setting, its value, and whether site, user or environment set it.

    A flag wins over the environment, that over the user's file, that over the site's. Values are
    shown as they are; a verb checks them when it uses them.
    """
    screen = Screen.standard(flags.verbose)
    site, user = read_site(), read_user()
    files: dict[str, ConfigFile] = {SITE: site, USER: user}
    known = {"models": DeclaredOption("models", "models", MODELS_VARIABLE, str, several=True)}
    for file in (site, user):
        file.models  # noqa: B018 - raises if it has no meaning
    for verb in (function(name) for name, (module, _) in VERBS.items() if module):
        known = {key: one for key, one in options_of(verb).items() if one.variable} | known
    values_of(files, known)  # unknown keys are refused
    found: dict[str, dict[str, Any]] = {}
    for key, option in sorted(known.items()):
        value, source = None, "default"
        for name, file in files.items():
            if key in file.options:
                value, source = file.options[key], f"{name.lower()} file"
        if given := os.environ.get(option.variable or ""):  # an empty one counts as none
            value, source = given, "environment"
        found[key] = {
            "value": value,
            "default": option.default or None,
            "source": source,
            "variable": option.variable,
        }
    limits = site.limits
    if flags.json:
        about = {
            "files": {
                name.lower(): {"path": str(file.path), "exists": file.exists}
                for name, file in files.items()
            },
            "settings": found,
            "limits": {"forbid": sorted(limits.forbidden), "alpha": limits.alpha},
            "unknown_variables": unknown_variables(os.environ),
        }
        screen.line(dumps(about, indent=2))
        return ExitCode.OK
    places = tuple(
        (name.lower(), str(file.path) + ("" if file.exists else " (not there)"))
        for name, file in files.items()
    )
    rows = tuple(
        (key, one["default"] or "" if one["value"] is None else _text(one["value"]), one["source"])
        for key, one in found.items()
    )
    limited = (
        ("forbidden", ", ".join(sorted(limits.forbidden)) or "nothing"),
        ("largest fixed weight", "the program's" if limits.alpha is None else f"{limits.alpha:g}"),
    )
    screen.show(
        Table("Files, the stronger last", places),
        Table("Settings", rows, ("setting", "value", "from")),
        Table("Limits of the site", limited),
    )
    return ExitCode.OK


def _text(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)

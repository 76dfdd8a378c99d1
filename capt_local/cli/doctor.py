"""`capt-local doctor`: what runs here, and whether a bundle is whole and fits."""

from __future__ import annotations

import os
import platform
import stat
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from capt_local.bundles.manifest import MANIFEST, RECEIPT, SIGNATURE
from capt_local.bundles.verify import Check
from capt_local.cli.exits import ExitCode, code_for
from capt_local.cli.options import JsonFlags, ModelFlags, TemplateFlags, ViewFlags
from capt_local.cli.session import find_bundle, load_options
from capt_local.config import key_folders
from capt_local.errors import CaptError, MemoryShortage, ModelError
from capt_local.policy import signed, signer_text
from capt_local.report.json import dumps
from capt_local.report.terminal import Screen
from capt_local.report.views import Table
from capt_local.version import __version__

if TYPE_CHECKING:
    from capt_local.bundles.manifest import Bundle
    from capt_local.llama import memory
    from capt_local.llama.options import LoadOptions
    from capt_local.strict_json import Stamp
    from capt_local.tokenization.vocabulary import Vocabulary


def doctor(model: ModelFlags, template: TemplateFlags, how: JsonFlags, view: ViewFlags) -> int:
    """What runs here: versions, backend, memory; whether a bundle is whole and fits.

    Exit code 0 when all is well, 3 when the bundle is broken, 4 when it does not fit into memory, 2
    when the site forbids it or a file of settings is not understood.
    """
    screen = Screen.standard(view.verbose)
    found = examine(model, template.source())
    if how.json:
        screen.line(dumps(as_object(found), indent=2))
    else:
        screen.show(*as_tables(found))
        for line in verdict(found):
            screen.line(line)
    return found.code


def examine(flags: ModelFlags, template: str | None = None) -> Diagnosis:
    """Looks at everything; a problem in one place does not hide the others."""
    found = Diagnosis()
    found.attempt("software", lambda: software(found))
    if found.problems:
        return found
    found.attempt("backend", lambda: backend(found))
    found.attempt("memory", memory_of_the_machine)
    found.attempt("processor", lambda: processor(found.warnings))
    found.attempt("private memory", lambda: private_memory(found.warnings))
    found.attempt("first look's process", lambda: confinement(found.warnings))
    found.attempt("settings", settings)
    found.attempt("keys", keys)
    found.attempt("store", lambda: store(flags.verify, found.warnings))
    try:
        bundle = find_bundle(flags)
        options = load_options(flags, bundle)
    except CaptError as error:
        found.problem(error)
        return found
    found.warnings.extend(bundle.notices)
    found.attempt("bundle", lambda: files(bundle, flags.verify, found))
    found.attempt("files", lambda: modes(bundle, found.warnings))
    if not found.problems:  # a file that is not the right one never reaches llama.cpp
        found.attempt("memory of the bundle", lambda: room(bundle, options, found))
        before = len(found.problems)
        found.attempt("first look", lambda: first_look(bundle, flags.verify, found))
        if len(found.problems) == before:
            found.attempt("roles", lambda: roles(bundle, found, template))
    return found


def as_tables(found: Diagnosis) -> list[Table]:
    """The facts for people, a table for each section."""
    sections = {
        section: {name: value for name, value in facts.items() if _is_for_people(name, value)}
        for section, facts in found.facts.items()
    }
    return [
        Table(section, tuple((name, _told(value)) for name, value in facts.items()))
        for section, facts in sections.items()
    ]


def verdict(found: Diagnosis) -> list[str]:
    """What is wrong, or that nothing is."""
    lines = [f"warning: {line}" for line in found.warnings]
    lines += [f"problem: {line}" for line in found.problems]
    return lines if found.problems else [*lines, "All is well."]


def as_object(found: Diagnosis) -> dict[str, Any]:
    """The findings for programs."""
    return {
        "ok": not found.problems,
        "exit_code": int(found.code),
        **found.facts,
        "warnings": found.warnings,
        "problems": found.problems,
    }


def _is_for_people(name: str, value: Any) -> bool:
    return value not in ("", None) and not name.endswith(" bytes")


def _told(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return str(value)


_CHECKED = {
    Check.ALWAYS: "verified",
    Check.CACHED: "verified, now or since they last changed",
    Check.NEVER: "not checked",
}


@dataclass(slots=True)
class Diagnosis:
    """Facts by section, and problems in the order in which they were found.

    Attributes:
        facts: section to name to value; values are text, numbers, booleans or None.
        problems: lines that say what is wrong.
        warnings: lines about what works but should be known.
        stamps: of the model files that were checked, by path.
        code: the exit code; that of the first problem.
    """

    facts: dict[str, dict[str, Any]] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    stamps: dict[Path, Stamp] = field(default_factory=dict)
    code: ExitCode = ExitCode.OK

    def problem(self, error: CaptError) -> None:
        """Notes what is wrong; the first problem decides the exit code."""
        self.problems.append(str(error))
        if self.code is ExitCode.OK:
            self.code = code_for(error)

    def attempt(self, section: str, find: Callable[[], dict[str, Any]]) -> None:
        """Fills a section, or notes why that is not possible."""
        try:
            self.facts[section] = find()
        except CaptError as error:
            self.problem(error)


def software(diagnosis: Diagnosis) -> dict[str, Any]:
    """Versions and build flags.

    Raises:
        UsageError: the binding is missing or not the pinned version.
    """
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


def backend(diagnosis: Diagnosis) -> dict[str, Any]:
    """Devices, and whether layers go to a GPU; notes the problem of one that does not compute."""
    from capt_local.llama.library import library

    build = library().build_info()
    gpus = [device for device in build.devices if device.is_gpu]
    facts: dict[str, Any] = {"live": gpus[0].name if gpus else "CPU"}
    facts["GPU support in this build"] = build.gpu_offload
    facts["weight formats left out, since they crash"] = ", ".join(build.left_out) or "none"
    for index, device in enumerate(build.devices):
        there = f", {mebibytes(device.free)} of {mebibytes(device.total)} free"
        free = there if device.total else ""
        right = library().computes(index)
        facts[device.name] = f"{device.kind}: {device.description}{free}"
        facts[f"{device.name} multiplies two matrices"] = "rightly" if right else "not"
        if device.total:
            facts[f"{device.name} free bytes"] = device.free
        if not right:
            diagnosis.problem(
                ModelError(
                    f"{device.name} does not multiply two small matrices rightly: answers would be "
                    "wrong. Update its driver, or build llama.cpp without it."
                )
            )
    return facts


def memory_of_the_machine() -> dict[str, Any]:
    """Total and available main memory."""
    import psutil

    from capt_local.llama.memory import available_memory

    total, free = int(psutil.virtual_memory().total), available_memory()
    facts: dict[str, Any] = {"total": mebibytes(total), "available": mebibytes(free)}
    return facts | {"total bytes": total, "available bytes": free}


def files(bundle: Bundle, check: Check, diagnosis: Diagnosis) -> dict[str, Any]:
    """What the bundle is, its files checked against its manifest; their stamps are kept.

    Raises:
        ModelError: a file is missing or not the one that the manifest names.
    """
    from capt_local.bundles import verify

    diagnosis.stamps = verify.verify(bundle, check=check).stamps
    known = all(bundle.digests.values())
    return {
        "id": bundle.id,
        "version": bundle.version,
        "roles": ", ".join(bundle.models),
        "digests": _CHECKED[check] if known else "none known",
        "signer": signer_text(bundle),
    }


def room(bundle: Bundle, options: LoadOptions, diagnosis: Diagnosis) -> dict[str, Any]:
    """What a run takes in memory; notes the problem when it does not fit.

    Raises:
        ModelError: a file is not a GGUF that can be read.
    """
    found = fit(bundle, options)
    context = f"{options.context:,}" if options.context else "the models' own, at most 4,096"
    facts: dict[str, Any] = {"context": context, "program": mebibytes(found.program)}
    for role, one in found.models.items():
        # The weights of a file that several models share are counted with the first of them.
        weights = f"weights {mebibytes(one.weights)}" if one.weights else "weights shared"
        adapter = f", adapter {mebibytes(one.adapters)}" if one.adapters else ""
        facts[role] = (
            f"{mebibytes(one.total)}: {weights}{adapter}, KV cache {mebibytes(one.kv_cache)}, "
            f"compute {mebibytes(one.buffers)}"
        )
    if found.reading:
        facts["reading a prompt"] = mebibytes(found.reading)
    facts |= {"needed": mebibytes(found.needed), "available": mebibytes(found.available)}
    facts["needed bytes"], facts["available bytes"] = found.needed, found.available
    facts["fits"] = found.fits
    layers = (f"{role} {on} of {found.models[role].layers}" for role, on in found.on_gpu.items())
    facts["layers on the GPU"] = ", ".join(layers) if found.gpu else "none: no GPU is live"
    try:
        found.check()
    except MemoryShortage as error:
        diagnosis.problem(error)
    return facts


def roles(bundle: Bundle, diagnosis: Diagnosis, template: str | None = None) -> dict[str, Any]:
    """How the models of a bundle go together; only their vocabularies are loaded.

    Each model is asked a question as the other verbs ask it, so that what they would refuse (no
    chat template, one that takes no question) is a problem here.

    Args:
        bundle: that is looked at.
        diagnosis: takes warnings and problems.
        template: the source of the template that the user gives.

    Raises:
        ModelError: a file cannot be loaded.
    """
    from capt_local.bundles.manifest import pair_roles
    from capt_local.llama.weights import Weights
    from capt_local.model_checks import check_tokenizers
    from capt_local.prompting.build import PromptBuilder
    from capt_local.tokenization.tokenizer import TextTokenizer

    check_tokenizers(bundle.models.values())

    vocabularies: dict[str, Vocabulary] = {}
    templates: dict[str, str | None] = {}
    facts: dict[str, Any] = {}
    for role, model in bundle.models.items():
        with Weights(model.path, vocabulary_only=True, stamps=diagnosis.stamps) as weights:
            about = weights.metadata
            diagnosis.warnings.extend(weights.notes)
            facts[role] = (
                f"{about.architecture}, {about.file_type}, {about.vocabulary_size:,} tokens, "
                f"trained for {about.context_length:,}"
                + (f", {model.adapter}" if model.adapter else "")
            )
            vocabularies[role], templates[role] = weights.vocabulary, about.chat_template
            tokenizer = TextTokenizer(weights.vocabulary, weights.tokenize)
            builder = PromptBuilder(model, about.chat_template, tokenizer, given=template)
            try:
                diagnosis.warnings.extend(builder.prompt("What is asthma?", raw=False).notices)
            except CaptError as error:
                diagnosis.problem(error)
    for expert, base in (pair_roles(number) for number in range(1, bundle.pairs + 1)):
        same = vocabularies[expert].same_as(vocabularies[base])
        facts[f"{expert} and {base}: same vocabulary"] = same
        facts[f"{expert} and {base}: same chat template"] = templates[expert] == templates[base]
        share = overlap(vocabularies["target"], vocabularies[expert])
        facts[f"target's pieces that the {expert} has too"] = f"{100 * share:.0f} %"
        if not same:
            diagnosis.warnings.append(
                f"{expert.capitalize()} and {base} have different vocabularies: this works, but "
                "the contrast also holds the difference of their tokens."
            )
    return facts


def overlap(target: Vocabulary, expert: Vocabulary) -> float:
    """The share of the target's text pieces that are pieces of the expert as well."""
    ours = {piece for piece, text in zip(target.pieces(), target.is_text, strict=True) if text}
    theirs = {piece for piece, text in zip(expert.pieces(), expert.is_text, strict=True) if text}
    return len(ours & theirs) / len(ours) if ours else 0.0


# While the evidence of a prompt is read, each of its positions keeps what all models say about the
# target's plausible tokens. Bytes of one token at one position, and how many tokens are that at
# most in practice: measured, see "What doctor estimates" in docs/results.md.
_BYTES_OF_A_CANDIDATE = 96
_CANDIDATES = 8192


@dataclass(frozen=True, slots=True)
class Fit:
    """Bytes of a whole run.

    Attributes:
        models: by role; weights that several share are counted with the first.
        program: Python, its libraries and llama.cpp: what this process holds now, with no model.
        reading: what reading the prompt for its evidence takes at most.
        available: main memory that is free now, with the program already there.
        on_gpu: layers that go to a GPU, by role.
        gpu: bytes free on GPUs.
    """

    models: Mapping[str, memory.MemoryEstimate]
    program: int
    reading: int
    available: int
    on_gpu: Mapping[str, int]
    gpu: int

    @property
    def needed(self) -> int:
        """The peak of the whole process in main memory and on GPUs."""
        return self.program + self.reading + sum(one.total for one in self.models.values())

    @property
    def to_come(self) -> int:
        """The part of it that still has to be found in main memory."""
        placed = (one.beside_gpu(self.on_gpu[role]) for role, one in self.models.items())
        return self.reading + sum(one.total for one in placed)

    @property
    def fits(self) -> bool:
        """Whether main memory takes its part."""
        return self.to_come <= self.available

    def check(self) -> None:
        """Refuses what does not fit.

        Raises:
            MemoryShortage: with the estimate of each role and what is there.
        """
        if self.fits:
            return
        each = ", ".join(f"{role} {mebibytes(one.total)}" for role, one in self.models.items())
        raise MemoryShortage(
            f"Not enough memory: {mebibytes(self.to_come)} are needed beside the program, "
            f"{mebibytes(self.available)} are free. {each}, reading a prompt "
            f"{mebibytes(self.reading)}. Use a smaller --ctx-size, smaller models, or more GPU "
            "layers."
        )


def fit(bundle: Bundle, options: LoadOptions) -> Fit:
    """What running a bundle takes here and now.

    Raises:
        ModelError: a file is not a GGUF that can be read.
    """
    import psutil

    from capt_local.llama import memory
    from capt_local.llama.devices import free_on_gpus, planned_layers
    from capt_local.llama.library import library
    from capt_local.llama.load_models import estimates

    paths = {role: model.path for role, model in bundle.models.items()}
    each = estimates(paths, options, bundle.adapters)
    gpu = free_on_gpus(library().devices())
    return Fit(
        models=each,
        program=int(psutil.Process().memory_info().rss),
        reading=_reading(bundle),
        available=memory.available_memory(),
        on_gpu=planned_layers(each, options, gpu),
        gpu=gpu,
    )


def _reading(bundle: Bundle) -> int:
    """Bytes that the evidence of a prompt takes while it is read; none where nothing is weighed."""
    from capt_local.decoding.options import CombineOptions

    if len(bundle.models) == 1 or bundle.defaults.alphas:
        return 0
    return CombineOptions().evidence_tokens * _CANDIDATES * _BYTES_OF_A_CANDIDATE


def first_look(bundle: Bundle, check: Check, diagnosis: Diagnosis) -> dict[str, Any]:
    """Who vouches for the files, or that they were loaded in a process of their own.

    The stamps of what was looked into are added to those of the diagnosis.

    Raises:
        ModelError: one is damaged, or ended the process that looked at it.
        MemoryShortage: one does not fit into memory.
    """
    from capt_local.model_checks import NOT_LOOKED_AT, is_trusted, look_first

    if is_trusted(bundle):
        return {"files": "named by a trusted manifest"}
    if check is Check.NEVER:
        diagnosis.warnings.append(NOT_LOOKED_AT)
        return {"files": "not looked at"}
    diagnosis.stamps = look_first(bundle, check=check, stamps=diagnosis.stamps)
    return {"files": "loaded in a process of their own, now or since they last changed"}


def confinement(told: list[str]) -> dict[str, Any]:
    """Whether the kernel holds the process that looks at such files."""
    from capt_local.llama.probe import calls_are_forbidden

    forbidden = calls_are_forbidden()
    if not forbidden and sys.platform == "linux":
        told.append(
            "The kernel does not forbid system calls to the process that looks at model files "
            "first: a hostile file could reach beyond it. Use bundles that a trusted key signed."
        )
    return {"system calls forbidden to it": forbidden}


def store(check: Check | None, told: list[str]) -> dict[str, Any]:
    """The bundles that can be named by their id; each that is not whole is a warning.

    Args:
        check: `always` reads every file of every bundle; else sizes and signatures are looked at.
        told: takes the warnings.
    """
    from capt_local.bundles import store

    broken: list[ModelError] = []
    found = store.available(broken.append)
    for bundle in found:
        try:
            _check_whole(bundle, check)
        except ModelError as error:
            broken.append(error)
    told.extend(str(error) for error in broken)
    read = check is Check.ALWAYS
    return {
        "place": str(store.user_folder()),
        "bundles": ", ".join(bundle.id for bundle in found),
        "broken": len(broken),
        "digests of all": "verified" if read else "not read; --verify always reads them",
        "left of stopped imports": _left(told) or "nothing",
    }


def keys() -> dict[str, Any]:
    """The keys whose signatures count.

    Raises:
        ModelError: one is no key, or others than its owner may write it.
    """
    names = ("of the site", "of the user")
    return {name: _keys(folder) for name, folder in zip(names, key_folders(), strict=True)}


def _keys(folder: Path) -> str:
    if not folder.is_dir():  # else nothing of cryptography is loaded
        return "none"
    from capt_local.bundles.sign import trusted_keys

    found = trusted_keys([folder]).values()
    return ", ".join(f"{key.name} {key.fingerprint[:16]}...".lstrip() for key in found) or "none"


def _check_whole(bundle: Bundle, check: Check | None) -> None:
    """Looks at a bundle that nobody has asked for.

    Raises:
        ModelError: a file or the signature is not what it should be.
    """
    from capt_local.bundles.verify import verify

    signed(bundle)
    if check is Check.ALWAYS:
        verify(bundle)
        return
    for role, model in bundle.models.items():
        _check_size(bundle, role, model.path, model.size)
    for role, adapter in bundle.adapters.items():
        _check_size(bundle, role, adapter.path, adapter.size)


def _check_size(bundle: Bundle, role: str, path: Path, size: int) -> None:
    found = path.stat().st_size
    if found != size:
        raise ModelError(
            f"The bundle {bundle.id} is not whole: {path.name} of the {role} has {found} bytes "
            f"instead of {size}. Get the bundle again from its source."
        )


def _left(told: list[str]) -> str:
    from capt_local.bundles.install import leftovers

    found = leftovers()
    named = ", ".join(f"{name} ({mebibytes(size)})" for name, size in found.items())
    if found:
        told.append(
            f"Imports were stopped and have left files: {named}. Give the import again to go on "
            "with it, or delete them: capt-local models clean."
        )
    return named


def mebibytes(count: int) -> str:
    """A number of bytes as MiB, rounded."""
    return f"{count / (1 << 20):,.0f} MiB"


_WATCHED = 0.3  # seconds, to see what other programs take of the processor
_SWAPS, _BLOCK = Path("/proc/swaps"), Path("/sys/class/block")


def processor(told: list[str]) -> dict[str, Any]:
    """Cores, and what other programs take of them now."""
    from capt_local.llama.threads import BusyCores, physical_cores

    busy = BusyCores()
    time.sleep(_WATCHED)
    threads = busy.threads()
    if threads < physical_cores():
        told.append(
            f"Other programs use {busy.others:.1f} of {busy.cores} processor cores now: answers "
            f"are slower, and computed with {threads} of {physical_cores()} threads until they end."
        )
    return {
        "cores": physical_cores(),
        "used by other programs now": f"{busy.others:.1f}",
        "threads": threads,
    }


def private_memory(told: list[str]) -> dict[str, Any]:
    """Where the memory of the process could be written to: swap and core dumps."""
    import psutil

    from capt_local.hardening import memory_is_private

    total = int(psutil.swap_memory().total)
    plain = [name for name, safe in swaps() if not safe]
    facts: dict[str, Any] = {"swap": mebibytes(total) if total else "none"}
    if total and (plain or not _SWAPS.exists()):
        where = f" ({', '.join(plain)})" if plain else ""
        told.append(
            f"There is swap that is not known to be encrypted{where}: text in memory may get to "
            "the disk. Encrypt it, or switch it off."
        )
    private = memory_is_private()
    facts["core dumps of this process"] = {True: "off", False: "possible", None: "not known"}[
        private
    ]
    if private is False:
        told.append("A core dump of this process can be written, with text in it.")
    return facts


def swaps(listing: Path = _SWAPS, block: Path = _BLOCK) -> Iterator[tuple[str, bool]]:
    """Swap devices and files of Linux, and whether they keep text off the disk.

    Args:
        listing: the kernel's list.
        block: the kernel's folder of block devices.

    Yields:
        Its name, and whether it is encrypted, or compressed memory.
    """
    try:
        lines = listing.read_text("utf-8", "replace").splitlines()[1:]
    except OSError:
        return
    for line in lines:
        name = line.split()[0]
        device = Path(os.path.realpath(name)).name
        yield name, device.startswith("zram") or _encrypted(block / device)


def _encrypted(device: Path) -> bool:
    try:
        return (device / "dm" / "uuid").read_text("ascii", "replace").startswith("CRYPT-")
    except OSError:
        return False


def modes(bundle: Bundle, told: list[str]) -> dict[str, Any]:
    """Who can write the files of a bundle."""
    if sys.platform == "win32":
        return {"writable by others": "not known on Windows"}
    files = list(_files(bundle))
    places = {*files, *(each.parent for each in files)}
    open_ = sorted(str(path) for path in _writable(places))
    if open_:
        told.append(
            f"Other accounts can write {', '.join(open_)}, and so change what is loaded: "
            "chmod go-w."
        )
    return {"writable by others": len(open_)}


def _files(bundle: Bundle) -> Iterator[Path]:
    """Whatever decides what is loaded, and how it is asked."""
    for model in bundle.models.values():
        yield model.path
        if model.template_file is not None:
            yield model.template_file
    yield from (adapter.path for adapter in bundle.adapters.values())
    if bundle.folder is not None:
        yield from (bundle.folder / name for name in (MANIFEST, SIGNATURE, RECEIPT))


def _writable(paths: Iterable[Path]) -> Iterator[Path]:
    for path in paths:
        try:
            if path.stat().st_mode & (stat.S_IWGRP | stat.S_IWOTH):
                yield path
        except OSError:
            continue  # one that is missing is told elsewhere


def settings() -> dict[str, Any]:
    """The files that settle something, and what the site forbids."""
    from capt_local.config import read_site, read_user

    site, user = read_site(), read_user()
    return {
        "site file": str(site.path) if site.exists else "none",
        "user file": str(user.path) if user.exists else "none",
        "forbidden by the site": ", ".join(sorted(site.limits.forbidden)) or "nothing",
    }

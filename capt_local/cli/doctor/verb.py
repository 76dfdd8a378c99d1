"""`capt-local doctor`: what runs here, and whether a bundle is whole and fits."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any

from capt_local.cli.doctor import diagnosis as find
from capt_local.cli.doctor import stored
from capt_local.cli.doctor import surroundings as around
from capt_local.cli.doctor.diagnosis import Diagnosis
from capt_local.cli.doctor.looking import confinement, first_look
from capt_local.cli.model_flags import ModelFlags
from capt_local.cli.options import ViewFlags, option
from capt_local.cli.session import find_bundle, load_options
from capt_local.errors import CaptError
from capt_local.report.json import dumps
from capt_local.report.screen import Screen
from capt_local.report.view import Table


@dataclass(frozen=True, slots=True)
class DoctorFlags:
    """How the findings are told."""

    json: Annotated[bool, option("--json", twin="JSON", help="Write a JSON object.")] = False


def doctor(model: ModelFlags, how: DoctorFlags, view: ViewFlags) -> int:
    """What runs here: versions, backend, memory; whether a bundle is whole and fits.

    Exit code 0 when all is well, 3 when the bundle is broken, 4 when it does not fit into memory, 2
    when the site forbids it or a file of settings is not understood.
    """
    screen = Screen.standard(view.verbose)
    found = examine(model)
    if how.json:
        screen.line(dumps(as_object(found), indent=2))
    else:
        screen.show(*as_tables(found))
        for line in verdict(found):
            screen.line(line)
    return found.code


def examine(flags: ModelFlags) -> Diagnosis:
    """Looks at everything; a problem in one place does not hide the others."""
    found = Diagnosis()
    found.attempt("software", lambda: find.software(found))
    if found.problems:
        return found
    found.attempt("backend", lambda: find.backend(found))
    found.attempt("memory", find.memory)
    found.attempt("private memory", lambda: around.private_memory(found.warnings))
    found.attempt("first look's process", lambda: confinement(found.warnings))
    found.attempt("settings", around.settings)
    found.attempt("keys", stored.keys)
    found.attempt("store", lambda: stored.store(flags.verify, found.warnings))
    try:
        bundle = find_bundle(flags)
        options = load_options(flags, bundle)
    except CaptError as error:
        found.problem(error)
        return found
    found.warnings.extend(bundle.notices)
    found.attempt("bundle", lambda: find.files(bundle, flags.check, found))
    found.attempt("files", lambda: around.modes(bundle, found.warnings))
    if not found.problems:  # a file that is not the right one never reaches llama.cpp
        found.attempt("memory of the bundle", lambda: find.room(bundle, options, found))
        before = len(found.problems)
        found.attempt("first look", lambda: first_look(bundle, flags.check, found))
        if len(found.problems) == before:
            found.attempt("roles", lambda: find.roles(bundle, found))
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

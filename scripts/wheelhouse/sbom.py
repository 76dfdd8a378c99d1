"""The bill of materials of a wheelhouse, as CycloneDX 1.6 in JSON.

Written by hand, since all that is known comes from the wheels and the bundle; the tests hold it
against the strict schema of cyclonedx-python-lib.
"""

from __future__ import annotations

import json
import os
import uuid
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any
from urllib.parse import quote

from scripts.wheelhouse.wheels import Wheel

SCHEMA = "1.6"
_BINDING = "llama-cpp-python"
# What its wheel holds in binary form; which build of it, the version of the binding says.
_INSIDE = {
    "type": "library",
    "bom-ref": "pkg:github/ggml-org/llama.cpp",
    "name": "llama.cpp",
    "purl": "pkg:github/ggml-org/llama.cpp",
    "licenses": [{"license": {"name": "MIT"}}],
}


def bill(
    root: str,
    wheels: Sequence[Wheel],
    models: Iterable[Mapping[str, str]],
    build: Mapping[str, object],
) -> str:
    """The bill.

    Args:
        root: name of the package that all others are for.
        wheels: all of them, that package and pip included.
        models: the bundle's files: type in CycloneDX, name, version, sha256, licence, source.
        build: how the binding was built.

    Returns:
        JSON; the same for the same wheels, models and time. `SOURCE_DATE_EPOCH` sets the time.
    """
    main = next(wheel for wheel in wheels if wheel.name == root)
    others = [_package(wheel) for wheel in wheels if wheel is not main]
    for component in others:
        if component["name"] == _BINDING:
            component["properties"] += _properties(build)
            component["components"] = [_INSIDE]
    present = {wheel.name: _reference(wheel) for wheel in wheels}
    content = {
        "metadata": {"timestamp": _now(), "component": _package(main, "application")},
        "components": [*others, *map(_model, models)],
        "dependencies": [
            {
                "ref": present[wheel.name],
                "dependsOn": sorted(present[name] for name in wheel.needs if name in present),
            }
            for wheel in wheels
        ],
    }
    serial = uuid.uuid5(uuid.NAMESPACE_OID, json.dumps(content, sort_keys=True))
    head = {
        "bomFormat": "CycloneDX",
        "specVersion": SCHEMA,
        "serialNumber": f"urn:uuid:{serial}",
        "version": 1,
    }
    return json.dumps({**head, **content}, indent=2) + "\n"


def _package(wheel: Wheel, kind: str = "library") -> dict[str, Any]:
    licences: list[dict[str, Any]] = [{"license": {"name": name}} for name in wheel.licences]
    if wheel.expression:
        licences = [{"expression": wheel.expression}]
    found = {
        "type": kind,
        "bom-ref": _reference(wheel),
        "name": wheel.name,
        "version": wheel.version,
        "purl": _reference(wheel),
        "hashes": [{"alg": "SHA-256", "content": wheel.sha256}],
        "licenses": licences,
        "properties": [{"name": "capt-local:file", "value": f"wheels/{wheel.path.name}"}],
    }
    # pip installs the others and is not installed itself.
    return {**found, "scope": "excluded"} if wheel.name == "pip" else found


def _reference(wheel: Wheel) -> str:
    return f"pkg:pypi/{quote(wheel.name)}@{quote(wheel.version)}"


def _model(model: Mapping[str, str]) -> dict[str, Any]:
    return {
        "type": model["type"],
        "bom-ref": f"{model['name']}@{model['sha256']}",
        "name": model["name"],
        "version": model["version"],
        "description": f"source: {model['source'] or 'not stated'}",
        "hashes": [{"alg": "SHA-256", "content": model["sha256"]}],
        "licenses": [{"license": {"name": model["licence"]}}] if model["licence"] else [],
    }


def _properties(build: Mapping[str, object]) -> list[dict[str, str]]:
    return [
        {"name": f"capt-local:build:{name}", "value": _text(value)} for name, value in build.items()
    ]


def _text(value: object) -> str:
    return " ".join(value) if isinstance(value, list) else str(value)


def _now() -> str:
    fixed = os.environ.get("SOURCE_DATE_EPOCH")
    moment = datetime.fromtimestamp(int(fixed), UTC) if fixed else datetime.now(UTC)
    return moment.replace(microsecond=0).isoformat().replace("+00:00", "Z")

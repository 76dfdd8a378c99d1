"""The bill of materials of a wheelhouse, as CycloneDX 1.6 in JSON.

    python -m scripts.wheelhouse.sbom JOB.json

What is known comes from the wheels and the bundle; cyclonedx-python-lib is its object model.
"""

from __future__ import annotations

import json
import os
import sys
import uuid
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from cyclonedx.model import HashAlgorithm, HashType, Property
from cyclonedx.model.bom import Bom
from cyclonedx.model.component import Component, ComponentScope, ComponentType
from cyclonedx.model.license import DisjunctiveLicense, LicenseExpression
from cyclonedx.output.json import JsonV1Dot6
from packageurl import PackageURL

from scripts.wheelhouse.wheels import BINDING, Wheel, read_wheels

_LLAMA_CPP = PackageURL("github", "ggml-org", "llama.cpp")


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
    bom = Bom(serial_number=uuid.UUID(int=0))
    fixed = os.environ.get("SOURCE_DATE_EPOCH")
    moment = datetime.fromtimestamp(int(fixed), UTC) if fixed else datetime.now(UTC)
    bom.metadata.timestamp = moment.replace(microsecond=0)
    packages = {wheel.name: _package(wheel, root) for wheel in wheels}
    bom.metadata.component = packages[root]
    if BINDING in packages:
        packages[BINDING].properties.update(
            Property(name=f"capt-local:build:{name}", value=_text(value))
            for name, value in build.items()
        )
        # What its wheel holds in binary form; which build of it, the version of the binding says.
        inside = Component(
            name="llama.cpp",
            type=ComponentType.LIBRARY,
            bom_ref=str(_LLAMA_CPP),
            purl=_LLAMA_CPP,
            licenses=[DisjunctiveLicense(name="MIT")],
        )
        packages[BINDING].components.add(inside)
    bom.components.update(each for name, each in packages.items() if name != root)
    bom.components.update(map(_model, models))
    for wheel in wheels:
        needs = [packages[name] for name in wheel.needs if name in packages]
        bom.register_dependency(packages[wheel.name], needs)
    content = JsonV1Dot6(bom).output_as_string()
    bom.serial_number = uuid.uuid5(uuid.NAMESPACE_OID, content)
    return JsonV1Dot6(bom).output_as_string(indent=2) + "\n"


def _package(wheel: Wheel, root: str) -> Component:
    url = PackageURL("pypi", name=wheel.name, version=wheel.version)
    licences: list[Any] = [DisjunctiveLicense(name=name) for name in wheel.licences]
    if wheel.expression:
        licences = [LicenseExpression(wheel.expression)]
    return Component(
        name=wheel.name,
        type=ComponentType.APPLICATION if wheel.name == root else ComponentType.LIBRARY,
        version=wheel.version,
        bom_ref=str(url),
        purl=url,
        hashes=[_hash(wheel.sha256)],
        licenses=licences,
        properties=[Property(name="capt-local:file", value=f"wheels/{wheel.path.name}")],
        # pip installs the others and is not installed itself.
        scope=ComponentScope.EXCLUDED if wheel.name == "pip" else None,
    )


def _model(model: Mapping[str, str]) -> Component:
    return Component(
        name=model["name"],
        type=ComponentType(model["type"]),
        version=model["version"],
        bom_ref=f"{model['name']}@{model['sha256']}",
        description=f"source: {model['source'] or 'not stated'}",
        hashes=[_hash(model["sha256"])],
        licenses=[DisjunctiveLicense(name=model["licence"])] if model["licence"] else [],
    )


def _hash(sha256: str) -> HashType:
    return HashType(alg=HashAlgorithm.SHA_256, content=sha256)


def _text(value: object) -> str:
    return " ".join(value) if isinstance(value, list) else str(value)


def main(job: str) -> None:
    """Writes the bill of a job to standard output."""
    about = json.loads(Path(job).read_text("utf-8"))
    wheels = read_wheels(Path(about["wheels"]))
    sys.stdout.write(bill(about["root"], wheels, about["models"], about["build"]))


if __name__ == "__main__":
    main(*sys.argv[1:])

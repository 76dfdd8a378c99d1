"""The bill of materials of a stick, as CycloneDX 1.6 in JSON, by cyclonedx-python-lib."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import metadata
from typing import TYPE_CHECKING

from scripts.wheelhouse.wheels import BINDING, NotBuilt, Wheel, normalized

if TYPE_CHECKING:
    from capt_local.bundles.manifest import Bundle


def check_library() -> None:
    """Raises NotBuilt where cyclonedx-python-lib is missing."""
    try:
        metadata.version("cyclonedx-python-lib")
    except metadata.PackageNotFoundError:
        raise NotBuilt("The bill of materials needs: pip install '.[wheelhouse]'") from None


def bill_of_materials(root: str, wheels: Sequence[Wheel], bundle: Bundle, flags: str) -> str:
    """The text of the bill.

    Args:
        root: name of the package that the others are for.
        wheels: all of them, that one and pip included.
        bundle: its models are components, too.
        flags: of CMake, with which the binding was built.
    """
    from cyclonedx.contrib.license.factories import LicenseFactory
    from cyclonedx.model import HashAlgorithm, HashType, Property
    from cyclonedx.model.bom import Bom
    from cyclonedx.model.component import Component, ComponentType
    from cyclonedx.output.json import JsonV1Dot6
    from packageurl import PackageURL

    licences = LicenseFactory()
    bom, packages, needs = Bom(), dict[str, Component](), dict[str, list[str]]()
    for wheel in wheels:
        (inside,) = metadata.distributions(path=[str(wheel.path)])
        packages[wheel.name] = Component(
            type=ComponentType.APPLICATION if wheel.name == root else ComponentType.LIBRARY,
            name=wheel.name,
            version=wheel.version,
            purl=PackageURL("pypi", name=wheel.name, version=wheel.version),
            hashes=[HashType(alg=HashAlgorithm.SHA_256, content=wheel.sha256)],
            licenses=[licences.make_from_string(each) for each in _licences(inside)],
            properties=[Property(name="capt-local:file", value=f"wheels/{wheel.path.name}")],
        )
        needs[wheel.name] = _needs(inside)
    if BINDING in packages:  # its wheel holds llama.cpp in binary form
        packages[BINDING].properties.add(Property(name="capt-local:cmake-args", value=flags))
        packages[BINDING].components.add(
            Component(
                name="llama.cpp",
                purl=PackageURL("github", "ggml-org", "llama.cpp"),
                licenses=[licences.make_from_string("MIT")],
            )
        )
    bom.metadata.component = packages[root]
    for name, component in packages.items():
        if name != root:
            bom.components.add(component)
        bom.register_dependency(
            component, [packages[each] for each in needs[name] if each in packages]
        )
    for model in {model.path: model for model in bundle.models.values()}.values():
        bom.components.add(
            Component(
                type=ComponentType.MACHINE_LEARNING_MODEL,
                name=f"{bundle.id}/{model.path.name}",
                version=bundle.version,
                description=f"source: {model.source or 'not stated'}",
                hashes=[HashType(alg=HashAlgorithm.SHA_256, content=model.sha256 or "")],
                licenses=[licences.make_from_string(model.licence)] if model.licence else [],
            )
        )
    return JsonV1Dot6(bom).output_as_string(indent=2) + "\n"


def _licences(inside: metadata.Distribution) -> list[str]:
    """An SPDX expression alone, or names of licences."""
    about = inside.metadata
    if expression := about.get("License-Expression"):
        return [expression]
    classifiers = [
        line.rpartition("::")[2].strip()
        for line in about.get_all("Classifier", [])
        if line.startswith("License :: OSI Approved ::")
    ]
    name = (about.get("License") or "").strip()
    # Some packages put the whole text of their licence there.
    return classifiers or ([name] if name and len(name) <= 60 and "\n" not in name else [])


def _needs(inside: metadata.Distribution) -> list[str]:
    """Normalized names of the packages that it needs here, without extras."""
    from packaging.requirements import Requirement

    needs = map(Requirement, inside.requires or ())
    here = (each for each in needs if each.marker is None or each.marker.evaluate({"extra": ""}))
    return sorted({normalized(each.name) for each in here})

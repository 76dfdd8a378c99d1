from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from capt_local.bundles.create import describe, write_manifest
from capt_local.bundles.manifest import Bundle, Role
from capt_local.bundles.manifest_file import read_bundle
from capt_local.bundles.verify import read_template, verify
from capt_local.errors import ModelError

ROLES: tuple[Role, ...] = ("target", "expert", "base")


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    for number, role in enumerate(ROLES):
        (tmp_path / f"{role}.gguf").write_bytes(bytes([number]) * 3_000_000)
    (tmp_path / "chat.jinja").write_text("{{ messages[0].content }}")
    models = {role: describe(role, tmp_path / f"{role}.gguf") for role in ROLES}
    models["target"] = describe(
        "target", tmp_path / "target.gguf", template_file=tmp_path / "chat.jinja"
    )
    return read_bundle(write_manifest(Bundle(id="trio", models=models), tmp_path))


def test_progress_goes_through_every_file(bundle: Bundle) -> None:
    seen: list[tuple[str, float]] = []
    verify(bundle, lambda role, share: seen.append((role, share)))
    assert [role for role, _ in seen] == [role for role in ROLES for _ in range(3)]
    for role in ROLES:
        shares = [share for name, share in seen if name == role]
        assert shares == sorted(shares)
        assert shares[-1] == 1.0


@pytest.mark.parametrize("role", ROLES)
@pytest.mark.parametrize("place", [0, 1_500_000, 2_999_999])
def test_one_flipped_bit_is_found(bundle: Bundle, role: Role, place: int) -> None:
    path = bundle.models[role].path
    data = bytearray(path.read_bytes())
    data[place] ^= 1
    path.write_bytes(data)
    with pytest.raises(ModelError, match=rf"The {role} model {role}\.gguf .* its SHA-256 differs"):
        verify(bundle)


def test_another_size_is_told_without_reading(bundle: Bundle) -> None:
    path = bundle.models["base"].path
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(ModelError, match=r"base\.gguf .* has 2999999 bytes instead of 3000000"):
        verify(bundle)


def test_swapped_roles_are_found(bundle: Bundle) -> None:
    expert, base = bundle.models["expert"].path, bundle.models["base"].path
    expert.rename(expert.with_suffix(".tmp"))
    base.rename(expert)
    expert.with_suffix(".tmp").rename(base)
    with pytest.raises(ModelError, match="The expert model"):
        verify(bundle)


def test_a_file_that_went_away(bundle: Bundle) -> None:
    bundle.models["expert"].path.unlink()
    with pytest.raises(ModelError, match=r"The expert model expert\.gguf .*No such file"):
        verify(bundle)


def test_a_changed_template_is_found(bundle: Bundle) -> None:
    file = bundle.models["target"].template_file
    assert file is not None
    file.write_text("{{ 'Ignore the patient.' }}")
    with pytest.raises(ModelError, match="chat template of the target is not the one"):
        verify(bundle)


def test_a_template_that_is_not_text(bundle: Bundle) -> None:
    model = bundle.models["target"]
    assert model.template_file is not None
    model.template_file.write_bytes(b"\xff")
    with pytest.raises(ModelError, match=r"target's template chat\.jinja is not UTF-8"):
        read_template(replace(model, template_sha256=None))

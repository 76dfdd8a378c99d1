"""The places of the models in a bundle: target, expert, base, and expert-2, base-2, ... ."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import NoReturn, TypeAlias, TypeVar

from capt_local.errors import UsageError

Role: TypeAlias = str

_PROXY = re.compile(r"(?:expert|base)(?:-([2-9]|[1-9][0-9]))?")
_File = TypeVar("_File")


def roles(pairs: int) -> tuple[Role, ...]:
    """All roles of a bundle with so many pairs of expert and base, in their order."""
    return ("target", *(role for number in range(1, pairs + 1) for role in pair_roles(number)))


def pair_roles(number: int) -> tuple[Role, Role]:
    """Expert and base of one pair; the first has the number 1."""
    return ("expert", "base") if number == 1 else (f"expert-{number}", f"base-{number}")


def count_pairs(names: Sequence[str], fail: Callable[[str, str], NoReturn]) -> int:
    """How many pairs these roles are, the target among them or not.

    Args:
        names: of the models of a bundle.
        fail: raises, told a role and what is wrong with it: a name is no role, a pair is not
            complete, or a number is left out.
    """
    numbers: set[int] = set()
    for name in names:
        if found := _PROXY.fullmatch(name):
            numbers.add(int(found[1] or 1))
        elif name != "target":
            known = "target, expert, base, and expert-2, base-2, ... for further pairs"
            fail("roles", f"may be {known}, and there is another one")
    for place, number in enumerate(sorted(numbers), start=1):
        if place != number:
            fail(pair_roles(place)[0], "is missing; pairs are numbered without a gap")
        for missing in set(pair_roles(number)) - set(names):
            both = " and ".join(pair_roles(number))
            fail(missing, f"is missing; a bundle has both {both}, or neither")
    return len(numbers)


def adapted(
    experts: Sequence[_File], bases: Sequence[_File], adapters: Sequence[object]
) -> Sequence[_File]:
    """The experts, where adapters are given: without files of their own they are the bases.

    Raises:
        UsageError: there is no base, or not one adapter for each expert.
    """
    if not adapters:
        return experts
    if not bases:
        raise UsageError(
            "An adapter of the expert is given without the base: the contrast needs both. "
            "Give the base too."
        )
    found = experts or bases
    if len(adapters) != len(found):
        raise UsageError(
            f"The adapters given are {len(adapters)}, the experts {len(found)}: give each expert "
            "its adapter, in the same order. A bundle.toml can give one to some alone."
        )
    return found


def paired(experts: Sequence[_File], bases: Sequence[_File]) -> list[_File]:
    """Files of the proxies in the order of their roles: expert, base, expert-2, base-2, ... .

    Raises:
        UsageError: there are not as many experts as bases.
    """
    if len(experts) == len(bases):
        return [file for pair in zip(experts, bases, strict=True) for file in pair]
    if experts and bases:
        raise UsageError(
            f"The experts given are {len(experts)}, the bases {len(bases)}: give each expert its "
            "base, in the same order. Two experts of one base name it twice."
        )
    given, missing = ("expert", "base") if experts else ("base", "expert")
    raise UsageError(
        f"The {given} is given without the {missing}: the contrast needs both. "
        f"Give the {missing} too, or the target alone."
    )

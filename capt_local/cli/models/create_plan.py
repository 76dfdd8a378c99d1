"""What a bundle is going to be, before a file is touched: flags, and what the files say."""

from __future__ import annotations

import datetime
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from capt_local.cli.models.create_flags import ALL, AboutFlags, FromFlags, by_role
from capt_local.cli.models.create_look import Look, look_at, misfits
from capt_local.cli.policy import signed
from capt_local.errors import ModelError, UsageError
from capt_local.version import __version__

if TYPE_CHECKING:
    from capt_local.bundle.adapter import AdapterFile
    from capt_local.bundle.manifest import Bundle, Defaults

_REVIEW_AFTER = datetime.timedelta(days=365)
_LARGEST_CARD = 1 << 20


@dataclass(frozen=True, slots=True)
class Plan:
    """A bundle that is to be made.

    Attributes:
        bundle: its models where they lie, and all that its manifest will say but the measured part.
        looks: what the files say, by role.
        templates: chat templates that go beside the models, by role.
        notes: for the user.
    """

    bundle: Bundle
    looks: Mapping[str, Look]
    templates: Mapping[str, bytes]
    notes: tuple[str, ...]


def planned(what: FromFlags, about: AboutFlags, *, misfit: bool, today: datetime.date) -> Plan:
    """Settles what can be settled without loading a model.

    Args:
        what: the models.
        about: what the manifest says.
        misfit: whether expert and base may have different vocabularies.
        today: the day.

    Raises:
        UsageError: a flag is missing or has no meaning, or a licence is not known.
        ModelError: a file or bundle is missing or broken, or the models do not go together.
    """
    from capt_local.bundle import store
    from capt_local.bundle.creating_from import ingredients
    from capt_local.cli.models.create_templates import with_templates

    if what.target is None or not what.base or not (what.expert or what.expert_adapter):
        raise UsageError(
            "A bundle is made of a --target, an --expert (or --expert-adapter) and its --base."
        )
    bundle = ingredients(
        what.target,
        what.expert or (),
        what.base,
        _adapters(what),
        lambda reference: signed(store.find(reference)),
    )
    bundle = _described(replace(bundle, id=what.id), about, today)
    looks = look_at(bundle)
    if not misfit:
        for found in misfits(bundle, looks):
            refuse_misfit(found)
    bundle, notes = _licensed(bundle, looks, about)
    bundle, templates = with_templates(bundle, looks, about.template or ())
    context, told = _context(looks, about.ctx_size)
    return Plan(replace(bundle, context=context), looks, templates, (*notes, *told))


def refuse_misfit(found: str) -> None:
    """Refuses a pair that does not fit.

    Raises:
        ModelError: always.
    """
    raise ModelError(
        f"{found}: they have different vocabularies, so the contrast would also hold the "
        "difference of their tokens. Give the model that the expert was trained from, or "
        "--allow-misfit."
    )


def _adapters(what: FromFlags) -> list[AdapterFile]:
    from capt_local.bundle.adapter import AdapterFile

    return [AdapterFile.parse(given) for given in what.expert_adapter or ()]


def _described(bundle: Bundle, about: AboutFlags, today: datetime.date) -> Bundle:
    """With what flags alone decide."""
    from capt_local.bundle.fields import NAME
    from capt_local.bundle.versions import numbers

    if not NAME.fullmatch(bundle.id):
        raise UsageError(
            "The id of a bundle has 1 to 64 letters, digits, '.', '-' or '_', first a letter or "
            "digit."
        )
    if numbers(about.version) is None:
        raise UsageError("--version takes numbers with dots, as in 1.2, so that it can travel.")
    for text, flag in ((about.title, "--title"), (about.description, "--description")):
        if not text.replace("\n", "").isprintable():
            raise UsageError(f"{flag} holds control characters.")
    return replace(
        bundle,
        version=about.version,
        title=about.title,
        description=about.description,
        requires=__version__,
        review_by=_review_by(about.review_by, today),
        defaults=_defaults(bundle, about),
        card=_card(about.card),
    )


def _review_by(given: str | None, today: datetime.date) -> str:
    if given is None:
        return (today + _REVIEW_AFTER).isoformat()
    try:
        day = datetime.date.fromisoformat(given)
    except ValueError:
        raise UsageError("--review-by takes a day as YYYY-MM-DD.") from None
    if day <= today:
        raise UsageError("--review-by is a day to come.")
    return day.isoformat()


def _defaults(bundle: Bundle, about: AboutFlags) -> Defaults:
    from capt_local.bundle.manifest import Defaults
    from capt_local.cli.options import MethodFlags, SampleFlags
    from capt_local.cli.session import generate_options

    how = MethodFlags(alpha=about.alpha, plausibility=about.plausibility)
    sample = SampleFlags(temp=about.temp, max_tokens=about.max_tokens)
    alphas = generate_options(bundle, how, sample, 0).combine
    alphas.rows(bundle.pairs)  # as many weights as pairs
    return Defaults(
        alphas=alphas.alphas,
        plausibility=about.plausibility,
        temperature=about.temp,
        max_tokens=about.max_tokens,
    )


def _card(file: Path | None) -> dict[str, str]:
    """The texts of a card that were given."""
    if file is None:
        return {}
    import tomllib

    from capt_local.bundle.card import KEYS
    from capt_local.bundle.fields import Table
    from capt_local.strict.files import read_bytes

    data = read_bytes(file, "The card (--card)", largest=_LARGEST_CARD)
    try:
        table = Table(tomllib.loads(data.decode("utf-8")), Path("The card (--card)"))
    except (ValueError, RecursionError):  # also of a number that has too many digits
        raise UsageError("The card (--card) is not TOML in UTF-8.") from None
    card = {key: table.text(key) for key in KEYS if key in table}
    table.done()
    return card


class _Terms:
    """Licences and sources: a flag for a role, else one for all, else what is known.

    Attributes:
        notes: where a flag and a file disagree.
    """

    def __init__(self, bundle: Bundle, about: AboutFlags) -> None:
        names = [*bundle.models, *(f"{role}.adapter" for role in bundle.adapters)]
        self._licences = by_role(about.licence or (), names, "--licence")
        self._sources = by_role(about.source or (), names, "--source")
        self.notes: list[str] = []

    def licence(self, name: str, known: str) -> str:
        """The licence of a model or adapter.

        Raises:
            UsageError: nobody names one.
        """
        given = self._licences.get(name, self._licences.get(ALL, ""))
        if not (given or known):
            raise UsageError(
                f"The licence of the {name} is not known: its file names none. Give --licence "
                f"{name}=NAME, or --licence NAME for all."
            )
        if given and known and given != known:
            self.notes.append(f"The file of the {name} names the licence {known!r}, not {given!r}.")
        return given or known

    def source(self, name: str, known: str) -> str:
        """Where a model or adapter comes from; may be empty."""
        return self._sources.get(name, self._sources.get(ALL, known))


def _licensed(
    bundle: Bundle, looks: Mapping[str, Look], about: AboutFlags
) -> tuple[Bundle, list[str]]:
    """With licences, sources and the digests of tokenizers, and notes for the user."""
    terms = _Terms(bundle, about)
    models, every = {}, []
    for role, model in bundle.models.items():
        look, adapter = looks[role], model.adapter
        every.append(terms.licence(role, model.licence or look.licence))
        model = replace(
            model,
            licence=every[-1],
            source=terms.source(role, model.source or look.source),
            tokenizer_sha256=look.digests.tokenizer,
        )
        if adapter is not None:
            name = f"{role}.adapter"
            every.append(terms.licence(name, adapter.licence or look.adapter_licence))
            source = terms.source(name, adapter.source or look.adapter_source)
            model = replace(model, adapter=replace(adapter, licence=every[-1], source=source))
        models[role] = model
    return replace(bundle, models=models, licence="; ".join(dict.fromkeys(every))), terms.notes


def _context(looks: Mapping[str, Look], asked: int | None) -> tuple[int, list[str]]:
    """Tokens of context, and a note where that is more than a model was trained for."""
    from capt_local.engine.memory import DEFAULT_CONTEXT

    trained = {role: look.context for role, look in looks.items() if look.context}
    if asked is None:
        return min([*trained.values(), DEFAULT_CONTEXT]), []
    beyond = [f"{role} {length:,}" for role, length in trained.items() if length < asked]
    if not beyond:
        return asked, []
    return asked, [f"The context {asked:,} is more than was trained for: {', '.join(beyond)}."]

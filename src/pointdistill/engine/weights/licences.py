"""What the licences of training data allow for weights; the strictest licence decides."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from pointdistill.data.corpus.manifest import COMMERCIAL_ONLY

_RESTRICTED = re.compile(
    r"non[\s-]?commercial|\bnc\b|\bresearch\b|\bacademic|\beducation|\bevaluation only",
    re.IGNORECASE,
)
_OPEN = (
    ("cc0-1.0", re.compile(r"cc[\s-]?0([\s-]?1\.0)?", re.IGNORECASE)),
    ("mit", re.compile(r"mit( licen[cs]e)?", re.IGNORECASE)),
    ("apache-2.0", re.compile(r"apache([\s-]?2\.0)?", re.IGNORECASE)),
    ("cc-by-4.0", re.compile(r"cc[\s-]by[\s-]4\.0", re.IGNORECASE)),
)
"""The Hub's names of licences that allow any use, the most permissive first, and their spellings in ledgers."""

_REMARKS = ("made on the spot",)
"""Remarks in brackets after a licence that do not change it; any other one may be a condition."""

_NOT_COMMERCIAL = ("cc-by-nc-4.0", re.compile(r"cc[\s-]by[\s-]nc[\s-]4\.0", re.IGNORECASE))


class Terms(StrEnum):
    """What a source allows."""

    OPEN = "any use"
    NON_COMMERCIAL = "no commercial use"
    UNKNOWN = "not known"


@dataclass(frozen=True, slots=True)
class SourceTerms:
    """The licence of one source in a ledger."""

    name: str
    licence: str
    """As the ledger spells it."""

    shapes: int | None
    terms: Terms
    identifier: str | None
    """The Hub's name of the licence, if this module knows it."""

    commercial_only: bool = False
    """Whether its corpus was restricted to sources that allow commercial use."""


@dataclass(frozen=True, slots=True)
class CardLicence:
    """The licence in the header of a model card."""

    identifier: str
    name: str | None
    """A name if the identifier is ``other``."""


def read_ledger(entries: Any) -> list[SourceTerms]:
    """The sources in an encoder's ``config.json``; an entry that cannot be read gets unknown terms."""
    if not isinstance(entries, list):
        entries = []
    return [_source(entry) for entry in entries]


def _source(entry: Any) -> SourceTerms:
    fields: Mapping[str, Any] = entry if isinstance(entry, Mapping) else {}
    licence, shapes = str(fields.get("licence") or "not recorded"), fields.get("shapes")
    terms, identifier = terms_of(licence)
    return SourceTerms(
        name=str(fields.get("name") or "not recorded"),
        licence=licence,
        shapes=shapes if isinstance(shapes, int) and shapes > 0 else None,
        terms=terms,
        identifier=identifier,
        commercial_only=fields.get(COMMERCIAL_ONLY) is True,
    )


def terms_of(licence: str) -> tuple[Terms, str | None]:
    """What a licence allows, and the Hub's name for it if there is one.

    Single words decide: research, academic and educational use count as non-commercial. Any other licence is
    unknown, unless it is a well-known open licence with nothing added but a harmless remark in brackets.
    """
    remarks = "|".join(map(re.escape, _REMARKS))
    bare = re.sub(rf"\s*\(({remarks})\)$", "", licence.strip(), flags=re.IGNORECASE)
    identifier, written = _NOT_COMMERCIAL
    if written.fullmatch(bare):
        return Terms.NON_COMMERCIAL, identifier
    if _RESTRICTED.search(licence):
        return Terms.NON_COMMERCIAL, None
    for identifier, written in _OPEN:
        if written.fullmatch(bare):
            return Terms.OPEN, identifier
    return Terms.UNKNOWN, None


def card_licence(sources: Iterable[SourceTerms]) -> CardLicence:
    """The strictest of the sources' licences; ``other`` if any of them has no name on the Hub."""
    ledger = list(sources)
    order = [identifier for identifier, _ in (*_OPEN, _NOT_COMMERCIAL)]
    identifiers = [source.identifier for source in ledger if source.identifier is not None]
    if ledger and len(identifiers) == len(ledger):
        return CardLicence(max(identifiers, key=order.index), None)
    if any(source.terms is Terms.NON_COMMERCIAL for source in ledger):
        return CardLicence("other", "non-commercial")
    return CardLicence("other", "unknown")


def licence_ledger(sources: Iterable[Any]) -> list[dict[str, Any]]:
    """Name, licence and number of shapes of each source of a corpus; and whether its licence was a condition."""
    ledger = []
    for source in sources:
        entry = {"name": source.name, "licence": source.licence, "shapes": source.kept}
        # Corpora in memory have no settings.
        if getattr(source, "settings", {}).get(COMMERCIAL_ONLY) is True:
            entry[COMMERCIAL_ONLY] = True
        ledger.append(entry)
    return ledger

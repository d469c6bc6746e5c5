"""What a client wants to be answered with: Accept, and the `accept` query parameter (RFC 9110 §12.5.1, PS3.18 §8.7).

A handler lists what it has as `Offer`s, the one it likes best first, and gets a `Choice`:

    JSON = Offer("application/dicom+json", "json", also=("application/json",))
    DICOM = Offer('multipart/related; type="application/dicom"', "dicom", transfer_syntaxes=True)
    match negotiate(request, (JSON, DICOM)).value: ...

- Of the media ranges that match an offer the most specific one decides, so that q=0 takes something out of `*/*`.
- The best weight wins; of equal ones what is named most precisely; then the first offer.
- A range that names a parameter which the offer has as well matches only with the same value (`type` of
  multipart/related); other parameters count for nothing, because clients send charset and boundary here too.
- `transfer-syntax` does not choose between offers but within one: `Choice.transfer_syntaxes`.
- The query parameter beats the header. Members that cannot be read are ignored; when nothing is left, or nothing
  matches, the answer is 406 with what there is. No Accept at all takes anything.

Not here: Accept-Encoding (`content_coding`), Accept-Language, Accept-Charset (everything is UTF-8).
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, Generic, TypeVar

from harmony.http.media_type import MediaType, parse_media_type
from harmony.http.message import HTTPError, Request

__all__ = [
    "ANY_TRANSFER_SYNTAX",
    "DEFAULT_TRANSFER_SYNTAX",
    "Choice",
    "MediaRange",
    "Offer",
    "TransferSyntaxes",
    "accepted",
    "choose",
    "negotiate",
    "parse_accept",
    "split_list",
    "weight_of",
]

ValueT = TypeVar("ValueT")

ANY_TRANSFER_SYNTAX: Final = "*"
"""As it is stored (PS3.18 §8.7.3.5.2)."""
DEFAULT_TRANSFER_SYNTAX: Final = ""
"""None was named: the default one of the media type."""

REMEMBERED_LENGTH: Final = 512
"""What is chosen for a longer Accept is not remembered: strangers fill the memory of this program."""

_IN_LIST = re.compile(r'\\.|"|,', re.DOTALL)
_WEIGHT = re.compile(r"\d{1,9}(\.\d{0,9})?|\.\d{1,9}")  # Java sends q=.2; RFC 9110 §12.4.2 has it as 0.2
_UNESCAPED_PLUS = re.compile(r"(?<=[0-9A-Za-z]) (?=(?:json|xml)\b)")


@dataclass(frozen=True, slots=True)
class MediaRange:
    """One member of Accept. `media_type` may have wildcards, and no q among its parameters."""

    media_type: MediaType
    weight: float = 1.0


@dataclass(frozen=True, slots=True)
class Offer(Generic[ValueT]):
    """One way to answer.

    media_type: what Content-Type says, with the parameters that tell offers apart.
    value: what it means to the handler.
    also: other types by which clients ask for the same thing.
    transfer_syntaxes: a transfer syntax can be chosen; otherwise the parameter counts for nothing.
    """

    media_type: str
    value: ValueT
    also: tuple[str, ...] = ()
    transfer_syntaxes: bool = False


class TransferSyntaxes(Mapping[str, float]):
    """Weights by transfer syntax UID, `ANY_TRANSFER_SYNTAX` and `DEFAULT_TRANSFER_SYNTAX`, the best first.

    A weight of 0 takes one out of what `ANY_TRANSFER_SYNTAX` allows.
    """

    __slots__ = ("_weights",)

    def __init__(self, weights: Mapping[str, float]) -> None:
        self._weights = dict(sorted(weights.items(), key=lambda each: -each[1]))

    def weight(self, uid: str, *, is_default: bool = False) -> float:
        """How welcome this one is, 0 for not at all. is_default: it is the default of the media type."""
        if uid in self._weights:
            return self._weights[uid]
        keys = (DEFAULT_TRANSFER_SYNTAX, ANY_TRANSFER_SYNTAX) if is_default else (ANY_TRANSFER_SYNTAX,)
        return next((self._weights[key] for key in keys if key in self._weights), 0.0)

    def named(self) -> list[str]:
        """The UIDs that are acceptable by name, the best first."""
        keys = (ANY_TRANSFER_SYNTAX, DEFAULT_TRANSFER_SYNTAX)
        return [uid for uid, weight in self._weights.items() if weight and uid not in keys]

    def __getitem__(self, uid: str) -> float:
        return self._weights[uid]

    def __iter__(self) -> Iterator[str]:
        return iter(self._weights)

    def __len__(self) -> int:
        return len(self._weights)

    def __repr__(self) -> str:
        return f"TransferSyntaxes({self._weights})"


@dataclass(frozen=True, slots=True)
class Choice(Generic[ValueT]):
    """The offer that a client likes best."""

    offer: Offer[ValueT]
    weight: float = 1.0
    transfer_syntaxes: TransferSyntaxes = field(
        default_factory=lambda: TransferSyntaxes({DEFAULT_TRANSFER_SYNTAX: 1.0})
    )

    @property
    def value(self) -> ValueT:
        return self.offer.value

    @property
    def media_type(self) -> str:
        return self.offer.media_type


def negotiate(request: Request, offers: Sequence[Offer[ValueT]]) -> Choice[ValueT]:
    """The best of `offers` for this request. Raises HTTPError 406 when it wants none of them.

    An answer that depends on this should say `Vary: Accept`.
    """
    choice = choose(accepted(request), offers)
    if choice is None:
        listed = ", ".join(dict.fromkeys(offer.media_type for offer in offers))
        raise HTTPError(406, f"nothing here is acceptable to this request; offered: {listed}")
    return choice


def accepted(request: Request) -> str | None:
    """What it accepts: the `accept` query parameter, else the header; None when it has neither."""
    asked = [value for value in request.query.all("accept") if value.strip()]
    if asked:
        # A "+" that is not percent-encoded is a space in a query string, and no media type has one.
        return _UNESCAPED_PLUS.sub("+", ", ".join(asked))
    return request.headers.get("accept")


def choose(accept: str | None, offers: Sequence[Offer[ValueT]]) -> Choice[ValueT] | None:
    """The best of `offers`, which are not none, for the value of an Accept header; None when it allows none."""
    if accept is None or not accept.strip():
        return Choice(offers[0])
    if isinstance(offers, tuple) and len(accept) <= REMEMBERED_LENGTH:
        return _remembered(accept, offers)
    return _choose(accept, offers)


def _choose(accept: str, offers: Sequence[Offer[ValueT]]) -> Choice[ValueT] | None:
    ranges = parse_accept(accept)
    best: Choice[ValueT] | None = None
    best_rank = (0.0, 0)
    for offer in offers:
        found = _judge(offer, ranges)
        if found is not None and (best is None or found[1] > best_rank):
            best, best_rank = found
    return best


_remembered = functools.lru_cache(maxsize=256)(_choose)
"""A client sends the same Accept with each of its requests, and what is offered is written in this program."""


def parse_accept(value: str) -> list[MediaRange]:
    """The members of an Accept header that can be read, in order."""
    return [found for member in split_list(value) if (found := _media_range(member)) is not None]


def split_list(value: str) -> Iterator[str]:
    """The members of a list (RFC 9110 §5.6.1), which commas outside of quotes separate."""
    start, quoted = 0, False
    for found in _IN_LIST.finditer(value):
        if found[0] == '"':
            quoted = not quoted
        elif found[0] == "," and not quoted:
            yield value[start : found.start()]
            start = found.end()
    yield value[start:]


def weight_of(text: str) -> float | None:
    """A q value (RFC 9110 §12.4.2), at most 1; None when it is none."""
    return min(1.0, float(text)) if text.isascii() and _WEIGHT.fullmatch(text) else None


def _media_range(member: str) -> MediaRange | None:
    try:
        parsed = parse_media_type(member)
    except ValueError:
        return None
    kind, _, subtype = parsed.essence.partition("/")
    if ("*" in kind and kind != "*") or ("*" in subtype and subtype != "*") or (kind == "*" != subtype):
        return None
    parameters = dict(parsed.parameters)
    weight = weight_of(parameters.pop("q", "1"))
    return None if weight is None else MediaRange(MediaType(parsed.essence, parameters), weight)


def _judge(
    offer: Offer[ValueT], ranges: Sequence[MediaRange]
) -> tuple[Choice[ValueT], tuple[float, int]] | None:
    """What the ranges say about an offer, and how it compares with others; None when they do not allow it."""
    decided: dict[str, tuple[int, float]] = {}  # transfer syntax -> specificity and weight
    for each in ranges:
        specificity = max(_specificity(each.media_type, name) for name in (offer.media_type, *offer.also))
        if specificity < 0:
            continue
        syntax = each.media_type.parameters.get("transfer-syntax", "") if offer.transfer_syntaxes else ""
        decided[syntax] = max(decided.get(syntax, (-1, 0.0)), (specificity, each.weight))
    weights = {syntax: weight for syntax, (_, weight) in decided.items()}
    best = max(weights.values(), default=0.0)
    if not best:
        return None
    precision = max(specificity for specificity, weight in decided.values() if weight == best)
    return Choice(offer, best, TransferSyntaxes(weights)), (best, precision)


def _specificity(wanted: MediaType, media_type: str) -> int:
    """How closely a range names a media type: -1 not at all, 0 */*, 1 type/*, 2 type/subtype, 3 and more with
    parameters."""
    offered = _parsed(media_type)
    if wanted.essence == offered.essence:
        specificity = 2
    elif wanted.essence == "*/*":
        specificity = 0
    elif wanted.essence == offered.essence.partition("/")[0] + "/*":
        specificity = 1
    else:
        return -1
    for name, value in offered.parameters.items():
        if name in wanted.parameters:
            closeness = _closeness(wanted.parameters[name].strip().lower(), value.lower())
            if closeness < 0:
                return -1
            specificity += closeness
    return specificity


def _closeness(wanted: str, value: str) -> int:
    """The same of a parameter. The type of multipart/related may have wildcards, dicomweb-client sends them."""
    if wanted == value:
        return 3
    return {"*/*": 1, f"{value.partition('/')[0]}/*": 2}.get(wanted, -1)


@functools.cache
def _parsed(media_type: str) -> MediaType:
    """Of what handlers offer, which is written in this program."""
    return parse_media_type(media_type)

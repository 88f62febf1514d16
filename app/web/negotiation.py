"""Content negotiation by the `Accept` header (RFC 9110, section 12.5.1)."""

from collections.abc import Iterable

from app.errors import NotAcceptable
from app.pixels import OutputFormat

IMAGE_TYPES = tuple(output_format.media_type for output_format in OutputFormat)

_NAMED = 3
"""The specificity of a media type itself; `image/*` has 2, and `*/*` has 1."""


def best_format(accept: str) -> OutputFormat:
    """The format with the highest weight in an `Accept` header; the first one of several, so PNG for `*/*`.

    Raises:
        NotAcceptable: it admits none.
    """
    best, best_quality = None, 0.0
    for output_format in OutputFormat:
        quality = _quality(accept, output_format.media_type)
        if quality > best_quality:
            best, best_quality = output_format, quality
    if best is None:
        raise NotAcceptable(
            f"The Accept header admits no format that is made here: {', '.join(IMAGE_TYPES)}.", param="Accept"
        )
    return best


def prefers(accept: str, media_type: str, others: Iterable[str]) -> bool:
    """Whether an `Accept` header names a media type itself, and gives none of the others a higher weight."""
    weight = _weights(accept, media_type).get(_NAMED, 0.0)
    return weight > 0 and all(_quality(accept, other) <= weight for other in others)


def _quality(accept: str, media_type: str) -> float:
    """The weight of the most specific range of an `Accept` header that covers a media type; 0 if none does."""
    weights = _weights(accept, media_type)
    return weights[max(weights)] if weights else 0.0


def _weights(accept: str, media_type: str) -> dict[int, float]:
    """The weights of the ranges that cover a media type, by how specific they are."""
    ranges = {"*/*": 1, media_type.partition("/")[0] + "/*": 2, media_type: _NAMED}
    weights: dict[int, float] = {}
    for part in accept.split(","):
        pattern, *options = (piece.strip().lower() for piece in part.split(";"))
        if pattern not in ranges:
            continue
        weight = next((option[2:] for option in options if option.startswith("q=")), "1")
        try:
            weights[ranges[pattern]] = max(0.0, min(1.0, float(weight)))
        except ValueError:
            weights[ranges[pattern]] = 1.0
    return weights

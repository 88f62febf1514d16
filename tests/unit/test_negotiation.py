"""Which format an Accept header asks for."""

import pytest

from app.errors import NotAcceptable
from app.pixels import OutputFormat
from app.web.negotiation import best_format, prefers


@pytest.mark.parametrize(
    ("accept", "chosen"),
    [
        ("*/*", "png"),
        ("", None),
        ("image/*", "png"),
        ("image/webp", "webp"),
        ("IMAGE/JPEG;q=1", "jpeg"),
        ("image/png;q=0.5, image/webp", "webp"),
        ("image/png;q=0, */*", "webp"),
        ("image/webp;q=0.3, image/*;q=0.2", "webp"),
        ("image/*;q=oops", "png"),
        ("image/png;q=0", None),
        ("text/html", None),
    ],
)
def test_accept_header_chooses_the_format(accept: str, chosen: str | None) -> None:
    if chosen is None:
        with pytest.raises(NotAcceptable):
            best_format(accept)
    else:
        assert best_format(accept) is OutputFormat(chosen)


@pytest.mark.parametrize(
    ("accept", "preferred"),
    [
        ("text/event-stream", True),
        ("Text/Event-Stream;Q=1, */*", True),
        ("text/event-stream;q=0", False),
        ("text/event-stream;q=0.5, image/png", False),
        ("text/event-stream, image/png;q=0.5", True),
        ("text/*", False),
        ("*/*", False),
        ("x-text/event-stream", False),
        ("", False),
    ],
)
def test_events_are_preferred_only_if_named(accept: str, preferred: bool) -> None:
    assert prefers(accept, "text/event-stream", ["image/png", "image/webp"]) is preferred

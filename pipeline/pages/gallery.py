"""The page of one's own images with their captions; it runs no script."""

from collections import Counter
from collections.abc import Mapping, Sequence

from pipeline.pages.cards import Card
from pipeline.pages.rendering import render

_LISTED = 200  # most skipped files that are named


def by_reason(skipped: Mapping[str, str]) -> str:
    """'3 truncated image, 1 unreadable file' from file -> reason, whose details do not count."""
    counts = Counter(reason.partition(" (")[0] for reason in skipped.values())
    return ", ".join(f"{count} {reason}" for reason, count in counts.most_common())


def page(
    cards: Sequence[Card], *, model: str, captioned: int, skipped: Mapping[str, str], ignored: int
) -> str:
    """The page as HTML text.

    Args:
        cards: what is shown, in order; may be fewer than were captioned.
        model: where the captions come from.
        captioned: all images with a caption.
        skipped: file -> reason, of the unusable ones.
        ignored: files that were not looked at because their names end otherwise.
    """
    return render(
        "gallery.html",
        cards=cards,
        model=model,
        captioned=captioned,
        skipped=list(skipped.items())[:_LISTED],
        skipped_count=len(skipped),
        reasons=by_reason(skipped),
        ignored=ignored,
    )

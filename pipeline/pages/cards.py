"""What a page shows of one sample, and of scores: cards and tables, still without layout."""

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Card:
    """One sample with what was said of it; more lines than one keep their line ends."""

    name: str
    picture: str | None  # from `thumbnail`; None where it has no image, or one that cannot be shown
    said: str
    asked: str = ""
    truth: Sequence[str] = ()
    score: float | None = None  # by which the page sorts
    groups: Sequence[str] = ()


@dataclass(frozen=True)
class Cell:
    """A number as text, with what stands small beside it, such as its interval."""

    text: str
    small: str = ""


@dataclass(frozen=True)
class Table:
    """Rows of a name and its cells."""

    title: str
    heads: Sequence[str]  # of the cells
    rows: Sequence[tuple[str, Sequence[Cell]]]
    notes: Sequence[str] = ()

    def as_text(self) -> str:
        """Columns that are aligned, the small texts in brackets."""
        lines = [("", *self.heads)]
        for name, cells in self.rows:
            texts = (f"{each.text} [{each.small}]" if each.small else each.text for each in cells)
            lines.append((name, *texts))
        widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
        text = [
            "  ".join([line[0].ljust(widths[0]), *map(str.rjust, line[1:], widths[1:])]).rstrip()
            for line in lines
        ]
        return "\n".join([self.title, *(f"  {line}" for line in [*text, *self.notes])])

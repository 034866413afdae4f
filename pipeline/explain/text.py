"""How a plan is laid out: aligned rows under headings, and numbers as people read them.

Pure strings. An unknown number is `None` and shows as "?".
"""

from collections.abc import Iterable, Sequence

UNKNOWN = "?"
_LABEL = 18  # characters of a row's label
_WIDTH = 100


def section(title: str, rows: Iterable[tuple[str, str]]) -> str:
    """A heading with `label  value` lines below it; long values go on under themselves."""
    return "\n".join([title, rows_of(rows)])


def rows_of(rows: Iterable[tuple[str, str]]) -> str:
    """The lines of a section without its heading."""
    rows = list(rows)
    room = max([_LABEL, *(len(label) + 2 for label, _ in rows)])
    lines = []
    for label, value in rows:
        first, *rest = _wrapped(value, _WIDTH - room - 2) or [""]
        lines.append(f"  {label:<{room}}{first}".rstrip())
        lines += [f"  {'':<{room}}{each}" for each in rest]
    return "\n".join(lines)


def table(title: str, header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A heading and columns: the first to the left, the others to the right."""
    cells = [list(header), *(list(row) for row in rows)]
    widths = [max(len(row[column]) for row in cells) for column in range(len(header))]
    widths[0] = max(widths[0], _LABEL - 2)
    lines = [title]
    for first, *others in cells:
        right = "".join(f"  {each:>{w}}" for each, w in zip(others, widths[1:], strict=True))
        lines.append(f"  {first:<{widths[0]}}{right}".rstrip())
    return "\n".join(lines)


def count(number: float | None) -> str:
    """113,287"""
    return UNKNOWN if number is None else f"{round(number):,}"


def millions(number: float | None) -> str:
    """Parameters: 0, 812, 31.5 k, 124.4 M, 6.74 B"""
    if number is None:
        return UNKNOWN
    for size, unit in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        if number >= size:
            return f"{number / size:.{2 if unit == 'B' else 1}f} {unit}"
    return f"{number:.0f}"


def size(number: float | None) -> str:
    """Bytes in decimal units: 740 kB, 1.5 GB"""
    if number is None:
        return UNKNOWN
    for unit, name in ((1e12, "TB"), (1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if number >= unit:
            value = number / unit
            return f"{value:.{1 if value < 100 else 0}f} {name}"
    return f"{number:.0f} B"


def rate(number: float) -> str:
    """A learning rate: 2e-05"""
    return f"{number:.3g}"


def plural(number: int, one: str, many: str | None = None) -> str:
    """1 rank, 8 ranks"""
    return f"{number:,} {one if number == 1 else many or one + 's'}"


def _wrapped(value: str, room: int) -> list[str]:
    """Lines of at most `room` characters, broken between words; given line breaks stay."""
    lines: list[str] = []
    for paragraph in value.splitlines():
        line = ""
        for word in paragraph.split(" "):
            if line and len(line) + 1 + len(word) > room:
                lines.append(line)
                line = word
            else:
                line = f"{line} {word}" if line else word
        lines.append(line)
    return lines

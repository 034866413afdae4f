"""Tables of two runs side by side: baseline, EIM, and the difference. Pure text."""

from collections.abc import Callable, Iterable

MISSING = "-"


def row(
    name: str, base: float | None, eim: float | None, show: Callable[[float], str]
) -> tuple[str, str, str, str]:
    """A line of a table: a number of both runs, as `show` writes it, and their difference."""
    left, right = (MISSING if value is None else show(value) for value in (base, eim))
    if base is None or eim is None:
        return name, left, right, MISSING
    return name, left, right, ("+" if eim >= base else "-") + show(abs(eim - base))


def score_text(value: float) -> str:
    """0.1234"""
    return f"{value:.4f}"


def count_text(value: float) -> str:
    """12,726"""
    return f"{value:,.0f}"


def table(title: str, rows: Iterable[tuple[str, ...]]) -> str:
    """Right-aligned columns under a title."""
    lines = [("", "baseline", "EIM", "difference"), *rows]
    widths = [max(len(line[column]) for line in lines) for column in range(4)]
    text = [
        "  ".join([line[0].ljust(widths[0]), *map(str.rjust, line[1:], widths[1:])]).rstrip()
        for line in lines
    ]
    return "\n".join([title, *(f"  {line}" for line in text)])

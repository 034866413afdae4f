"""Plots as small SVG pictures inside a page, drawn by matplotlib.

Pictures and not elements of the page, so that no label can become markup; a figure's size is that
of a phone's width, so that its text stays readable there. Knows numbers and names only.
"""

import base64
import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

_SIZE = (4.0, 2.7)  # inches, of 96 pixels
_BAR = 0.24  # inches a bar
_COLOURS = ("#0b5394", "#c27a1a", "#2e6b34", "#8e3a80", "#4d4d4d", "#b03030")
_STYLE: dict[Any, object] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "eim",
    "text.parse_math": False,
    "font.family": "sans-serif",
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#8a8a84",
    "axes.grid": True,
    "grid.color": "#ececea",
    "axes.axisbelow": True,
    "legend.frameon": False,
    "legend.fontsize": 8,
}
_LONGEST = 26  # characters of a label
_POINTS = 400  # of a line


@dataclass(frozen=True)
class Plot:
    """A picture with its words."""

    title: str
    described: str  # what it shows, for those who cannot see it
    picture: str  # a data URL


@dataclass(frozen=True)
class Line:
    """A curve; `dots` marks its points, of which there are few."""

    label: str
    points: Sequence[tuple[float, float]]
    dots: bool = False


@dataclass(frozen=True)
class Bar:
    """A value with its interval, if it has one."""

    value: float
    low: float | None = None
    high: float | None = None


def curves(title: str, lines: Sequence[Line], labels: Sequence[str], *, x: str = "step") -> Plot:
    """Lines over a common axis of whole numbers; long ones are thinned out to some hundred points.

    labels: of all plots that stand together, so that a label has one colour in all of them.
    """

    def draw(axes: Axes) -> None:
        told = set[str]()
        for line in lines:
            every = max(len(line.points) // _POINTS, 1)
            points = [*line.points[::every], line.points[-1]] if every > 1 else line.points
            axes.plot(
                [a for a, _ in points],
                [b for _, b in points],
                color=_colour(labels.index(line.label)),
                marker="o" if line.dots else "",
                markersize=4,
                linestyle="--" if line.dots else "-",
                linewidth=1.4,
                label="_" if line.label in told else _short(line.label),
            )
            told.add(line.label)
        axes.set_xlabel(x)
        _whole_ticks(axes)
        axes.legend(loc="best")

    ends = (f"{line.label} ends at {line.points[-1][1]:.4g}" for line in lines if line.points)
    return _plot(title, "; ".join(ends), draw)


def bars(
    title: str, names: Sequence[str], series: Mapping[str, Sequence[Bar | None]], *, x: str = ""
) -> Plot:
    """Horizontal bars, a group a name and in it one a series; None where a series has none."""
    thickness = 0.8 / max(len(series), 1)

    def draw(axes: Axes) -> None:
        for number, (label, values) in enumerate(series.items()):
            places = [i + number * thickness for i, each in enumerate(values) if each is not None]
            found = [each for each in values if each is not None]
            axes.barh(
                places,
                [each.value for each in found],
                height=0.9 * thickness,
                color=_colour(number),
                label=_short(label),
                xerr=_errors(found),
                error_kw={"elinewidth": 0.8, "ecolor": "#1c1c1a"},
            )
        axes.set_yticks([i + 0.4 - thickness / 2 for i in range(len(names))], map(_short, names))
        axes.invert_yaxis()
        if all(each is None or each.value >= 0 for values in series.values() for each in values):
            highest = max((b.value for each in series.values() for b in each if b), default=0)
            axes.set_xlim(left=0, right=None if highest > 0 else 1)
        axes.set_xlabel(x)
        axes.grid(visible=False, axis="y")
        if len(series) > 1:
            axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=2)

    height = 0.9 + _BAR * len(names) * max(len(series), 1) * (1.0 if len(series) > 1 else 1.3)
    return _plot(title, f"{len(names)} groups", draw, height=max(height, _SIZE[1]))


def table_of_counts(
    title: str, rows: Sequence[str], columns: Sequence[str], counts: Sequence[Sequence[int]]
) -> Plot:
    """A confusion matrix: what is true by rows, what was said by columns."""
    values = np.array(counts)

    def draw(axes: Axes) -> None:
        axes.imshow(values, cmap="Blues", vmin=0, aspect="auto")
        for (row, column), count in np.ndenumerate(values):
            dark = count > 0.6 * max(values.max(), 1)
            colour = "white" if dark else "#1c1c1a"
            axes.text(column, row, f"{count:,}", ha="center", va="center", color=colour)
        axes.set_xticks(range(len(columns)), columns)
        axes.set_yticks(range(len(rows)), rows)
        axes.set_xlabel("said")
        axes.set_ylabel("true")
        axes.grid(visible=False)

    said = (
        f"{counts[i][j]} of true {row} said {column}"
        for i, row in enumerate(rows)
        for j, column in enumerate(columns)
    )
    return _plot(title, "; ".join(said), draw)


def histogram(title: str, series: Mapping[str, Sequence[float]], *, x: str, whole: bool) -> Plot:
    """How values are spread, as shares of each series; whole: they are whole numbers."""
    values = np.concatenate([np.asarray(each, float) for each in series.values()])
    low, high = float(values.min()), float(values.max())
    if whole:
        width = max(-(-int(high - low + 1) // 30), 1)
        edges = np.arange(low - 0.5, high + width + 0.5, width)
    else:
        edges = np.linspace(low, high if high > low else low + 1, 31)

    def draw(axes: Axes) -> None:
        for number, (label, each) in enumerate(series.items()):
            axes.hist(
                each,
                edges.tolist(),
                weights=np.full(len(each), 100 / max(len(each), 1)),
                histtype="stepfilled",
                alpha=0.55,
                color=_colour(number),
                label=_short(label),
            )
        axes.set_xlabel(x)
        if whole:
            _whole_ticks(axes)
        axes.set_ylabel("% of the samples")
        if len(series) > 1:
            axes.legend(loc="best")

    means = (f"{label}: {np.mean(each):.3g} on average" for label, each in series.items())
    return _plot(title, "; ".join(means), draw)


def _whole_ticks(axes: Axes) -> None:
    axes.xaxis.get_major_locator().set_params(integer=True)  # type: ignore[call-arg]


def _errors(found: Sequence[Bar]) -> list[list[float]] | None:
    """(2, N), below and above each value; None where no bar has an interval."""
    if all(each.low is None for each in found):
        return None
    below = [each.value - (each.value if each.low is None else each.low) for each in found]
    above = [(each.value if each.high is None else each.high) - each.value for each in found]
    return [[max(each, 0.0) for each in side] for side in (below, above)]


def _plot(
    title: str, described: str, draw: Callable[[Axes], None], *, height: float = _SIZE[1]
) -> Plot:
    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=(_SIZE[0], height), layout="constrained")
        draw(figure.subplots())
        buffer = io.BytesIO()
        # Without the date a page is the same again.
        nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
        figure.savefig(buffer, format="svg", metadata=nothing)
    code = base64.b64encode(buffer.getvalue()).decode()
    return Plot(title, described, f"data:image/svg+xml;base64,{code}")


def _colour(number: int) -> str:
    return _COLOURS[number % len(_COLOURS)]


def _short(label: str) -> str:
    label = label.lstrip("_") or "?"  # matplotlib hides labels that begin with an underscore
    return label if len(label) <= _LONGEST else f"{label[: _LONGEST - 1]}…"

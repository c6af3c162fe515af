"""The style of the plots on the pages, and their SVG, drawn by matplotlib.

The plots are light. Color-blind readers can distinguish their colors (Okabe and Ito, 2008), and each color comes
with a dash or a shape of its own. matplotlib is imported inside the functions: it takes most of a second, and only an
evaluation draws.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from io import StringIO
from math import ceil
from typing import TYPE_CHECKING, Any
from xml.sax.saxutils import escape

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

BLUE, VERMILION, GREEN, PURPLE, SKY = "#0072b2", "#d55e00", "#009e73", "#a8578a", "#a3d3f0"
INK, QUIET, GRID = "#1c1b1f", "#5e5b64", "#e4e2dc"
DASHES: tuple[Any, ...] = ("-", (0, (9, 4)), (0, (2.5, 3.5)), (0, (12, 4, 2.5, 4)))
"""The line style of the first, second … line of a plot, in pixels."""

WIDTH, HEIGHT = 640, 520
"""The size of a plot in pixels. matplotlib's SVG has 72 units to the inch; here one unit is one pixel."""
_LEFT, _RIGHT, _BOTTOM = 74, 20, 60
_HEAD, _LEGEND_ROW = 78, 23
"""Pixels above the legend, and of each row of it."""
_GAP = 26
"""Pixels between panels."""

_STYLE: dict[Any, Any] = {
    "font.family": "sans-serif",
    "font.sans-serif": ["Segoe UI", "Roboto", "Helvetica Neue", "DejaVu Sans", "Arial"],
    "text.parse_math": False,  # a dollar sign is a dollar sign
    "svg.fonttype": "none",  # text stays text: it can be searched, copied and read aloud
    "svg.hashsalt": "asap",  # the ids in the file, and so its bytes, are the same each time
    "path.simplify_threshold": 0.5,  # a curve over 100,000 pairs stays small
    "lines.linewidth": 2.25,
    "lines.scale_dashes": False,
    "lines.markersize": 10,
    "lines.markeredgewidth": 2,
    "axes.axisbelow": True,
    "axes.edgecolor": QUIET,
    "axes.linewidth": 1.25,
    "axes.labelsize": 14,
    "axes.labelcolor": INK,
    "axes.labelpad": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": GRID,
    "grid.linewidth": 1,
    "legend.fontsize": 14,
    "legend.labelcolor": INK,
    "legend.frameon": False,
    **{f"{axis}tick.{name}": value for axis in "xy" for name, value in
       {"labelsize": 13, "labelcolor": QUIET, "major.size": 0, "major.pad": 9}.items()},
}  # fmt: skip


@contextmanager
def plot_style() -> Iterator[None]:
    """Set matplotlib's defaults to the style of the pages; also a decorator for a function that draws."""
    from matplotlib import rc_context

    with rc_context(_STYLE):
        yield


@plot_style()
def new_figure(title: str, note: str, x_label: str, heights: Sequence[float] = (1,)) -> tuple[Figure, list[Axes]]:
    """Return a figure and its panels, one below the other over one x axis.

    Both axes of a panel go from 0 to 1 until they are set otherwise.

    Args:
        title: the first line.
        note: one line below the title.
        x_label: the label of the x axis.
        heights: the height of each panel, relative to the others.
    """
    from matplotlib.figure import Figure

    figure = Figure((WIDTH / 72, HEIGHT / 72))
    figure.suptitle(title, x=20 / WIDTH, y=1 - 34 / HEIGHT, ha="left", va="baseline", size=19, weight="bold", color=INK)
    figure.text(20 / WIDTH, 1 - 58 / HEIGHT, note, size=13.5, color=QUIET)
    panels = figure.subplots(len(heights), sharex=True, squeeze=False, height_ratios=heights)[:, 0].tolist()
    for axes in panels:
        axes.set(xlim=(0, 1), ylim=(0, 1))
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_ticks([0, 0.2, 0.4, 0.6, 0.8, 1])
            axis.set_major_formatter("{x:g}")
        axes.yaxis.set_label_coords(-50 / (WIDTH - _LEFT - _RIGHT), 0.5)
    panels[-1].set_xlabel(x_label)
    return figure, panels


def round_ticks(highest: float, steps: int) -> list[float]:
    """Return ticks from 0 to a round whole number at or above `highest`, in at most so many steps."""
    from matplotlib.ticker import MaxNLocator

    locator = MaxNLocator(steps, steps=[1, 2, 5, 10], integer=True, min_n_ticks=1)
    return [float(tick) for tick in locator.tick_values(0, highest)]


@plot_style()
def render_svg(figure: Figure, summary: str) -> str:
    """Return the figure, with its legend, as a file of its own: no script, nothing fetched.

    Args:
        figure: a figure of `new_figure`.
        summary: what the plot shows, for readers who cannot see it.
    """
    # The legend stands in two columns above the panels, where no curve can cross it.
    labels = [label for axes in figure.axes for label in axes.get_legend_handles_labels()[1]]
    handles = [handle for axes in figure.axes for handle in axes.get_legend_handles_labels()[0]]
    if labels:
        figure.legend(
            handles[::2] + handles[1::2], labels[::2] + labels[1::2],  # matplotlib fills the columns one by one
            loc="upper left", bbox_to_anchor=(20 / WIDTH, 1 - 72 / HEIGHT), ncols=2, columnspacing=2.2,
            handlelength=2, handletextpad=0.7, borderpad=0, borderaxespad=0, labelspacing=0.65,
        )  # fmt: skip
    top = _HEAD + _LEGEND_ROW * ceil(len(labels) / 2)
    panel = (HEIGHT - top - _BOTTOM - _GAP * (len(figure.axes) - 1)) / len(figure.axes)
    figure.subplots_adjust(
        left=_LEFT / WIDTH, right=1 - _RIGHT / WIDTH, top=1 - top / HEIGHT, bottom=_BOTTOM / HEIGHT, hspace=_GAP / panel
    )
    for axes in figure.axes:
        for line in axes.get_lines():
            line.set_clip_on(False)  # a curve along the edge keeps its full width

    title = figure.get_suptitle()
    metadata = {"Title": title, "Date": None, "Creator": None, "Format": None, "Type": None}
    file = StringIO()
    figure.savefig(file, format="svg", metadata=metadata)
    # matplotlib measures in points, which browsers show a third larger, and has no description for screen readers.
    size, pixels = f'width="{WIDTH}pt" height="{HEIGHT}pt"', f'width="{WIDTH}" height="{HEIGHT}" role="img"'
    described = f"</title>\n <desc>{escape(summary)}</desc>"
    return file.getvalue().replace(size, pixels, 1).replace("</title>", described, 1)

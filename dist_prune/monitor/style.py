"""One style for all pictures: colors that color-blind readers can tell apart, and axes without a frame.

Figures are made without pyplot, so that a program that imports the package keeps its own backend and settings.
"""

import io
from collections.abc import Callable, Mapping, Sequence

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colorbar import Colorbar
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import FuncFormatter, MaxNLocator

INK = "#222831"
QUIET = "#6b7480"
RULE = "#d9dde2"

# The palette of Okabe and Ito.
BLUE = "#0072B2"
ORANGE = "#D55E00"
GREEN = "#009E73"
PINK = "#CC79A7"
AMBER = "#E69F00"
SKY = "#56B4E9"
CYCLE = (INK, BLUE, ORANGE, GREEN, PINK, AMBER, SKY)

# Lightness rises evenly from closed to open, so that the picture reads in gray as well.
ACTIVATION = LinearSegmentedColormap.from_list(
    "activation", ["#0d1b3e", "#27477a", "#4f7fa6", "#93b8bd", "#d5ddc4", "#fdf6df"]
).with_extremes(bad="#e3b7b0")
CLOSED, OPEN = "#1b3767", "#E08A00"


def new_figure(width: float, height: float) -> Figure:
    """Return an empty white figure of this size in inches."""
    layout = ConstrainedLayoutEngine(w_pad=0.1, h_pad=0.1, wspace=0.03, hspace=0.04)
    return Figure(figsize=(width, height), layout=layout, facecolor="white", dpi=100)


def png(figure: Figure, dpi: int = 160) -> bytes:
    """Return the figure as the bytes of a PNG file."""
    buffer = io.BytesIO()
    FigureCanvasAgg(figure)  # attaches itself; without a canvas of Agg, savefig would look for one
    figure.savefig(buffer, dpi=dpi, format="png")
    return buffer.getvalue()


def title(axes: Axes, text: str, pad: float = 10, size: float = 11) -> None:
    """Set a heading at the left edge of the axes."""
    axes.set_title(text, loc="left", fontsize=size, fontweight="bold", color=INK, pad=pad)


def quiet(axes: Axes, grid: bool = True) -> None:
    """Remove the frame and leave light rules behind the data."""
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.spines["bottom"].set_color(RULE)
    axes.tick_params(length=0, labelsize=9, labelcolor=QUIET, pad=5)
    axes.xaxis.label.set(fontsize=9, color=QUIET)
    axes.yaxis.label.set(fontsize=9, color=QUIET)
    if grid:
        axes.grid(axis="y", color=RULE, linewidth=0.7)
        axes.set_axisbelow(True)


def color_bar(
    figure: Figure, image: AxesImage, axes: Sequence[Axes], rows: int, ticks: Mapping[float, str]
) -> Colorbar:
    """Add the key to the colors of `image`, to the right of `axes`, which fill `rows` rows."""
    bar = figure.colorbar(image, ax=axes, fraction=0.03, pad=0.02, ticks=list(ticks), aspect=20 * rows)
    bar.ax.set_yticklabels(list(ticks.values()), fontsize=9, color=QUIET)
    bar.ax.tick_params(length=0)
    bar.outline.set_visible(False)
    return bar


def round_ticks() -> MaxNLocator:
    """Ticks at a few round whole numbers."""
    return MaxNLocator(7, integer=True, steps=[1, 2, 5, 10])


def percent_ticks() -> FuncFormatter:
    """Fractions as percentages."""
    return FuncFormatter(_formatter(lambda value: f"{100 * value:g} %"))


def point_ticks() -> FuncFormatter:
    """Differences of fractions as percentage points."""
    return FuncFormatter(_formatter(lambda value: f"{100 * value:g}"))


def step_ticks() -> FuncFormatter:
    """Steps with thousands as "12 k"."""
    return FuncFormatter(_formatter(lambda value: f"{value / 1000:g} k" if value >= 1000 else f"{value:g}"))


def _formatter(text: Callable[[float], str]) -> Callable[[float, int], str]:
    return lambda value, _position: text(round(value, 6))

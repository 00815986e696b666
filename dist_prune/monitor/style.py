"""One style for all pictures: colors that color-blind readers can tell apart, and axes without a frame.

Figures are made without pyplot, so that a program that imports the package keeps its own backend and settings.
"""

import io
import textwrap
from collections.abc import Mapping, Sequence

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colorbar import Colorbar
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import MaxNLocator

INK = "#222831"
QUIET = "#6b7480"
RULE = "#d9dde2"

# The palette of Okabe and Ito.
BLUE = "#0072B2"
AMBER = "#E69F00"
CYCLE = (INK, BLUE, "#D55E00", "#009E73", "#CC79A7", AMBER, "#56B4E9")

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


def title(axes: Axes, text: str, pad: float = 10, size: float = 11, width: int = 200) -> None:
    """Set a heading at the left edge of the axes, in lines of at most `width` characters."""
    lines = textwrap.fill(text, width, break_on_hyphens=False)
    axes.set_title(lines, loc="left", fontsize=size, fontweight="bold", color=INK, pad=pad)


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


def percent_tick(value: float, _position: float) -> str:
    """Format the tick of a fraction as a percentage."""
    return f"{round(100 * value, 4):g} %"


def point_tick(value: float, _position: float) -> str:
    """Format the tick of a difference of fractions as percentage points."""
    return f"{round(100 * value, 4):g}"

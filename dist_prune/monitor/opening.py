"""A map of gates: one row a site, one column an epoch, dark where closed and light where open."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.image import AxesImage

from dist_prune.monitor import style

MOST_NAMES = 60  # more rows than this cannot all carry a name


def draw_opening(
    axes: Axes,
    table: npt.NDArray[np.float64],
    site_names: Sequence[str],
    epochs: Sequence[int],
    most_names: int = MOST_NAMES,
) -> AxesImage:
    """Draw mean openings, (epochs, sites), into `axes`; of the sites, at most `most_names` carry their name."""
    columns, sites = table.shape
    image = axes.imshow(
        table.T, cmap=style.OPENING, vmin=0, vmax=1, aspect="auto", interpolation="nearest", origin="upper"
    )
    style.quiet(axes, grid=False)
    axes.spines[:].set_visible(False)
    shown = _spread(sites, most_names)
    small = len(shown) > 20
    axes.set_yticks(shown, [site_names[i] for i in shown], fontsize=6.5 if small else 9)
    label_epochs(axes, epochs)
    axes.set_ylabel("site, from input to output")
    if sites <= 20:  # thin rules keep few rows apart; between many they would hide the data
        axes.hlines(np.arange(sites - 1) + 0.5, -0.5, columns - 0.5, color="white", linewidth=1.2)
    return image


def label_epochs(axes: Axes, epochs: Sequence[int]) -> None:
    """Number the columns of a map, one for each of `epochs`."""
    shown = _round_epochs(epochs)
    axes.set_xticks(shown, [str(epochs[i]) for i in shown])
    axes.set_xlabel("epoch")


def opening_bar(figure: Figure, image: AxesImage, axes: Sequence[Axes], rows: int = 1) -> None:
    """The key to the colours of `draw_opening`, to the right of `axes`, which stand in so many rows."""
    bar = figure.colorbar(image, ax=axes, fraction=0.03, pad=0.02, ticks=[0, 0.5, 1], aspect=20 * rows)
    bar.ax.set_yticklabels(["0  closed", "0.5", "1  open"], fontsize=9, color=style.QUIET)
    bar.ax.tick_params(length=0)
    bar.outline.set_visible(False)


def _spread(count: int, most: int) -> list[int]:
    """At most `most` of the indices below `count`, evenly spaced from 0."""
    return list(range(0, count, -(-count // most)))


def _round_epochs(epochs: Sequence[int]) -> list[int]:
    """The columns to carry a number: all of a few, otherwise the multiples of 2, 5, 10, ..."""
    strides = (digit * 10**power for power in range(9) for digit in (1, 2, 5))
    stride = next(stride for stride in strides if len(epochs) / stride <= 13)
    return [column for column, epoch in enumerate(epochs) if epoch % stride == 0]

"""A map of mean activations: one row a site, one column an epoch, dark where closed and light where open."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.image import AxesImage

from dist_prune.monitor import style

MOST_NAMES = 60  # more rows than this cannot all carry a name


def draw_activation_map(
    axes: Axes,
    table: npt.NDArray[np.float64],
    site_names: Sequence[str],
    epochs: Sequence[int],
    most_names: int = MOST_NAMES,
) -> AxesImage:
    """Draw a map into `axes`.

    Args:
        axes: where to draw.
        table: mean activations, (epochs, sites), each in [0, 1], or NaN where a site had no gate.
        site_names: the sites from input to output.
        epochs: the epoch of each row of `table`.
        most_names: how many sites carry their name at most.

    Returns:
        The image, for `add_activation_bar`.
    """
    columns, sites = table.shape
    image = axes.imshow(
        table.T, cmap=style.ACTIVATION, vmin=0, vmax=1, aspect="auto", interpolation="nearest", origin="upper"
    )
    style.quiet(axes, grid=False)
    axes.spines[:].set_visible(False)
    shown = range(0, sites, -(-sites // most_names))
    axes.set_yticks(shown, [site_names[i] for i in shown], fontsize=6.5 if len(shown) > 20 else 9)
    label_epochs(axes, epochs)
    axes.set_ylabel("site, from input to output")
    if sites <= 20:  # thin rules keep few rows apart; between many they would hide the data
        axes.hlines(np.arange(sites - 1) + 0.5, -0.5, columns - 0.5, color="white", linewidth=1.2)
    return image


def label_epochs(axes: Axes, epochs: Sequence[int]) -> None:
    """Number the columns of a map, one for each of `epochs`: all of a few, otherwise multiples of 2, 5, 10, ..."""
    strides = (digit * 10**power for power in range(9) for digit in (1, 2, 5))
    stride = next(stride for stride in strides if len(epochs) / stride <= 13)
    shown = [column for column, epoch in enumerate(epochs) if epoch % stride == 0]
    axes.set_xticks(shown, [str(epochs[i]) for i in shown])
    axes.set_xlabel("epoch")


def add_activation_bar(figure: Figure, image: AxesImage, axes: Sequence[Axes], rows: int = 1) -> None:
    """Add the key to the colors of a map, to the right of `axes`, which fill `rows` rows."""
    style.color_bar(figure, image, axes, rows, {0: "0  closed", 0.5: "0.5", 1: "1  open"})

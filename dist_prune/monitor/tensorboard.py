"""The TensorBoard side of a run: scalars and pictures under the names of `names.py`."""

import threading
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from torch.utils.tensorboard import SummaryWriter

_FLUSH_SECONDS = 10  # what a killed process loses at most


class TensorBoardLog:
    """Writes event files into one folder.

    Args:
        folder: the run folder's `tensorboard/`; made if missing.
        purge_step: on resume, the first step that will be written again; TensorBoard then hides what an
            earlier process wrote from that step on. None for a new run.

    Until it is closed, traces of threads that write events are not printed: such a thread keeps its error and raises
    it in the next call.
    """

    def __init__(self, folder: Path, purge_step: int | None = None) -> None:
        self._print_trace, threading.excepthook = threading.excepthook, self._leave_to_caller
        self._writer = SummaryWriter(str(folder), purge_step=purge_step, flush_secs=_FLUSH_SECONDS)

    def scalars(self, step: int, values: Mapping[str, float | None]) -> None:
        """Write one point for each tag; None, which stands for not measured, writes nothing."""
        for tag, value in values.items():
            if value is not None:
                self._writer.add_scalar(tag, value, step)

    def figure(self, tag: str, figure: Figure, step: int) -> None:
        """Write a picture, rendered with Agg: `SummaryWriter.add_figure` would bring in pyplot."""
        canvas = FigureCanvasAgg(figure)
        canvas.draw()
        pixels = np.asarray(canvas.buffer_rgba())[..., :3]
        self._writer.add_image(tag, pixels, step, dataformats="HWC")

    def close(self) -> None:
        """Bring everything to the disk and close the event file."""
        try:
            self._writer.close()
        finally:
            threading.excepthook = self._print_trace

    def _leave_to_caller(self, failed: threading.ExceptHookArgs) -> None:
        if not type(failed.thread).__module__.startswith("tensorboard."):
            self._print_trace(failed)

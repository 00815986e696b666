"""Console output of a run: a progress bar or plain lines, and the final table."""

import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tabulate import tabulate
from tqdm import tqdm

from dist_prune.monitor.formatting import duration, percent, result_rows


class ProgressBar:
    """A tqdm bar where standard error is a terminal, otherwise plain lines.

    A plain line comes with the first step of every epoch, with the last step, and in between whenever `every`
    seconds have passed. A resumed run continues from step `initial`, and is done at `total_steps`.
    """

    def __init__(self, total_steps: int, initial: int = 0, every: float = 20.0) -> None:
        self._total, self._initial, self._every = total_steps, initial, every
        self._began = time.monotonic()
        self._shown_at, self._shown_epoch = float("-inf"), -1
        self._values: dict[str, str] = {}
        self._bar: Any = None
        if sys.stderr.isatty():
            self._bar = tqdm(total=total_steps, initial=initial, unit="step", dynamic_ncols=True)

    def update(
        self,
        step: int,
        epoch: int,
        loss: float | None = None,
        accuracy: float | None = None,
        open_ratio: float | None = None,
        images_per_second: float | None = None,
    ) -> None:
        """Show that `step` of the run is done, in `epoch` (from 1). For a value that is None, the last one stays.

        accuracy and open_ratio are fractions; images_per_second is over all processes.
        """
        shown = {
            "loss": None if loss is None else f"{loss:.4f}",
            "accuracy": None if accuracy is None else percent(accuracy),
            "open": None if open_ratio is None else percent(open_ratio),
            "images/s": None if images_per_second is None else f"{images_per_second:,.0f}",
        }
        self._values |= {name: text for name, text in shown.items() if text is not None}
        if self._bar is not None:
            self._bar.set_description(f"epoch {epoch}", refresh=False)
            self._bar.set_postfix(self._values, refresh=False)
            self._bar.update(step - self._bar.n)
            return
        now = time.monotonic()
        if epoch != self._shown_epoch or step >= self._total or now - self._shown_at >= self._every:
            self._shown_at, self._shown_epoch = now, epoch
            seconds_per_step = (now - self._began) / max(step - self._initial, 1)
            parts = [f"step {step:,}/{self._total:,}", f"epoch {epoch}"]
            parts += [f"{name} {text}" for name, text in self._values.items()]
            parts += [f"{duration(seconds_per_step * max(self._total - step, 0))} left"]
            print("  ".join(parts), file=sys.stderr, flush=True)

    def line(self, text: str) -> None:
        """Print a line on standard output, above the bar where there is one."""
        if self._bar is not None:
            self._bar.write(text)
        else:
            print(text, flush=True)

    def close(self) -> None:
        """Close the bar, which stays on the screen."""
        if self._bar is not None:
            self._bar.close()


def final_table(summary: Mapping[str, Any], files: Mapping[str, Path]) -> str:
    """Return the table that ends a run: the results of a summary record, and the paths of output files by name."""
    rows = result_rows(summary) + [(name, str(path)) for name, path in files.items()]
    return tabulate(rows, tablefmt="simple", disable_numparse=True)

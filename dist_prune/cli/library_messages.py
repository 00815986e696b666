"""The one place that decides which messages of libraries reach the terminal of our programs: errors, no warnings."""

import logging
import sys
import warnings
from typing import Any

from dist_prune.errors import DistPruneWarning, one_line

# "No CUDA" and the like are no news to a user; an error is.
_LOGGERS = ("DeepSpeed", "torch.utils.cpp_extension", "fvcore.nn.jit_analysis", "matplotlib")


def hide_library_messages() -> None:
    """Show our own warnings, a line each, and hide those of libraries, which address their developers.

    To be called before the libraries are imported, since some warn while that happens. Forked workers inherit it.
    ``python -W default`` or ``PYTHONWARNINGS=default`` turn it off. Nothing calls it where dist_prune is imported as a
    library: the terminal then belongs to the caller.
    """
    if sys.warnoptions:
        return
    warnings.simplefilter("ignore")
    warnings.simplefilter("default", DistPruneWarning)
    warnings.showwarning = _show
    for name in _LOGGERS:
        # A filter, since a library that is imported later resets the level of its logger.
        logging.getLogger(name).addFilter(lambda record: record.levelno >= logging.ERROR)


def _show(
    message: Warning | str, category: type[Warning], filename: str, lineno: int, file: Any = None, line: Any = None
) -> None:
    # Libraries may put filters of their own before ours, so the category decides here as well.
    if issubclass(category, DistPruneWarning):
        print(one_line(f"warning: {message}"), file=file or sys.stderr)

"""Export: a sliced network as a file that runs without this package (ONNX, pt2), or as a Hub folder (safetensors)."""

from dist_prune.export.exporting import export_sliced
from dist_prune.export.formats import FORMATS

__all__ = ["FORMATS", "export_sliced"]

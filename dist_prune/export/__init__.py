"""Export: a sliced network as a file that runs without this package (ONNX, pt2), or as a Hub folder (safetensors)."""

"""The model card of a sliced checkpoint: README.md as the Hugging Face Hub reads it, front matter included."""

import html
import json
from collections.abc import Mapping
from typing import Any

from dist_prune.errors import one_line


def model_card(config: Mapping[str, Any]) -> str:
    """Return the card of a checkpoint with this config.json, whose "results", if any, are measured figures."""
    closed = [name for name, units in config["kept_units"].items() if not units]
    results: Mapping[str, Any] = config.get("results", {})
    # A figure that was not measured is no zero.
    figures = {name: "not measured" if value is None else value for name, value in results.items()}
    rows = "\n".join(f"| {_cell(name)} | {_cell(value)} |" for name, value in figures.items())
    return f"""---
library_name: dist_prune
pipeline_tag: image-classification
tags: [pruning, structured-pruning, image-classification]
{_model_index(config["builder"], results)}---

# {_cell(config["builder"])}, sliced

A plain network, trained once with gates and collapsed to the units that the gates agreed on.

| | |
|---|---|
| builder | {_cell(config["builder"])} {_cell(json.dumps(config["arguments"]))} |
| input (channels, height, width) | {config["input_shape"] or "not recorded"} |
| images | {_cell(_preprocessing(config))} |
| sites | {len(config["kept_units"])} |
| closed sites | {_cell(", ".join(closed)) or "none"} |
| batch norms folded into convolutions | {len(config.get("folded_norms", {}))} |
{rows}

MACs are multiply-accumulates as fvcore counts them in eval mode (convolution, linear, 2 per batch-norm
element, pooling).

```python
import dist_prune

model = dist_prune.load_sliced(".")  # a torch.nn.Module in eval mode
```
"""


def _preprocessing(config: Mapping[str, Any]) -> str:
    """Return how pixels become the input, as a server has to repeat it."""
    shape, side, normalization = (config.get(key) for key in ("input_shape", "resized_side", "normalization"))
    if not shape:
        return "not recorded"
    size = f"{shape[2]} x {shape[1]}"
    steps = [f"scale the shorter side to {side} pixels", f"keep the center {size}"] if side else [f"scale to {size}"]
    steps[0] += f" ({config['interpolation']}, antialiased)" if config.get("interpolation") else ""
    if normalization:
        steps.append(f"divide by 255, subtract {normalization['mean']}, divide by {normalization['std']}")
    return ", ".join(steps)


def _cell(value: Any) -> str:
    """Return a value as text that neither ends a cell of a table nor becomes HTML: names may be untrusted."""
    return one_line(html.escape(str(value), quote=False)).replace("|", "\\|").replace("`", "\\`")


def _model_index(builder: str, results: Mapping[str, Any]) -> str:
    """Return the front matter with the accuracy that the Hub shows, if it was measured on a named data set."""
    accuracy, data = results.get("accuracy_sliced"), results.get("trained on")
    if accuracy is None or data is None:
        return ""
    # JSON strings are YAML strings, whatever they contain.
    name = json.dumps(str(data))
    return f"""model-index:
- name: {json.dumps(f"{builder}, sliced")}
  results:
  - task: {{type: image-classification}}
    dataset: {{name: {name}, type: {name}, split: test}}
    metrics: [{{type: accuracy, value: {accuracy}}}]
"""

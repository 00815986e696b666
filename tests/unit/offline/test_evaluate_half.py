"""The program evaluates its own half-precision export."""

from dist_prune import build_model
from dist_prune.data import open_data
from dist_prune.export import export_sliced
from dist_prune.offline import evaluate_sliced
from dist_prune.pruning.sliced_checkpoint import save_sliced


def test_a_half_precision_export_is_evaluated_like_its_source(digits, tmp_path):
    shape = open_data(str(digits)).input_shape
    network = build_model("resnet8", num_classes=10, in_channels=shape[0])
    save_sliced(network.eval(), tmp_path / "sliced", input_shape=shape)
    export_sliced(tmp_path / "sliced", "safetensors", half=True, out=tmp_path / "half")
    full, half = (evaluate_sliced(str(tmp_path / name), str(digits)) for name in ("sliced", "half"))
    assert abs(full["accuracy"] - half["accuracy"]) < 0.02

"""Naive baselines: what a random share of weights or of residual layers is, and what is recorded of it."""

import json

import pytest
import torch
import torchvision
from fvcore.nn import FlopCountAnalysis
from torch import nn
from unit_helpers import images, relative_difference, shaken

from dist_prune import UserError, build_model, save_sliced
from dist_prune.cli.main import COMMANDS
from dist_prune.data import open_data
from dist_prune.monitor.records import RunFolder
from dist_prune.offline import drop_weights, measure_naive, naive_baselines, naive_table, remove_layers
from dist_prune.pruning.residual import residual_blocks
from dist_prune.recipes import recipe

SHAPE = (3, 16, 16)


def network(depth: int = 14, shortcut: str = "B") -> nn.Module:
    return shaken(build_model(f"resnet{depth}", num_classes=10, width=8, shortcut=shortcut)).eval()


def weights(model: nn.Module) -> torch.Tensor:
    """All weights that naive dropout draws from, in one row."""
    layers = [module for module in model.modules() if isinstance(module, nn.Conv2d | nn.Linear)]
    return torch.cat([layer.weight.detach().flatten() for layer in layers])


def removed(model: nn.Module, share: float, seed: int = 0) -> set[str]:
    return residual_blocks(model).keys() - residual_blocks(remove_layers(model, share, seed)).keys()


def same(a: nn.Module, b: nn.Module) -> bool:
    a, b = a.state_dict(), b.state_dict()
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def batches():
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(12, *SHAPE, generator=generator)
    return [(x[:8], torch.arange(8)), (x[8:], torch.arange(4))]


@pytest.mark.parametrize("share", [0.0001, 0.2, 0.3, 0.5, 0.6, 0.8, 0.9999])
def test_the_zeroed_share_is_exact_to_one_weight_and_the_others_stay(share):
    model = network()
    before, after = weights(model), weights(drop_weights(model, share, seed=3))
    zero = after == 0
    assert zero.sum() == round(share * len(before))
    assert torch.equal(after[~zero], before[~zero])


def test_weights_of_every_layer_are_dropped_alike():
    dropped = drop_weights(network(), 0.3, seed=0)
    large = [m.weight for m in dropped.modules() if isinstance(m, nn.Conv2d) and m.weight.numel() > 2000]
    assert len(large) > 4
    assert all(0.25 < (weight == 0).float().mean() < 0.35 for weight in large)


def test_naive_dropout_leaves_norms_and_biases_alone():
    model = network()
    model.fc.bias.data.fill_(1)
    state, after = model.state_dict(), drop_weights(model, 0.8, seed=0).state_dict()
    changed = {name for name in state if not torch.equal(state[name], after[name])}
    layers = (nn.Conv2d, nn.Linear)
    assert changed == {f"{name}.weight" for name, m in model.named_modules() if isinstance(m, layers)}


def test_linear_layers_inside_attention_are_dropped_too_and_embeddings_are_not():
    model = nn.ModuleList([nn.MultiheadAttention(16, 2), nn.Embedding(8, 16)])
    attention, embedding = drop_weights(model, 0.5, seed=0)
    zeros = (attention.in_proj_weight == 0).sum() + (attention.out_proj.weight == 0).sum()
    assert zeros == 4 * 16 * 16 / 2
    assert (embedding.weight != 0).all()


def test_the_same_seed_draws_the_same_whatever_else_was_drawn_and_another_seed_does_not():
    model = network(20)
    first, layers = drop_weights(model, 0.5, seed=1), removed(model, 0.5, seed=1)
    torch.rand(7)
    assert same(first, drop_weights(model, 0.5, seed=1))
    assert not same(first, drop_weights(model, 0.5, seed=2))
    assert layers == removed(model, 0.5, seed=1)
    assert any(layers != removed(model, 0.5, seed) for seed in (2, 3, 4))


def test_a_larger_share_takes_out_what_a_smaller_one_does():
    model = network(20)
    small, large = (weights(drop_weights(model, share, seed=0)) == 0 for share in (0.3, 0.5))
    assert (large | ~small).all()
    assert removed(model, 0.3) < removed(model, 0.6)


@pytest.mark.parametrize(("share", "layers"), [(0.05, 0), (0.2, 2), (0.3, 3), (0.6, 5), (0.8, 7), (0.99, 9)])
def test_the_share_of_layers_is_rounded_to_whole_ones(share, layers):
    assert len(removed(network(20), share)) == layers


def test_the_trained_network_stays_as_it_is():
    model, twin = network(), network()
    twin.load_state_dict(model.state_dict())
    measure_naive(model, batches, SHAPE, [0.5], [0])
    assert same(model, twin)
    assert repr(model) == repr(twin)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(
    ("build", "last"),
    [
        (lambda: network(20, "A"), "bn2"),
        (lambda: network(20, "B"), "bn2"),
        (lambda: shaken(torchvision.models.resnet50(num_classes=10)).eval(), "bn3"),
    ],
    ids=["padding", "projection", "bottleneck"],
)
@torch.no_grad()
def test_a_removed_layer_equals_a_branch_whose_output_is_zeroed(build, last, seed):
    model, x = build().double(), images(2, 32, dtype=torch.float64)
    whole, small = model(x), remove_layers(model, 0.5, seed)
    for name in removed(model, 0.5, seed):
        branch_end = model.get_submodule(f"{name}.{last}")
        branch_end.register_forward_hook(lambda module, inputs, output: torch.zeros_like(output))
    assert relative_difference(small(x), model(x)) < 1e-9
    assert relative_difference(small(x), whole) > 1e-3


@pytest.mark.parametrize("share", [0.2, 0.5, 0.99])
def test_the_macs_ratio_is_fvcores_count_without_the_removed_branches(share):
    model = network(20)
    count = FlopCountAnalysis(model, torch.zeros(1, *SHAPE)).unsupported_ops_warnings(False)
    by_module, whole = count.by_module(), count.total()
    branches = [f"{n}.{part}" for n in removed(model, share, 5) for part in ("conv1", "bn1", "conv2", "bn2")]
    left = whole - sum(by_module[name] for name in branches)
    dropout, layers = measure_naive(model, batches, SHAPE, [share], [5])
    assert layers["macs_ratio"] == left / whole
    assert dropout["macs_ratio"] is None


@torch.no_grad()
def test_each_entry_has_the_accuracy_of_its_own_draw():
    model = network()
    entries = measure_naive(model, batches, SHAPE, [0.2, 0.5, 0.2], [4, 7])
    takes_out = {"dropout": drop_weights, "layers": remove_layers}
    for entry in entries:
        variant = takes_out[entry["baseline"]](model, entry["share"], entry["seed"])
        right = sum((variant(x).argmax(1) == labels).sum().item() for x, labels in batches())
        assert entry["accuracy"] == right / 12
    drawn = [(entry["baseline"], entry["share"], entry["seed"]) for entry in entries]
    assert drawn == [(b, share, s) for b in ("dropout", "layers") for share in (0.2, 0.5) for s in (4, 7)]


def test_the_data_is_read_once_and_again_only_where_the_copies_do_not_fit(monkeypatch):
    model, reads = network(), []

    def counted():
        reads.append(1)
        return batches()

    measured = measure_naive(model, counted, SHAPE, [0.3, 0.6], [0, 1])
    assert len(reads) == 1
    size = sum(tensor.nbytes for tensor in model.state_dict().values())
    monkeypatch.setattr("dist_prune.offline.COPIES_BYTES", 3 * size)
    assert measure_naive(model, counted, SHAPE, [0.3, 0.6], [0, 1]) == measured
    assert len(reads) == 1 + 3  # eight variants, three at a time


def test_a_network_without_residual_layers_gets_naive_dropout_alone_and_the_table_says_so():
    plain = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Flatten(), nn.Linear(8 * 14 * 14, 10))
    entries = measure_naive(plain, batches, SHAPE, [0.5], [0, 1])
    assert [entry["baseline"] for entry in entries] == ["dropout", "dropout"]
    assert "no residual layers" in naive_table(entries)


def test_the_table_has_mean_and_standard_deviation_over_the_draws():
    def entry(baseline, seed, accuracy, ratio):
        return {"baseline": baseline, "share": 0.2, "seed": seed, "accuracy": accuracy, "macs_ratio": ratio}

    text = naive_table([entry("dropout", 0, 0.5, None), entry("dropout", 1, 0.7, None), entry("layers", 0, 0.4, 0.75)])
    rows = [line.split("  ") for line in text.splitlines()[2:]]
    cells = [[cell.strip() for cell in row if cell.strip()] for row in rows]
    assert cells == [
        ["naive dropout", "20 %", "60.00 ± 14.14 %", "not reduced"],
        ["naive layer pruning", "20 %", "40.00 %", "75.00 %"],
    ]
    assert "no residual layers" not in text


@pytest.fixture
def run(tmp_path, data_folder):
    """A run folder of a dense network for the embedded digits, with what `naive` reads of it."""
    digits = open_data("digits")
    folder = RunFolder.create(tmp_path / "run", resume=False)
    folder.write_json(folder.config, {"config": recipe("digits").model_dump(mode="json")})
    model = build_model("resnet8", num_classes=10, in_channels=1, width=4)
    save_sliced(model, folder.sliced, input_shape=digits.input_shape, normalization=digits.normalization)
    return folder


def test_the_command_prints_the_table_and_writes_what_it_measured_into_the_run_folder(run, capsys):
    COMMANDS["naive"]([str(run.path), "--shares", "0.3", "0.6", "--draws", "2"])
    shown = capsys.readouterr().out
    written = json.loads((run.path / "naive.json").read_text())
    assert shown.strip() == naive_table(written).strip()
    assert len(written) == 2 * 2 * 2
    assert written[0].keys() == {"baseline", "share", "seed", "accuracy", "macs_ratio"}
    assert written == naive_baselines(str(run.path), shares=[0.3, 0.6], draws=2), "the seeds decide all"


def test_nothing_is_written_for_a_folder_that_is_no_run(run):
    before = {path: path.stat().st_mtime_ns for path in run.path.rglob("*")}
    assert len(naive_baselines(str(run.sliced), shares=[0.5], draws=1)) == 2
    assert {path: path.stat().st_mtime_ns for path in run.path.rglob("*")} == before


@pytest.mark.parametrize("share", [0.0, 1.0, -0.2, 20.0, float("nan")])
def test_a_share_outside_0_and_1_is_refused(run, share):
    with pytest.raises(UserError, match="above 0 and below 1"):
        naive_baselines(str(run.path), shares=[0.5, share])


def test_a_missing_folder_and_an_unfinished_run_are_one_clear_line(tmp_path):
    with pytest.raises(UserError, match="there is no folder"):
        naive_baselines(str(tmp_path / "nowhere"))
    (tmp_path / "checkpoints").mkdir()
    with pytest.raises(UserError, match="no sliced network yet; make it with: dist-prune collapse"):
        naive_baselines(str(tmp_path))


def test_a_split_that_is_not_there_is_refused(run):
    with pytest.raises(Exception, match="tset") as caught:
        naive_baselines(str(run.path), shares=[0.5], draws=1, split="tset")
    assert len(str(caught.value).splitlines()) == 1

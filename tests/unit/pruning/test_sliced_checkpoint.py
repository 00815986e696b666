"""The sliced checkpoint: a folder that describes a small network completely, without pickle or deepspeed."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import safetensors.torch
import timm
import torch
import torchvision
import yaml
from torch import nn
from unit_helpers import gated_resnet, images, mask_closing, shaken

from dist_prune import UserError, attach_gates, build_model, collapse, load_sliced, save_sliced
from dist_prune.gates.wrappers import GatedBlock, sites
from dist_prune.pruning.model_card import model_card
from dist_prune.pruning.sliced_checkpoint import add_results, read_sliced_config
from dist_prune.pruning.slicing import slice_network

PLAIN = {
    "cifar A": lambda: build_model("resnet14", num_classes=10, shortcut="A", width=8),
    "cifar B": lambda: build_model("resnet14", num_classes=10, in_channels=3, width=8),
    "torchvision": lambda: torchvision.models.resnet18(num_classes=10),
    "torchvision by name": lambda: build_model("torchvision/resnet18", num_classes=10),
    "timm": lambda: timm.create_model("resnet10t", num_classes=10),
    "timm by name": lambda: build_model("timm/resnet10t", num_classes=10),
}


def small_resnet(*closed: str) -> nn.Module:
    gated = gated_resnet(14)
    return collapse(gated, mask_closing(gated, closed or ["layer1.1", "layer2.0"]))


def files_of(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize("family", PLAIN)
def test_a_sliced_network_comes_back_bit_for_bit(family, tmp_path):
    gated = attach_gates(shaken(PLAIN[family]())).eval()
    small = collapse(gated, mask_closing(gated, ["layer1.0", "layer2.0"]))
    folder = save_sliced(small, tmp_path / "sliced")
    back = load_sliced(folder)
    x = images(2, 32)
    with torch.no_grad():
        torch.testing.assert_close(back(x), small(x), rtol=1e-5, atol=1e-6)  # other addresses, other vector code
    assert repr(back) == repr(small)
    assert not any(module.training for module in back.modules())
    assert not any(isinstance(module, GatedBlock) for module in back.modules())
    ours = small.state_dict()
    assert back.state_dict().keys() == ours.keys()
    for name, tensor in back.state_dict().items():
        assert (tensor.dtype, tensor.device.type) == (ours[name].dtype, "cpu")
        assert torch.equal(tensor, ours[name])
    assert all(parameter.requires_grad for parameter in back.parameters())


def test_a_network_with_buffers_that_are_not_saved_comes_back_whole(tmp_path):
    """Blur filters are such buffers: what no file brings must be what the builder made."""
    small = build_model("timm/resnetblur18", num_classes=3).eval()
    back = load_sliced(save_sliced(small, tmp_path / "sliced"))
    ours = dict(small.named_buffers())
    for name, buffer in back.named_buffers():
        assert buffer.device.type == "cpu", name
        assert torch.equal(buffer, ours[name]), name


def test_a_plain_network_may_be_saved_whole(tmp_path):
    plain = shaken(build_model("resnet8", num_classes=4)).eval()
    back = load_sliced(save_sliced(plain, str(tmp_path / "plain")))
    x = images()
    assert torch.equal(back(x), plain(x))
    assert read_sliced_config(tmp_path / "plain")["kept_units"] == {}


def test_a_loaded_network_may_be_saved_again(tmp_path):
    first = save_sliced(small_resnet(), tmp_path / "first")
    second = save_sliced(load_sliced(first), tmp_path / "second")
    assert files_of(second) == files_of(first)


@pytest.mark.parametrize(
    ("first", "second"),
    [(("layer1.1", "layer2.0"), "layer3.1"), (("layer1.0",), "layer1.1"), (("layer1.1",), "layer1.0")],
)
def test_a_network_that_was_collapsed_twice_comes_back_whole(tmp_path, first, second):
    gated = attach_gates(small_resnet(*first)).eval()
    twice = collapse(gated, mask_closing(gated, [second]))
    back = load_sliced(save_sliced(twice, tmp_path / "sliced"))
    x = images()
    assert torch.equal(back(x), twice(x))


def test_a_stock_network_that_was_cut_without_ever_having_gates_can_be_saved(tmp_path):
    small, _ = slice_network(shaken(torchvision.models.resnet18(num_classes=3)).eval(), {"layer1.1": ()})
    back = load_sliced(save_sliced(small, tmp_path / "sliced"))
    x = images(2, 32)
    assert torch.equal(back(x), small(x))


def test_loading_needs_neither_deepspeed_nor_timm_nor_pickle(tmp_path):
    small = small_resnet()
    folder = save_sliced(small, tmp_path / "sliced")
    x = images()
    safetensors.torch.save_file({"x": x, "y": small(x).detach()}, tmp_path / "expected.safetensors")
    script = f"""
import sys
sys.modules["deepspeed"] = sys.modules["timm"] = None  # importing them is an error
import dist_prune, pickle, torch, torchvision, safetensors.torch
def forbidden(*_, **__):
    raise AssertionError("pickle was used")
torch.load = torch.serialization.load = pickle.load = pickle.loads = pickle.Unpickler = forbidden
network = dist_prune.load_sliced({str(folder)!r})
expected = safetensors.torch.load_file({str(tmp_path / "expected.safetensors")!r})
assert torch.allclose(network(expected["x"]), expected["y"], rtol=1e-5, atol=1e-6)
assert not any(name.split(".")[0] == "deepspeed" and module for name, module in sys.modules.items())
print("loaded")
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120)
    assert done.stdout.strip() == "loaded", done.stderr


def test_config_json_describes_everything(tmp_path):
    save_sliced(
        small_resnet("layer1.1", "layer2.0"),
        tmp_path / "sliced",
        input_shape=(3, 16, 16),
        resized_side=18,
        interpolation="bicubic",
        normalization={"mean": (0.5, 0.4, 0.3), "std": (0.2, 0.2, 0.1)},
        class_names=[f"class {n}" for n in range(10)],
    )
    assert json.loads((tmp_path / "sliced" / "config.json").read_text()) == {
        "format": "dist_prune.sliced",
        "version": 1,
        "builder": "cifar_resnet",
        "arguments": {"depth": 14, "num_classes": 10, "in_channels": 3, "shortcut": "B", "width": 8},
        "kept_units": {f"layer{s}.{b}": [] if (s, b) in ((1, 1), (2, 0)) else [0] for s in (1, 2, 3) for b in (0, 1)},
        "input_shape": [3, 16, 16],
        "resized_side": 18,
        "interpolation": "bicubic",
        "normalization": {"mean": [0.5, 0.4, 0.3], "std": [0.2, 0.2, 0.1]},
        "class_names": [f"class {n}" for n in range(10)],
    }


def test_the_folder_holds_tensors_description_and_model_card_and_nothing_else(tmp_path):
    folder = save_sliced(small_resnet(), tmp_path / "sliced", results={"accuracy_sliced": 0.5, "energy_joules": None})
    assert {p.name for p in folder.iterdir()} == {"config.json", "model.safetensors", "README.md"}
    assert [p.name for p in tmp_path.iterdir()] == ["sliced"]
    card = (folder / "README.md").read_text()
    assert card.startswith("---\n")
    assert "| accuracy_sliced | 0.5 |" in card
    assert "| energy_joules | not measured |" in card
    assert "layer1.1, layer2.0" in card
    assert "load_sliced" in card


def test_names_in_any_script_come_back_whatever_the_encoding_of_the_machine(tmp_path, monkeypatch):
    names = ["猫", "собака", "qué tal", "🐶 dog", "v1.2", "e\u0301", "a|b", "<i>", "0", "1"]
    write_text = Path.write_text  # where the locale is not UTF-8
    monkeypatch.setattr(Path, "write_text", lambda path, text, encoding="ascii": write_text(path, text, encoding))
    folder = save_sliced(small_resnet(), tmp_path / "sliced", class_names=names, results={"trained on": names[0]})
    add_results(folder, {"macs": 7})
    assert read_sliced_config(folder)["class_names"] == names
    assert f"| trained on | {names[0]} |" in (folder / "README.md").read_text("utf-8")


def test_the_card_says_how_pixels_become_the_input(tmp_path):
    how = {"normalization": {"mean": [0.5], "std": [0.25]}, "input_shape": (1, 16, 16)}
    cut = save_sliced(small_resnet(), tmp_path / "cut", resized_side=18, interpolation="bicubic", **how)
    steps = "scale the shorter side to 18 pixels (bicubic, antialiased), keep the center 16 x 16, divide by 255"
    assert f"| images | {steps}, subtract [0.5], divide by [0.25] |" in (cut / "README.md").read_text()
    whole = save_sliced(small_resnet(), tmp_path / "whole", **how)
    assert "| images | scale to 16 x 16, divide by 255" in (whole / "README.md").read_text()


def test_a_measured_accuracy_stands_where_the_hub_looks_for_it(tmp_path):
    folder = save_sliced(small_resnet(), tmp_path / "sliced", results={"trained on": "a: 'b'", "macs": 7})
    tensors = (folder / "model.safetensors").read_bytes()
    assert "model-index" not in (folder / "README.md").read_text(), "nothing was measured yet"
    add_results(folder, {"accuracy_sliced": 0.75})
    card = (folder / "README.md").read_text()
    front = yaml.safe_load(card.split("---\n")[1])
    (result,) = front["model-index"][0]["results"]
    assert result["dataset"] == {"name": "a: 'b'", "type": "a: 'b'", "split": "test"}
    assert result["metrics"] == [{"type": "accuracy", "value": 0.75}]
    assert "| macs | 7 |" in card
    assert "| accuracy_sliced | 0.75 |" in card
    assert (folder / "model.safetensors").read_bytes() == tensors
    assert {p.name for p in folder.iterdir()} == {"config.json", "model.safetensors", "README.md"}


def test_channels_last_weights_are_saved_all_the_same(tmp_path):
    small = small_resnet().to(memory_format=torch.channels_last)
    back = load_sliced(save_sliced(small, tmp_path / "sliced"))
    for name, tensor in small.state_dict().items():
        assert torch.equal(back.state_dict()[name], tensor)


def test_an_older_checkpoint_is_replaced_whole(tmp_path):
    folder = tmp_path / "sliced"
    save_sliced(small_resnet("layer1.1"), folder)
    (folder / "leftover").write_text("of the older one")
    newer = small_resnet("layer1.0", "layer3.0")
    save_sliced(newer, folder)
    assert repr(load_sliced(folder)) == repr(newer)
    assert not (folder / "leftover").exists()
    assert [p.name for p in tmp_path.iterdir()] == ["sliced"]


@pytest.mark.parametrize("broken", ["save_file", "model_card"])
def test_a_crash_while_writing_leaves_the_older_one_whole(tmp_path, monkeypatch, broken):
    folder = save_sliced(small_resnet("layer1.1"), tmp_path / "sliced")
    before = files_of(folder)

    def crash(*_, **__):
        raise OSError("no space left on device")

    target = (
        "safetensors.torch.save_file" if broken == "save_file" else f"dist_prune.pruning.sliced_checkpoint.{broken}"
    )
    monkeypatch.setattr(target, crash)
    with pytest.raises(OSError, match="no space"):
        save_sliced(small_resnet("layer1.0"), folder)
    assert files_of(folder) == before


def test_a_crash_while_writing_the_first_one_leaves_no_folder(tmp_path, monkeypatch):
    def crash(*_, **__):
        raise OSError("no space left on device")

    monkeypatch.setattr("safetensors.torch.save_file", crash)
    with pytest.raises(OSError, match="no space"):
        save_sliced(small_resnet(), tmp_path / "sliced")
    assert not (tmp_path / "sliced").exists()


@pytest.fixture
def folder(tmp_path):
    return save_sliced(small_resnet(), tmp_path / "sliced")


def edit(folder, **changes):
    path = folder / "config.json"
    config = {**json.loads(path.read_text()), **changes}
    path.write_text(json.dumps({k: v for k, v in config.items() if v is not ...}))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"format": "something.else"}, "not a sliced checkpoint"),
        ({"format": ...}, "not a sliced checkpoint"),
        ({"version": 2}, "format version 2.*reads 1"),
        ({"version": ...}, "format version None"),
        ({"kept_units": ...}, "'kept_units': Field required"),
        ({"builder": ...}, "'builder': Field required"),
        ({"builder": "tensorflow/resnet"}, "tensorflow/resnet"),
        ({"arguments": {"depth": 21}}, "6n"),
        ({"arguments": {"depth": 14, "color": "red"}}, "color"),
        ({"kept_units": {"layer7.0": []}}, r"layer7\.0"),
        ({"kept_units": {}}, "do not belong together"),
        ({"arguments": {"depth": 14, "num_classes": 11, "width": 8}}, "do not belong together"),
        ({"arguments": {"depth": 14, "width": 4}}, "do not belong together"),
    ],
)
def test_a_description_that_does_not_fit_is_refused(folder, changes, said):
    edit(folder, **changes)
    with pytest.raises(UserError, match=said):
        load_sliced(folder)


@pytest.mark.parametrize("changes", [{"arguments": 3}, {"kept_units": 3}, {"builder": 3}])
def test_a_description_of_the_wrong_types_is_refused(folder, changes):
    edit(folder, **changes)
    with pytest.raises(UserError):
        load_sliced(folder)


@pytest.mark.parametrize("content", ["", "{", "[]", "3"])
def test_an_unreadable_description_is_refused(folder, content):
    (folder / "config.json").write_text(content)
    with pytest.raises(UserError, match="not a sliced checkpoint"):
        load_sliced(folder)


def test_a_missing_folder_is_refused(tmp_path):
    with pytest.raises(UserError, match="nowhere is not a sliced checkpoint"):
        load_sliced(tmp_path / "nowhere")


@pytest.mark.parametrize("damage", ["missing", "cut", "garbage"])
def test_damaged_tensors_are_refused(folder, damage):
    path = folder / "model.safetensors"
    content = path.read_bytes()
    if damage == "missing":
        path.unlink()
    else:
        path.write_bytes(content[: len(content) // 2] if damage == "cut" else b"garbage" * 100)
    with pytest.raises(UserError, match=r"model\.safetensors cannot be read"):
        load_sliced(folder)


@pytest.mark.parametrize("change", ["shape", "missing", "extra"])
def test_tensors_of_another_network_are_refused(folder, change):
    path = folder / "model.safetensors"
    tensors = safetensors.torch.load_file(path)
    if change == "shape":
        tensors["fc.weight"] = tensors["fc.weight"][:5].clone()
    elif change == "missing":
        del tensors["fc.weight"]
    else:
        tensors["gate.weight"] = torch.zeros(2)
    safetensors.torch.save_file(tensors, path)
    with pytest.raises(UserError, match=r"do not belong together.*(fc\.weight|gate\.weight)"):
        load_sliced(folder)


def test_a_hand_made_network_is_refused_with_advice(tmp_path):
    with pytest.raises(UserError, match=r"Sequential.*dist_prune\.build_model"):
        save_sliced(nn.Sequential(nn.Linear(2, 2)), tmp_path / "sliced")
    assert list(tmp_path.iterdir()) == []


def test_a_network_that_was_edited_after_it_was_built_is_refused(tmp_path):
    """It would come back as something else, without a word."""
    edited = build_model("resnet8", num_classes=4)
    edited.relu = nn.Softplus()
    with pytest.raises(UserError):
        save_sliced(edited, tmp_path / "sliced")
    assert list(tmp_path.iterdir()) == []


def test_a_network_with_gates_is_refused(tmp_path):
    """It would be written and could not be read again."""
    gated = gated_resnet(8)
    assert sites(gated)
    with pytest.raises(UserError, match="collapse"):
        save_sliced(gated, tmp_path / "sliced")
    assert list(tmp_path.iterdir()) == []


def test_the_current_folder_can_be_loaded_and_cannot_be_replaced(tmp_path, monkeypatch):
    """As the model card says; a folder that is replaced under a process is no longer where it stands."""
    small = small_resnet()
    monkeypatch.chdir(save_sliced(small, tmp_path / "here"))
    assert repr(load_sliced(".")) == repr(small)
    with pytest.raises(UserError):
        save_sliced(small, ".")
    assert repr(load_sliced(".")) == repr(small)


def test_weights_that_are_not_finite_are_refused(tmp_path):
    network = build_model("resnet8", num_classes=10)
    with torch.no_grad():
        network.fc.weight[0, 0] = float("nan")
    save_sliced(network, tmp_path / "sliced")
    with pytest.raises(UserError, match=r"fc\.weight holds values that are not finite: its run has diverged"):
        load_sliced(tmp_path / "sliced")


def test_the_card_shows_untrusted_names_as_text():
    config = {
        "builder": "<script>alert(1)</script>",
        "arguments": {"name": "a|b`c"},
        "kept_units": {"<img src=x>": []},
        "input_shape": None,
        "results": {"x\x1b[31m": "</td>|"},
    }
    card = model_card(config).partition("\n# ")[2]
    assert "<script" not in card
    assert "<img" not in card
    assert "</td>" not in card
    assert "\x1b" not in card
    assert "a\\|b\\`c" in card


@pytest.mark.parametrize(
    ("normalization", "told"),
    [
        ({"mean": [0.5]}, "'normalization.std'"),
        ({"mean": [0.5, 0.5], "std": [0.2, 0.2]}, "one mean and one std for each channel"),
        ({"mean": [0.5], "std": [0.0]}, "'normalization.std.0'"),
        ({"mean": [10**400], "std": [0.2]}, "'normalization.mean.0'"),
        ({"mean": [], "std": []}, "'normalization.mean'"),
    ],
)
def test_a_normalization_that_no_image_can_have_is_refused(tmp_path, normalization, told):
    how = {"normalization": {"mean": [0.5], "std": [0.25]}, "input_shape": (1, 16, 16)}
    folder = save_sliced(build_model("resnet8", num_classes=10, in_channels=1, width=4), tmp_path / "s", **how)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "normalization": normalization}))
    with pytest.raises(UserError, match=re.escape(told)):
        read_sliced_config(folder)

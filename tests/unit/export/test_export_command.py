"""dist-prune export: checked files, complete or not at all, that run where this package does not exist."""

import json
import subprocess
import sys

import numpy as np
import onnx
import pytest
import torch
from unit_helpers import images, shaken

from dist_prune import UserError, build_model, load_sliced, save_sliced
from dist_prune import export as export_module
from dist_prune.cli.main import COMMANDS, main
from dist_prune.errors import RunError
from dist_prune.export import FORMATS, export_sliced
from dist_prune.files import temporary_beside
from dist_prune.pruning.sliced_checkpoint import read_sliced_config
from dist_prune.pruning.slicing import slice_network

SHAPE = (3, 16, 16)
NORMALIZATION = {"mean": [0.5, 0.4, 0.3], "std": [0.2, 0.2, 0.1]}
NAMES = {"onnx": "model.onnx", "pt2": "model.pt2", "safetensors": "safetensors"}


def small_network():
    return slice_network(shaken(build_model("resnet8", num_classes=4, width=4)).eval(), {"layer2.0": ()})[0].eval()


@pytest.fixture
def checkpoint(tmp_path):
    known = {"input_shape": SHAPE, "normalization": NORMALIZATION, "class_names": ["a", "b", "c", "d"]}
    return save_sliced(small_network(), tmp_path / "net", **known, results={"accuracy_sliced": 0.5})


@torch.no_grad()
def test_a_run_folder_is_exported_beside_its_sliced_network(tmp_path, capsys):
    run = tmp_path / "run"
    small = small_network()
    save_sliced(small, run / "sliced", input_shape=SHAPE)
    COMMANDS["export"]([str(run), "--format", "pt2", "--fold_bn"])
    shown = " ".join(capsys.readouterr().out.split())
    x = images(3)
    loaded = torch.export.load(run / "export" / "model.pt2").module()
    torch.testing.assert_close(loaded(x), small(x), rtol=1e-4, atol=1e-5)
    assert "batch norms folded 7 of 7" in shown
    assert "checked at batch sizes 1, 3" in shown
    assert [path.name for path in (run / "export").iterdir()] == ["model.pt2"]


def test_files_run_where_neither_deepspeed_nor_this_package_can_be_imported(checkpoint, tmp_path):
    x = images(5)
    np.savez(tmp_path / "expected.npz", x=x, y=load_sliced(checkpoint)(x).detach())
    for name in ("onnx", "pt2"):
        export_sliced(checkpoint, name, out=tmp_path)
    script = """
import json, sys
sys.modules["deepspeed"] = sys.modules["dist_prune"] = None  # importing them is an error
import numpy as np, onnxruntime, torch
expected = np.load("expected.npz")
options = onnxruntime.SessionOptions()
options.intra_op_num_threads = 1  # it would bind one to each core, and wait for cores that others keep busy
session = onnxruntime.InferenceSession("model.onnx", options)
files = {"config.json": ""}
program = torch.export.load("model.pt2", extra_files=files)
with torch.no_grad():
    outputs = [session.run(None, {"images": expected["x"]})[0], program.module()(torch.from_numpy(expected["x"]))]
assert all(np.abs(np.asarray(y) - expected["y"]).max() < 1e-4 for y in outputs)
shapes = [tuple(v.shape) for v in (session.get_inputs()[0], session.get_outputs()[0])]
assert shapes == [("batch", 3, 16, 16), ("batch", 4)], shapes
known = session.get_modelmeta().custom_metadata_map
for text in (known["normalization"], json.dumps(json.loads(files["config.json"])["normalization"])):
    assert json.loads(text) == {"mean": [0.5, 0.4, 0.3], "std": [0.2, 0.2, 0.1]}
assert json.loads(known["class_names"]) == ["a", "b", "c", "d"]
print("ran")
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120, cwd=tmp_path)
    assert done.stdout.strip() == "ran", done.stderr


@torch.no_grad()
@pytest.mark.parametrize("half", [False, True])
def test_a_safetensors_export_is_a_sliced_checkpoint_that_keeps_its_folded_norms(checkpoint, half):
    export_sliced(checkpoint, "safetensors", fold_bn=True, half=half)
    folder = checkpoint / "export" / "safetensors"
    back, x = load_sliced(folder), images(3)
    dtype = torch.float16 if half else torch.float32
    assert {p.dtype for p in back.parameters()} == {dtype}
    assert not any(isinstance(module, torch.nn.BatchNorm2d) for module in back.modules())
    expected, tolerance = load_sliced(checkpoint)(x), 2e-2 if half else 1e-5
    torch.testing.assert_close(back(x.to(dtype)).float(), expected, rtol=tolerance, atol=tolerance)
    again = save_sliced(back, checkpoint.parent / "again", input_shape=SHAPE)
    assert repr(load_sliced(again)) == repr(back)
    assert read_sliced_config(folder)["normalization"] == NORMALIZATION
    card = (folder / "README.md").read_text()
    assert "| accuracy_sliced | 0.5 |" in card
    assert "| batch norms folded into convolutions | 7 |" in card


def test_half_stores_fp16_weights_and_is_fed_fp32(checkpoint, tmp_path):
    for name in ("onnx", "pt2"):
        export_sliced(checkpoint, name, half=True, out=tmp_path)
        assert FORMATS[name].read(tmp_path / NAMES[name])(images(2)).dtype == torch.float32
    weights = torch.export.load(tmp_path / "model.pt2").state_dict.values()
    assert {t.dtype for t in weights if t.is_floating_point()} == {torch.float16}
    stored = onnx.load(tmp_path / "model.onnx").graph.initializer
    assert {t.data_type for t in stored if t.name.endswith("weight")} == {onnx.TensorProto.FLOAT16}


def test_weights_that_fp16_cannot_hold_are_refused_and_no_file_stays(checkpoint):
    small = load_sliced(checkpoint)
    small.fc.weight.data[0, 0] = 1e6
    save_sliced(small, checkpoint, input_shape=SHAPE)
    with pytest.raises(RunError, match="--half"):
        export_sliced(checkpoint, "pt2", half=True)
    assert list((checkpoint / "export").iterdir()) == []


def test_an_export_removes_what_a_killed_one_has_left(checkpoint):
    """The draft of another format stays: somebody may be writing it just now."""
    place = checkpoint / "export"
    killed, other = (temporary_beside(place / name) for name in ("safetensors", "model.onnx"))
    for draft in (killed, other):
        draft.mkdir(parents=True)
    export_sliced(checkpoint, "safetensors")
    assert sorted(path.name for path in place.iterdir()) == sorted(["safetensors", other.name])


@pytest.mark.parametrize(
    ("format", "wrong"), [("onnx", "other numbers"), ("pt2", "an error"), ("safetensors", "other numbers")]
)
def test_a_file_that_computes_something_else_replaces_nothing(checkpoint, monkeypatch, format, wrong):
    export_sliced(checkpoint, format)
    place = checkpoint / "export"
    before = {path: path.read_bytes() for path in place.rglob("*") if path.is_file()}
    read = FORMATS[format].read

    def changed(path):
        if wrong == "an error":
            raise OSError("cannot be read")
        return lambda x: read(path)(x) + 1e-3

    monkeypatch.setattr(FORMATS[format], "read", changed)
    with pytest.raises(RunError, match="no file is kept"):
        export_sliced(checkpoint, format)
    assert {path: path.read_bytes() for path in place.rglob("*") if path.is_file()} == before


def test_weights_that_a_format_puts_into_a_second_file_come_along(checkpoint, monkeypatch):
    from torch.onnx._internal.exporter import _onnx_program

    monkeypatch.setattr(_onnx_program, "_LARGE_MODEL_THRESHOLD", 1)
    export_sliced(checkpoint, "onnx")
    assert {path.name for path in (checkpoint / "export").iterdir()} == {"model.onnx", "model.onnx.data"}
    read = FORMATS["onnx"].read(checkpoint / "export" / "model.onnx")
    x = images(2)
    torch.testing.assert_close(read(x), load_sliced(checkpoint)(x), rtol=1e-4, atol=1e-5)


def test_a_missing_package_is_named_with_the_extra_that_brings_it(checkpoint, monkeypatch):
    found = export_module.importlib.util.find_spec
    monkeypatch.setattr(
        export_module.importlib.util, "find_spec", lambda name: None if name == "onnxruntime" else found(name)
    )
    with pytest.raises(UserError, match=r"needs onnxruntime: pip install 'dist-prune\[onnx\]'"):
        export_sliced(checkpoint, "onnx")


def test_mistakes_are_refused_before_anything_is_written(checkpoint, tmp_path):
    with pytest.raises(UserError, match="did you mean 'onnx'"):
        export_sliced(checkpoint, "onxx")
    with pytest.raises(UserError, match=r"ends in \.pt2"):
        export_sliced(checkpoint, "pt2", out=tmp_path / "model.onnx")
    with pytest.raises(UserError, match="there is no folder"):
        export_sliced(tmp_path / "nowhere", "pt2")
    with pytest.raises(UserError, match="what is to be exported"):
        export_sliced(checkpoint, "safetensors", out=checkpoint)
    (tmp_path / "precious").mkdir()
    (tmp_path / "precious" / "config.json").write_text(json.dumps({"mine": True}))
    with pytest.raises(UserError, match="not a sliced checkpoint"):
        export_sliced(checkpoint, "safetensors", out=tmp_path / "precious")
    unknown = save_sliced(small_network(), tmp_path / "unknown")
    with pytest.raises(UserError, match="has no input_shape"):
        export_sliced(unknown, "pt2")
    assert not list(tmp_path.rglob("*.pt2")) + list(tmp_path.rglob("export"))


def test_what_torch_cannot_record_is_one_line(checkpoint, monkeypatch):
    def refuse(*_, **__):
        raise RuntimeError("data-dependent control flow\nand many more lines")

    monkeypatch.setattr(torch.export, "export", refuse)
    with pytest.raises(RunError, match=r"cannot record this CifarResNet: data-dependent control flow$"):
        export_sliced(checkpoint, "pt2")


def test_norms_that_were_folded_before_are_not_counted_again(checkpoint, tmp_path):
    first = export_sliced(checkpoint, "safetensors", fold_bn=True, out=tmp_path / "folded")
    again = export_sliced(tmp_path / "folded", "safetensors", fold_bn=True, out=tmp_path / "again")
    assert (first["batch norms folded"], again["batch norms folded"]) == ("7 of 7", "0 of 0")


def test_a_network_that_a_format_cannot_hold_is_one_line(checkpoint, tmp_path, monkeypatch):
    def refuse(*_):
        raise RuntimeError("no such operation\nand much more")

    monkeypatch.setattr(FORMATS["onnx"], "write", refuse)
    with pytest.raises(RunError, match=r"cannot be written in this format: no such operation$"):
        export_sliced(checkpoint, "onnx", out=tmp_path / "net.onnx")
    assert not list(tmp_path.glob("*.onnx"))


@pytest.mark.parametrize("command", ["export", "benchmark"])
def test_an_out_that_cannot_be_a_folder_is_one_line(checkpoint, tmp_path, capsys, monkeypatch, command):
    (tmp_path / "file").write_text("")
    words = [command, str(checkpoint), "--out", str(tmp_path / "file" / "there" / "net.onnx")]
    words += ["--format", "onnx"] if command == "export" else []
    monkeypatch.setattr(sys, "argv", ["dist-prune", *words])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    assert "Not a directory" in capsys.readouterr().err.splitlines()[-1]

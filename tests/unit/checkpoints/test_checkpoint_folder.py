"""Portable checkpoints on disk: whole or not there, found again, damaged ones passed over."""

import json
import os

import pytest
import safetensors.torch
import torch

from dist_prune import UserError
from dist_prune.checkpoints import format as module
from dist_prune.checkpoints.format import Checkpoint, load_checkpoint, load_newest, save_checkpoint


def state(step: int) -> Checkpoint:
    return Checkpoint(
        weights={"w": torch.full((3, 2), float(step)), "n": torch.tensor(step)},
        optimizer_state={"w": {"exp_avg": torch.full((3, 2), -float(step)), "step": torch.tensor(step)}},
        state={"phase": "gated", "position": {"step": step}, "schedule": {"last_lr": [0.1]}},
    )


def same(a: Checkpoint, b: Checkpoint) -> bool:
    def equal(x, y):
        return x.keys() == y.keys() and all(torch.equal(x[k], y[k]) and x[k].dtype == y[k].dtype for k in x)

    def flat(states):
        return {(name, key): t for name, state in states.items() for key, t in state.items()}

    same_optimizer = equal(flat(a.optimizer_state), flat(b.optimizer_state))
    return equal(a.weights, b.weights) and same_optimizer and a.state == b.state


def folders(path):
    return sorted(p.name for p in path.glob("step-*"))


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "run" / "checkpoints"


def test_what_was_saved_is_loaded(folder):
    path = save_checkpoint(folder, state(7), 7)
    assert path == folder / "step-00000007"
    assert same(load_checkpoint(path), state(7))
    newest, passed_over = load_newest(folder)
    assert same(newest, state(7))
    assert passed_over == []


def test_a_state_without_optimizer_round_trips(folder):
    """Before the first step, and for optimizers without a state."""
    start = Checkpoint({"w": torch.zeros(2)}, {}, {})
    assert same(load_checkpoint(save_checkpoint(folder, start, 0)), start)


def test_momentum_of_the_first_format_is_still_read(folder):
    """Then the file held one tensor a parameter, by its name alone."""
    path = save_checkpoint(folder, state(1), 1)
    safetensors.torch.save_file({"conv.weight": torch.ones(2)}, path / "optimizer.safetensors")
    manifest = json.loads((path / "manifest.json").read_text())
    manifest["optimizer.safetensors"] = module._fingerprint(path / "optimizer.safetensors")
    (path / "manifest.json").write_text(json.dumps(manifest))
    assert load_checkpoint(path).optimizer_state["conv.weight"]["momentum_buffer"].tolist() == [1, 1]


def test_whoever_may_read_other_files_of_the_run_may_read_its_tensors(folder):
    files = list(save_checkpoint(folder, state(1), 1).iterdir())
    expected = folder.parent / "other"
    expected.touch()
    assert {path.stat().st_mode for path in files} == {expected.stat().st_mode}


def test_the_manifest_lists_every_other_file_with_size_and_checksum(folder):
    path = save_checkpoint(folder, state(1), 1)
    manifest = json.loads((path / "manifest.json").read_text())
    assert manifest.keys() == {"model.safetensors", "optimizer.safetensors", "state.json"}
    assert {p.name for p in path.iterdir()} == {*manifest, "manifest.json"}
    for name, entry in manifest.items():
        assert entry["bytes"] == (path / name).stat().st_size
        assert len(entry["sha256"]) == 64


def test_the_two_newest_stay_and_latest_names_the_newest(folder):
    for step in (1, 2, 30, 400):
        save_checkpoint(folder, state(step), step)
        assert (folder / "latest").read_text() == f"step-{step:08d}\n"
    assert folders(folder) == ["step-00000030", "step-00000400"]
    assert {p.name for p in folder.iterdir()} == {"step-00000030", "step-00000400", "latest"}
    assert same(load_newest(folder)[0], state(400))


def test_saving_a_step_again_replaces_it(folder):
    save_checkpoint(folder, state(1), 5)
    save_checkpoint(folder, state(2), 5)
    assert same(load_newest(folder)[0], state(2))
    assert folders(folder) == ["step-00000005"]


def test_there_may_be_none_yet(folder):
    assert load_newest(folder) == (None, [])
    folder.mkdir(parents=True)
    assert load_newest(folder) == (None, [])


def flip_a_bit(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


DAMAGES = {
    "a flipped bit": flip_a_bit,
    "cut short": lambda path: path.write_bytes(path.read_bytes()[:-1]),
    "empty": lambda path: path.write_bytes(b""),
    "missing": lambda path: path.unlink(),
}
FILES = ("model.safetensors", "optimizer.safetensors", "state.json", "manifest.json")


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("name", FILES)
def test_a_damaged_file_is_detected_and_the_one_before_is_taken(folder, name, damage):
    save_checkpoint(folder, state(1), 1)
    newer = save_checkpoint(folder, state(2), 2)
    DAMAGES[damage](newer / name)
    with pytest.raises(UserError, match="step-00000002"):
        load_checkpoint(newer)
    found, passed_over = load_newest(folder)
    assert same(found, state(1))
    assert len(passed_over) == 1
    assert "step-00000002" in passed_over[0]


def test_damage_names_the_file(folder):
    path = save_checkpoint(folder, state(2), 2)
    flip_a_bit(path / "optimizer.safetensors")
    with pytest.raises(UserError, match=r"damaged: optimizer\.safetensors"):
        load_checkpoint(path)


def test_a_manifest_that_vouches_for_nothing_is_not_believed(folder):
    path = save_checkpoint(folder, state(2), 2)
    (path / "manifest.json").write_text("{}")
    flip_a_bit(path / "model.safetensors")
    with pytest.raises(UserError):
        load_checkpoint(path)


@pytest.mark.parametrize("content", ["[]", "3", "null", '"text"', '{"state.json": 3}'])
def test_a_manifest_of_another_kind_is_refused(folder, content):
    path = save_checkpoint(folder, state(2), 2)
    (path / "manifest.json").write_text(content)
    with pytest.raises(UserError, match="step-00000002"):
        load_checkpoint(path)


def test_all_damaged_is_none_and_says_so_about_each(folder):
    for step in (1, 2):
        flip_a_bit(save_checkpoint(folder, state(step), step) / "state.json")
    found, passed_over = load_newest(folder)
    assert found is None
    assert ["step-00000002" in passed_over[0], "step-00000001" in passed_over[1]] == [True, True]


CRASHES = ("_fingerprint", "_sync", "os.replace", "first write", "second write")


@pytest.mark.parametrize("where", CRASHES)
def test_a_crash_in_the_middle_leaves_the_older_one_whole(folder, monkeypatch, where):
    save_checkpoint(folder, state(1), 1)

    def crash(*_, **__):
        raise OSError("no space left on device")

    if where == "os.replace":
        monkeypatch.setattr(module.os, "replace", crash)
    elif where.endswith("write"):
        real, calls = module.safetensors.torch.save_file, []

        def write(tensors, path, metadata):
            calls.append(path)
            if len(calls) == (1 if where == "first write" else 2):
                path.write_bytes(b"half")
                crash()
            real(tensors, path)

        monkeypatch.setattr(module.safetensors.torch, "save_file", write)
    else:
        monkeypatch.setattr(module, where, crash)
    with pytest.raises(OSError, match="no space"):
        save_checkpoint(folder, state(2), 2)
    monkeypatch.undo()
    assert folders(folder) == ["step-00000001"], "nothing half-written appears under a final name"
    assert (folder / "latest").read_text() == "step-00000001\n"
    assert same(load_newest(folder)[0], state(1))
    save_checkpoint(folder, state(3), 3)
    assert same(load_newest(folder)[0], state(3))


def test_latest_moves_after_the_folder_is_in_place(folder, monkeypatch):
    replaced = []
    real = os.replace

    def replace(source, target):
        if target.name == "latest":
            assert same(load_checkpoint(folder / source.read_text().strip()), state(2))
        replaced.append(target.name)
        real(source, target)

    save_checkpoint(folder, state(1), 1)
    monkeypatch.setattr(module.os, "replace", replace)
    save_checkpoint(folder, state(2), 2)
    assert replaced == ["step-00000002", "latest"]


def test_a_crash_before_latest_moved_still_resumes_from_the_newest(folder, monkeypatch):
    save_checkpoint(folder, state(1), 1)
    real = os.replace

    def replace(source, target):
        if target.name == "latest":
            raise OSError("killed")
        real(source, target)

    monkeypatch.setattr(module.os, "replace", replace)
    with pytest.raises(OSError, match="killed"):
        save_checkpoint(folder, state(2), 2)
    assert same(load_newest(folder)[0], state(2))


def test_nothing_that_a_killed_process_left_is_taken_for_a_checkpoint(folder):
    save_checkpoint(folder, state(1), 1)
    half = folder / ".step-00000002.4711.tmp"
    half.mkdir()
    (half / "model.safetensors").write_bytes(b"half")
    assert same(load_newest(folder)[0], state(1))
    assert load_newest(folder)[1] == []


def test_leftovers_of_killed_processes_do_not_pile_up(folder):
    """Each is as large as a checkpoint."""
    for pid in (4711, 4712):
        (folder / f".step-00000002.{pid}.tmp").mkdir(parents=True)
    save_checkpoint(folder, state(3), 3)
    assert {p.name for p in folder.iterdir()} == {"step-00000003", "latest"}

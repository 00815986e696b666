"""Portable checkpoints on disk: whole or not there, found again, damaged ones passed over."""

import errno
import json
import os
import shutil

import pytest
import torch

from dist_prune import UserError
from dist_prune.checkpoints import format as module
from dist_prune.checkpoints.format import load_checkpoint, load_newest, save_checkpoint
from dist_prune.checkpoints.train_state import ModelState, Origin, Progress, SpentEnergy, TrainState
from dist_prune.files import temporary_beside
from dist_prune.pruning.mask import SiteMask, UnitMask
from dist_prune.pruning.weight_mask import WeightMask
from dist_prune.runtime.run_lock import RunTakenOver

DATA = {"fingerprint": "abc", "shard_lengths": {"train": [3, 4]}}
ORIGIN: Origin = {"recipe": {}, "ds_config": {}, "micro_batch": 8, "versions": {}}
UNITS = UnitMask((SiteMask("layer1.0", "layer", 1, 0.75, (0,), 0.75),))
WEIGHTS = WeightMask({"w": torch.tensor([[True, False], [False, True], [True, True]])})


def state(step: int) -> TrainState:
    made = TrainState(
        Progress(phase="tuned", step=step, epoch=2, best_step=3),
        DATA,
        ORIGIN,
        SpentEnergy(joules=2.5, ranks=1, sensors={"cpu": 1}),
        SpentEnergy(joules=None),
        model=ModelState(
            {"w": torch.full((3, 2), float(step)), "n": torch.tensor(step)},
            {"w": {"exp_avg": torch.full((3, 2), -float(step)), "step": torch.tensor(step)}},
        ),
        phase_state={"budget.rate": torch.tensor(0.5)},
    )
    made.finish("gated", 2, UNITS)
    made.finish("masked", 1, WEIGHTS)
    made.finish("plain", 4, None)
    return made


def tensors_of(state: TrainState) -> dict[str, torch.Tensor]:
    states = state.model.optimizer_state.items()
    flat = {f"{name} {key}": t for name, states in states for key, t in states.items()}
    return {**state.model.weights, **flat, **state.tensors()}


def same(a: TrainState, b: TrainState) -> bool:
    x, y = tensors_of(a), tensors_of(b)
    same_tensors = x.keys() == y.keys() and all(torch.equal(x[k], y[k]) and x[k].dtype == y[k].dtype for k in x)
    return same_tensors and a.as_json() == b.as_json()


def folders(path):
    return sorted(p.name for p in path.glob("step-*"))


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "run").mkdir()
    return tmp_path / "run" / "checkpoints"


def test_a_checkpoint_makes_no_run_folder_where_that_was_moved_away(folder):
    folder.parent.rmdir()
    with pytest.raises(FileNotFoundError):
        save_checkpoint(folder, state(7))
    assert not folder.parent.exists()


def test_what_was_saved_is_loaded(folder):
    path = save_checkpoint(folder, state(7))
    assert path == folder / "step-00000007"
    assert same(load_checkpoint(path), state(7))
    newest, passed_over = load_newest(folder)
    assert same(newest, state(7))
    assert passed_over == []


def test_decisions_of_finished_phases_come_back_as_what_they_were(folder):
    loaded = load_checkpoint(save_checkpoint(folder, state(7)))
    assert {name: phase.epochs_run for name, phase in loaded.finished.items()} == {"gated": 2, "masked": 1, "plain": 4}
    assert loaded.decision_of("gated") == UNITS
    assert torch.equal(loaded.decision_of("masked").kept["w"], WEIGHTS.kept["w"])
    assert loaded.decision_of("plain") is None


def test_a_state_without_optimizer_round_trips(folder):
    """Before the first step, and for optimizers without a state."""
    start = TrainState(Progress(), DATA, ORIGIN, model=ModelState({"w": torch.zeros(2)}))
    assert same(load_checkpoint(save_checkpoint(folder, start)), start)


def rewrite(path, **changes) -> None:
    """Change state.json and vouch for it."""
    data = {**json.loads((path / "state.json").read_text()), **changes}
    (path / "state.json").write_text(json.dumps({key: value for key, value in data.items() if value != "gone"}))
    manifest = json.loads((path / "manifest.json").read_text())
    manifest["state.json"] = module._fingerprint(path / "state.json")
    (path / "manifest.json").write_text(json.dumps(manifest))


@pytest.mark.parametrize(("version", "said"), [("gone", 1), (2, 2), (4, 4)])
def test_a_checkpoint_of_another_format_is_refused_by_its_version_and_no_older_one_is_taken(folder, version, said):
    save_checkpoint(folder, state(1))
    rewrite(save_checkpoint(folder, state(2)), version=version)
    with pytest.raises(UserError, match=f"step-00000002 cannot be used: its format is version {said}, this program"):
        load_newest(folder)


PROGRESS = state(1).as_json()["progress"]


@pytest.mark.parametrize(
    "changes",
    [
        {"progress": {**PROGRESS, "step": "x"}},
        {"progress": {**PROGRESS, "more": 1}},
        {"data": {"fingerprint": 1, "shard_lengths": {}}},
        {"finished": []},
        {"finished": {"gated": {"epochs_run": 1, "decision": {"kind": "units"}}}},
        {"finished": {"gated": {"epochs_run": 1, "decision": {"kind": "feelings"}}}},
        {"finished": {"other": {"epochs_run": 1, "decision": {"kind": "weights", "weights": [{"name": "w"}]}}}},
        {"energy_run": 3},
        {"more": 1},
    ],
)
def test_a_state_that_no_run_can_continue_from_is_refused_in_one_line(folder, changes):
    path = save_checkpoint(folder, state(1))
    rewrite(path, **changes)
    with pytest.raises(UserError, match="step-00000001 cannot be used: ") as refused:
        load_checkpoint(path)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda weights: weights.pop("bias"), r"for bias it has nothing, where \(2,\) is needed"),
        (lambda weights: weights.update(more=torch.zeros(1)), r"for more it has \(1,\), where nothing is needed"),
        (lambda weights: weights.update(weight=torch.zeros(2, 4)), r"has \(2, 4\), where \(2, 3\) is needed"),
    ],
)
def test_weights_of_another_network_are_refused_by_the_first_tensor_that_differs(change, said):
    network = torch.nn.Linear(3, 2)
    weights = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    start = TrainState(Progress(), DATA, ORIGIN, model=ModelState(weights))
    start.check_fits(network)
    change(weights)
    with pytest.raises(UserError, match=said):
        start.check_fits(network)


def test_whoever_may_read_other_files_of_the_run_may_read_its_tensors(folder):
    files = list(save_checkpoint(folder, state(1)).iterdir())
    expected = folder.parent / "other"
    expected.touch()
    assert {path.stat().st_mode for path in files} == {expected.stat().st_mode}


def test_the_manifest_lists_every_other_file_with_size_and_checksum(folder):
    path = save_checkpoint(folder, state(1))
    manifest = json.loads((path / "manifest.json").read_text())
    assert manifest.keys() == {"model.safetensors", "optimizer.safetensors", "phase.safetensors", "state.json"}
    assert {p.name for p in path.iterdir()} == {*manifest, "manifest.json"}
    for name, entry in manifest.items():
        assert entry["bytes"] == (path / name).stat().st_size
        assert len(entry["sha256"]) == 64


def test_the_two_newest_stay_and_latest_names_the_newest(folder):
    for step in (1, 2, 30, 400):
        save_checkpoint(folder, state(step))
        assert (folder / "latest").read_text() == f"step-{step:08d}\n"
    assert folders(folder) == ["step-00000030", "step-00000400"]
    assert {p.name for p in folder.iterdir()} == {"step-00000030", "step-00000400", "latest"}
    assert same(load_newest(folder)[0], state(400))


def test_saving_a_step_again_replaces_it(folder):
    older, newer = state(5), state(5)
    newer.progress.epoch = 9
    save_checkpoint(folder, older)
    save_checkpoint(folder, newer)
    assert same(load_newest(folder)[0], newer)
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
FILES = ("model.safetensors", "optimizer.safetensors", "phase.safetensors", "state.json", "manifest.json")


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("name", FILES)
def test_a_damaged_file_is_detected_and_the_one_before_is_taken(folder, name, damage):
    save_checkpoint(folder, state(1))
    newer = save_checkpoint(folder, state(2))
    DAMAGES[damage](newer / name)
    with pytest.raises(UserError, match="step-00000002"):
        load_checkpoint(newer)
    found, passed_over = load_newest(folder)
    assert same(found, state(1))
    assert len(passed_over) == 1
    assert "step-00000002" in passed_over[0]


def test_damage_names_the_file(folder):
    path = save_checkpoint(folder, state(2))
    flip_a_bit(path / "optimizer.safetensors")
    with pytest.raises(UserError, match=r"damaged: optimizer\.safetensors"):
        load_checkpoint(path)


def test_a_manifest_that_vouches_for_nothing_is_not_believed(folder):
    path = save_checkpoint(folder, state(2))
    (path / "manifest.json").write_text("{}")
    flip_a_bit(path / "model.safetensors")
    with pytest.raises(UserError):
        load_checkpoint(path)


@pytest.mark.parametrize("content", ["[]", "3", "null", '"text"', '{"state.json": 3}'])
def test_a_manifest_of_another_kind_is_refused(folder, content):
    path = save_checkpoint(folder, state(2))
    (path / "manifest.json").write_text(content)
    with pytest.raises(UserError, match="step-00000002"):
        load_checkpoint(path)


def test_checkpoints_of_which_none_is_whole_are_refused_and_stay(folder):
    """Taken for none, the run would begin anew and overwrite its records."""
    for step in (1, 2):
        flip_a_bit(save_checkpoint(folder, state(step)) / "state.json")
    with pytest.raises(UserError, match=r"none of the checkpoints in .* is whole .*step-00000002.*: restore one, or"):
        load_newest(folder)
    assert folders(folder) == ["step-00000001", "step-00000002"]


@pytest.mark.parametrize("code", [errno.EIO, errno.EACCES, errno.ESTALE])
def test_a_checkpoint_that_cannot_be_read_just_now_is_not_damaged_and_not_passed_over(folder, monkeypatch, code):
    save_checkpoint(folder, state(1))
    newest = save_checkpoint(folder, state(2))
    read = module.Path.read_bytes

    def fail(path):
        if path.parent == newest:
            raise OSError(code, os.strerror(code), str(path))
        return read(path)

    monkeypatch.setattr(module.Path, "read_bytes", fail)
    with pytest.raises(UserError, match=rf"step-00000002 cannot be read just now \({os.strerror(code)}\): try again"):
        load_newest(folder)


def test_a_folder_of_checkpoints_that_cannot_be_listed_is_not_an_empty_one(folder, monkeypatch):
    save_checkpoint(folder, state(1))

    def refuse(path):
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    monkeypatch.setattr(module.os, "listdir", refuse)
    with pytest.raises(UserError, match=r"checkpoints in .* cannot be listed \(Permission denied\)"):
        load_newest(folder)


@pytest.mark.parametrize("kind", ["broken link", "file"])
def test_something_else_in_place_of_the_folder_of_checkpoints_is_refused(folder, tmp_path, kind):
    folder.symlink_to(tmp_path / "missing") if kind == "broken link" else folder.write_text("")
    with pytest.raises(UserError, match=r"checkpoints in .* cannot be listed .*: restore that folder, or remove it"):
        load_newest(folder)


def test_entries_of_other_names_are_the_users_and_stay(folder):
    own = ["step-00000002.backup", "step-best-of-paper", "step-2", "notes.txt", ".step-00000002.tmp", ".hidden.1.tmp"]
    for name in own:
        shutil.copytree(save_checkpoint(folder, state(1)), folder / name)
    for step in (3, 4):
        save_checkpoint(folder, state(step), keep=1)
    assert same(load_newest(folder)[0], state(4))
    assert {path.name for path in folder.iterdir()} == {"step-00000004", "latest", *own}


def test_steps_of_more_than_eight_digits_are_newer(folder):
    save_checkpoint(folder, state(99_999_999))
    save_checkpoint(folder, state(100_000_000))
    assert load_newest(folder)[0].progress.step == 100_000_000


def test_who_has_lost_the_folder_to_another_invocation_changes_nothing(folder):
    save_checkpoint(folder, state(2))

    def lost():
        raise RunTakenOver("process 7 of host b has continued the run")

    with pytest.raises(RunTakenOver):
        save_checkpoint(folder, state(1), keep=1, check_owner=lost)
    assert {path.name for path in folder.iterdir()} == {"step-00000002", "latest"}
    assert (folder / "latest").read_text() == "step-00000002\n"


CRASHES = ("_fingerprint", "_sync", "os.replace", "first write", "second write")


@pytest.mark.parametrize("where", CRASHES)
def test_a_crash_in_the_middle_leaves_the_older_one_whole(folder, monkeypatch, where):
    save_checkpoint(folder, state(1))

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
        save_checkpoint(folder, state(2))
    monkeypatch.undo()
    assert folders(folder) == ["step-00000001"], "nothing half-written appears under a final name"
    assert (folder / "latest").read_text() == "step-00000001\n"
    assert same(load_newest(folder)[0], state(1))
    save_checkpoint(folder, state(3))
    assert same(load_newest(folder)[0], state(3))


def test_latest_moves_after_the_folder_is_in_place(folder, monkeypatch):
    replaced = []
    real = os.replace

    def replace(source, target):
        if target.name == "latest":
            assert same(load_checkpoint(folder / source.read_text().strip()), state(2))
        replaced.append(target.name)
        real(source, target)

    save_checkpoint(folder, state(1))
    monkeypatch.setattr(module.os, "replace", replace)
    save_checkpoint(folder, state(2))
    assert replaced == ["step-00000002", "latest"]


def test_a_crash_before_latest_moved_still_resumes_from_the_newest(folder, monkeypatch):
    save_checkpoint(folder, state(1))
    real = os.replace

    def replace(source, target):
        if target.name == "latest":
            raise OSError("killed")
        real(source, target)

    monkeypatch.setattr(module.os, "replace", replace)
    with pytest.raises(OSError, match="killed"):
        save_checkpoint(folder, state(2))
    assert same(load_newest(folder)[0], state(2))


def test_nothing_that_a_killed_process_left_is_taken_for_a_checkpoint(folder):
    save_checkpoint(folder, state(1))
    half = temporary_beside(folder / "step-00000002")
    half.mkdir()
    (half / "model.safetensors").write_bytes(b"half")
    assert same(load_newest(folder)[0], state(1))
    assert load_newest(folder)[1] == []


def test_leftovers_of_killed_processes_do_not_pile_up(folder):
    """Each is as large as a checkpoint."""
    for _ in range(2):
        temporary_beside(folder / "step-00000002").mkdir(parents=True)
        temporary_beside(folder / "latest").write_text("step-00000002")
    save_checkpoint(folder, state(3))
    assert {p.name for p in folder.iterdir()} == {"step-00000003", "latest"}

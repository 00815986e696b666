"""A user's mistake is one line that says what is wrong and how to fix it, with exit code 2."""

from __future__ import annotations

import json
import os

import pytest

import dist_prune.cli.main as cli
from data_tools import make_shards

GOOD = ["--ds_config", "ds_configs/zero2.json"]


@pytest.fixture
def refused(capsys, monkeypatch, data_home, tmp_path):
    """Run launch/train.py's program in this process and return its one line of error."""

    def run(*words: str) -> str:
        monkeypatch.setenv("DIST_PRUNE_DATA", str(data_home))
        rendezvous = {
            "RANK": "0",
            "LOCAL_RANK": "0",
            "WORLD_SIZE": "1",
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": "29511",
        }
        for name, value in rendezvous.items():  # set here, so that what the program sets goes with the test
            monkeypatch.setenv(name, value)
        with pytest.raises(SystemExit) as left:
            cli.train_main([str(word) for word in words] + ["--out", str(tmp_path / "run")])
        error = capsys.readouterr().err
        assert left.value.code == 2, error
        assert len(error.strip().splitlines()) == 1, error
        assert not (tmp_path / "run").exists(), "a refused run leaves nothing behind"
        return error

    return run


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ([*GOOD, "--recipee", "digits"], "--recipe"),
        ([*GOOD, "--recipe", "digitz"], "did you mean 'digits'"),
        ([*GOOD, "--set", "epoch=3"], "did you mean 'epochs'"),
        ([*GOOD, "--set", "gates.hiden=3"], "did you mean 'gates.hidden'"),
        ([*GOOD, "--set", "epochs"], "key=value"),
        ([*GOOD, "--set", "epochs=many"], "epochs"),
        ([*GOOD, "--set", "epochs=0"], "greater than or equal to 1"),
        ([*GOOD, "--set", "gates.kind=layers"], "gates.kind"),
        ([*GOOD, "--set", "gates.head=bernoulli"], "use 'ste'"),
        ([*GOOD, "--set", "gates.kind=channel", "gates.position=before", "target_macs=0.3"], "0.558"),
        ([*GOOD, "--set", "gates.kind=channel", "gates.position=after", "target_macs=0.3"], "out of reach"),
        ([*GOOD, "--set", "gates.flatten=7"], "gates.flatten"),
        ([*GOOD, "--set", "budget.prune_start=0.9"], "prune_start < prune_end"),
        ([*GOOD, "--set", "model=resnet21"], "unknown model 'resnet21'"),
        ([*GOOD, "--set", "model_args.shortcut=C"], "shortcut"),
        ([*GOOD, "--set", "method=concensus"], "did you mean 'consensus'"),
        ([*GOOD, "--set", "global_batch_size=5000"], "5000"),
        ([*GOOD, "--max_steps", "0"], "above 0"),
        ([*GOOD, "--data", "digit"], "digits"),
        ([*GOOD, "--data", "/nowhere/at/all"], "/nowhere/at/all"),
        ([*GOOD, "--data", "cifar10"], "dist-prune shards make cifar10"),
        (["--ds_config", "ds_configs/zero9.json"], "ds_configs/zero9.json"),
        ([], "--ds_config"),
    ],
)
def test_a_mistake_on_the_command_line_is_one_line(refused, words, expected):
    assert expected in refused(*words)


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("{", "not valid JSON"),
        ("[]", "JSON object"),
        (json.dumps({"zero_optimisation": {"stage": 2}}), "did you mean 'zero_optimization'"),
        (json.dumps({"zero_optimization": {"stag": 2}}), "stag"),
        (json.dumps({"optimizer": {"type": "Adam"}}), "recipe owns the optimizer"),
        (json.dumps({"train_micro_batch_size_per_gpu": "auto"}), "auto"),
        (json.dumps({"train_micro_batch_size_per_gpu": 48}), "48"),
        (json.dumps({"gradient_accumulation_steps": 3, "train_micro_batch_size_per_gpu": 64}), "contradict"),
        (json.dumps({"bf16": {"enabled": True}}), "torch_autocast"),
        (json.dumps({"fp16": {"enabled": True}, "zero_optimization": {"stage": 2}}), "GPU"),
        (json.dumps({"fp16": {"enabled": True}}), "stage 1 or 2"),
        (json.dumps({"gradient_clipping": "abc"}), "gradient_clipping"),
        (json.dumps({"compression_training": {}}), "removed"),
    ],
)
def test_a_mistake_in_the_ds_config_is_one_line(refused, tmp_path, content, expected):
    path = tmp_path / "ds.json"
    path.write_text(content)
    error = refused("--ds_config", path)
    assert expected in error or "follows from the recipe" in error


def test_a_folder_without_images_is_refused_when_shards_are_made(forked, tmp_path):
    (tmp_path / "empty").mkdir()
    done = forked("dist-prune", "shards", "make", "imagefolder", tmp_path / "empty", "--out", tmp_path / "out")
    assert done.code == 2
    assert len(done.lines) == 1
    assert "Traceback" not in done.err


def test_a_test_split_of_which_no_image_can_be_read_is_one_line(train, tmp_path):
    make_shards("digits", None, tmp_path / "digits")
    for shard in (tmp_path / "digits").glob("*-test-*.tar"):
        shard.unlink()
    words = ("--data", tmp_path / "digits", "--out", tmp_path / "run")
    done = train(*words, settings=("epochs=1", "bad_data=skip", "max_skipped=1000"))
    assert done.code == 2
    lines = [line for line in done.lines if not line.startswith(("skipped: ", "step "))]
    assert len(lines) == 1, done.err
    assert "nothing to evaluate: no image could be read; fix the data" in lines[0]


def train_where_one_rank_lacks_the_data(words: list[str], nowhere: str) -> None:
    if os.environ["RANK"] == "1":
        words[words.index("--data") + 1] = nowhere
    cli.train_main(words)


def test_a_mistake_that_one_rank_has_ends_all_ranks_with_one_line(forked_ranks, tmp_path):
    """As on a cluster of which one node lacks the data."""
    words = [*GOOD, "--data", "digits", "--out", str(tmp_path / "run")]
    first, second = forked_ranks(2, train_where_one_rank_lacks_the_data, words, f"{tmp_path}/nowhere")
    assert (first.code, second.code) == (2, 2)
    (line,) = first.lines + second.lines
    assert line.startswith("error: rank 1 (process ")
    assert "nowhere" in line
    assert not (tmp_path / "run").exists()


def test_two_ranks_report_a_mistake_once(forked_ranks, tmp_path):
    words = ["python", "launch/train.py", *GOOD, "--set", "global_batch_size=33", "--out", tmp_path / "run"]
    ranks = forked_ranks(2, *words)
    assert [rank.code for rank in ranks] == [2, 2]
    (line,) = [line for rank in ranks for line in rank.lines]
    assert line.startswith("error: global_batch_size 33")

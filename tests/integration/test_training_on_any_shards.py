"""A run trains on shards that others made, with no preparation."""

from __future__ import annotations

import io

import pytest
import webdataset
from commands import records
from PIL import Image
from sklearn.datasets import load_digits


@pytest.fixture
def shards(tmp_path) -> None:
    """Shards of the digits by webdataset's own writer."""
    digits = load_digits()
    for split, rows in (("train", range(400)), ("val", range(400, 600))):
        pattern = str(tmp_path / f"mine-{split}-%03d.tar")
        with webdataset.ShardWriter(pattern, maxcount=100, verbose=0) as writer:
            for row in rows:
                stream = io.BytesIO()
                Image.fromarray((digits.images[row] * 15).astype("uint8")).save(stream, "PNG")
                writer.write({"__key__": f"{row:05d}", "png": stream.getvalue(), "cls": int(digits.target[row])})


def test_a_run_trains_in_stream_order_and_a_resume_goes_on_with_the_epoch(shards, train, forked, tmp_path):
    place = f"pipe:cat {tmp_path}/mine-train-{{000..003}}.tar"
    few = ("global_batch_size=64", "epochs=1", "workers=2", "data.order=stream", "data.classes=10", "data.shuffle=50")
    words = ("--data", place, "--out", tmp_path / "run")
    done = train(*words, settings=(*few, "allow_pipes=true", f"eval_data={tmp_path}/mine-val-*.tar"))
    assert done.code == 2, done.err
    assert "has no index that counts its images: set data.samples" in done.err
    few = (*few, "allow_pipes=true", f"eval_data={tmp_path}/mine-val-*.tar", "data.samples=400")
    done = train(*words, "--max_steps", "4", settings=few)
    assert done.code == 3, done.err
    done = train(*words, "--resume", settings=few)
    assert done.code == 0, done.err
    assert [record["step"] for record in records(tmp_path / "run", "eval")] == [6]
    (summary,) = records(tmp_path / "run", "summary")
    shown = forked("dist-prune", "evaluate", tmp_path / "run")
    assert shown.code == 2
    assert "read its data by a command" in shown.err
    shown = forked("dist-prune", "evaluate", tmp_path / "run", "--data", f"{tmp_path}/mine-val-*.tar")
    assert f"accuracy  {summary['accuracy_sliced']:g}\nsamples   200\n" in shown.out


def test_a_run_trains_on_shards_of_webdatasets_own_writer_and_names_a_missing_split(shards, train, forked, tmp_path):
    words = ("--out", tmp_path / "run", "--max_steps", "2")
    few = ("global_batch_size=64", "epochs=1")
    done = train("--data", tmp_path / "mine-train-{000..003}.tar", *words, settings=few)
    assert done.code == 2, done.err
    assert "has no split 'test': it has train" in done.err
    held = ("--data", tmp_path / "mine-train-{000..003}.tar", "--out", tmp_path / "held")
    done = train(*held, settings=(*few, "eval_share=0.1"))
    assert done.code == 0, done.err
    shown = forked("dist-prune", "evaluate", tmp_path / "held")
    assert shown.code == 0, shown.err
    (summary,) = records(tmp_path / "held", "summary")
    assert f"accuracy  {summary['accuracy_sliced']:g}\nsamples   40\n" in shown.out
    done = train("--data", f"{tmp_path}/mine-*.tar", *words, settings=few)
    assert done.code == 3, done.err
    assert f"made the index of {tmp_path} in " in done.err
    assert len(records(tmp_path / "run", "train")) == 2

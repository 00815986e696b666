"""Shards are put to a URL as they would be made in a folder, and an interrupted writer continues there."""

from pathlib import Path

import fsspec
import pytest

from data_tools import ShardError, make_shards, verify_shards


def test_shards_made_at_a_url_are_those_made_in_a_folder(digits, memory, tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    made = make_shards("digits", None, "memory://bucket/made", workers=2)
    files = fsspec.filesystem("memory")
    names = {name.rsplit("/", 1)[-1] for name in files.ls("/bucket/made", detail=False)}
    assert names == {path.name for path in digits.iterdir()}, "no sidecar is left"
    assert all(files.cat_file(f"/bucket/made/{name}") == (digits / name).read_bytes() for name in names)
    assert made.root == "memory://bucket/made"
    assert make_shards("digits", None, "memory://bucket/made") == made
    assert list(tmp_path.iterdir()) == [], "nothing is left in the temporary folder"
    with pytest.raises(ShardError, match="memory://bucket/made already holds other shards"):
        make_shards("digits", None, "memory://bucket/made", seed=1)


def test_an_interrupted_writer_of_a_url_is_continued(digits, memory, interrupted):
    interrupted(2, "memory://bucket/made")
    assert interrupted(1, "memory://bucket/made") == ["digits-train-000002.tar"]
    make_shards("digits", None, "memory://bucket/made")
    assert verify_shards("memory://bucket/made") == []


def test_shards_cannot_be_put_to_a_web_address():
    with pytest.raises(ShardError, match=r"cannot write to https://x/y: make the shards in a folder"):
        make_shards("digits", None, "https://x/y")


@pytest.mark.parametrize("shards", [60, 180])
def test_bytes_besides_the_data_grow_by_a_small_number_per_shard(shards, monkeypatch):
    """A journal that was put anew after each shard cost 106 MB for 899 shards: the square of their number."""
    uploads: dict[str, int] = {}
    files = fsspec.filesystem("memory")
    pipe, put = type(files).pipe_file, type(files).put_file

    def note(path: str, size: int) -> None:
        kind = "shards" if path.endswith(".tar") else "index" if path.endswith("_info.json") else "besides"
        uploads[kind] = uploads.get(kind, 0) + size

    def pipe_file(self, path, value, **kwargs):
        note(path, len(value))
        pipe(self, path, value, **kwargs)

    def put_file(self, local, path, **kwargs):
        note(path, Path(local).stat().st_size)
        put(self, local, path, **kwargs)

    monkeypatch.setattr(type(files), "pipe_file", pipe_file)
    monkeypatch.setattr(type(files), "put_file", put_file)
    index = make_shards("digits", None, "memory://bucket/many", samples_per_shard=1797 // shards)
    made = len(list(index.shards()))
    files.rm("/bucket/many", recursive=True)
    assert made >= shards
    assert uploads["shards"] == sum(shard.size for shard in index.shards())
    assert uploads["besides"] < 500 * made
    assert uploads["index"] < 250 * made + 1500

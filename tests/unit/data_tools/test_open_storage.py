"""Shards are had from folders, URLs and commands, whole or not at all, once for all processes."""

import multiprocessing
import pickle
import time
from pathlib import Path

import fsspec
import pytest

from data_tools import ShardError, open_store, verify_shards
from data_tools.remote import with_retries
from data_tools.store import ShardSpec


def fetch_all(storage) -> dict[str, bytes]:
    index = storage.read_index()
    return {shard.name: storage.fetch(shard).read_bytes() for shard in index.shards()}


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.glob("*.tar")}


def test_local_shards_are_used_where_they_lie(digits, tmp_path):
    for location in (digits, f"file://{digits}", digits / "_info.json"):
        storage = open_store(location, cache_dir=tmp_path / "cache")
        shard = storage.read_index().split("train").shards[0]
        assert storage.fetch(shard) == digits / "digits-train-000000.tar"
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize("form", ["memory://bucket/digits", "memory://bucket/digits/_info.json", "pipe:cat {}"])
def test_shards_from_elsewhere_are_those_there(form, digits, memory, tmp_path):
    storage = open_store(form.format(f"{digits}/_info.json"), cache_dir=tmp_path)
    assert storage.read_index().splits == open_store(digits).read_index().splits
    assert fetch_all(storage) == content(digits)


@pytest.mark.parametrize("form", ["{folder}/{tars}", "memory://bucket/digits/{tars}", "pipe:cat {folder}/{tars}"])
def test_a_pattern_restricts_the_split_it_names_wherever_it_leads(form, digits, memory, tmp_path):
    location = form.format(folder=digits, tars="digits-train-{000001..000002}.tar")
    index = open_store(location, cache_dir=tmp_path).read_index()
    assert index.split("train").filenames == ("digits-train-000001.tar", "digits-train-000002.tar")
    assert index.split("test").num_samples == 360
    wrong = location.replace("000002", "000009")
    with pytest.raises(ShardError, match=r"names digits-train-000004\.tar, which _info\.json"):
        open_store(wrong, cache_dir=tmp_path).read_index()


@pytest.mark.parametrize("command", ["cat {folder}/X.tar | cat", "cat '{folder}/X.tar'", "cat < {folder}/X.tar"])
def test_only_the_name_in_a_command_is_replaced(command, digits, tmp_path):
    name = "digits-train-{000000..000003}.tar"
    storage = open_store("pipe:" + command.format(folder=digits).replace("X.tar", name), cache_dir=tmp_path)
    assert fetch_all(storage) == content(digits)


def test_a_name_may_stand_in_a_command_without_a_folder(digits, tmp_path):
    storage = open_store(f"pipe:cd {digits} && cat _info.json", cache_dir=tmp_path)
    assert fetch_all(storage) == content(digits)


def test_a_command_that_names_no_shards_is_refused():
    with pytest.raises(ShardError, match=r"pipe:cat x names no shards: the command must end in FOLDER/X-"):
        open_store("pipe:cat x")


def test_a_command_that_fails_is_named_with_its_last_words(tmp_path):
    storage = open_store("pipe:echo first >&2; echo no such bucket >&2; exit 7; cat x/_info.json", retries=0)
    expected = r"cannot read pipe:.*: the command ended with exit code 7: no such bucket$"
    with pytest.raises(ShardError, match=expected):
        storage.read_index()


def test_a_command_that_stalls_is_ended_and_named(tmp_path):
    flag = tmp_path / "ended"
    command = f"pipe:(sleep 1.5; touch {flag}) | cat; cat {tmp_path}/_info.json"
    begun = time.monotonic()
    with pytest.raises(ShardError, match=r"cannot read pipe:.*_info\.json: no byte arrived for 0\.3 s"):
        open_store(command, timeout=0.3, retries=0).read_index()
    assert time.monotonic() - begun < 1.2
    time.sleep(1.5)
    assert not flag.exists(), "its child went on"


def test_a_command_that_is_slow_but_not_silent_is_awaited(digits, tmp_path):
    slow = f"pipe:for i in 1 2 3 4 5; do sleep 0.1; echo; done; cat {digits}/_info.json"
    assert open_store(slow, timeout=0.4).read_index().name == "digits"


def test_a_short_read_is_tried_again(digits, tmp_path):
    counter = tmp_path / "counter"
    half = f"echo x >> {counter}; [ $(wc -l < {counter}) -gt 2 ] || short=-c1000"
    shard = open_store(digits).read_index().split("train").shards[0]
    storage = open_store(f"pipe:{half}; head ${{short:--c-0}} {digits}/{shard.name}", cache_dir=tmp_path / "c")
    assert storage.fetch(shard).read_bytes() == (digits / shard.name).read_bytes()
    assert counter.read_text() == "x\n" * 3


def test_what_is_not_what_the_index_says_is_refused_and_not_kept(digits, memory, tmp_path):
    storage = open_store(memory, cache_dir=tmp_path, retries=0)
    shard = storage.read_index().split("train").shards[0]
    files = fsspec.filesystem("memory")
    damaged = bytearray((digits / shard.name).read_bytes())
    damaged[1000] ^= 1
    for wrong, message in (
        (bytes(damaged), "damaged shard memory://bucket/digits/.*: its checksum differs"),
        (bytes(damaged) + b"more", f"more than {shard.size} bytes arrived"),
        (bytes(damaged[:-1]), f"{shard.size - 1} of {shard.size} bytes arrived"),
    ):
        files.pipe_file(f"/bucket/digits/{shard.name}", wrong)
        with pytest.raises(ShardError, match=message):
            storage.fetch(shard)
        assert not [path for path in tmp_path.iterdir() if not path.name.endswith(".lock")]


def test_what_is_missing_is_named(tmp_path):
    with pytest.raises(ShardError, match=r"^cannot read memory://nothing/_info\.json: not found$"):
        open_store("memory://nothing").read_index()
    with pytest.raises(ShardError, match="Protocol not known: foo"):
        open_store("foo://x").read_index()
    with pytest.raises(ShardError, match=r"the library for gs:// is missing: pip install 'dist-prune\[gcs\]'"):
        open_store("gs://x").read_index()


class Refused(Exception):
    """What a library raises for an answer of a server."""

    def __init__(self, status):
        super().__init__(f"answer {status}")
        self.status = status


@pytest.mark.parametrize(
    ("error", "attempts"),
    [
        (Refused(503), 4),
        (Refused(429), 4),
        (ConnectionResetError("reset"), 4),
        (OSError("30 of 40 bytes arrived"), 4),
        (TimeoutError("no byte arrived for 60 s"), 4),
        (Refused(403), 1),
        (FileNotFoundError("x"), 1),
        (PermissionError("x"), 1),
        (OSError(28, "No space left on device"), 1),
        (ShardError("stalled"), 1),
    ],
)
def test_only_what_may_pass_is_tried_again(monkeypatch, error, attempts):
    slept, made = [], []
    monkeypatch.setattr("tenacity.nap.time.sleep", slept.append)

    def fail():
        made.append(1)
        raise error

    with pytest.raises(ShardError, match=r"stalled|cannot read it: "):
        with_retries(fail, "read it", retries=3)
    assert len(made) == attempts
    assert len(slept) == attempts - 1
    assert all(0 <= pause <= 0.5 * 2**number for number, pause in enumerate(slept))


def test_a_storage_can_be_pickled_and_used_in_forked_processes(digits, memory, tmp_path):
    storage = open_store(memory, cache_dir=tmp_path)
    assert storage.read_index().name == "digits"  # used before the fork
    with multiprocessing.get_context("fork").Pool(2) as pool:
        assert pool.map(fetch_all, [pickle.loads(pickle.dumps(storage))] * 2) == [content(digits)] * 2


def test_verification_of_shards_elsewhere_leaves_nothing_behind(memory, digits, tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    assert verify_shards(memory) == []
    fsspec.filesystem("memory").rm_file("/bucket/digits/digits-train-000002.tar")
    whole = fsspec.filesystem("memory").cat_file("/bucket/digits/digits-test-000000.tar")
    damaged = whole[:-600]
    fsspec.filesystem("memory").pipe_file("/bucket/digits/digits-test-000000.tar", damaged)
    missing, *short = verify_shards(memory)
    assert missing == f"{memory}/digits-train-000002.tar: cannot read {memory}/digits-train-000002.tar: not found"
    assert short == [f"{memory}/digits-test-000000.tar: found {len(damaged)} bytes, expected {len(whole)}"]
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == []


@pytest.mark.parametrize(
    ("text", "folder", "names"),
    [
        ("a/b", "a/b", None),
        ("a/b/_info.json", "a/b", None),
        ("_info.json", ".", None),
        ("s3://b/x/t-{0..1}.tar", "s3://b/x", {"t-0.tar", "t-1.tar"}),
        ("x/{a,b}-{00..01}.tar", "x", {"a-00.tar", "a-01.tar", "b-00.tar", "b-01.tar"}),
        ("t.tar", ".", {"t.tar"}),
    ],
)
def test_a_location_is_taken_apart(text, folder, names):
    found = ShardSpec.parse(text)
    assert (found.root, found.names) == (folder, None if names is None else frozenset(names))


@pytest.mark.parametrize(
    "pattern", ["x-{0..999999999}.tar", "x-{000..999}-{000..999}-{0..9}.tar", "x-{9999999..0}.tar"]
)
def test_a_pattern_that_stands_for_more_names_than_memory_holds_is_refused(pattern):
    with pytest.raises(ShardError, match="names more than 1,000,000 shards"):
        open_store(pattern)


def test_what_follows_file_is_a_path_and_no_command(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for text in ("file://pipe:touch made; cat x/_info.json", "file://file://pipe:touch made; cat x-{0..1}.tar"):
        with pytest.raises(ShardError, match="no such folder"):
            open_store(text).read_index()
    assert list(tmp_path.iterdir()) == []


def test_tars_in_several_folders_are_in_the_folder_that_they_share():
    spec = ShardSpec.parse("https://host/x/{a,b}/t.tar")
    assert (spec.root, spec.names) == ("https://host/x", {"a/t.tar", "b/t.tar"})
    assert ShardSpec.parse("{a,ab}/t.tar").names == {"a/t.tar", "ab/t.tar"}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "^the location of the shards is empty"),
        ("x/t-{0..3.tar", r"^x/t-\{0\.\.3\.tar: Unbalanced braces: .*; expected FOLDER/X-\{000000\.\.000004\}"),
        ("s3://", "^s3:// names no bucket or server: expected PROTOCOL://PLACE/FOLDER"),
        ("https:///", "^https:/// names no bucket or server"),
    ],
)
def test_a_location_that_names_nothing_is_one_line(text, message):
    with pytest.raises(ShardError, match=message):
        open_store(text)

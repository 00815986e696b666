"""Shards are read from and put to real servers on localhost, whatever these do in between."""

from __future__ import annotations

import functools
import http.server
import multiprocessing
import threading
import time

import fsspec
import pytest
from faulty_servers import files_of, serving
from moto.server import DomainDispatcherApplication, create_backend_app

from data_tools import ShardError, make_shards, open_storage, verify_shards


@pytest.fixture(scope="module")
def web_server(digits):
    with serving(files_of(digits.parent)) as served:
        yield served


@pytest.fixture(scope="module")
def s3_server(digits):
    with (
        pytest.MonkeyPatch.context() as environment,
        serving(DomainDispatcherApplication(create_backend_app)) as (url, faulty),
    ):
        for name, value in {
            "AWS_ENDPOINT_URL": url,
            "AWS_ACCESS_KEY_ID": "testing",
            "AWS_SECRET_ACCESS_KEY": "testing",
            "AWS_DEFAULT_REGION": "us-east-1",
        }.items():
            environment.setenv(name, value)
        files = fsspec.filesystem("s3")
        files.mkdir("bucket")
        make_shards("digits", None, "s3://bucket/digits")
        yield "s3://bucket", faulty
        files.clear_instance_cache()


@pytest.fixture(params=["http", "s3"])
def place(request):
    """URL of a folder of shards, and the server that it is on."""
    url, faulty = request.getfixturevalue("web_server" if request.param == "http" else "s3_server")
    faulty.faults.clear()
    faulty.requests.clear()
    return f"{url}/digits", faulty


def fetch_all(storage) -> dict[str, bytes]:
    index = storage.read_index()
    shards = [shard for split in index.splits.values() for shard in split]
    return {shard.name: storage.fetch(shard.name, shard.size, shard.sha256).read_bytes() for shard in shards}


def fetch_one(storage, number: int = 0):
    index = open_storage(storage.location).read_index()
    shard = list(index.split("train"))[number]
    return storage.fetch(shard.name, shard.size, shard.sha256)


def content(folder) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.glob("*.tar")}


def test_what_a_server_holds_comes_whole(place, digits, tmp_path):
    url, _ = place
    for location in (url, f"{url}/", f"{url}/_info.json", f"{url}/digits-train-{{000000..000003}}.tar"):
        assert fetch_all(open_storage(location, cache_dir=tmp_path)) == content(digits)


@pytest.mark.parametrize("faults", [["503", "503"], ["cut"], ["503", "cut", "503"], ["slow"]])
def test_failures_that_pass_change_nothing(place, digits, tmp_path, faults):
    url, server = place
    server.faults["_info.json"] = ["503"]
    for name in ("digits-train-000001.tar", "digits-test-000000.tar"):
        server.faults[name] = list(faults)
    # Slower in all than the time limit, but never silent for so long.
    assert fetch_all(open_storage(url, cache_dir=tmp_path, timeout=1.0)) == content(digits)
    assert not any(server.faults.values()), "every failure was met"


@pytest.mark.parametrize("fault", ["stall", "silence"])
def test_a_server_that_stalls_is_named_with_its_url(place, tmp_path, fault):
    url, server = place
    storage = open_storage(url, cache_dir=tmp_path, timeout=0.5)
    index = storage.read_index()
    server.faults["digits-train-000001.tar"] = [fault]
    begun = time.monotonic()
    shard = list(index.split("train"))[1]
    with pytest.raises(ShardError, match=rf"^{url}/digits-train-000001\.tar gave no byte for 0\.5 s"):
        storage.fetch(shard.name, shard.size, shard.sha256)
    assert time.monotonic() - begun < 3
    assert not list(tmp_path.glob("*.partial"))
    assert storage.fetch(shard.name, shard.size, shard.sha256).stat().st_size == shard.size


def test_a_server_that_goes_on_failing_is_given_up(place, tmp_path):
    url, server = place
    server.faults["_info.json"] = ["503"] * 100
    with pytest.raises(ShardError, match=rf"^cannot read {url}/_info\.json: .*(503|Service Unavailable)"):
        open_storage(url, cache_dir=tmp_path, retries=1).read_index()


def test_what_is_missing_or_forbidden_is_not_asked_for_again(place, tmp_path):
    url, server = place
    with pytest.raises(ShardError, match=rf"cannot read {url}/nothing/_info\.json: .*not (found|exist)"):
        open_storage(f"{url}/nothing", cache_dir=tmp_path).read_index()
    server.requests.clear()
    server.faults["_info.json"] = ["403"] * 100
    with pytest.raises(ShardError, match=rf"cannot read {url}/_info\.json: .*(403|[Ff]orbidden|told to)"):
        open_storage(url, cache_dir=tmp_path).read_index()
    assert server.requests.count("GET _info.json") == 1


def test_several_processes_fetch_every_shard_once(place, digits, tmp_path):
    url, server = place
    storage = open_storage(url, cache_dir=tmp_path)
    storage.read_index()
    with multiprocessing.get_context("fork").Pool(3) as pool:
        assert pool.map(fetch_all, [storage] * 3, chunksize=1) == [content(digits)] * 3
    assert all(server.requests.count(f"GET {name}") == 1 for name in content(digits))


def test_shards_on_a_server_can_be_verified(place):
    url, server = place
    server.faults["digits-train-000001.tar"] = ["cut"]
    assert verify_shards(url, workers=2) == []


def test_the_query_of_a_web_address_goes_with_every_file(digits, tmp_path):
    def application(environ, start_response):
        if environ["QUERY_STRING"] != "key=a/b":
            start_response("403 no key", [("Content-Length", "0")])
            return [b""]
        return files_of(digits.parent)(environ, start_response)

    with serving(application) as (url, _):
        for name in ("digits", "digits/_info.json", "digits/digits-train-{000000..000003}.tar"):
            assert fetch_all(open_storage(f"{url}/{name}?key=a/b", cache_dir=tmp_path / "c")) == content(
                digits
            )


def test_the_plainest_web_server_will_do(digits, tmp_path):
    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_):
            pass

    handler = functools.partial(Quiet, directory=str(digits))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_address[1]}"
        assert fetch_all(open_storage(url, cache_dir=tmp_path)) == content(digits)
        server.shutdown()


def test_nobody_at_the_address_is_one_line(tmp_path):
    with pytest.raises(ShardError, match=r"^cannot read http://127\.0\.0\.1:9/x/_info\.json: ") as caught:
        open_storage("http://127.0.0.1:9/x", cache_dir=tmp_path, retries=1).read_index()
    assert "\n" not in str(caught.value)


def test_an_interrupted_writer_to_s3_is_continued_to_the_same_objects(s3_server, digits, interrupted):
    url, server = s3_server
    written = interrupted(3, f"{url}/again")
    server.requests.clear()
    make_shards("digits", None, f"{url}/again", workers=2)
    assert len(written) == 3
    assert not [name for name in written if f"PUT {name}" in server.requests]
    files = fsspec.filesystem("s3")
    files.invalidate_cache()
    found = {name.rsplit("/", 1)[-1]: files.cat_file(name) for name in files.ls("bucket/again", detail=False)}
    assert found == {path.name: path.read_bytes() for path in digits.iterdir()}


def test_a_bucket_that_is_not_there_is_one_line(s3_server):
    with pytest.raises(
        ShardError, match=r"^cannot write s3://typo/digits/_journal\.jsonl: .*bucket"
    ) as caught:
        make_shards("digits", None, "s3://typo/digits")
    assert "\n" not in str(caught.value)


@pytest.fixture
def dist_prune(capsys, monkeypatch, tmp_path):
    """The command, in this process and in an empty folder; returns exit code, output and errors."""
    from dist_prune import cli

    def run(*words) -> tuple[int, str, str]:
        monkeypatch.setattr("sys.argv", ["dist-prune", *map(str, words)])
        monkeypatch.chdir(tmp_path)
        with pytest.raises(SystemExit) as left:
            cli.main()
        return (left.value.code, *capsys.readouterr())

    return run


def test_the_command_line_makes_and_verifies_shards(dist_prune, tmp_path):
    code, out, _ = dist_prune("shards", "make", "digits", "--out", "out", "--workers", 2)
    assert (code, out) == (0, "train: 1,437 images in 4 shards\ntest: 360 images in 1 shards\n")
    code, out, _ = dist_prune("shards", "verify", "out")
    assert (code, out) == (0, "out is whole\n")
    shard = tmp_path / "out" / "digits-train-000002.tar"
    data = bytearray(shard.read_bytes())
    data[5000] ^= 1
    shard.write_bytes(data)
    code, out, error = dist_prune("shards", "verify", "out", "--workers", 2)
    assert code == 1
    assert out == "out/digits-train-000002.tar: its checksum is not that of the index\n"
    assert error.endswith("\nerror: out is damaged: 1 problem\n")
    assert dist_prune("shards", "verify", "out", "--split", "test")[:2] == (0, "out is whole\n")


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["mak"], "unknown command 'shards mak'; did you mean 'make'?"),
        ([], "required: VERB"),
        (["make", "digit", "--out", "x"], "unknown source 'digit'; did you mean 'digits'?"),
        (
            ["make", "digits", "--out", "x", "--forma", "raw"],
            "unknown option '--forma'; did you mean '--format'?",
        ),
        (["make", "digits", "--out", "x", "--format", "row"], "did you mean 'raw'?"),
        (["make", "digits", "--out", "x", "--bytes_per_shard", "3Q"], "expected bytes, such as 64M, not 3Q"),
        (["make", "digits", "--out", "x", "--samples_per_shard", "0"], "must be above 0"),
        (["make", "imagenet", "--out", "x"], "imagenet needs its files"),
        (["verify", "nowhere"], "no such folder: nowhere"),
        (["verify", "memory://x", "--workers", "1"], "cannot read memory://x/_info.json: not found"),
    ],
)
def test_a_mistake_is_one_line(dist_prune, tmp_path, words, expected):
    code, out, error = dist_prune("shards", *words)
    assert (code, out, len(error.splitlines())) == (2, "", 1)
    assert expected in error
    assert list(tmp_path.iterdir()) == []

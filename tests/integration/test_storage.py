"""Shards are read from and put to real servers on localhost, whatever these do in between."""

from __future__ import annotations

import contextlib
import functools
import http.server
import inspect
import itertools
import multiprocessing
import threading
import time
from pathlib import Path

import fsspec
import pytest
from faulty_servers import files_of, serving
from moto.server import DomainDispatcherApplication, create_backend_app

from data_tools import ShardError, make_shards, open_store, remote, verify_shards
from data_tools.remote import copy_file
from dist_prune.config import CacheConfig


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
        s3 = fsspec.get_filesystem_class("s3")
        s3.clear_instance_cache()  # file systems know the server of the time when they were made
        s3().makedirs("bucket", exist_ok=True)  # moto keeps what an earlier server of this process held
        make_shards("digits", None, "s3://bucket/digits")
        yield "s3://bucket", faulty
        s3.clear_instance_cache()


@pytest.fixture(params=["http", "s3"])
def place(request):
    """URL of a folder of shards, and the server that it is on."""
    url, faulty = request.getfixturevalue("web_server" if request.param == "http" else "s3_server")
    faulty.requests.clear()
    yield f"{url}/digits", faulty
    faulty.faults.clear()


def fetch_all(storage) -> dict[str, bytes]:
    index = storage.read_index()
    return {shard.name: storage.fetch(shard).read_bytes() for shard in index.shards()}


def content(folder) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.glob("*.tar")}


def test_what_a_server_holds_comes_whole(place, digits, tmp_path):
    url, _ = place
    for location in (url, f"{url}/", f"{url}/_info.json", f"{url}/digits-train-{{000000..000003}}.tar"):
        assert fetch_all(open_store(location, cache_dir=tmp_path)) == content(digits)


@pytest.mark.parametrize("faults", [["503", "503"], ["cut"], ["503", "cut", "503"], ["slow"], ["stall"], ["silence"]])
def test_failures_that_pass_change_nothing(place, digits, tmp_path, faults):
    url, server = place
    server.faults["_info.json"] = ["503"]
    for name in ("digits-train-000001.tar", "digits-test-000000.tar"):
        server.faults[name] = list(faults)
    # Slower in all than the time limit, but never silent for so long.
    assert fetch_all(open_store(url, cache_dir=tmp_path, timeout=1.0)) == content(digits)
    assert not any(server.faults.values()), "every failure was met"


@pytest.mark.parametrize("fault", ["stall", "silence"])
def test_a_server_that_stalls_is_named_with_its_url(place, tmp_path, fault):
    url, server = place
    patient = open_store(url, cache_dir=tmp_path)
    shard = patient.read_index().split("train").shards[1]
    server.faults[shard.name] = [fault]
    begun = time.monotonic()
    with pytest.raises(ShardError, match=rf"^cannot read {url}/{shard.name}: no byte arrived for 0\.5 s"):
        open_store(url, cache_dir=tmp_path, timeout=0.5, retries=0).fetch(shard)
    assert time.monotonic() - begun < 3
    assert not list(tmp_path.glob("*.partial"))
    assert patient.fetch(shard).stat().st_size == shard.size


def test_a_server_that_goes_on_failing_is_given_up(place, tmp_path):
    url, server = place
    server.faults["_info.json"] = ["503"] * 100
    with pytest.raises(ShardError, match=rf"^cannot read {url}/_info\.json: .*(503|Service Unavailable)"):
        open_store(url, cache_dir=tmp_path, retries=1).read_index()


def test_what_is_missing_or_forbidden_is_not_asked_for_again(place, tmp_path):
    url, server = place
    with pytest.raises(ShardError, match=rf"cannot read {url}/nothing/_info\.json: .*not (found|exist)"):
        open_store(f"{url}/nothing", cache_dir=tmp_path).read_index()
    server.requests.clear()
    server.faults["_info.json"] = ["403"] * 100
    with pytest.raises(ShardError, match=rf"cannot read {url}/_info\.json: .*(403|[Ff]orbidden|told to)"):
        open_store(url, cache_dir=tmp_path).read_index()
    assert server.requests.count("GET _info.json") == 1


def test_several_processes_fetch_every_shard_once(place, digits, tmp_path, monkeypatch):
    url, _ = place
    storage = open_store(url, cache_dir=tmp_path / "cache")

    def logged(address: str, *how) -> None:
        """Log what is copied: requests of the test before may reach the server late."""
        with open(tmp_path / "log", "a") as file:
            file.write(f"{Path(address).name}\n")
        copy_file(address, *how)

    monkeypatch.setattr("data_tools.store.copy_file", logged)
    with multiprocessing.get_context("fork").Pool(3) as pool:
        assert pool.map(fetch_all, [storage] * 3, chunksize=1) == [content(digits)] * 3
    copied = [name for name in (tmp_path / "log").read_text().split() if name.endswith(".tar")]
    assert sorted(copied) == sorted(content(digits))


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
            assert fetch_all(open_store(f"{url}/{name}?key=a/b", cache_dir=tmp_path / "c")) == content(digits)


@pytest.mark.parametrize("faults", [[], ["403"] * 3])
def test_the_query_of_a_web_address_stands_in_no_message(web_server, tmp_path, faults):
    url, server = web_server
    server.faults["_info.json"] = list(faults)
    folder = f"{url}/digits" if faults else f"{url}/nothing"
    with pytest.raises(ShardError, match=rf"^cannot read {folder}/_info\.json: (not found|403 .*)$"):
        open_store(f"{folder}?X-Amz-Signature=secret", cache_dir=tmp_path).read_index()
    server.faults.clear()


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_):
        pass


@contextlib.contextmanager
def plain_server(handler):
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()


def test_the_plainest_web_server_will_do(digits, tmp_path):
    with plain_server(functools.partial(Quiet, directory=str(digits))) as url:
        assert fetch_all(open_store(url, cache_dir=tmp_path)) == content(digits)


class Elsewhere(Quiet):
    """Sends everybody to ``target``."""

    target = ""

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        self.send_response(302)
        self.send_header("Location", self.target + self.path)
        self.end_headers()


def test_a_redirect_is_followed_but_not_from_the_internet_into_a_private_network(digits, tmp_path, monkeypatch):
    with (
        plain_server(functools.partial(Quiet, directory=str(digits.parent))) as behind,
        plain_server(Elsewhere) as server,
    ):
        monkeypatch.setattr(Elsewhere, "target", behind)
        assert open_store(f"{server}/digits", tmp_path / "cache").read_index().name == "digits"
        monkeypatch.setattr("data_tools.remote._is_private", lambda host: host == "localhost")
        monkeypatch.setattr(Elsewhere, "target", behind.replace("127.0.0.1", "localhost"))
        with pytest.raises(ShardError, match="redirects to localhost, which is in a private network"):
            open_store(f"{server}/digits", tmp_path / "cache").read_index()


@pytest.mark.parametrize(
    ("host", "private"),
    [("127.0.0.1", True), ("10.1.2.3", True), ("169.254.169.254", True), ("::1", True), ("8.8.8.8", False)],
)
def test_private_networks_are_known_by_their_addresses(host, private):
    assert remote._is_private(host) == private


def test_a_proxy_of_the_environment_is_used(digits, tmp_path, monkeypatch):
    with plain_server(functools.partial(Quiet, directory=str(digits.parent))) as proxy:
        # It is asked for whole URLs, and knows no such file: but it was asked.
        monkeypatch.setenv("http_proxy", proxy)
        with pytest.raises(ShardError, match=r"not found|404"):
            open_store("http://nowhere.invalid/digits", tmp_path / "cache", retries=0).read_index()


@pytest.mark.parametrize("name", ["digits-train-000001.tar", "_info.json"])
def test_a_server_that_sends_without_end_is_left_with_one_line(digits, tmp_path, monkeypatch, name):
    monkeypatch.setattr("data_tools.store.LARGEST_INDEX", 2**20)
    left = threading.Event()

    class Endless(Quiet):
        def do_GET(self):
            if not self.path.endswith(name):
                super().do_GET()
                return
            self.send_response(200)
            self.end_headers()
            try:
                for _ in itertools.count():
                    self.wfile.write(bytes(2**20))
            except OSError:
                left.set()

    with plain_server(functools.partial(Endless, directory=str(digits))) as url:
        storage = open_store(url, cache_dir=tmp_path)
        expected = rf"^cannot read {url}/{name}: more than \d+ bytes arrived"
        with pytest.raises(ShardError, match=expected):
            fetch_all(storage)
        assert left.wait(10)
        assert not list(tmp_path.glob("*.partial"))
        if name.endswith(".tar"):
            (problem,) = verify_shards(url)
            size = (digits / name).stat().st_size
            assert f"{url}/{name}: more than {size} bytes arrived" in problem


def test_a_recipe_has_the_same_defaults_as_a_storage():
    parameters = inspect.signature(open_store).parameters
    cache = CacheConfig()
    assert cache.gigabytes * 1e9 == parameters["cache_bytes"].default
    assert (cache.timeout, cache.retries) == (parameters["timeout"].default, parameters["retries"].default)


def test_nobody_at_the_address_is_one_line(tmp_path):
    with pytest.raises(ShardError, match=r"^cannot read http://127\.0\.0\.1:9/x/_info\.json: ") as caught:
        open_store("http://127.0.0.1:9/x", cache_dir=tmp_path, retries=1).read_index()
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
        ShardError, match=r"^cannot write s3://typo/digits/digits-train-000000\.tar\.json: .*bucket"
    ) as caught:
        make_shards("digits", None, "s3://typo/digits")
    assert "\n" not in str(caught.value)


@pytest.fixture
def dist_prune(capsys, monkeypatch, tmp_path):
    """The command, in this process and in an empty folder; returns exit code, output and errors."""
    import dist_prune.cli.main as cli

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
    assert out == "out/digits-train-000002.tar: its checksum differs from the index\n"
    assert error.endswith("\nerror: out is damaged: 1 problem\n")
    assert dist_prune("shards", "verify", "out", "--split", "test")[:2] == (0, "out is whole\n")


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["mak"], "unknown command 'shards mak'; did you mean 'make'?"),
        ([], "required: VERB"),
        (["make", "digit", "--out", "x"], "unknown source 'digit' (did you mean 'digits'?); known: "),
        (["make", "digits", "--out", "x", "--sead", "1"], "unknown option '--sead'; did you mean '--seed'?"),
        (["make", "digits", "--out", "x", "--bytes_per_shard", "3Q"], "expected bytes, such as 64M, not 3Q"),
        (["make", "digits", "--out", "x", "--samples_per_shard", "0"], "must be above 0"),
        (["make", "imagenet", "--out", "x"], "imagenet needs its files"),
        (["make", "digits", "--out", ""], "--out is empty: give a folder, or the URL of one"),
        (["make", "digits", "--out", "s3://"], "s3:// names no bucket or server"),
        (["verify", "nowhere"], "no such folder: nowhere"),
        (["verify", ""], "the location of the shards is empty"),
        (["verify", "x/t-{0..3.tar"], "x/t-{0..3.tar: Unbalanced braces"),
        (["verify", "memory://x", "--workers", "1"], "cannot read memory://x/_info.json: not found"),
    ],
)
def test_a_mistake_is_one_line(dist_prune, tmp_path, words, expected):
    code, out, error = dist_prune("shards", *words)
    assert (code, out, len(error.splitlines())) == (2, "", 1)
    assert expected in error
    assert list(tmp_path.iterdir()) == []

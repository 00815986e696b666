"""Home, temporary files, compiled code and the compiler: one line with the remedy where one of them is unusable."""

import os
import subprocess
import sys
import tempfile
from pathlib import Path
from types import SimpleNamespace

import pytest

from dist_prune.errors import DistPruneWarning, UserError
from dist_prune.gates.cpu_kernels import build
from dist_prune.runtime.folders import check_code_folder, check_compiler, check_folders

root_only = pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a folder away")


def raising(error):
    def fail():
        raise error

    return fail


def test_usable_folders_pass():
    check_folders()


def test_an_unknown_home_is_refused(monkeypatch):
    monkeypatch.setattr(Path, "home", raising(RuntimeError("Could not determine home directory.")))
    with pytest.raises(UserError, match="set HOME to a folder that you may write to"):
        check_folders()


def test_no_folder_for_temporary_files_is_refused(monkeypatch):
    monkeypatch.setattr(tempfile, "gettempdir", raising(FileNotFoundError(2, "No usable temporary directory")))
    with pytest.raises(UserError, match="set TMPDIR to one"):
        check_folders()


def test_a_temporary_folder_too_long_for_sockets_ends_the_command_with_one_line(tmp_path):
    long = tmp_path / ("x" * 80)
    long.mkdir()
    words = [sys.executable, "-c", "from dist_prune.cli.main import main; main()", "--version"]
    environment = {**os.environ, "TMPDIR": str(long)}
    ended = subprocess.run(words, env=environment, capture_output=True, text=True, timeout=60, check=False)
    assert (ended.returncode, ended.stdout) == (2, "")
    (line,) = ended.stderr.splitlines()
    assert line.endswith("set TMPDIR to a path of at most 75 bytes")


def test_a_missing_folder_for_code_is_made_and_passes(tmp_path):
    check_code_folder(tmp_path / "compiled" / "here", "VARIABLE")
    assert (tmp_path / "compiled" / "here").is_dir()


def refused(folder: Path) -> str:
    with pytest.raises(UserError, match="set VARIABLE to a folder of your own") as caught:
        check_code_folder(folder, "VARIABLE")
    assert str(folder) in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("mode", [0o777, 0o1777, 0o757])
def test_code_is_not_loaded_from_a_folder_that_others_can_write_to(tmp_path, mode):
    tmp_path.chmod(mode)
    assert "other users can write to it" in refused(tmp_path)


@root_only
def test_a_group_may_write_only_if_it_is_the_users_own(tmp_path):
    tmp_path.chmod(0o775)
    check_code_folder(tmp_path, "VARIABLE")
    os.chown(tmp_path, -1, 100)
    assert "other users can write to it" in refused(tmp_path)


@root_only
def test_code_is_not_loaded_from_another_users_folder(tmp_path):
    os.chown(tmp_path, 12345, 12345)
    assert "belongs to another user" in refused(tmp_path)


def test_a_folder_that_cannot_be_made_or_run_from_is_refused(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    assert "Not a directory" in refused(tmp_path / "file" / "folder")
    with monkeypatch.context() as patch:
        patch.setattr(os, "access", lambda *_: False)
        assert "you cannot write to it" in refused(tmp_path)
    monkeypatch.setattr(os, "statvfs", lambda _: SimpleNamespace(f_flag=os.ST_NOEXEC))
    assert "mounted noexec" in refused(tmp_path)


def test_a_missing_compiler_is_named(monkeypatch):
    monkeypatch.setenv("CXX", "no-such-compiler -O2")
    with pytest.raises(UserError, match=r"no C.. compiler 'no-such-compiler -O2': install one, or set CXX"):
        check_compiler()


@pytest.mark.parametrize("case", ["shared folder", "no compiler"])
def test_without_a_safe_folder_or_a_compiler_there_are_no_kernels_and_one_warning(tmp_path, monkeypatch, case):
    monkeypatch.setattr(build, "_kernels", None)
    if case == "no compiler":
        monkeypatch.setenv("CXX", "no-such-compiler")
    tmp_path.chmod(0o777)
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path))
    told = "no C.. compiler" if case == "no compiler" else "other users can write to it; set TORCH_EXTENSIONS_DIR"
    with pytest.warns(DistPruneWarning, match=told):
        assert not build.compile_kernels()
    assert not list(tmp_path.iterdir()), "nothing is compiled there either"

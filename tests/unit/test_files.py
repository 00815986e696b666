"""Files and folders are replaced in one step, links are not followed, and nothing else is replaced."""

import os
import socket
import stat

import pytest

from dist_prune import files
from dist_prune.errors import UserError
from dist_prune.files import read_regular, remove_leftovers, replace, temporary_beside, write_at_end, write_atomic


def folder(path, content: str):
    path.mkdir()
    (path / "file").write_text(content)
    return path


def test_a_file_is_replaced_with_the_permissions_of_any_new_file(tmp_path):
    path = tmp_path / "report.html"
    before = os.umask(0o027)
    try:
        for content in (b"old", b"new"):
            write_atomic(path, content)
    finally:
        os.umask(before)
    assert (path.read_bytes(), stat.S_IMODE(path.stat().st_mode)) == (b"new", 0o640)
    assert list(tmp_path.iterdir()) == [path]


def test_a_link_planted_under_the_name_of_the_temporary_file_is_not_followed(tmp_path, monkeypatch):
    (tmp_path / "precious").write_text("kept")
    # The name cannot be guessed; here it is, all the same.
    monkeypatch.setattr(files.secrets, "token_hex", lambda _: "guessed")
    temporary_beside(tmp_path / "report.html").symlink_to(tmp_path / "precious")
    with pytest.raises(FileExistsError):
        write_atomic(tmp_path / "report.html", b"new")
    assert (tmp_path / "precious").read_text() == "kept"


def test_names_of_temporary_files_differ(tmp_path):
    assert len({temporary_beside(tmp_path / "x") for _ in range(100)}) == 100


def test_records_are_not_appended_through_a_link(tmp_path):
    (tmp_path / "precious").write_text("kept")
    (tmp_path / "metrics.jsonl").symlink_to(tmp_path / "precious")
    with pytest.raises(OSError, match=r"metrics\.jsonl"):
        write_at_end(tmp_path / "metrics.jsonl", b"{}\n")
    assert (tmp_path / "precious").read_text() == "kept"


@pytest.mark.parametrize("kind", ["folder", "pipe", "socket", "device"])
def test_what_is_no_regular_file_is_not_replaced_by_one(tmp_path, kind):
    target = tmp_path / "target"
    if kind == "folder":
        target.mkdir()
    elif kind == "pipe":
        os.mkfifo(target)
    elif kind == "socket":
        socket.socket(socket.AF_UNIX).bind(str(target))
    else:
        target.symlink_to("/dev/null")
    with pytest.raises(UserError, match=f"{target} is no regular file, so nothing replaces it: name another one"):
        write_atomic(target, b"new")
    assert list(tmp_path.iterdir()) == [target]


def test_a_file_is_not_replaced_by_a_folder(tmp_path):
    (tmp_path / "sliced").write_text("mine")
    with pytest.raises(UserError, match="is no folder, so nothing replaces it"):
        replace(folder(tmp_path / "new", "new"), tmp_path / "sliced")


@pytest.mark.parametrize("exchanges", [True, False])
def test_a_folder_is_replaced_whole(tmp_path, monkeypatch, exchanges):
    if not exchanges:
        monkeypatch.setattr(files.ctypes, "CDLL", lambda _: None)
    old, new = folder(tmp_path / "sliced", "old"), folder(tmp_path / "new", "new")
    (old / "more").write_text("old")
    replace(new, old)
    assert [path.name for path in old.iterdir()] == ["file"]
    assert (old / "file").read_text() == "new"
    if exchanges:
        assert (new / "file").read_text() == "old"
    assert {path.name for path in tmp_path.iterdir()} <= {"sliced", "new"}


def test_leftovers_go_and_files_of_other_names_stay(tmp_path):
    folder(temporary_beside(tmp_path / "sliced"), "half")
    temporary_beside(tmp_path / "config.json").write_text("half")
    own = [tmp_path / name for name in (".hidden.tmp", "x.tmp", ".x.1.tmp", ".git")]
    for path in own:
        path.write_text("")
    remove_leftovers(tmp_path)
    remove_leftovers(tmp_path / "missing")
    assert sorted(tmp_path.iterdir()) == sorted(own)


def test_only_the_leftovers_of_one_file_go_where_others_may_be_writing(tmp_path):
    mine, theirs = (temporary_beside(tmp_path / name) for name in ("model.pt2", "model.pt2.data"))
    for path in (mine, theirs):
        path.write_text("half")
    remove_leftovers(tmp_path, of="model.pt2")
    assert list(tmp_path.iterdir()) == [theirs]


@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir, lambda path: path.symlink_to("/dev/zero")])
def test_what_is_no_file_is_not_read_without_end(tmp_path, make):
    make(tmp_path / "config.json")
    with pytest.raises(ValueError, match="is no regular file"):
        read_regular(tmp_path / "config.json")

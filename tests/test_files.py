import os

import pytest

import files
from files import WriteError, atomic_file, check_out


def write(path, data: bytes) -> None:
    with atomic_file(path) as file:
        file.write(data)


@pytest.mark.parametrize(("refusals", "message"), [(2, None), (99, r"best\.pt: cannot be written \(.*close the program that has it open")])
def test_windows_refuses_for_a_while_what_another_program_has_open(tmp_path, monkeypatch, refusals, message):
    write(tmp_path / "best.pt", b"old")
    real, waited = os.replace, []

    def replace(*paths):
        if len(waited) < refusals:
            raise PermissionError(13, "Access is denied")
        real(*paths)

    monkeypatch.setattr(os, "replace", replace)
    monkeypatch.setattr(files.time, "sleep", waited.append)
    if message:
        with pytest.raises(WriteError, match=message):
            write(tmp_path / "best.pt", b"new")
    else:
        write(tmp_path / "best.pt", b"new")
    assert (tmp_path / "best.pt").read_bytes() == (b"old" if message else b"new")
    assert os.listdir(tmp_path) == ["best.pt"]


def test_an_error_of_what_is_written_is_its_own_and_leaves_the_old_file(tmp_path):
    write(tmp_path / "table.csv", b"old")
    with pytest.raises(TypeError):
        write(tmp_path / "table.csv", "no bytes")
    assert (tmp_path / "table.csv").read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["table.csv"]


def test_a_link_stays_one(tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "log.csv").symlink_to(tmp_path / "real" / "log.csv")
    write(tmp_path / "log.csv", b"new")
    assert (tmp_path / "log.csv").is_symlink()
    assert (tmp_path / "real" / "log.csv").read_bytes() == b"new"


def test_a_folder_that_may_not_be_written_to_is_told_before_the_work(tmp_path, monkeypatch):
    (tmp_path / "real").mkdir()
    (tmp_path / "log.csv").symlink_to(tmp_path / "real" / "log.csv")
    check_out(tmp_path / "log.csv", tmp_path / "photo.jpg", "a\0b.jpg")     # a name that no file has is not the one
    asked = []
    monkeypatch.setattr(files.os, "access", lambda place, mode: asked.append((place, mode)))
    with pytest.raises(WriteError, match="log.csv: its folder may not be written to. Name a file in another."):
        check_out(tmp_path / "log.csv")
    assert asked == [(tmp_path / "real", os.W_OK)]

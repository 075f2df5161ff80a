import os
import pickle
import struct
import subprocess
import sys
import zipfile

import pytest
import torch
from conftest import ROOT

import checkpoint
from checkpoint import CheckpointError, load, read_archive, save
from files import WriteError
from tools.bad_input import Call

WHOLE = {"model": "m", "classes": ["a", "b"], "image_size": 32, "crop": 1.0, "temperatures": [1.0] * 16,
         "known_limits": [0.0] * 16, "notes": {}, "config": {"augment": 0.5}, "cosine": 0.0, "covariance": 0, "refit": {},
         "weights": {"w": torch.ones(3)}}


def test_what_was_saved_loads(tmp_path):
    save(tmp_path / "best.pt", WHOLE)
    loaded = load(tmp_path / "best.pt")
    assert torch.equal(loaded.pop("weights")["w"], torch.ones(3))
    assert loaded == {k: v for k, v in WHOLE.items() if k != "weights"} | {"format": checkpoint.FORMAT}
    assert os.listdir(tmp_path) == ["best.pt"]


def test_what_a_run_of_before_lacks_is_as_it_was(tmp_path):
    before = {name: value for name, value in WHOLE.items() if name not in ("covariance", "refit", "cosine", "temperatures", "known_limits")}
    save(tmp_path / "best.pt", before | {"config": {}, "temperature": 1.2, "known_limit": 0.3})
    old = load(tmp_path / "best.pt")
    assert (old["covariance"], old["refit"], old["cosine"], old["config"]) == (0, {}, 0, {"augment": 0.5})
    assert (old["temperatures"], old["known_limits"]) == ([1.2] * 16, [0.3] * 16)
    save(tmp_path / "best.pt", {name: value for name, value in WHOLE.items() if name != "cosine"} | {"head": "cosine"})
    assert load(tmp_path / "best.pt")["cosine"] == 30


def test_a_save_that_fails_leaves_the_old_file_and_no_litter(tmp_path, monkeypatch):
    save(tmp_path / "best.pt", WHOLE)

    def half(obj, file):
        file.write(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", half)
    with pytest.raises(WriteError, match=r"best\.pt: cannot be written \(No space left on device\); the one written before is still there"):
        save(tmp_path / "best.pt", WHOLE)
    assert load(tmp_path / "best.pt")["classes"] == ["a", "b"]
    assert os.listdir(tmp_path) == ["best.pt"]


def test_a_file_that_may_not_grow_is_a_sentence_and_leaves_the_old_file(tmp_path):
    save(tmp_path / "best.pt", WHOLE)
    code = ("import resource, signal, sys, torch; signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
            "resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))\n"
            "from pathlib import Path; from checkpoint import save; from files import WriteError\n"
            "try: save(Path(sys.argv[1]), {'weights': torch.ones(10**6)})\n"
            "except WriteError as error: sys.exit(str(error))")
    done = subprocess.run([sys.executable, "-c", code, tmp_path / "best.pt"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert "best.pt: cannot be written (" in done.stderr
    assert load(tmp_path / "best.pt")["classes"] == ["a", "b"]
    assert os.listdir(tmp_path) == ["best.pt"]


def test_a_pickle_bomb_does_not_go_off(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save({**WHOLE, "format": 1, "bomb": Call(os.mkdir, "exploded")}, "bomb.pt")
    with open("raw.pt", "wb") as file:
        pickle.dump(Call(os.mkdir, "exploded"), file)
    for name in ("bomb.pt", "raw.pt"):
        with pytest.raises(CheckpointError, match="not a checkpoint of this program"):
            load(tmp_path / name)
    assert not (tmp_path / "exploded").exists()


def test_missing_half_foreign_and_newer_files_are_told_apart(tmp_path):
    save(tmp_path / "whole.pt", WHOLE)
    data = (tmp_path / "whole.pt").read_bytes()
    (tmp_path / "half.pt").write_bytes(data[:len(data) // 2])
    torch.save({"w": torch.ones(3)}, tmp_path / "foreign.pt")
    torch.save([1, 2], tmp_path / "list.pt")
    torch.save({**WHOLE, "format": 99}, tmp_path / "newer.pt")
    messages = {"none": "no such checkpoint", "half": "broken", "foreign": "holds no", "list": "holds no", "newer": "not of format 1"}
    for name, message in messages.items():
        with pytest.raises(CheckpointError, match=message):
            load(tmp_path / f"{name}.pt")


def archive(path, contents: dict[str, bytes], how: int = zipfile.ZIP_STORED) -> bytes:
    with zipfile.ZipFile(path, "w", how) as file:
        for name, content in contents.items():
            file.writestr(name, content)
    return path.read_bytes()


def test_archives_that_torch_save_does_not_write_are_refused(tmp_path):
    save(tmp_path / "whole.pt", WHOLE)
    with zipfile.ZipFile(tmp_path / "whole.pt") as file:
        contents = {name: file.read(name) for name in file.namelist()}
    stored, empty = archive(tmp_path / "stored.pt", contents), archive(tmp_path / "empty.pt", dict.fromkeys(contents, b""))
    packed = archive(tmp_path / "packed.pt", contents, zipfile.ZIP_DEFLATED)
    length, start = struct.unpack("<II", empty[-10:-2])
    torch.save(WHOLE, tmp_path / "of 2019.pt", _use_new_zipfile_serialization=False)
    strange = {"packed": packed, "two directories": stored[:-22] + empty[start:start + length] + stored[-22:],
               "of 2019, and an archive": (tmp_path / "of 2019.pt").read_bytes() + empty}
    for name, data in strange.items():
        (tmp_path / "strange.pt").write_bytes(data)
        with pytest.raises(ValueError, match="does not write"):
            print(name, read_archive(tmp_path / "strange.pt"))
    with zipfile.ZipFile(tmp_path / "whole.pt", "a") as file, pytest.warns(UserWarning, match="Duplicate"):
        file.writestr(file.namelist()[0], b"")
    with pytest.raises(ValueError, match="does not write"):
        read_archive(tmp_path / "whole.pt")


def test_pickles_that_grow_in_memory_are_refused(tmp_path):
    torch.save([torch.ones(3)], tmp_path / "whole.pt")
    with zipfile.ZipFile(tmp_path / "whole.pt") as file:
        contents = {name: file.read(name) for name in file.namelist()}
    other_key = contents["whole/data.pkl"].replace(b"X\1\0\0\x000", b"X\3\0\0\x000\x001")  # "0\0" and what follows is 0 to torch
    archive(tmp_path / "key.pt", contents | {"whole/data.pkl": other_key})
    torch.save([Call(bytearray, 10)], tmp_path / "bytes.pt")
    for name in ("key", "bytes"):
        torch.load(tmp_path / f"{name}.pt", weights_only=True)  # takes it
        with pytest.raises(ValueError, match="a pickle that torch.save does not write"):
            print(name, read_archive(tmp_path / f"{name}.pt"))

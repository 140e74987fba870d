"""Checkpoints are whole or not there."""

import os

import pytest
import torch

from xray_pneumonia.training.checkpoints import AtomicCheckpointIO

GOOD = {"state_dict": {"w": torch.ones(3)}, "epoch": 1}


class Broken:
    def __reduce__(self):
        return (print, ("foreign code ran",))


def test_saved_and_read_back(tmp_path):
    AtomicCheckpointIO().save_checkpoint(GOOD, tmp_path / "a" / "last.ckpt")
    read = AtomicCheckpointIO().load_checkpoint(tmp_path / "a" / "last.ckpt")
    assert torch.equal(read["state_dict"]["w"], torch.ones(3))
    assert os.listdir(tmp_path / "a") == ["last.ckpt"]


@pytest.mark.parametrize("fault", ["full disk", "killed at the rename", "what cannot be read back"])
def test_the_earlier_file_survives(tmp_path, monkeypatch, fault):
    path = tmp_path / "last.ckpt"
    AtomicCheckpointIO().save_checkpoint(GOOD, path)
    before = path.read_bytes()
    checkpoint = {"epoch": 2}
    if fault == "full disk":
        monkeypatch.setattr(os, "fsync", lambda _: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    elif fault == "killed at the rename":
        monkeypatch.setattr(os, "replace", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    else:
        checkpoint = {"code": Broken()}
    with pytest.raises(BaseException):  # noqa: B017, PT011
        AtomicCheckpointIO().save_checkpoint(checkpoint, path)
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["last.ckpt"]


def test_no_code_runs_on_loading(tmp_path, capsys):
    torch.save({"code": Broken()}, tmp_path / "evil.ckpt")
    with pytest.raises(Exception, match=r"(?i)weights.only|unsupported"):
        AtomicCheckpointIO().load_checkpoint(tmp_path / "evil.ckpt")
    assert "foreign code ran" not in capsys.readouterr().out

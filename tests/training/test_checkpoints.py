"""Checkpoints are whole or not there."""

import contextlib
import os
import subprocess

import pytest
import torch

from xray_pneumonia.errors import CheckpointDamaged, CheckpointNotSaved, InputError
from xray_pneumonia.training.checkpoints import (
    LIGHTNING,
    STATE,
    AtomicCheckpointIO,
    clean_up,
    drop_previous,
    newest_valid,
    verify,
)


def checkpoint(epoch):
    state = {"epoch": epoch, "trained": False, "identity": {"config": "c"}}
    return {"state_dict": {"w": torch.ones(3)}, "epoch": epoch, STATE: state}


GOOD = checkpoint(1)


class Broken:
    def __reduce__(self):
        return (print, ("foreign code ran",))


def test_saved_and_read_back(tmp_path):
    AtomicCheckpointIO().save_checkpoint(GOOD, tmp_path / "a" / "last.ckpt")
    read = AtomicCheckpointIO().load_checkpoint(tmp_path / "a" / "last.ckpt")
    assert torch.equal(read["state_dict"]["w"], torch.ones(3))
    assert sorted(os.listdir(tmp_path / "a")) == ["last.ckpt", "last.ckpt.sha256"]
    verify(tmp_path / "a" / "last.ckpt")
    assert subprocess.run(["sha256sum", "-c", "last.ckpt.sha256"], cwd=tmp_path / "a", check=True, capture_output=True)


@pytest.mark.parametrize("fault", ["full disk", "killed at the rename", "what cannot be read back"])
def test_the_earlier_file_survives(tmp_path, monkeypatch, fault):
    path = tmp_path / "last.ckpt"
    AtomicCheckpointIO().save_checkpoint(GOOD, path)
    before = path.read_bytes()
    changed = {"epoch": 2}
    if fault == "full disk":
        monkeypatch.setattr(os, "fsync", lambda _: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    elif fault == "killed at the rename":
        monkeypatch.setattr(os, "replace", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    else:
        changed = {"code": Broken()}
    with pytest.raises(BaseException):  # noqa: B017, PT011
        AtomicCheckpointIO().save_checkpoint(changed, path)
    assert path.read_bytes() == before
    assert newest_valid(tmp_path).epoch == 1
    assert not [path for path in tmp_path.iterdir() if path.name.endswith(".tmp")]


def test_a_full_disk_is_named_with_the_bytes_it_lacks(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "fsync", lambda _: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(
        CheckpointNotSaved, match=r"last.ckpt: cannot be saved: it needs \d+ bytes, \d+ are free.*No space"
    ):
        AtomicCheckpointIO().save_checkpoint(GOOD, tmp_path / "last.ckpt")


def test_the_one_before_is_kept_until_the_training_is_over(tmp_path):
    for epoch in (1, 2, 3):
        AtomicCheckpointIO().save_checkpoint(checkpoint(epoch), tmp_path / "last.ckpt")
    assert newest_valid(tmp_path).epoch == 3
    (tmp_path / "last.ckpt").unlink()
    assert newest_valid(tmp_path).epoch == 2
    AtomicCheckpointIO().save_checkpoint(checkpoint(3), tmp_path / "last.ckpt")
    drop_previous(tmp_path)
    assert sorted(os.listdir(tmp_path)) == ["last.ckpt", "last.ckpt.sha256"]
    assert newest_valid(tmp_path).epoch == 3


def flip(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 3] ^= 1
    path.write_bytes(data)


def link(target):
    def replace(path):
        path.unlink()
        path.symlink_to(target)

    return replace


@pytest.mark.parametrize(
    "damage",
    [
        lambda path: os.truncate(path, path.stat().st_size // 2),
        lambda path: path.write_bytes(b""),
        flip,
        link("nowhere.ckpt"),
        link("last.ckpt"),
    ],
    ids=["truncated", "no bytes", "one bit", "dangling link", "link to itself"],
)
def test_a_damaged_last_one_is_named_set_aside_and_never_replaces_the_one_before(tmp_path, caplog, damage):
    for epoch in (1, 2):
        AtomicCheckpointIO().save_checkpoint(checkpoint(epoch), tmp_path / "last.ckpt")
    damage(tmp_path / "last.ckpt")
    (tmp_path / ".last.ckpt.tmp").write_bytes(b"half")
    saved = newest_valid(tmp_path)
    assert saved.epoch == 1
    assert "last.ckpt: damaged" in caplog.text
    assert "going back to last.prev.ckpt, after epoch 1" in caplog.text
    clean_up(tmp_path, saved)
    assert sorted(os.listdir(tmp_path)) == ["last.ckpt.sha256", "last.damaged.ckpt", "last.prev.ckpt"]
    AtomicCheckpointIO().save_checkpoint(checkpoint(3), tmp_path / "last.ckpt")
    assert newest_valid(tmp_path).epoch == 3
    verify(tmp_path / "last.prev.ckpt")


def test_without_its_hash_nothing_is_believed(tmp_path):
    AtomicCheckpointIO().save_checkpoint(GOOD, tmp_path / "last.ckpt")
    (tmp_path / "last.ckpt.sha256").unlink()
    with pytest.raises(CheckpointDamaged, match="its hash is not recorded"):
        verify(tmp_path / "last.ckpt")
    with pytest.raises(InputError, match="every checkpoint is damaged"):
        newest_valid(tmp_path)


def test_none_at_all_is_no_error(tmp_path):
    assert newest_valid(tmp_path) is None


@pytest.mark.parametrize("version", ["1.9.5", "99.0.0", "2", "x" * 10_000, None, 7])
def test_one_of_another_lightning_is_refused_with_both_versions(tmp_path, version):
    theirs = {"state_dict": {}, "pytorch-lightning_version": version}  # before 2 it has no state of ours
    for written in (theirs, {**theirs, **GOOD}):
        AtomicCheckpointIO().save_checkpoint(written, tmp_path / "last.ckpt")
        with pytest.raises(
            InputError, match=rf"{str(version)[:40]}, and {LIGHTNING} is installed.*resume=new"
        ) as caught:
            newest_valid(tmp_path)
        assert len(str(caught.value)) < 1000


def test_one_written_within_an_epoch_is_refused_with_the_reason(tmp_path):
    """As version 0.1.0 did."""
    AtomicCheckpointIO().save_checkpoint(checkpoint(1) | {STATE: GOOD[STATE] | {"batch": 4}}, tmp_path / "last.ckpt")
    with pytest.raises(InputError, match=r"written within epoch 2, after 4 batches.*version 0\.1\.0"):
        newest_valid(tmp_path)
    AtomicCheckpointIO().save_checkpoint(checkpoint(1) | {STATE: GOOD[STATE] | {"batch": 0}}, tmp_path / "last.ckpt")
    assert newest_valid(tmp_path).epoch == 1


def test_one_of_the_same_lightning_is_resumed_whatever_its_last_number(tmp_path):
    like = ".".join(LIGHTNING.split(".")[:2])
    AtomicCheckpointIO().save_checkpoint(GOOD | {"pytorch-lightning_version": f"{like}.99"}, tmp_path / "last.ckpt")
    assert newest_valid(tmp_path).epoch == 1


def test_no_code_runs_on_loading(tmp_path, capsys):
    torch.save({"code": Broken()}, tmp_path / "evil.ckpt")
    with pytest.raises(Exception, match=r"(?i)weights.only|unsupported"):
        AtomicCheckpointIO().load_checkpoint(tmp_path / "evil.ckpt")
    assert "foreign code ran" not in capsys.readouterr().out


class Killed(BaseException):
    pass


@pytest.mark.parametrize("name", ["last.ckpt", "best.ckpt"])
@pytest.mark.parametrize("renames", [(1, 1), (1, 2), (2, 1), (2, 2), (1, 0), (2, 0)])
def test_kills_between_the_renames_of_two_saves_in_a_row_leave_a_whole_one(tmp_path, monkeypatch, name, renames):
    """A kill after the hash was written and before the file was renamed, and then another one."""
    replace = os.replace

    def save_and_be_killed(epoch, after):
        count = []

        def counting(source, target):
            count.append(target)
            if len(count) > after:
                raise Killed
            replace(source, target)

        with monkeypatch.context() as patch, contextlib.suppress(Killed):  # where there are so many renames
            patch.setattr(os, "replace", counting)
            AtomicCheckpointIO().save_checkpoint(checkpoint(epoch), tmp_path / name)

    AtomicCheckpointIO().save_checkpoint(checkpoint(1), tmp_path / "last.ckpt")
    AtomicCheckpointIO().save_checkpoint(checkpoint(1), tmp_path / name)
    for epoch, after in enumerate(renames, start=2):
        save_and_be_killed(epoch, min(after, 1) if name == "best.ckpt" else after)
        clean_up(tmp_path, newest_valid(tmp_path))
        if name == "best.ckpt":
            verify(tmp_path / name)
    AtomicCheckpointIO().save_checkpoint(checkpoint(9), tmp_path / "last.ckpt")
    assert newest_valid(tmp_path).epoch == 9

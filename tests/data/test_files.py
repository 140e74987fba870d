"""Listing: one order, odd names made printable, nothing outside the folder, nothing opened."""

import os
import socket

import pytest

from xray_pneumonia.data.files import MISSING, find_files, printable


def test_any_depth_in_one_order_without_hidden_files(tmp_path):
    deep = tmp_path.joinpath(*["deeper"] * 50)
    deep.mkdir(parents=True)
    for path in (tmp_path / "b.png", tmp_path / "a.png", deep / "c.png", tmp_path / ".DS_Store", deep / "Thumbs.db"):
        path.write_bytes(b"x")
    (tmp_path / "__MACOSX").mkdir()
    (tmp_path / "__MACOSX" / "a.png").write_bytes(b"x")
    ids = [found.id for found in find_files(tmp_path)]
    assert ids == ["a.png", "b.png", "/".join(["deeper"] * 50) + "/c.png"]
    assert all(found.refusal is None for found in find_files(tmp_path))


def test_one_file_is_itself(tmp_path):
    (tmp_path / "image").write_bytes(b"x")
    (found,) = find_files(tmp_path / "image")
    assert (found.id, found.refusal) == ("image", None)


def test_a_changed_file_has_another_stamp(tmp_path):
    (tmp_path / "a").write_bytes(b"x")
    (before,) = find_files(tmp_path)
    (tmp_path / "a").write_bytes(b"y")
    (after,) = find_files(tmp_path)
    assert before.stamp != after.stamp


def test_what_is_no_regular_file_within_the_folder_is_refused_unopened(tmp_path):
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "secret.png").write_bytes(b"x")
    root = tmp_path / "root"
    root.mkdir()
    (root / "real.png").write_bytes(b"x")
    os.mkfifo(root / "pipe.png")
    with socket.socket(socket.AF_UNIX) as made:
        made.bind(str(root / "socket.png"))
    (root / "loop.png").symlink_to(root / "loop.png")
    (root / "out.png").symlink_to(outside / "secret.png")
    (root / "up.png").symlink_to("../outside/secret.png")
    (root / "gone.png").symlink_to(root / "nothing.png")
    (root / "device.png").symlink_to("/dev/zero")
    (root / "tree").symlink_to(outside)
    (root / "circle").symlink_to(root)
    (root / "again.png").symlink_to(root / "real.png")
    (root / "folder.png").mkdir()
    refused = {found.id: (found.refusal or ("",))[0] for found in find_files(root)}
    assert refused == {
        "again.png": "",
        "real.png": "",
        "circle": "link_outside_root",  # the folder itself is not in the folder
        "device.png": "link_outside_root",
        "gone.png": "unreadable",
        "loop.png": "unreadable",
        "out.png": "link_outside_root",
        "pipe.png": "not_a_file",
        "socket.png": "not_a_file",
        "tree": "link_outside_root",
        "up.png": "link_outside_root",
    }
    assert all(found.stamp == MISSING for found in find_files(root) if found.refusal)


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        (b"plain name (1).png", "plain name (1).png"),
        ("Röntgen-胸.png".encode(), "Röntgen-胸.png"),
        (b"new\nline\r\x1b[31m.png", r"new\nline\r\x1b[31m.png"),
        (b"\xff\xfe.png", r"\xff\xfe.png"),
        (rb"\xff\xfe.png", r"\\xff\\xfe.png"),
        ("gnp\u202egnp.exe".encode(), r"gnp\u202egnp.exe"),
    ],
)
def test_names_are_printable_and_stay_apart(name, shown):
    assert printable(os.fsdecode(name)) == shown

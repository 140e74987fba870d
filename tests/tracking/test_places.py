"""Artifact locations are whatever a store's writers set them to; nothing outside the store is read."""

import shutil

import pytest

from xray_pneumonia.errors import InputError
from xray_pneumonia.tracking.places import inside, local_folder
from xray_pneumonia.tracking.store import Store


@pytest.fixture
def store(tmp_path):
    (tmp_path / "home/artifacts/xray/abc/artifacts").mkdir(parents=True)
    (tmp_path / "home/secret").mkdir()
    return Store(f"sqlite:///{tmp_path}/home/mlflow.db", "1", "xray", tmp_path / "home")


def where(store, uri, within=None):
    home = (store.home / "artifacts/xray").as_uri()
    return local_folder(store, uri, within=within or home, origin="run_id=abc")


def test_a_run_of_the_store(store):
    folder = store.home / "artifacts/xray/abc/artifacts"
    assert where(store, folder.as_uri()) == folder
    assert where(store, str(folder)) == folder


@pytest.mark.parametrize(
    "uri",
    [
        "file:///etc",
        "/etc",
        "file:///",
        "HOME/artifacts/xray/../../secret",
        "HOME/artifacts/xray/%2e%2e/%2e%2e/secret",
        "HOME/artifacts/xray/abc/../../../secret",
        "HOME/artifacts/xray",
        "HOME/artifacts/xray2/abc",
        "HOME/secret",
        "file://evil.example/share/artifacts",
        "http://evil.example/artifacts/xray/abc",
        "s3://bucket/xray/abc",
        "mlflow-artifacts:/../1/abc",
    ],
)
def test_places_outside_are_refused(store, uri):
    with pytest.raises(InputError, match=r"outside|another machine"):
        where(store, uri.replace("HOME", store.home.as_uri()))


def test_an_experiment_that_points_outside_the_store_is_refused_too(store):
    for uri, within in (("file:///etc/ssl", "file:///etc"), ("file:///etc/x", "file:///")):
        with pytest.raises(InputError, match="outside of the store"):
            where(store, uri, within)


def test_a_link_out_of_the_store_is_refused(store, tmp_path):
    (tmp_path / "elsewhere").mkdir()
    (store.home / "artifacts/xray/link").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(InputError, match="outside"):
        where(store, (store.home / "artifacts/xray/link").as_uri())


@pytest.mark.parametrize("within", ["s3://bucket/mlruns/1", "mlflow-artifacts:/1"])
def test_an_object_store_is_left_to_mlflow_within_the_experiment(tmp_path, within):
    server = Store("http://127.0.0.1:5000", "1", "xray", tmp_path)
    assert where(server, f"{within}/abc/artifacts", within) is None
    for odd in ("/../2/abc", "/%2e%2e/2/abc", "/%252e%252e/2/abc", "2/abc", ""):
        with pytest.raises(InputError, match="outside"):
            where(server, within + odd, within)


def test_a_server_cannot_make_us_read_our_own_disk(tmp_path):
    server = Store("http://127.0.0.1:5000", "1", "xray", tmp_path / "home")
    with pytest.raises(InputError, match="outside of the store"):
        where(server, "file:///etc/ssl", "file:///etc")


def test_a_store_that_was_moved_is_followed(store, tmp_path):
    moved = shutil.move(store.home, tmp_path / "elsewhere")
    there = Store(f"sqlite:///{moved}/mlflow.db", "1", "xray", tmp_path / "elsewhere")
    before = store.home / "artifacts/xray"
    uri = (before / "abc/artifacts").as_uri()
    assert where(there, uri, before.as_uri()) == tmp_path / "elsewhere/artifacts/xray/abc/artifacts"
    with pytest.raises(InputError, match="outside of the store"):
        where(there, (before / "gone/artifacts").as_uri(), before.as_uri())


def test_files_of_a_run_stay_in_it(store):
    folder = store.home / "artifacts/xray/abc/artifacts"
    (folder / "config.yaml").write_text("a: 1")
    (folder / "link.yaml").symlink_to("/etc/passwd")
    assert inside(folder, "config.yaml", origin="x").read_text() == "a: 1"
    for name in ("link.yaml", "../../../../secret", "/etc/passwd"):
        with pytest.raises(InputError, match="outside"):
            inside(folder, name, origin="x")
    with pytest.raises(InputError, match="no artifact"):
        inside(folder, "gone", origin="x")

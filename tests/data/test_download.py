"""The download, with a stand-in for the network alone."""

import pytest

from xray_pneumonia.data import download
from xray_pneumonia.data.records import scan
from xray_pneumonia.errors import InputError


@pytest.fixture
def archive(tmp_path):
    """The published files as Kaggle unpacks them: a folder inside a folder, a copy and junk beside it."""
    names = {("train", 0): "IM-{:04d}-0001", ("val", 0): "IM-{:04d}-0001", ("test", 0): "IM-{:04d}-0001"}
    for (split, label), count in download.PUBLISHED.items():
        folder = tmp_path / "kaggle/chest_xray" / split / ("NORMAL", "PNEUMONIA")[label]
        folder.mkdir(parents=True)
        pattern = names.get((split, label), "person{}_virus_1")
        for number in range(count):
            (folder / (pattern.format(number) + ".jpeg")).write_bytes(b"x")
        (folder / ".DS_Store").write_bytes(b"junk")
    (tmp_path / "kaggle/__MACOSX").mkdir()
    return tmp_path / "kaggle"


def test_laid_out_and_counted(archive, tmp_path):
    images = download.install("some/name", tmp_path / "data", fetch=lambda _: archive)
    assert images == 5856
    assert len(scan(tmp_path / "data")) == 5856
    assert not list((tmp_path / "data").rglob(".DS_Store"))


def test_wrong_counts_are_refused_and_leave_nothing(archive, tmp_path):
    next((archive / "chest_xray/test/NORMAL").glob("*.jpeg")).unlink()
    with pytest.raises(InputError, match="test/NORMAL 233 instead of 234"):
        download.install("some/name", tmp_path / "data", fetch=lambda _: archive)
    assert not (tmp_path / "data").exists()


def test_an_existing_folder_is_kept(tmp_path):
    with pytest.raises(InputError, match="exists already"):
        download.install("some/name", tmp_path, fetch=lambda _: tmp_path)


@pytest.mark.parametrize(
    ("error", "says"),
    [("no route", "no route"), ("Pool(host='a'): retries exceeded (Caused by B(C('d')))", "no answer")],
)
def test_no_network_is_said_with_the_cure(monkeypatch, error, says):
    import kagglehub

    def fail(_):
        raise OSError(error)

    monkeypatch.setattr(kagglehub, "dataset_download", fail)
    with pytest.raises(InputError, match=rf"\(OSError: {says}\).*data.root=DIR"):
        download.fetch_from_kaggle("some/name")

"""Generated X-rays."""

import hashlib

import pytest
from PIL import Image

from xray_pneumonia.data import synthetic
from xray_pneumonia.data.records import scan
from xray_pneumonia.errors import InputError


def digest(root):
    return {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in sorted(root.rglob("*.jpeg"))}


def test_seeded_and_complete(tmp_path, xrays, caplog):
    synthetic.generate(tmp_path / "again", patients=40, seed=0)
    assert digest(tmp_path / "again") == digest(xrays)
    for lost in list((tmp_path / "again").rglob("*.jpeg"))[:3]:
        lost.unlink()
    synthetic.generate(tmp_path / "again", patients=40, seed=0)
    assert digest(tmp_path / "again") == digest(xrays)
    assert "3 generated images were missing" in caplog.text
    synthetic.generate(tmp_path / "other", patients=40, seed=1)
    assert digest(tmp_path / "other") != digest(xrays)


def test_real_names_varied_sizes_and_modes(xrays):
    table = scan(xrays)
    assert set(table["subtype"]) == {"normal", "bacteria", "virus"}
    assert set(table["split"]) == {"train", "val", "test"}
    assert table.groupby("split")["label"].nunique().min() == 2
    assert table["patient"].nunique() < len(table)
    images = [Image.open(path) for path in table["path"]]
    assert {image.mode for image in images} == {"L", "RGB"}
    assert len({image.size for image in images}) > 20
    for image in images:
        image.close()


def test_files_of_others_are_left_alone(tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "precious.txt").write_text("mine")
    with pytest.raises(InputError, match="were not generated"):
        synthetic.generate(tmp_path / "mine", patients=10, seed=0)
    assert (tmp_path / "mine" / "precious.txt").exists()

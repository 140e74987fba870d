"""Test that the audit finds and names each kind of problem, made on real files."""

import shutil

import numpy as np
import pytest
from PIL import Image

from xray_pneumonia.data.audit import audit
from xray_pneumonia.data.images.cache import open_cache
from xray_pneumonia.data.records import scan
from xray_pneumonia.errors import DataRefused


@pytest.fixture
def root(xrays, tmp_path):
    return shutil.copytree(xrays, tmp_path / "xrays")


def look(root, tmp_path):
    return audit(open_cache(scan(root), folder=tmp_path / "cache", image_size=128))


def codes(found, level):
    return {finding.code for finding in found.findings if finding.level == level}


def some(root, pattern):
    return sorted(root.glob(pattern))[0]


def test_clean_data_pass(root, tmp_path):
    found = look(root, tmp_path)
    assert not found.errors
    found.require_clean()
    assert found.shortcuts["rgb"] < 0.75
    assert look(root, tmp_path) == found  # from the cache's folder


def same_bytes(root, target):
    shutil.copy(some(root, "train/NORMAL/*"), root / target)


def resized(root, target):
    with Image.open(some(root, "train/PNEUMONIA/*")) as image:
        image.convert("RGB").resize((224, 224)).save(root / target, quality=75)


@pytest.mark.parametrize(
    ("copy", "target", "code"),
    [
        (same_bytes, "train/PNEUMONIA/person900_virus_1.jpeg", "duplicates_labels"),
        (same_bytes, "test/NORMAL/IM-9000-0001.jpeg", "duplicates_across_splits"),
        (resized, "test/PNEUMONIA/person900_virus_1.jpeg", "twins_across_splits"),
    ],
)
def test_a_copy_under_another_label_or_split_is_refused(root, tmp_path, copy, target, code):
    copy(root, target)
    found = look(root, tmp_path)
    assert codes(found, "error") == {code}
    with pytest.raises(DataRefused, match=f"{target}.*=|= .*{target}"):
        found.require_clean()


def test_duplicates_within_a_split_warn(root, tmp_path):
    same_bytes(root, "train/NORMAL/IM-9000-0001.jpeg")
    found = look(root, tmp_path)
    assert not found.errors
    assert "duplicates_within_split" in codes(found, "warning")
    assert len(found.twins) == 1


def test_patients_in_several_splits_warn(root, tmp_path):
    path = some(root, "train/PNEUMONIA/*")
    shutil.move(path, root / "test/PNEUMONIA" / path.name)
    name = path.name.split("_")[0]
    if not list(root.glob(f"train/PNEUMONIA/{name}_*")):
        image = Image.fromarray(np.random.default_rng(0).integers(0, 255, (200, 200)).astype(np.uint8))
        image.save(root / f"train/PNEUMONIA/{name}_virus_77.jpeg")
    assert "patients_across_splits" in codes(look(root, tmp_path), "warning")


def test_images_that_name_no_patient_warn(root, tmp_path):
    assert "unknown_patients" not in codes(look(root, tmp_path), "warning")
    path = some(root, "train/PNEUMONIA/*")
    shutil.move(path, path.with_name("image 7.jpeg"))
    found = next(one for one in look(root, tmp_path).warnings if one.code == "unknown_patients")
    assert (found.count, found.examples) == (1, ["train/PNEUMONIA/image 7.jpeg"])


def test_a_linked_folder_is_named_and_not_followed(root, tmp_path):
    (root / "train/NORMAL/more").symlink_to(root / "test/NORMAL", target_is_directory=True)
    found = look(root, tmp_path)
    with pytest.raises(DataRefused, match=r"train/NORMAL/more: link_to_folder"):
        found.require_clean()


def test_broken_files_are_listed(root, tmp_path):
    (root / "train/NORMAL/IM-9000-0001.jpeg").write_bytes(b"")
    found = look(root, tmp_path)
    with pytest.raises(DataRefused, match=r"IM-9000-0001.jpeg: empty_file"):
        found.require_clean()
    found.require_clean(broken="quarantine")


def test_nothing_that_can_be_read_is_listed_too(root, tmp_path):
    for path in root.glob("*/*/*"):
        path.write_bytes(b"")
    found = look(root, tmp_path)
    assert "broken_files" in codes(found, "error")
    with pytest.raises(DataRefused, match="IM-"):
        found.require_clean()


def test_one_class_in_a_split(root, tmp_path):
    for path in (root / "test/NORMAL").iterdir():
        path.unlink()
    [found] = look(root, tmp_path).errors
    assert found.code == "one_class"
    assert "add images of NORMAL to it, or leave the whole split out" in found.message


def test_a_shortcut_is_reported(root, tmp_path):
    for path in root.glob("*/PNEUMONIA/*"):
        with Image.open(path) as image:
            small = image.resize((100, 100))
        small.save(path)
    found = look(root, tmp_path)
    assert found.shortcuts["width"] == 1.0
    assert "shortcuts" in codes(found, "warning")


@pytest.mark.long
def test_the_real_xrays(real_xrays, tmp_path):
    cache = open_cache(scan(real_xrays / "chest_xray"), folder=tmp_path, image_size=128)
    found = audit(cache)
    assert not found.errors
    assert cache.records.loc[[a for a, _ in found.twins], "sha256"].nunique() == 24
    assert found.shortcuts["bytes"] > 0.85


def test_a_torn_film_is_named_as_it_is_by_predict(root, tmp_path):
    path = some(root, "train/PNEUMONIA/*")
    with Image.open(path) as image:
        pixels = np.asarray(image.convert("L")).copy()
    pixels[len(pixels) // 2 :] = 0
    Image.fromarray(pixels).save(path, "PNG")
    [finding] = [one for one in look(root, tmp_path).warnings if one.code == "doubtful_files"]
    assert (finding.count, finding.examples) == (1, [f"{path.relative_to(root)}: torn"])

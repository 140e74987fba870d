"""Scanning folders and CSV files."""

import os

import pandas as pd
import pytest

from xray_pneumonia.data.records import fingerprint, sample_by_patient, scan
from xray_pneumonia.errors import InputError


def layout(root, files):
    for name in files:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(name.encode())
    return root


FILES = [
    "train/NORMAL/IM-0001-0001.jpeg",
    "train/NORMAL/IM-0001-0002.jpeg",
    "train/NORMAL/NORMAL2-IM-0001-0001.jpeg",
    "train/PNEUMONIA/person1_bacteria_1.jpeg",
    "train/PNEUMONIA/person1_virus_2.jpeg",
    "val/NORMAL/IM-0002-0001-0002.jpeg",
    "val/PNEUMONIA/unheard-of.jpeg",
]


def test_patients_and_subtypes_come_from_names(tmp_path):
    table = scan(layout(tmp_path, FILES)).set_index("id")
    assert table["patient"].tolist() == [
        "IM-0001",
        "IM-0001",
        "NORMAL2-IM-0001",
        "person1",
        "person1",
        "IM-0002",
        "unheard-of",
    ]
    assert table["subtype"].tolist() == ["normal"] * 3 + ["bacteria", "virus", "normal", "unknown"]
    assert table["label"].tolist() == [0, 0, 0, 1, 1, 0, 1]
    assert table["split"].tolist() == ["train"] * 5 + ["val"] * 2
    assert table["class_name"].iloc[3] == "PNEUMONIA"


def test_hidden_files_and_junk_are_passed_over(tmp_path):
    extra = ["train/NORMAL/.DS_Store", "train/NORMAL/Thumbs.db", "train/NORMAL/.hidden/a.jpeg", "__MACOSX/train/x"]
    assert len(scan(layout(tmp_path, [*FILES, *extra]))) == len(FILES)


@pytest.mark.parametrize("prefix", ["chest_xray/", "anything/"])
def test_one_level_of_nesting_is_recognised(tmp_path, prefix):
    layout(tmp_path, [prefix + name for name in FILES] + ["__MACOSX/chest_xray/train/NORMAL/._IM-0001.jpeg"])
    assert scan(tmp_path)["id"].tolist() == sorted(FILES)


def test_a_nested_copy_is_not_counted_twice(tmp_path):
    layout(tmp_path, [*FILES, *(f"chest_xray/{name}" for name in FILES)])
    assert len(scan(tmp_path)) == len(FILES)


@pytest.mark.parametrize("files", [[], [".DS_Store"], ["train/NORMAL/.DS_Store", "train/PNEUMONIA/Thumbs.db"]])
def test_no_images(tmp_path, files):
    with pytest.raises(InputError, match="no images"):
        scan(layout(tmp_path, files))


@pytest.mark.parametrize(
    ("wrong", "shown"),
    [
        ("train/normal/a.jpeg", "'normal'"),
        ("train/PNEUMONIA /a.jpeg", "'PNEUMONIA '"),
        ("train/COVID/a.jpeg", "'COVID'"),
    ],
)
def test_class_folders_must_be_as_expected(tmp_path, wrong, shown):
    with pytest.raises(InputError, match="expected the class folders NORMAL and PNEUMONIA, found .*" + shown):
        scan(layout(tmp_path, [*FILES, wrong]))


def test_class_folders_without_a_split_get_the_cure(tmp_path):
    with pytest.raises(InputError, match="found NORMAL, PNEUMONIA; put both below `train`"):
        scan(layout(tmp_path, ["NORMAL/a.jpeg", "PNEUMONIA/b.jpeg"]))


def test_a_missing_class_folder_is_named(tmp_path):
    with pytest.raises(InputError, match="found 'NORMAL'"):
        scan(layout(tmp_path, ["train/NORMAL/a.jpeg"]))


def test_names_nobody_should_use(tmp_path):
    names = [b"new\nline.jpeg", b"\xff\xfe.jpeg", b"-rf.jpeg", b"=cmd().jpeg", b"x" * 250 + b".jpeg"]
    layout(tmp_path, FILES)
    for name in names:
        with open(os.path.join(os.fsencode(tmp_path), b"train/NORMAL", name), "wb") as file:
            file.write(b"x")
    table = scan(tmp_path)
    assert len(table) == len(FILES) + len(names)
    assert table["id"].is_unique
    table["id"].str.encode("utf-8")  # every id can be written


def test_deep_folders_are_walked(tmp_path):
    deep = "train/NORMAL/" + "d/" * 50 + "IM-0009-0001.jpeg"
    assert deep in scan(layout(tmp_path, [*FILES, deep]))["id"].tolist()


def test_links_that_lead_outside_are_not_followed(tmp_path):
    (tmp_path / "secret.jpeg").write_bytes(b"x")
    root = layout(tmp_path / "data", FILES)
    (root / "train/NORMAL/link.jpeg").symlink_to(tmp_path / "secret.jpeg")
    table = scan(root).set_index("id")
    assert table.loc["train/NORMAL/link.jpeg", "path"] == ""
    assert (table["path"] == "").sum() == 1


def test_a_csv_says_what_a_folder_would(tmp_path):
    layout(tmp_path, ["a.jpeg", "b.jpeg"])
    csv = tmp_path / "records.csv"
    csv.write_text("path,label,patient,split\na.jpeg,NORMAL,p1,train\nb.jpeg,1,p2,test\n")
    table = scan(csv)
    assert table[["id", "label", "patient", "split"]].to_numpy().tolist() == [
        ["a.jpeg", 0, "p1", "train"],
        ["b.jpeg", 1, "p2", "test"],
    ]


@pytest.mark.parametrize("separator", [";", "\t"])
def test_a_csv_may_come_from_a_spreadsheet(tmp_path, separator):
    layout(tmp_path, ["a, b.jpeg"])
    csv = tmp_path / "records.csv"
    text = "\ufeffPath|LABEL |patient|Split\na, b.jpeg|NORMAL|p1|train\n".replace("|", separator)
    csv.write_text(text, encoding="utf-8")
    assert scan(csv)[["id", "patient"]].to_numpy().tolist() == [["a, b.jpeg", "p1"]]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("path,label\na,0\n", "needs each of the columns path, label, patient, split once, found path, label"),
        ("path,Path,label,patient,split\na,b,0,p,train\n", "once, found path, path"),
        ("path,label,patient,split\n", "a header and no rows"),
        ("path,label,patient,split\na\0b,0,p,train\n", r"line 2: path='a\\x00b' names no file"),
        ("path,label,patient,split\n ,0,p,train\n", "line 2: path=' ' names no file"),
        ("path,label,patient,split\n../a,0,p,train\n", "line 2: path='../a' lies outside the folder of the CSV"),
        ("path,label,patient,split\n/a,0,p,train\n", "line 2: path='/a' lies outside the folder of the CSV"),
        ("path,label,patient,split\na,0,p,train\nb/.././a,1,p,train\n", "'a' twice, in the lines 2 and 3"),
        ("", "neither a folder of images nor a CSV table"),
        ("path,label,patient,split\na,2,p,train\n", "line 2: label='2'"),
        ("path,label,patient,split\na,0,p,training\n", "split='training'"),
        ("path,label,patient,split\na,0,,train\n", "patient=''"),
        ("path,label,patient,split\na,0,p,train\na,1,p,train\n", "'a' twice"),
    ],
)
def test_a_wrong_csv_is_refused(tmp_path, text, message):
    csv = tmp_path / "records.csv"
    csv.write_text(text)
    with pytest.raises(InputError, match=message):
        scan(csv)


def test_the_fingerprint_follows_content_labels_and_splits():
    table = pd.DataFrame({"id": ["a", "b"], "sha256": ["1", "2"], "label": [0, 1], "split": ["train", "val"]})
    prints = {fingerprint(table)}
    for column, value in {"id": "c", "sha256": "3", "label": 1, "split": "test"}.items():
        changed = table.copy()
        changed.loc[0, column] = value
        prints.add(fingerprint(changed))
    assert len(prints) == 5
    assert all(len(text) == 64 for text in prints)


def test_a_sample_keeps_whole_patients_and_the_classes(xrays):
    table = scan(xrays)
    part = sample_by_patient(table, 40, seed=0)
    assert 25 <= len(part) <= 45
    whole = table[table["patient"].isin(part["patient"])]
    assert len(whole) == len(part)
    assert set(part["label"]) == {0, 1}
    assert part.equals(sample_by_patient(table, 40, seed=0))


def test_the_real_layout(real_xrays):
    table = scan(real_xrays / "chest_xray")
    assert table.groupby(["split", "label"]).size().tolist() == [1341, 3875, 8, 8]
    assert table[table["split"] == "train"]["patient"].nunique() == 2846
    assert not table["subtype"].eq("unknown").any()

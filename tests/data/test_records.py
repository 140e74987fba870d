"""Scanning folders and CSV files."""

import os

import pandas as pd
import pytest

from xray_pneumonia.data.classes import Question
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


def test_texts_among_the_films_are_left_out_and_named(tmp_path, caplog):
    layout(tmp_path, [*FILES, "train/NORMAL/readme.txt"])
    assert len(scan(tmp_path)) == len(FILES)
    assert "no X-rays, left out: 1 (readme.txt)" in caplog.text


def test_folders_of_other_classes_are_left_out_and_counted(tmp_path, caplog):
    table = scan(layout(tmp_path, [*FILES, "train/COVID/a.jpeg", "train/normal/b.jpeg"]))
    assert table.attrs["left_out"] == {"COVID": 1}
    assert "1 images are neither NORMAL nor PNEUMONIA and are left out: 1 COVID" in caplog.text
    assert len(table) == len(FILES) + 1


def test_a_misspelt_class_folder_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"'PNEUMONIA '; .* did you mean PNEUMONIA"):
        scan(layout(tmp_path, [*FILES, "train/PNEUMONIA /a.jpeg"]))


OWN = Question.of(["normal"], ["Tuberculosis", "TB"])


def test_own_class_folders_in_any_case_without_splits(tmp_path):
    table = scan(layout(tmp_path, ["Normal/a.jpeg", "TB/c.jpeg", "TUBERCULOSIS/b.jpeg", "other/d.jpeg"]), question=OWN)
    assert table["label"].tolist() == [0, 1, 1]
    assert table["class_name"].tolist() == ["normal", "Tuberculosis or TB", "Tuberculosis or TB"]
    assert table["subtype"].tolist() == ["normal", "TB", "Tuberculosis"]
    assert set(table["split"]) == {"train"}


def test_a_listed_class_is_no_misspelling_of_one_that_is_left_out(tmp_path):
    layout(tmp_path, ["normal/a.jpeg", "viral/b.jpeg", "bacterial/c.jpeg"])
    with pytest.raises(InputError, match=r"no image is called 'virl', and those called 'viral' would be left out"):
        scan(tmp_path, question=Question.of(["normal"], ["virl", "bacterial"]))


def test_listed_classes_that_no_image_has_are_named(tmp_path, caplog):
    layout(tmp_path, ["normal/a.jpeg", "TB/b.jpeg", "other/c.jpeg"])
    scan(tmp_path, question=OWN)
    assert "no image is called Tuberculosis" in caplog.text
    (tmp_path / "a.csv").write_text("path,label\nnormal/a.jpeg,0\nTB/b.jpeg,1\n")
    caplog.clear()
    scan(tmp_path / "a.csv", question=Question.of(["healthy", 0], ["TB", 1]))
    assert not caplog.text


def test_other_folders_are_not_searched(tmp_path):
    with pytest.raises(InputError, match=r"found Normal, other but not both classes, normal and .*; name yours with"):
        scan(layout(tmp_path, ["Normal/a.jpeg", "other/d.jpeg"]), question=OWN)


def test_subtypes_of_the_public_names_are_classes(tmp_path):
    question = Question.of(["bacteria"], ["virus"])
    table = scan(layout(tmp_path, FILES), question=question)
    assert table[["label", "subtype"]].to_numpy().tolist() == [[0, "bacteria"], [1, "virus"]]
    assert table.attrs["left_out"] == {"NORMAL": 4, "PNEUMONIA": 1}


@pytest.mark.parametrize(
    ("negative", "positive", "message"),
    [
        ([], ["TB"], "needs a class"),
        (["tb"], ["TB"], "no class stands in both"),
        (["PNEUMONIA"], ["NORMAL"], "swap them"),
        (["look closer"], ["TB"], "other than 'look closer'"),
    ],
)
def test_a_wrong_question_is_refused(negative, positive, message):
    with pytest.raises(InputError, match=message):
        Question.of(negative, positive)


def test_labels_that_the_question_does_not_know_are_an_error(tmp_path):
    layout(tmp_path, ["a.jpeg", "b.jpeg"])
    csv = tmp_path / "records.csv"
    csv.write_text("path,label\na.jpeg,0\nb.jpeg,1\n")
    with pytest.raises(InputError, match=r"line 2: label='0'.*to read 0 and 1 as normal and Tuberculosis or TB, add"):
        scan(csv, question=OWN)
    table = scan(csv, question=Question.of(["healthy", 0], ["TB", 1]))
    assert table["class_name"].tolist() == ["healthy", "TB"]
    csv.write_text("path,label\n" + "".join(f"{n}.jpeg,COVID\n" for n in range(7)))
    with pytest.raises(InputError, match=r"no images of bacteria and virus; .* found 'COVID'"):
        scan(csv, question=Question.of(["bacteria"], ["virus"]))


def test_path_and_label_are_enough_and_findings_may_be_several(tmp_path):
    csv = tmp_path / "records.csv"
    csv.write_text("path,label\nperson7_virus_1.jpeg,1\nb.jpeg,Normal\nc.jpeg,Mass|Pneumonia\nd.jpeg,Mass\n")
    table = scan(layout(tmp_path, []) / "records.csv").set_index("id")
    assert table["patient"].to_dict() == {"person7_virus_1.jpeg": "person7", "b.jpeg": "b", "c.jpeg": "c"}
    assert table["label"].tolist() == [0, 1, 1]
    assert set(table["split"]) == {"train"}
    assert table.attrs["left_out"] == {"Mass": 1}


def test_patients_come_from_a_pattern(tmp_path):
    csv = tmp_path / "records.csv"
    csv.write_text("path,label,patient\np1/a.jpeg,0,x\np1/b.jpeg,1,y\n")
    assert scan(csv)["patient"].tolist() == ["x", "y"]
    assert scan(csv, patient="column")["patient"].tolist() == ["x", "y"]
    assert scan(csv, patient=r"^(p\d+)/")["patient"].tolist() == ["p1", "p1"]
    for wrong, message in (("(", "no pattern"), ("q", "names no patient in 'p1/a.jpeg'")):
        with pytest.raises(InputError, match=f"data.patient=.*{message}"):
            scan(csv, patient=wrong)
    with pytest.raises(InputError, match="a folder has no columns"):
        scan(layout(tmp_path / "folder", FILES), patient="column")


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
        ("path,patient\na,0\n", "needs the columns path and label once, .* found path, patient"),
        ("path,Path,label,patient,split\na,b,0,p,train\n", "once, found path, path"),
        ("path,label,label\na,0,1\n", "once, .* found path, label, label"),
        ("path,label\na,b,0\nc,d,0\n", "Expected 2 fields in line 2, saw 3"),
        ("path,label\na,0\n\n\nb,2\n", "line 5: label='2'"),
        ("path,label,patient,split\n", "a header and no rows"),
        ("path,label,patient,split\na\0b,0,p,train\n", "line 2: holds the character NUL"),
        ("path,label,patient,split\n ,0,p,train\n", "line 2: path=' ' names no file"),
        ("path,label,patient,split\n../a,0,p,train\n", "line 2: path='../a' lies outside the folder of the CSV"),
        ("path,label,patient,split\n/a,0,p,train\n", "line 2: path='/a' lies outside the folder of the CSV"),
        ("path,label,patient,split\na,0,p,train\nb/.././a,1,p,train\n", "'a' twice, in the lines 2 and 3"),
        ("", "neither a folder of images nor a CSV table"),
        ("path,label,patient,split\na,2,p,train\n", "line 2: label='2'"),
        ("path,label\na,pneumonnia\n", r"line 2: label='pneumonnia': [^;]*; did you mean PNEUMONIA\?$"),
        ("path,label,patient,split\na,0,p,training\n", "line 2: split='training': .*; did you mean train"),
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

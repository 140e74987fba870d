"""Published layouts, on small trees made like them."""

import numpy as np
import pytest

from xray_pneumonia.data.classes import Question
from xray_pneumonia.data.layouts import LAYOUTS, findings, index
from xray_pneumonia.data.records import scan
from xray_pneumonia.errors import InputError

CHEXPERT = "No Finding,Enlarged Cardiomediastinum,Cardiomegaly,Lung Opacity,Edema,Pneumonia,Support Devices"
TREES = {
    "rsna": (
        {
            "stage_2_train_labels.csv": "patientId,x,y,width,height,Target\na,1,1,9,9,1\n"
            "a,2,2,9,9,1\nb,,,,,0\nc,,,,,0\n",
            "stage_2_detailed_class_info.csv": "patientId,class\na,Lung Opacity\na,Lung Opacity\nb,Normal\n"
            "c,No Lung Opacity / Not Normal\nd,Lung Opacity\n",
            **dict.fromkeys([f"stage_2_train_images/{name}.dcm" for name in "abcd"], ""),
        },
        ["stage_2_train_images/a.dcm PNEUMONIA train", "stage_2_train_images/b.dcm NORMAL train",
         "stage_2_train_images/c.dcm No Lung Opacity / Not Normal train"],
        {"class and boxes contradict each other": 1},
    ),
    "nih": (
        {
            "Data_Entry_2017_v2020.csv": "Image Index,Finding Labels,Follow-up #,Patient ID,View Position\n"
            "1_0.png,Mass|Pneumonia,0,1,PA\n1_1.png,No Finding,1,1,AP\n"
            "2_0.png,Hernia,0,2,PA\n9_0.png,Hernia,0,9,PA\n",
            "test_list.txt": "2_0.png\n9_0.png\n",
            **dict.fromkeys([f"images_00{name}.png" for name in ("1/images/1_0", "2/images/1_1", "2/images/2_0")], ""),
        },
        ["images_001/images/1_0.png Mass|PNEUMONIA 1 train", "images_002/images/1_1.png NORMAL 1 train",
         "images_002/images/2_0.png Hernia 2 test"],
        {"the file is not there": 1},
    ),
    "chexpert": (
        {
            "train.csv": f"Path,Sex,Age,Frontal/Lateral,AP/PA,{CHEXPERT}\n"
            "C/train/patient1/study1/view1_frontal.jpg,F,1,Frontal,AP,,,,1.0,,1.0,\n"
            "C/train/patient1/study1/view2_lateral.jpg,F,1,Lateral,,,,,1.0,,1.0,\n"
            "C/train/patient2/study1/view1_frontal.jpg,F,1,Frontal,AP,1.0,,,,,,1.0\n"
            "C/train/patient3/study1/view1_frontal.jpg,F,1,Frontal,AP,,,,,1.0,-1.0,\n"
            "C/train/patient4/study1/view1_frontal.jpg,F,1,Frontal,AP,,,1.0,,-1.0,0.0,\n"
            "C/train/patient5/study1/view1_frontal.jpg,F,1,Frontal,AP,1.0,,,,-1.0,,\n",
            "valid.csv": f"Path,Sex,Age,Frontal/Lateral,AP/PA,{CHEXPERT}\n"
            "C/valid/patient6/study1/view1_frontal.jpg,F,1,Frontal,AP,1.0,0.0,0.0,0.0,0.0,0.0,0.0\n",
            **dict.fromkeys([f"train/patient{n}/study1/view1_frontal.jpg" for n in range(1, 6)], ""),
            "train/patient1/study1/view2_lateral.jpg": "",
            "valid/patient6/study1/view1_frontal.jpg": "",
        },
        ["train/patient1/study1/view1_frontal.jpg Lung Opacity|PNEUMONIA patient1 train",
         "train/patient2/study1/view1_frontal.jpg NORMAL patient2 train",
         "train/patient4/study1/view1_frontal.jpg Cardiomegaly|Edema? patient4 train",
         "valid/patient6/study1/view1_frontal.jpg NORMAL patient6 val"],
        {"no frontal view": 1, "pneumonia is uncertain": 1, "no label, or a finding beside none": 1},
    ),
    "mimic": (
        {
            "mimic-cxr-2.0.0-chexpert.csv": f"subject_id,study_id,{CHEXPERT}\n"
            "10000001,50,,,,,,1.0,\n10000002,60,1.0,,,,,,\n",
            "mimic-cxr-2.0.0-split.csv": "dicom_id,study_id,subject_id,split\n"
            "x,50,10000001,train\nz,60,10000002,validate\n",
            "mimic-cxr-2.0.0-metadata.csv": "dicom_id,subject_id,study_id,ViewPosition\nx,10000001,50,PA\n"
            "y,10000001,50,LATERAL\nz,10000002,60,AP\n",
            **dict.fromkeys(["files/p10/p10000001/s50/x.jpg", "files/p10/p10000002/s60/z.jpg"], ""),
        },
        ["files/p10/p10000001/s50/x.jpg PNEUMONIA p10000001 train",
         "files/p10/p10000002/s60/z.jpg NORMAL p10000002 val"],
        {"no frontal view": 1},
    ),
    "padchest": (
        {
            "PADCHEST_chest_x_ray_images_labels_160K_01.02.19.csv": "ImageID,ImageDir,PatientID,Projection,Labels\n"
            "a.png,0,7,PA,\"['pneumonia', 'unchanged']\"\nb.png,0,8,AP,['normal']\nc.png,0,8,L,['normal']\n"
            "d.png,0,9,PA,['exclude']\ne.png,0,9,PA,[]\nf.png,0,9,AP_horizontal,['normal']\n",
            **dict.fromkeys([f"0/{name}.png" for name in "abcdef"], ""),
        },
        ["0/a.png PNEUMONIA 7 train", "0/b.png NORMAL 8 train"],
        {"no upright frontal view": 2, "excluded or suboptimal film": 1, "no label, or a finding beside none": 1},
    ),
    "vindr": (
        {
            "annotations/image_labels_train.csv": "image_id,rad_ID,Nodule/Mass,Pneumonia,No finding\n"
            "a,R1,0,1,0\na,R2,0,1,0\na,R3,0,0,1\nb,R1,0,0,1\nb,R2,0,0,1\nb,R3,1,0,0\nc,R1,0,1,0\nc,R2,0,0,1\nc,R3,0,0,1\n",
            "annotations/image_labels_test.csv": "image_id,Nodule/Mass,Pneumonia,No finding\nd,1,0,0\n",
            **dict.fromkeys(["train/a.dicom", "train/b.dicom", "train/c.dicom", "test/d.dicom"], ""),
        },
        ["train/a.dicom PNEUMONIA|no finding? train", "train/b.dicom NORMAL train", "test/d.dicom nodule/mass test"],
        {"pneumonia is uncertain": 1},
    ),
    "covid_radiography": (
        dict.fromkeys([f"{kind}/{inner}/x.png" for kind in ("COVID", "Lung_Opacity", "Normal", "Viral Pneumonia")
                       for inner in ("images", "masks")], ""),
        ["COVID/images/x.png COVID train", "Lung_Opacity/images/x.png Lung_Opacity train",
         "Normal/images/x.png NORMAL train", "Viral Pneumonia/images/x.png PNEUMONIA|Viral Pneumonia train"],
        {},
    ),
}  # fmt: skip


def write(root, files):
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


@pytest.mark.parametrize("layout", TREES)
def test_a_published_layout_is_read_by_its_rule(layout, tmp_path):
    files, expected, left_out = TREES[layout]
    table = index(layout, write(tmp_path, files))
    kept = table[table["reason"] == ""].drop(columns="reason")
    assert [" ".join(row) for row in kept.to_numpy().tolist()] == expected
    assert table.loc[table["reason"] != "", "reason"].value_counts().to_dict() == left_out


def test_every_layout_is_tested_and_says_what_is_missing(tmp_path):
    assert {*TREES, "pneumoniamnist"} == set(LAYOUTS)
    for layout in LAYOUTS:
        with pytest.raises(InputError, match=r"source=.*: (holds|has) no "):
            index(layout, tmp_path)


@pytest.mark.parametrize(
    ("positive", "uncertain", "label"),
    [
        (["No Finding"], [], "NORMAL"),
        (["No Finding", "Support Devices"], [], "NORMAL"),
        (["No Finding", "Edema"], [], ""),
        (["No Finding"], ["Edema"], ""),
        (["Edema", "Pneumonia"], ["Fracture"], "Edema|PNEUMONIA|Fracture?"),
        ([], [], ""),
    ],
)
def test_normal_means_that_nothing_else_is_found_or_suspected(positive, uncertain, label):
    assert findings(positive, uncertain) == label


def test_a_film_with_an_uncertain_finding_is_left_out_of_a_question_about_it(tmp_path):
    (tmp_path / "xray.csv").write_text("path,label\na.png,Edema\nb.png,Cardiomegaly|Edema?\nc.png,NORMAL\n")
    table = scan(tmp_path / "xray.csv", question=Question.of(["NORMAL"], ["Edema"]))
    assert table["class_name"].tolist() == ["Edema", "NORMAL"]
    assert table.attrs["left_out"] == {"Cardiomegaly|Edema?": 1}


def test_arrays_become_films_that_are_scanned(tmp_path, xray):
    arrays = {}
    for split in ("train", "val", "test"):
        arrays[f"{split}_images"] = np.full((4, 28, 28), 7, np.uint8)
        arrays[f"{split}_labels"] = np.array([[0], [1], [0], [1]])
    np.savez(tmp_path / "pneumoniamnist.npz", **arrays)
    outcome = xray("index", "layout=pneumoniamnist", f"source={tmp_path}")
    assert outcome.code == 0, outcome.err
    assert outcome.out.splitlines()[-1] == f"csv={tmp_path / 'xray.csv'} images=12 left_out=0"
    assert "patients are unknown" in outcome.out
    table = scan(tmp_path / "xray.csv")
    assert table.groupby(["split", "label"]).size().tolist() == [2] * 6
    outcome = xray("index", "layout=pneumoniamnist", f"source={tmp_path}")
    assert outcome.code == 2
    assert "output=xray.csv: needs the name of a new file" in outcome.err

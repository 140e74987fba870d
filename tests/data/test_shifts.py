"""Held-out parts of train that imitate a shift."""

import typing

import numpy as np
import pandas as pd
import pytest

from xray_pneumonia.data.shifts import SHARE, Shift, find_parts, hold_out
from xray_pneumonia.data.splits import leakage_groups
from xray_pneumonia.errors import InputError

KINDS = typing.get_args(Shift)


def generate(count=300, seed=0):
    rng = np.random.default_rng(seed)
    rows, images = [], []
    for number in range(count):
        sick = number % 3 != 0
        subtype = ["normal", "bacteria", "virus"][number % 3] if sick else "normal"
        patient = f"person{number}" if sick else f"{['IM-', 'NORMAL2-IM-'][number % 2]}{number:04d}"
        facts = {"patient": patient, "subtype": subtype, "label": int(sick)}
        size = {"width": int(rng.integers(900, 1500)) + 300 * sick, "height": int(rng.integers(700, 1400))}
        image = rng.normal(100 + 50 * rng.random(), 10 + 20 * rng.random(), (32, 32)).clip(0, 255).astype(np.uint8)
        for _ in range(1 + number % 2):
            rows.append({**facts, **size, "bytes": int(rng.integers(1e4))})
            images.append(image)
    return pd.DataFrame(rows), np.stack(images)


@pytest.mark.parametrize("kind", KINDS)
def test_every_shift_holds_out_whole_patients_of_both_classes(kind):
    records, images = generate()
    groups = leakage_groups(records, [])
    shifted, beside = hold_out(kind, records, images, groups, seed=0)
    assert not (shifted & beside).any()
    assert not np.isin(groups[~shifted & ~beside], groups[shifted | beside]).any()
    for rows in (shifted, ~shifted & ~beside):
        assert set(records["label"][rows]) == {0, 1}


@pytest.mark.parametrize(
    ("kind", "measure"),
    [
        ("dark", lambda records, images: -images.mean(axis=(1, 2))),
        ("bright", lambda records, images: images.mean(axis=(1, 2))),
        ("flat", lambda records, images: -images.std(axis=(1, 2))),
        ("small_files", lambda records, images: -records["bytes"].groupby(records["patient"]).transform("mean")),
        ("large_files", lambda records, images: records["bytes"].groupby(records["patient"]).transform("mean")),
        ("small_films", lambda records, images: -records["width"] * records["height"]),
        ("large_films", lambda records, images: records["width"] * records["height"]),
        ("shape", lambda records, images: (1 - 2 * records["label"]) * records["width"] / records["height"]),
        ("earliest", lambda records, images: -records["patient"].str.extract(r"(\d+)$")[0].astype(int)),
    ],
)
def test_the_outermost_share_of_each_class_goes(kind, measure):
    records, images = generate()
    shifted, _ = hold_out(kind, records, images, leakage_groups(records, []), seed=0)
    values = np.asarray(measure(records, images), float)
    for label in (0, 1) if kind != "earliest" else (1,):  # the numbers of the normals run in two series
        of_class = records["label"].to_numpy() == label
        assert shifted[of_class].mean() == pytest.approx(SHARE, abs=0.02)
        assert values[of_class & shifted].min() >= values[of_class & ~shifted].max()


def test_prevalence_holds_out_as_many_ill_as_the_official_test_has():
    records, images = generate(3000)
    shifted, beside = hold_out("prevalence", records, images, leakage_groups(records, []), seed=0)
    assert records["label"][shifted].mean() == pytest.approx(0.625, abs=0.01)
    assert records["label"].mean() == pytest.approx(2 / 3, abs=0.01)
    assert shifted.mean() == pytest.approx(SHARE, abs=0.01)
    assert not beside.any()


def test_of_few_normals_half_are_kept():
    records, images = generate(3000)
    records = records[(records["label"] == 1) | (records.index % 12 == 0)].reset_index(drop=True)
    shifted, _ = hold_out("prevalence", records, images, leakage_groups(records, []), seed=0)
    assert shifted[records["label"] == 0].mean() == pytest.approx(0.5, abs=0.02)
    assert records["label"][shifted].mean() == pytest.approx(0.625, abs=0.02)


@pytest.mark.parametrize("kind", ["small_films", "large_films", "shape"])
def test_resized_images_have_lost_their_shape(kind):
    records, images = generate()
    records = records.assign(width=224, height=224)
    with pytest.raises(InputError, match=f"data.split={kind}: all {len(records)} images are alike"):
        hold_out(kind, records, images, leakage_groups(records, []), seed=0)


def test_blurred_images_are_the_soft_ones():
    records, images = generate()
    soft = records["patient"].isin(records["patient"].drop_duplicates().iloc[::8])
    images[soft] = np.repeat(np.repeat(images[soft][:, ::4, ::4], 4, axis=1), 4, axis=2)
    groups = leakage_groups(records, [])
    assert hold_out("soft", records, images, groups, seed=0)[0][soft].all()
    assert not soft[hold_out("sharp", records, images, groups, seed=0)[0]].any()


def test_a_patient_with_both_subtypes_is_left_out_of_training():
    records, images = generate()
    records.loc[records["patient"] == "person2", "patient"] = "person1"  # virus and bacteria of one patient
    shifted, beside = hold_out("virus", records, images, leakage_groups(records, []), seed=0)
    assert set(records["subtype"][beside]) == {"bacteria"}
    assert set(records["patient"][beside]) == {"person1"}
    assert (records["subtype"][records["label"].eq(1) & shifted] == "virus").all()


@pytest.mark.parametrize("kind", ["series_im", "bacteria"])
def test_names_that_say_nothing_are_refused(kind):
    records, images = generate()
    records = records.assign(patient="p" + records.index.astype(str), subtype="unknown")
    with pytest.raises(InputError, match=f"data.split={kind}"):
        hold_out(kind, records, images, leakage_groups(records, []), seed=0)


def test_the_shift_is_judged_at_the_operating_point_of_plain_validation(tiny, xray):
    outcome = xray("train", *tiny, "data.split=dark")
    assert outcome.code == 0, outcome.err
    judged = xray("evaluate", f"run_id={outcome.run_id}", "split=shift", *tiny[1:2], "evaluation=quick")
    assert judged.code == 0, judged.err
    assert "Shifted:" in judged.out
    plain = xray("train", *tiny)
    refused = xray("evaluate", f"run_id={plain.run_id}", "split=shift", *tiny[1:2], "evaluation=quick")
    assert refused.code == 2
    assert "data.split=dark" in refused.err


def test_the_stored_search_holds_every_shift_that_resized_images_can_show():
    from hydra import compose, initialize_config_module

    with initialize_config_module("xray_pneumonia.conf", version_base="1.3"):
        space = compose("train", ["sweep=shifts"]).sweep.space["data.split"]
    named = space.removeprefix("choice(").removesuffix(")").replace(" ", "").split(",")
    assert named == ["patient", *(kind for kind in KINDS if kind not in {"small_films", "large_films", "shape"})]


def test_the_parts_of_a_split_are_what_each_shift_would_hold_out_where_names_and_files_tell():
    records, images = generate()
    parts = find_parts(records, images)
    assert set(parts) == set(KINDS)
    assert (parts["dark"] == hold_out("dark", records, images, leakage_groups(records, []), seed=0)[0]).all()
    other = records.assign(patient=[f"p{name}x" for name in records["patient"]], subtype="unknown", width=9, height=9)
    named = {"earliest", "series_im", "series_normal2", "bacteria", "virus", "small_films", "large_films", "shape"}
    assert set(find_parts(other, images)) == set(KINDS) - named

"""Labels corrected by a table: what changes, what stays, what is counted, what is refused."""

import pytest

from xray_pneumonia.config import anchor, build
from xray_pneumonia.data.records import fingerprint
from xray_pneumonia.errors import InputError


@pytest.fixture(scope="module")
def prepared(xrays, home):
    """Prepare the data of a composed config, anchored as every command does it."""
    from hydra import compose, initialize_config_module

    def run(file=None, *overrides):
        corrections = [f"data.corrections={file}"] if file else []
        with initialize_config_module("xray_pneumonia.conf", version_base="1.3"):
            places = [f"data.root={xrays}", f"home={home}", "data.image_size=32", "data.folds=3"]
            cfg = compose("train", [*places, *corrections, *overrides])
        anchor(cfg)
        data = build(cfg.data, build(cfg.augmentation))
        data.prepare()
        return cfg, data

    return run


@pytest.fixture(scope="module")
def plain(prepared):
    return prepared()[1].records


def write(path, *lines):
    path.write_text("\n".join(lines), encoding="utf-8")
    return path


def test_corrections_change_labels_and_fingerprint_and_leave_the_cut(prepared, plain, tmp_path):
    first, second = (plain[plain["label"].eq(label) & plain["split"].eq("val")].iloc[0] for label in (0, 1))
    third = plain[plain["split"].eq("train")].iloc[0]
    file = write(
        tmp_path / "corrections.csv",
        "sha256,path,label",
        f"{first.sha256},,pneumonia",
        f",{second.id},NORMAL",
        f"{third.sha256.upper()},elsewhere.jpeg,Exclude",
        f",{first.id},PNEUMONIA",
        "," + plain[plain["label"].eq(1)]["id"].iloc[-1] + ",PNEUMONIA",
        "0" * 64 + ",,NORMAL",
    )
    cfg, data = prepared(file)
    records = data.records
    assert cfg.data.corrections.startswith(f"{file}@")
    assert records["label"].ne(plain["label"]).sum() == 2
    assert records["published"].equals(plain["label"])
    assert records.loc[[first.name, second.name], "class_name"].tolist() == ["PNEUMONIA", "NORMAL"]
    assert records["split"].ne(plain["split"]).sum() == 1
    assert records.loc[third.name, "split"] == ""
    assert fingerprint(records) != fingerprint(plain)
    batches = list(data.val_dataloader())
    served = {int(row): int(label) for one in batches for row, label in zip(one["index"], one["label"], strict=True)}
    assert (served[first.name], served[second.name]) == (1, 0)
    said = str(data.corrected)
    for part in (
        "1 NORMAL to PNEUMONIA",
        "1 PNEUMONIA to NORMAL",
        "1 excluded",
        "1 unchanged",
        "1 rows of no film here",
    ):
        assert part in said
    assert f"labels as published: {plain['label'].eq(1).sum()} PNEUMONIA" in said


def test_a_file_that_changed_since_is_refused(prepared, plain, tmp_path):
    file = write(tmp_path / "corrections.csv", "id,label", f"{plain['id'][0]},exclude")
    pinned = prepared(file)[0].data.corrections
    write(file, "id,label", f"{plain['id'][1]},exclude")
    with pytest.raises(InputError, match=r"changed since .* restore it from corrections.csv of the run"):
        prepared(pinned)


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (["sha256", "x"], "needs a column label and one of sha256, id, path"),
        (["id,label", "{0},TB"], "line 2: label='TB' of '{0}': label is NORMAL or PNEUMONIA or exclude"),
        (["id,label", ",NORMAL"], "line 2: label='NORMAL' of ''"),
        (["id,label", "{0},NORMAL", "{0},exclude"], "gives '{0}' two labels, in the lines 2 and 3"),
        (["id,label", "no.jpeg,NORMAL"], "names none of these films"),
    ],
)
def test_a_table_that_is_wrong_is_refused_with_its_line(prepared, plain, tmp_path, lines, message):
    film = plain["id"][0]
    file = write(tmp_path / "corrections.csv", *(line.format(film) for line in lines))
    with pytest.raises(InputError) as refused:
        prepared(file)
    assert message.format(film) in str(refused.value)


def test_a_missing_file_is_named(prepared, tmp_path):
    with pytest.raises(InputError, match="cannot be read: No such file"):
        prepared(tmp_path / "none.csv")

"""`xray predict`: a row for every file, whatever the file; what may stop it, and what it must not do."""

import csv
import errno
import json
import os
import shutil
import signal
import socket

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from tests.data.images.test_dicom_tags import film as dicom

from xray_pneumonia.data.images.decode import decode, read_bytes
from xray_pneumonia.inference.loading import load_model
from xray_pneumonia.workflows import predict, watch
from xray_pneumonia.workflows.prediction_files import PredictionFiles

EVIL = "=cmd|\"&' <script>alert(1)</script>.png"


@pytest.fixture
def ward(tmp_path, xrays):
    """A folder of eight films, deep in folders."""
    root = tmp_path / "ward (1), north"
    for number, film in enumerate(sorted((xrays / "train" / "NORMAL").iterdir())[:8]):
        folder = root / "a" / "b" / "c" if number % 2 else root
        folder.mkdir(parents=True, exist_ok=True)
        shutil.copy(film, folder / f"{number}{film.suffix}")
    return root


@pytest.fixture
def read(xray, bundle, tmp_path):
    def run(source, *more, model=bundle.folder, output="out"):
        return xray("predict", f"model={model}", f"input={source}", f"output={output}", "workers=1", *more)

    return run


def rows(folder):
    return [json.loads(line) for line in (folder / "predictions.jsonl").read_text(encoding="utf-8").splitlines()]


def cells(folder):
    with (folder / "predictions.csv").open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_every_file_gets_the_models_answer(read, ward, bundle, tmp_path):
    outcome = read(ward)
    assert outcome.code == 0, outcome.err
    found = rows(tmp_path / "out")
    assert [row["path"] for row in found] == sorted((row["path"] for row in found), key=lambda p: (p.count("/"), p))
    assert len(found) == 8
    model = load_model(bundle.folder, name="")
    pixels = np.stack([decode(read_bytes(ward / row["path"]), 32).pixels for row in found])
    expected = model.decide(pixels)
    np.testing.assert_allclose([row["probability"] for row in found], expected["probability"], atol=1e-6)
    assert [row["decision"] for row in found] == list(expected["answer"])
    assert [row["label"] for row in found] == list(expected["label"])
    assert {row["operating_point"] for row in found} == {0.5}
    table = cells(tmp_path / "out")
    for row, line in zip(found, table, strict=True):
        assert float(line["probability"]) == pytest.approx(row["probability"], rel=1e-8)
        assert (line["path"], line["decision"], line["sha256"]) == (row["path"], row["decision"], row["sha256"])


def test_a_prevalence_translates_probabilities_and_leaves_answers(read, ward, bundle, tmp_path):
    model = bundle(0, prevalence=0.4)
    for output, more in (("own", []), ("rare", ["prevalence=0.05"])):
        outcome = read(ward, *more, model=model, output=output)
        assert outcome.code == 0, outcome.err
    own, rare = (pd.DataFrame(rows(tmp_path / output)) for output in ("own", "rare"))
    odds = own["probability"] / (1 - own["probability"]) * (0.05 / 0.95) / (0.4 / 0.6)
    assert rare["probability"].tolist() == pytest.approx((odds / (1 + odds)).tolist())
    assert rare[["label", "decision"]].equals(own[["label", "decision"]])
    assert (set(own["prevalence"]), set(rare["prevalence"])) == ({0.4}, {0.05})
    outcome = read(ward, "prevalence=0.05", output="old")
    assert (outcome.code, "kept no prevalence" in outcome.err) == (2, True)


def test_the_summary_fits_80_columns_and_says_what_it_rests_on(read, ward):
    outcome = read(ward)
    assert max(map(len, outcome.out.split("Answers:")[0].splitlines())) <= 80
    text = " ".join(outcome.out.split())
    assert "781 films of 412 patients" in text
    assert "no medical device" in text
    assert outcome.out.splitlines()[-1].endswith("files=8 failed=0")


def test_one_file_is_enough(read, ward, tmp_path):
    assert read(ward / "0.png" if (ward / "0.png").exists() else next(ward.glob("0.*"))).code == 0
    assert len(rows(tmp_path / "out")) == 1


def test_bad_files_are_reported_and_the_others_are_read(read, ward, tmp_path):
    (ward / "notes.txt").write_bytes(b"\xff\x00 no text")
    (ward / "empty.png").write_bytes(b"")
    os.mkfifo(ward / "pipe.png")
    (ward / "out.png").symlink_to("/etc/passwd")
    with socket.socket(socket.AF_UNIX) as made:
        made.bind(str(ward / "s"))
    outcome = read(ward)
    assert outcome.code == 3
    assert "5 of 13 files could not be read" in outcome.err
    assert outcome.out.count("could not be read") == 1
    assert "Traceback" not in outcome.err
    errors = {row["path"]: row["error"] for row in rows(tmp_path / "out") if row["error"]}
    assert errors == {
        "notes.txt": "not_an_image", "empty.png": "empty_file", "pipe.png": "not_a_file",
        "out.png": "link_outside_root", "s": "not_a_file",
    }  # fmt: skip
    assert all(row["probability"] is None for row in rows(tmp_path / "out") if row["error"])


def test_texts_are_no_films_and_no_failures(read, ward, tmp_path):
    for name in ("readme.txt", "a/list.CSV", "LICENSE", "Röntgen.md"):
        (ward / name).write_text("Grüße " * 1000, encoding="utf-8")
    shutil.copy(next(ward.glob("0.*")), ward / "film.txt")  # a film by its content
    outcome = read(ward)
    assert outcome.code == 0, outcome.err
    assert outcome.out.splitlines()[-1].endswith("files=9 failed=0")
    assert "film.txt" in {row["path"] for row in rows(tmp_path / "out")}
    assert "no film, left out: 4 (LICENSE, Röntgen.md, readme.txt, a/list.CSV)" in outcome.err
    (ward / "readme.png").write_text("hello")
    assert read(ward, output="other").code == 3
    assert read(ward / "readme.txt", output="one").code == 2  # what is named itself is asked for


def test_other_dicom_files_are_read_where_keys_allow_them(read, tmp_path):
    given = {
        "wrong_modality": dicom(Modality="RF"),
        "wrong_view": dicom(ViewPosition="LLD"),
        "wrong_body_part": dicom(BodyPartExamined="PECHO"),
        "bad_preamble": dicom(preamble=b"MZ".ljust(128, b"\0")),
    }
    (tmp_path / "in").mkdir()
    for code, data in given.items():
        (tmp_path / "in" / f"{code}.dcm").write_bytes(data)
    assert read(tmp_path / "in").code == 2
    assert {row["path"]: row["error"] for row in rows(tmp_path / "out")} == {f"{code}.dcm": code for code in given}
    allowed = ["modalities=[DX,RF]", "views=[AP,PA,LLD]", "body_parts=[CHEST,PECHO]", "any_preamble=true"]
    outcome = read(tmp_path / "in", *allowed, output="allowed")
    assert outcome.code == 0, outcome.err
    found = [row["probability"] for row in rows(tmp_path / "allowed")]
    assert found == [pytest.approx(found[0], abs=1e-6)] * 4


def test_an_unreadable_file_is_one_of_them(read, ward, tmp_path, without_rights):
    next(ward.glob("0.*")).chmod(0)
    assert read(ward).code == 3
    assert [row["error"] for row in rows(tmp_path / "out")] == ["unreadable", *[""] * 7]


def test_odd_names_arrive_escaped(read, ward, tmp_path):
    film = next(path for path in ward.iterdir() if path.is_file())
    names = [
        b"new\nline.png",
        b"\xff\xfe.png",
        b"-rf.png",
        b"+1.png",
        b"@x.png",
        EVIL.replace("/", "").encode(),
        b"x" * 250,
    ]
    for name in names:
        shutil.copy(os.fsencode(film), os.path.join(os.fsencode(ward), name))
    assert read(ward).code == 0
    table = cells(tmp_path / "out")
    assert len(table) == 8 + len(names)
    assert not [value for line in table for value in line.values() if value.startswith(("=", "+", "-", "@"))]
    assert not [value for line in table for value in line.values() if "\n" in value]
    assert {r"new\nline.png", r"\xff\xfe.png"} <= {row["path"] for row in rows(tmp_path / "out")}
    page = (tmp_path / "out" / "contact_sheet.html").read_text(encoding="utf-8")
    assert "<script>alert" not in page
    assert "&lt;script&gt;alert" in page


def test_nothing_usable_is_exit_code_2(read, tmp_path):
    folder = tmp_path / "in"
    folder.mkdir()
    (folder / ".DS_Store").write_bytes(b"x")
    outcome = read(folder)
    assert (outcome.code, "no images" in outcome.err) == (2, True)
    assert not (tmp_path / "out").exists()
    (folder / "a.png").write_bytes(b"x")
    outcome = read(folder)
    assert outcome.code == 2
    assert "none of 1 files could be read (not_an_image 1)" in outcome.err
    assert cells(tmp_path / "out")[0]["error"] == "not_an_image"


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["input=nowhere", "output=o"], "input=nowhere: no such file"),
        (["output=o"], "input=???: needs a value"),
        (["input=.", "output=o"], "lies in the input"),
        (["input=in", "output=in"], "lies in the input"),
        (["input=in", "output=in/o"], "lies in the input"),
        (["input=in", "output=in/a.png"], "lies in the input"),
        (["input=in", "output=a_file"], "is a file"),
        (["input=in", "output=full"], "holds other files"),
        (["input=in", "output=/dev/full"], "output=/dev/full: is a file; name a new folder"),
        (["input=in", "output=/dev/full/o"], "output=/dev/full/o: cannot be written: Not a directory; name another"),
        (["input=in", "output=o", "model=nothing_like_it"], "model=nothing_like_it"),
        (["input=in", "output=o", "limits.seconds=0"], "limits.seconds=0"),
        (["input=in", "output=o", "batch_size=0"], "batch_size=0"),
        (["input=in", "output=o", "threshold=0.5"], "threshold=0.5: unknown key"),
    ],
)
def test_what_is_wrong_is_said_before_anything_is_read(xray, bundle, tmp_path, arguments, says):
    for name in ("in", "full"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "a.png").write_bytes(b"x")
    (tmp_path / "a_file").write_bytes(b"x")
    outcome = xray("predict", f"model={bundle.folder}", *arguments)
    assert outcome.code == 2
    assert says in outcome.err
    assert not (tmp_path / "o").exists()
    assert sorted(path.name for path in (tmp_path / "in").iterdir()) == ["a.png"]


def test_a_rerun_reads_what_is_new_changed_or_failed_and_ends_as_one_run_would(
    read, ward, bundle, tmp_path, monkeypatch
):
    (ward / "2b.png").write_bytes(b"not yet")
    assert read(ward).code == 3
    before = {row["path"]: row for row in rows(tmp_path / "out")}
    film, other = sorted(path for path in ward.iterdir() if path.is_file() and path.name != "2b.png")[:2]
    shutil.copy(film, ward / "2b.png")
    shutil.copy(film, ward / "0a.png")
    changed = other.name
    other.write_bytes(film.read_bytes())
    gone = sorted((ward / "a" / "b" / "c").iterdir())[0]
    gone.unlink()
    seen = []
    append = PredictionFiles.append
    monkeypatch.setattr(PredictionFiles, "append", lambda self, new: (seen.extend(new), append(self, new))[1])
    assert read(ward).code == 0
    assert sorted(row["path"] for row in seen) == ["0a.png", changed, "2b.png"]
    again = rows(tmp_path / "out")
    assert read(ward, output="fresh").code == 0
    assert again == rows(tmp_path / "fresh")
    assert (tmp_path / "out" / "predictions.csv").read_bytes() == (tmp_path / "fresh" / "predictions.csv").read_bytes()
    assert before[changed]["sha256"] != {row["path"]: row for row in again}[changed]["sha256"]


def require_same(folder, other):
    """Compare answers: to the byte, but for the probability, which rounds by how many films its batch holds."""
    rows, others = ([json.loads(line) for line in lines(each)] for each in (folder, other))
    found, expected = ([row.pop("probability", None) for row in each] for each in (rows, others))
    assert rows == others
    assert found == [value if value is None else pytest.approx(value, abs=1e-6) for value in expected]
    tables = [pd.read_csv(each / "predictions.csv") for each in (folder, other)]
    pd.testing.assert_frame_equal(*tables, atol=1e-6)


def lines(folder):
    return (folder / "predictions.jsonl").read_text().splitlines()


def test_a_torn_last_line_is_read_again(read, ward, tmp_path):
    assert read(ward).code == 0
    shutil.copytree(tmp_path / "out", tmp_path / "whole")
    whole = (tmp_path / "out" / "predictions.jsonl").read_bytes()
    for cut in (len(whole) - 1, len(whole) - 40, len(whole) // 2, 0):
        (tmp_path / "out" / "predictions.jsonl").write_bytes(whole[:cut])
        assert read(ward).code == 0
        require_same(tmp_path / "out", tmp_path / "whole")


@pytest.mark.parametrize("full_after", range(6))  # identity, both files begun, rows in one, in both, in one again
def test_a_full_disk_is_named_and_the_same_command_goes_on(read, ward, tmp_path, monkeypatch, full_after):
    done = []

    def fsync(_):
        done.append(1)
        if len(done) > full_after:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", fsync)
        outcome = read(ward, "batch_size=4")
    assert outcome.code == 2
    assert outcome.err.splitlines()[-1] == (
        f"xray: output={tmp_path / 'out'}: cannot be written: No space left on device; make room and run the same "
        "command again, it goes on"
    )
    assert read(ward).code == 0
    assert read(ward, output="whole").code == 0
    require_same(tmp_path / "out", tmp_path / "whole")


@pytest.mark.parametrize("what", ["model", "input", "modalities"])
def test_answers_of_two_commands_are_never_mixed(read, ward, bundle, tmp_path, what):
    assert read(ward).code == 0
    before = (tmp_path / "out" / "predictions.jsonl").read_bytes()
    other = {
        "model": lambda: read(ward, model=bundle(1)),
        "input": lambda: read(ward / "a"),
        "modalities": lambda: read(ward, "modalities=[CR]"),
    }[what]()
    assert other.code == 2
    assert "holds the answers of another command" in other.err
    assert "name another folder" in other.err
    assert (tmp_path / "out" / "predictions.jsonl").read_bytes() == before


def test_two_at_once_are_refused(read, ward, tmp_path, xray):
    assert read(ward).code == 0
    identity = json.loads((tmp_path / "out" / "predictions.json").read_text())
    with PredictionFiles(tmp_path / "out", identity):
        outcome = read(ward)
    assert outcome.code == 2
    assert "another `xray predict` is writing there" in outcome.err


def test_heat_maps_are_laid_over_the_films(read, ward, tmp_path, monkeypatch):
    monkeypatch.setattr(predict.gradcam, "likeness_to_random", lambda *_, **__: 0.1)
    assert read(ward, "explain=true").code == 0
    drawn = [row["heat_map"] for row in rows(tmp_path / "out") if row["heat_map"]]
    assert drawn
    for name in drawn:
        with Image.open(tmp_path / "out" / name) as picture:
            assert max(picture.size) == 320
            assert not picture.info
    assert "heat maps" in (tmp_path / "out" / "contact_sheet.html").read_text(encoding="utf-8")


def test_heat_maps_that_show_nothing_learned_are_withheld(read, ward, tmp_path, monkeypatch):
    monkeypatch.setattr(predict.gradcam, "likeness_to_random", lambda *_, **__: 0.9)
    outcome = read(ward, "explain=true")
    assert outcome.code == 0
    assert "heat maps are withheld" in outcome.err
    assert not (tmp_path / "out" / "heat_maps").exists()


def test_films_without_evidence_that_come_first_do_not_cost_the_others_their_maps(read, ward, tmp_path, monkeypatch):
    tried = []

    def likeness(_, films, **__):
        tried.append(len(films))
        return 0.1 if tried[1:] else np.nan

    for name in ("!0.png", "!1.png", "!2.png"):
        dark = np.random.default_rng(len(name)).integers(0, 60, (90, 90))
        Image.fromarray(dark.astype(np.uint8)).save(ward / name)
    monkeypatch.setattr(
        predict.gradcam,
        "grad_cam",
        lambda _, films: (films.max(axis=(1, 2)) > 60)[:, None, None] * np.float32(films > 0),
    )
    monkeypatch.setattr(predict.gradcam, "likeness_to_random", likeness)
    assert read(ward, "explain=true", "batch_size=2").code == 0
    assert tried == [1, 3]  # dark films have no map; what cannot be compared leaves it open
    without = [row["path"] for row in rows(tmp_path / "out") if row["heat_map"] is None]
    assert [name.split(".")[0] for name in without] == ["!0", "!1", "!2", "0"]


def test_no_evidence_in_any_film_is_said(read, ward, tmp_path, monkeypatch):
    monkeypatch.setattr(predict.gradcam, "grad_cam", lambda _, films: np.zeros(films.shape, np.float32))
    outcome = read(ward, "explain=true")
    assert outcome.code == 0
    assert "no heat map was drawn" in outcome.err
    assert not (tmp_path / "out" / "heat_maps").exists()


def test_strange_films_are_looked_at_closer_and_flagged(read, ward, tmp_path):
    film = next(path for path in ward.iterdir() if path.is_file())
    Image.fromarray(255 - np.asarray(Image.open(film).convert("L"))).save(ward / "negative.png")
    rng = np.random.default_rng(0)
    Image.fromarray(rng.integers(0, 256, (90, 90)).astype(np.uint8)).save(ward / "noise.png")
    assert read(ward).code == 0
    found = {row["path"]: row for row in rows(tmp_path / "out")}
    for name in ("negative.png", "noise.png"):
        assert found[name]["decision"] == "look closer"
        assert found[name]["reason"] == "no frontal chest film"
        assert "outside_training_range" in found[name]["flags"]
    assert "inverted" in found["negative.png"]["flags"]


def test_the_contact_sheet_is_one_page_that_asks_nobody(read, ward, tmp_path):
    assert read(ward, "sheet_images=5").code == 0
    page = (tmp_path / "out" / "contact_sheet.html").read_text(encoding="utf-8")
    assert "http://" not in page.replace('http-equiv="', "")
    assert "https://" not in page
    assert "not a medical device" in page
    assert "781 films of 412 patients" in page
    assert page.count('<article class="film') == 5
    assert page.count("data:image/jpeg") == 5
    assert "5 least certain of 8" in page
    found = rows(tmp_path / "out")
    order = sorted(found, key=lambda row: (row["decision"] != "look closer", abs(row["probability"] - 0.5)))
    shown = [line.split('data-name="')[1].split('"')[0] for line in page.splitlines() if "data-name=" in line]
    assert shown == [row["path"] for row in order[:5]]


def test_a_watched_folder_is_answered_as_films_come_until_the_command_is_stopped(read, ward, tmp_path, monkeypatch):
    """A file that still grows waits, one that changed is answered anew, and answers to what is gone stay."""
    inbox, out, looks = tmp_path / "inbox", tmp_path / "out", watch.stamps
    inbox.mkdir()
    films = [path.read_bytes() for path in sorted(ward.rglob("*.*"))]
    seen: list[dict[str, str]] = []

    def note() -> None:
        sheet = (out / "contact_sheet.html").read_text(encoding="utf-8")
        seen.append({row["path"]: row["error"] for row in rows(out)})
        assert all(name in sheet for name in seen[-1])

    steps = [
        lambda: None,  # before the first pass over an empty folder
        lambda: (inbox / "a.jpeg").write_bytes(films[0][:2000]),
        lambda: (inbox / "a.jpeg").write_bytes(films[0]),
        note,
        lambda: (note(), (inbox / "b.jpeg").write_bytes(films[1])),
        note,
        lambda: (note(), (inbox / "a.jpeg").unlink(), (inbox / "c.jpeg").write_bytes(b"text")),
        lambda: None,
        lambda: (note(), signal.raise_signal(signal.SIGTERM)),
    ]

    def look(source):
        steps.pop(0)()
        return looks(source)

    for module in (predict, watch):
        monkeypatch.setattr(module, "stamps", look)
    monkeypatch.setattr(watch, "PAUSE", 0.0)
    outcome = read(inbox, "watch=true")
    assert outcome.code == 143, outcome.err
    assert not steps
    one, both = {"a.jpeg": ""}, {"a.jpeg": "", "b.jpeg": ""}
    assert seen == [{}, one, one, both, {**both, "c.jpeg": "not_an_image"}]
    assert f"output={out} files=2 failed=0" in outcome.out


def test_heat_maps_are_judged_anew_until_enough_films_were_compared(monkeypatch, tmp_path):
    """One film alone decides for a folder, not for a server that may run for months."""
    films, judged = np.ones((3, 8, 8), np.uint8), []

    def likeness(_, compared, **__):
        judged.append(len(compared))
        return 0.9 if len(compared) < 4 else 0.1

    monkeypatch.setattr(predict.gradcam, "grad_cam", lambda _, images: np.float32(images))
    monkeypatch.setattr(predict.gradcam, "likeness_to_random", likeness)
    maps = predict.HeatMaps(None, tmp_path, fewest=4)
    assert maps.compute(films[:1]) is None
    maps.offer(films[:2])
    assert maps.compute(films[:1]) is not None
    assert maps.compute(films[:1]) is not None
    assert judged == [1, 4]
    alone = predict.HeatMaps(None, tmp_path)
    assert alone.compute(films[:1]) is None
    assert alone.compute(films) is None

"""Text as identity or address, in one normal form: patients, labels, paths, addresses, secrets (kind D)."""

import gzip
import os
import shutil
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Literal, get_args, get_origin, get_type_hints

import hydra
import pandas as pd
import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from pydantic import TypeAdapter, ValidationError
from typing_extensions import is_typeddict

from xray_pneumonia import arguments, config
from xray_pneumonia.cli import VERBS
from xray_pneumonia.config import PACKAGE, plain
from xray_pneumonia.data.classes import PUBLIC
from xray_pneumonia.data.corrections import correct
from xray_pneumonia.data.records import scan
from xray_pneumonia.errors import InputError


@pytest.fixture
def table(tmp_path, xrays):
    """Write a CSV of the generated images, changed by a function of (row number, row); returns the file."""
    shutil.copytree(xrays, tmp_path / "xrays")
    files = sorted((tmp_path / "xrays" / "train").rglob("*.jpeg"))

    def write(change, *, encoding="utf-8"):
        lines = ["path,label,patient,split"]
        for number, file in enumerate(files):
            name = file.relative_to(tmp_path / "xrays").as_posix()
            row = {"path": name, "label": file.parent.name, "patient": f"p{number // 2}", "split": "train"}
            lines += [",".join(each.values()) for each in change(number, row)]
        csv = tmp_path / "xrays" / "xrays.csv"
        csv.write_text("\n".join(lines) + "\n", encoding=encoding)
        return csv

    return write


def as_it_is(_, row):
    return [row]


@pytest.mark.parametrize("other", ["p0 ", " p0", "p0\u00a0"])
def test_patients_that_differ_in_blanks_are_one(table, other):
    plain = scan(table(as_it_is))
    changed = scan(table(lambda number, row: [row | {"patient": other} if number == 1 else row]))
    assert changed["patient"].tolist() == plain["patient"].tolist()


def test_patients_composed_and_decomposed_are_one(table):
    names = ("M\u00fcller", "Mu\u0308ller")
    found = scan(table(lambda number, row: [row | {"patient": names[number]} if number < 2 else row]))
    assert found["patient"].tolist().count(names[0]) == 2


def test_patients_that_a_pattern_finds_are_one_however_their_letters_are_composed(tmp_path):
    for name in ("Mu\u0308ller_1", "M\u00fcller_2", "M\u00fcller _3"):
        folder = tmp_path / "train" / ("NORMAL" if name[-1] == "1" else "PNEUMONIA")
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{name}.png").write_bytes(b"")
    assert set(scan(tmp_path, patient=r"([^/]+)_\d")["patient"]) == {"M\u00fcller"}


@pytest.mark.parametrize("said", ["Mu\u0308ller.png", "M\u00fcller.png"])
@pytest.mark.parametrize("stored", ["Mu\u0308ller.png", "M\u00fcller.png"])
def test_corrections_find_a_film_however_its_letters_are_composed(tmp_path, stored, said):
    row = {"id": stored, "sha256": "0" * 64, "label": 0, "class_name": "NORMAL", "subtype": "normal", "split": "train"}
    (tmp_path / "corrections.csv").write_text(f"id,label\n{said},PNEUMONIA\n", encoding="utf-8")
    after, found = correct(pd.DataFrame([row]), str(tmp_path / "corrections.csv"), PUBLIC)
    assert (after["label"].tolist(), found.unknown) == ([1], 0)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("p0", "P0"),
        ("12", "12.0"),
        ("12", "012"),
        ("p 1", "p  1"),
        ("p-1", "p_01"),
        ("p0", "p0\u200b"),
        ("1", "\uff11"),
    ],
)
def test_patients_that_look_alike_are_named(table, caplog, one, other):
    scan(table(lambda number, row: [row | {"patient": {0: one, 1: other}.get(number, row["patient"])}]))
    assert repr(one) in caplog.text
    assert repr(other) in caplog.text


@pytest.mark.parametrize("said", ["M\u00fcller", "Mu\u0308ller"])
@pytest.mark.parametrize("stored", ["M\u00fcller", "Mu\u0308ller"])
def test_a_csv_finds_a_film_however_its_letters_are_composed_and_whatever_blanks_follow(tmp_path, stored, said):
    for name in (stored, "b"):
        (tmp_path / f"{name}.png").write_bytes(b"")
    (tmp_path / "films.csv").write_text(f"path,label\n{said}.png ,NORMAL\nb.png,PNEUMONIA\n", encoding="utf-8")
    assert {*scan(tmp_path / "films.csv")["path"]} == {str(tmp_path / f"{name}.png") for name in (stored, "b")}


@pytest.mark.parametrize(
    "change",
    [
        {"label": str.title},
        {"label": lambda label: f"{label} "},
        {"label": lambda label: "1.0" if label == "PNEUMONIA" else "0.0"},
        {"split": str.upper},
    ],
    ids=["title case", "blank", "float", "split in capitals"],
)
def test_labels_and_splits_in_other_forms_are_read(table, change):
    plain = scan(table(as_it_is))
    changed = scan(table(lambda _, row: [row | {key: form(row[key]) for key, form in change.items()}]))
    assert changed[["label", "split"]].equals(plain[["label", "split"]])


def test_equal_rows_are_one(table, caplog):
    plain = scan(table(as_it_is))
    doubled = scan(table(lambda number, row: [row, row] if number == 0 else [row]))
    assert doubled.equals(plain)
    assert "twice, in the equal lines 2 and 3; one counts" in caplog.text


@pytest.mark.parametrize(
    ("change", "every", "word"),
    [
        *(
            ({"patient": missing}, 5, "patient")
            for missing in ("", " ", "nan", "NA", "#N/A", "unknown", "-", "1.23E+11")
        ),
        ({"split": "validation"}, 3, "did you mean val"),
        ({"label": "PNEUMONA"}, 3, "did you mean PNEUMONIA"),
        ({"path": "train\\NORMAL\\x.jpeg"}, 1, "backslash"),
    ],
)
def test_a_cell_that_is_missing_or_misspelt_is_named_with_its_cure(table, change, every, word):
    with pytest.raises(InputError, match=word):
        scan(table(lambda number, row: [row | change if number % every == 0 else row]))


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le"])
def test_another_encoding_is_named(table, encoding):
    with pytest.raises(InputError, match="UTF-16"):
        scan(table(as_it_is, encoding=encoding))


@pytest.mark.parametrize("key", ["data.root", "data.corrections"])
@pytest.mark.parametrize("place", ["/dev/zero", "pipe"])
def test_a_table_that_is_a_pipe_or_device_is_never_read(xray, tmp_path, key, place):
    os.mkfifo(tmp_path / "pipe")
    refused = xray("explore", "data=chest_xray", f"{key}={place}", "home=home")
    assert (refused.code, f"{key}=" in refused.err, place in refused.err) == (2, True, True)


@pytest.mark.parametrize("damage", ["plain text", "cut", "a byte changed"])
def test_a_packed_table_is_read_whole_or_refused(table, tmp_path, damage):
    plain = table(as_it_is)
    packed = plain.with_suffix(".csv.gz")
    whole = gzip.compress(plain.read_text().replace(",", ";").encode())
    packed.write_bytes(whole)
    pd.testing.assert_frame_equal(scan(packed), scan(plain))
    broken = {"plain text": plain.read_bytes(), "cut": whole[:-20], "a byte changed": whole[:-6] + b"x" + whole[-5:]}
    packed.write_bytes(broken[damage])
    with pytest.raises(InputError, match="no whole gzip file"):
        scan(packed)


@pytest.mark.parametrize(
    "argument",
    ["home=", "data.cache_dir=", "tracking.experiment_name=''", "data.root=", "tracking.run_name=''"],
)
def test_an_empty_path_or_name_is_refused(xray, tiny, argument):
    key = argument.partition("=")[0]
    asked = [each for each in tiny if not each.startswith(f"{key}=")]
    outcome = xray("train", *asked, argument)
    assert outcome.code == 2
    assert key in outcome.err


@pytest.mark.parametrize(
    ("verb", "key"),
    [
        *((verb, "home") for verb in VERBS if verb != "completion"),
        *[("predict", "input"), ("evaluate", "model"), ("train", "resume"), ("train", "tracking.uri")],
    ],
)
def test_an_empty_place_of_any_verb_is_refused(xray, monkeypatch, verb, key):
    monkeypatch.setattr("xray_pneumonia.workflows.adapt.find_model", None)
    outcome = xray(verb, f"{key}=")
    assert outcome.code == 2
    assert f"{key}='': " in outcome.err


@pytest.mark.parametrize("folder", ["u=1", "Doe, Jane", "a (1)", "größe", "[x]", "fold #2", "2024_01", "~a", "{b}"])
def test_keys_that_hold_paths_and_names_are_taken_literally(prepare, xrays, tmp_path, folder):
    root = shutil.copytree(xrays, tmp_path / folder)
    literal = [f"data.root={root}"]
    if "," not in folder:  # which separates values, except in a path that exists
        literal += [f"data.cache_dir={tmp_path}/cache of {folder}", f"tracking.run_name={folder}"]
    prepared = prepare(*literal)
    assert prepared.config.values["data"]["root"] == str(root)
    assert "," in folder or prepared.tracking.run_name == folder
    assert "," in folder or Path(f"{tmp_path}/cache of {folder}").is_dir()


@pytest.fixture
def linked(xrays, tmp_path):
    """The generated images as data managers leave them: each a link to a file of a store outside of the folder."""
    (tmp_path / "store").mkdir()
    for number, file in enumerate(sorted(xrays.rglob("*.jpeg"))):
        link = tmp_path / "linked" / file.relative_to(xrays)
        link.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file, tmp_path / "store" / f"{number:x}")
        link.symlink_to(tmp_path / "store" / f"{number:x}")
    return tmp_path / "linked"


def test_linked_images_are_trained_on_where_the_user_says_so(xray, tiny, prepare, xrays, linked):
    refused = xray("train", *tiny, f"data.root={linked}")
    assert refused.code == 2
    assert "data.follow_links=true" in refused.err
    followed = prepare(f"data.root={linked}", "data.follow_links=true").data
    plain = prepare(f"data.root={xrays}").data
    assert followed.records[["id", "sha256", "split"]].equals(plain.records[["id", "sha256", "split"]])


def test_a_link_whose_content_is_not_here_is_named_and_predict_follows_none(xray, tiny, linked):
    next(linked.parent.joinpath("store").iterdir()).unlink()
    outcome = xray("train", *tiny, f"data.root={linked}", "data.follow_links=true")
    assert outcome.code == 2
    assert "broken_files (1)" in outcome.err
    outcome = xray("predict", f"input={linked}/train/NORMAL", "output=out", "workers=1")
    assert outcome.code == 2
    assert "link_outside_root 32" in outcome.err


def test_a_csv_names_nothing_outside_of_its_folder_even_where_links_are_followed(xrays, linked):
    file = next(xrays.rglob("*.jpeg"))
    table = linked / "table.csv"
    table.write_text(f"path,label,patient,split\n{os.path.relpath(file, linked)},0,p,train\n")
    with pytest.raises(InputError, match="outside the folder"):
        scan(table, follow_links=True)


@pytest.mark.parametrize(
    "value",
    [
        "/data/O'Brien",
        '/a "b"',
        "/a\\",
        '\\"',
        "postgresql://u:p,w'\"@h/d?sslmode=require&x=[1]",
        "http://127.0.0.1:9?user=u&password=p#1",
        "fold #2, {b}",
        "a,b",
        "12",
    ],
)
@pytest.mark.parametrize("key", ["home", "++home", "tracking.uri", "sweep.storage", "storage", "target"])
def test_one_grammar_holds_for_paths_names_and_addresses(key, value):
    read = OverridesParser.create().parse_override(arguments.quoted(f"{key}={value}"))
    assert not read.is_sweep_override()
    assert str(read.value()) == value


def text_keys(verb):
    """Yield key and type of all that holds text in the config of a verb."""
    with hydra.initialize_config_module(PACKAGE, version_base="1.3"):
        values = plain(hydra.compose(verb), resolve=False)
    values["_target_"] = f"xray_pneumonia.workflows.{verb}.{verb.title()}Config"
    for prefix, node in config._targets(values):
        target = config.locate(node["_target_"])
        hints = get_type_hints(target.__init__, include_extras=True)
        for key in {*node} & {*hints}:
            inner = get_type_hints(hints[key], include_extras=True) if is_typeddict(hints[key]) else {}
            found = {f"{prefix}{key}.{name}": hint for name, hint in inner.items()} or {f"{prefix}{key}": hints[key]}
            yield from ((name, hint) for name, hint in found.items() if holds_text(hint))


def holds_text(hint):
    return hint is str or (get_origin(hint) not in {Literal, Mapping, dict} and any(map(holds_text, get_args(hint))))


@pytest.mark.parametrize("verb", [verb for verb in VERBS if verb != "completion"])
def test_every_key_that_holds_text_is_taken_literally_and_refuses_an_empty_one(verb):
    odd = "/größe/a[1] (2)"
    for key, hint in text_keys(verb):
        for text, value, empty in ((odd, odd, ""), (f"[{odd},012]", [odd, "012"], [""])):
            if takes(hint, value):
                literal = arguments.literally(verb, [f"{key}={text}"])[1].get(key)
                assert (literal or arguments.read(arguments.quoted(f"{key}={text}"))) == value, key
                assert not takes(hint, empty), key


def takes(hint, value):
    with suppress(ValidationError):
        TypeAdapter(hint).validate_python(value, strict=True)
        return True
    return False


def test_one_module_needs_no_brackets(xray):
    assert "extensions=[größe.py]: no such file" in xray("explore", "extensions=größe.py").err


@pytest.mark.parametrize("argument", ["home=null", "home='a b'", "tracking.uri=${oc.env:X}", "data.root=a,b"])
def test_what_is_written_in_hydras_grammar_stays_in_it(argument):
    assert arguments.quoted(argument) == argument

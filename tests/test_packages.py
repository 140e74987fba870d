"""Packages that must not be trained with are refused before anything else happens."""

import pytest

from xray_pneumonia import packages


def test_this_environment_is_sound():
    assert packages.problems() == []


@pytest.mark.parametrize(
    ("package", "version", "word"),
    [
        ("pytorch-lightning", "2.6.2", "malicious"),
        ("lightning", "2.6.3", "malicious"),
        ("torch", "2.9.1+cpu", "memory"),
        ("mlflow", "3.12.0", "plain files"),
        ("hydra-core", "1.3.7", "block-list"),
    ],
)
def test_a_bad_version_is_refused_with_its_cure(xray, tmp_path, monkeypatch, package, version, word):
    there = packages.installed
    monkeypatch.setattr(packages, "installed", lambda name: version if name == package else there(name))
    outcome = xray("train", "data=synthetic")
    assert outcome.code == 2
    assert f"{package} {version}" in outcome.err
    assert word in outcome.err
    assert "install" in outcome.err
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_stands_in_for_a_package_is_named(tmp_path, monkeypatch):
    (tmp_path / "mlflow.py").touch()
    (tmp_path / "torch").mkdir()  # without __init__.py it loses against the package
    monkeypatch.chdir(tmp_path)
    assert packages.problems() == []
    monkeypatch.syspath_prepend("")
    assert [str(tmp_path / "mlflow.py") in problem for problem in packages.problems()] == [True]


def test_doctor_reports_what_the_others_refuse(xray, monkeypatch):
    there = packages.installed
    monkeypatch.setattr(packages, "installed", lambda name: "2.9" if name == "torch" else there(name))
    outcome = xray("doctor")
    assert outcome.code == 1
    assert "torch 2.9" in outcome.err
    assert "problems=1" in outcome.out

"""Places in a config mean the same from any folder."""

import pytest
from omegaconf import OmegaConf

from xray_pneumonia.config import anchor


@pytest.mark.parametrize("name", ["films", 2026])
def test_a_folder_may_be_called_by_a_number(monkeypatch, tmp_path, name):
    monkeypatch.chdir(tmp_path)
    cfg = OmegaConf.create({"home": 7, "data": {"root": name}})
    anchor(cfg)
    assert cfg == {"home": str(tmp_path / "7"), "data": {"root": str(tmp_path / str(name))}}


@pytest.mark.parametrize("place", [True, None, ["a"]])
def test_what_is_no_path_is_left_for_the_check(place):
    cfg = OmegaConf.create({"home": "h", "data": {"root": place}})
    anchor(cfg)
    assert cfg.data.root == place

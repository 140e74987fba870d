"""`xray explore`: figures, one page, findings."""

from pathlib import Path

import pandas as pd
from mlflow import MlflowClient

from xray_pneumonia.workflows import explore


def test_a_run_with_figures_and_one_page(xray, xrays, home, drawn):
    outcome = xray("explore", f"data.root={xrays}", f"home={home}", "data.image_size=64")
    assert outcome.code == 0, outcome.err
    client = MlflowClient(f"sqlite:///{home}/mlflow.db")
    run = client.get_run(outcome.run_id)
    folder = Path(run.info.artifact_uri.removeprefix("file://"))
    names = {path.stem for path in (folder / "figures").iterdir()}
    assert names >= {"class_balance", "samples_normal", "samples_pneumonia", "augmented_pneumonia", "sizes"}
    page = (folder / "explore.html").read_text()
    assert not any((folder / name).stat().st_mode & 0o077 for name in ("explore.html", "figures", "figures/sizes.png"))
    assert page.count("data:image/png;base64,") == len(names)
    assert "http" not in page
    assert str(xrays) in page
    train = len(list((xrays / "train").rglob("*.jpeg")))
    assert int(run.data.params["data/train_NORMAL"]) + int(run.data.params["data/train_PNEUMONIA"]) == train


def test_findings_are_printed_and_do_not_stop_it(xray, xrays, home, tmp_path):
    import shutil

    root = shutil.copytree(xrays, tmp_path / "xrays")
    (root / "train/NORMAL/IM-9000-0001.jpeg").write_bytes(b"")
    outcome = xray("explore", f"data.root={root}", f"home={home}", "data.image_size=64")
    assert outcome.code == 0
    assert "error broken_files (1)" in outcome.out
    assert outcome.out.splitlines()[-1].endswith("errors=1")


def test_images_are_counted_whole():
    facts = {"class_name": "NORMAL", "mode": "L", "id": ["a", "b"], "width": [90, 91], "height": 80, "bytes": 1500}
    assert explore._sizes(pd.DataFrame(facts).assign(error="")) == [["NORMAL", "L", 2, 90, 80, 1.5]]
    assert type(explore._sizes(pd.DataFrame(facts).assign(error=""))[0][2]) is int

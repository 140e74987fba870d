"""A served model is sent what anybody sends: one wrong row costs that row alone (kind B)."""

import base64
import json
import subprocess
import sys
import tracemalloc
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

import xray_pneumonia
from xray_pneumonia.data.images import sandbox
from xray_pneumonia.data.images.limits import MAX_BYTES
from xray_pneumonia.evaluation.gradcam import grad_cam
from xray_pneumonia.workflows import pyfunc


@pytest.fixture(scope="module")
def served():
    return pyfunc._load_pyfunc(str(Path(xray_pneumonia.__file__).parent / "weights" / "final"))


@pytest.fixture(scope="module")
def good(xrays):
    return next(xrays.rglob("*.jpeg")).read_bytes()


WRONG = {
    "a number": 1_000_000_000,
    "nothing": None,
    "no number": float("nan"),
    "a dict": {"a": 1},
    "a list": [1, 2],
    "letters": "é",
    "no base64": "%",
    "no image": b"no image",
    "empty": b"",
    "beyond the limit": bytes(MAX_BYTES + 1),
}


def rows_of(table):
    """Read the answers as a client does: MLflow writes them as JSON, in which there is no NaN."""
    return json.loads(json.dumps(table.to_dict("records"), allow_nan=False))


def test_each_wrong_row_answers_with_its_error_and_the_others_with_their_results(served, good):
    [alone] = rows_of(served.predict({"image": [good]}))
    given = [each for wrong in WRONG.values() for each in (wrong, base64.b64encode(good).decode())]
    tracemalloc.start()
    rows = rows_of(served.predict(pd.DataFrame({"image": pd.Series(given, dtype=object)})))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    for row in rows[1::2]:
        assert row == alone | {"probability": pytest.approx(alone["probability"])}
    for name, row in zip(WRONG, rows[::2], strict=True):
        assert (row["probability"], row["label"], row["answer"]) == (None, "", "look closer"), name
        assert row["abstention"].startswith("unreadable: "), name
    assert peak < 2**26


@pytest.mark.parametrize("wrong", [None, 7, {"a": 1}, [[0, 1], [2, 3]], [[0.5] * 128] * 128, [["x"]], [[1], [1, 2]]])
def test_wrong_pixels_answer_with_their_error(served, wrong):
    right = np.random.default_rng(0).integers(0, 256, (128, 128)).tolist()
    first, second = rows_of(served.predict(pd.DataFrame({"pixels": pd.Series([wrong, right], dtype=object)})))
    assert first["abstention"].startswith("unreadable: ")
    assert second["probability"] is not None


def test_a_row_may_give_a_file_and_another_its_pixels(served, good):
    pixels = np.full((128, 128), 7).tolist()
    both = served.predict(pd.DataFrame({"image": [good, None], "pixels": [None, pixels]}))
    assert both["probability"].notna().all()


def test_requests_at_once_get_the_answers_that_each_gets_alone(served, xrays):
    """Hooks that collect a net's features must not see those of another request's pass, nor of a heat map's."""
    films = [path.read_bytes() for path in sorted(xrays.rglob("*.jpeg"))[:6]]
    alone = [served.predict({"image": [film]}) for film in films]
    net, pixels = served._model.require_net(), np.random.default_rng(0).integers(0, 256, (4, 128, 128), np.uint8)
    maps = grad_cam(net, pixels)

    def ask(film):
        return served.predict({"image": [film]})

    with ThreadPoolExecutor(6) as pool:
        drawn = [pool.submit(grad_cam, net, pixels) for _ in range(3)]
        for _ in range(3):
            for mine, found in zip(alone, pool.map(ask, films), strict=True):
                pd.testing.assert_frame_equal(mine, found, atol=1e-6)
        for one in drawn:
            np.testing.assert_allclose(one.result(), maps, atol=1e-5)


def test_arrays_of_any_size_and_paths_are_read_like_files(served, good, tmp_path):
    (tmp_path / "x.jpeg").write_bytes(good)
    wide = np.random.default_rng(0).integers(0, 256, (90, 200))
    Image.fromarray(wide.astype(np.uint8)).save(tmp_path / "x.png")
    files = pd.Series([tmp_path / "x.jpeg", good, tmp_path / "x.png", None, None], dtype=object)
    pixels = pd.Series([None, None, None, wide, wide.tolist()], dtype=object)
    found = served.predict(pd.DataFrame({"image": files, "pixels": pixels}))["probability"].astype(float).to_numpy()
    np.testing.assert_allclose(found, found[[0, 0, 2, 2, 2]], atol=1e-6)


def test_a_file_that_ends_its_decoder_ends_no_server(good, monkeypatch, served, tmp_path):
    (tmp_path / "hole.py").write_text(
        "import os\n"
        "from xray_pneumonia.data.images import sandbox\n"
        "serve, sandbox.decode_file = sandbox.serve, lambda *_: os.abort()\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sandbox, "SERVE", "hole:serve")
    [row] = rows_of(pyfunc.BundleModel(served._model).predict({"image": [good]}))
    assert "ended its decoder" in row["abstention"]


def test_a_script_without_a_guarded_main_module_gets_answers(tmp_path, good):
    (tmp_path / "x.jpeg").write_bytes(good)
    (tmp_path / "script.py").write_text(
        "from xray_pneumonia.data.files import InputFile\n"
        "from xray_pneumonia.data.images.sandbox import Decoders, DicomRules, Limits\n"
        "decoders = Decoders(count=1, size=32, rules=DicomRules(), limits=Limits(seconds=30.0, memory_mb=512))\n"
        "print(next(decoders.batches([InputFile('x.jpeg', '', '')], 1))[0].pixels.shape)\n"
    )
    done = subprocess.run([sys.executable, "script.py"], cwd=tmp_path, capture_output=True, text=True, timeout=200)
    assert done.stdout == "(32, 32)\n", done.stderr

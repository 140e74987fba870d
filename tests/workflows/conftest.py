"""A bundle as a training leaves it, whose gate knows the generated films; its weights are random."""

import numpy as np
import pytest
import torch
from hydra import compose, initialize_config_module

from xray_pneumonia.config import build, plain
from xray_pneumonia.data.images.decode import decode, read_bytes
from xray_pneumonia.evaluation.input_gate import fit_thumbnail_gate
from xray_pneumonia.inference.bundle import GATE, Card, save_bundle

SIDE = 32


@pytest.fixture(scope="session")
def bundle(tmp_path_factory, xrays):
    """The folder of a bundle; `make(seed, **changes)` writes another."""
    films = np.stack([decode(read_bytes(path), SIDE).pixels for path in sorted(xrays.rglob("*.jpeg"))])
    with initialize_config_module("xray_pneumonia.conf", version_base="1.3"):
        node = compose(
            "train",
            ["model=cnn", "model.filters=[4]", "model.activations=[relu]", "model.dense=4", f"data.image_size={SIDE}"],
        ).model

    def make(seed, **changes):
        folder = tmp_path_factory.mktemp("bundle")
        torch.manual_seed(seed)
        facts = {
            "net": plain(node), "class_names": ["NORMAL", "PNEUMONIA"], "image_size": SIDE, "temperature": 0.2,
            "bias": 0.0, "operating_point": 0.5, "operating_point_policy": "youden", "band": [0.45, 0.55],
            "records_fingerprint": "f" * 64, "run_id": f"{seed:032x}", "versions": {},
            "evidence": {
                "train/images": 4451, "train/patients": 2449, "val/images": 781, "val/patients": 412,
                "val/auroc": 0.996, "val/sensitivity": 0.962, "val/specificity": 0.98,
            },
        }  # fmt: skip
        save_bundle(folder, build(node).eval(), Card(**facts | changes))
        fit_thumbnail_gate(films, films).write(folder / GATE)
        return folder

    make.folder = make(0)
    return make

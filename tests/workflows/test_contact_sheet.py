"""What `xray predict` says of a folder as a whole."""

from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from scipy.special import expit, logit

from xray_pneumonia.evaluation.drift import Home
from xray_pneumonia.workflows.contact_sheet import summarise, word_promise

PROMISE = {
    "margin": 2.0, "max_error": 0.02, "bound": 0.019, "answered": 0.9, "images": 781, "patients": 412, "folds": 0,
}  # fmt: skip


@pytest.fixture(scope="module")
def home():
    rng = np.random.default_rng(0)
    label = rng.integers(0, 2, 400)
    known = {"label": label, "called": label, "evidence": rng.normal(8 * label - 4, 1), "gate_score": rng.random(400)}
    return Home.of(pd.DataFrame(known | {"brightness": 120.0, "side": 224.0}))


def answered(evidence, *, prevalence):
    """Rows of films that look familiar, as `xray predict` keeps them."""
    rng = np.random.default_rng(1)
    return [
        {
            "path": str(i), "error": "", "decision": "normal", "flags": [], "gate_score": rng.random(),
            "brightness": 120, "width": 224, "height": 200, "label": "ILL" if one >= 0 else "WELL",
            "operating_point": 0.5, "probability": float(expit(one + logit(prevalence))), "prevalence": prevalence,
        }
        for i, one in enumerate(evidence)
    ]  # fmt: skip


def test_a_folder_is_tested_by_its_evidence_whatever_prevalence_is_shown(home):
    rng, card = np.random.default_rng(2), SimpleNamespace(promise=PROMISE)
    for evidence, differs in ((rng.normal(-4, 1, 80), False), (rng.normal(0, 0.5, 80), True)):
        found = [
            summarise(answered(evidence, prevalence=shown), shown=0, positive="ILL", home=home) for shown in (0.4, 0.05)
        ]
        assert [one.drift.differs for one in found] == [differs, differs]
        assert (found[0].files, found[0].shown) == (80, [])
        assert found[0].drift.apart == pytest.approx(found[1].drift.apart)
        assert word_promise(found[0], card).startswith("Nothing is promised" if differs else "Of its answers at most")

"""Doubtful labels: made-up predictions, of which it is known what is wrong."""

import numpy as np
import pandas as pd
import pytest

from xray_pneumonia.evaluation.calibration import fit
from xray_pneumonia.evaluation.label_errors import nearest, review_labels


def made_up(*, films=2000, nets=3, share=0.05, seed=0):
    """Predictions of good nets, each as sure as it likes, on films of which a share has the other label."""
    rng = np.random.default_rng(seed)
    truth = (rng.random(films) < 0.74).astype(int)
    flipped = rng.random(films) < share
    rows = pd.DataFrame({"id": [f"film {n}" for n in range(films)], "label": np.where(flipped, 1 - truth, truth)})
    tables = [
        rows.assign(net=net, logit=(1 + net) * (rng.normal(2.2, 1.0, films) * (2 * truth - 1) + 0.5))
        for net in range(nets)
    ]
    return pd.concat(tables), set(rows["id"][flipped])


def test_flipped_labels_come_first_and_their_number_is_estimated():
    table, flipped = made_up()
    review = review_labels(table)
    first = set(review.films["id"].head(len(flipped)))
    assert len(first & flipped) / len(flipped) > 0.9
    doubted = set(review.doubted["id"])
    assert len(doubted & flipped) / len(flipped) > 0.8
    assert len(doubted & flipped) / len(doubted) > 0.9
    assert sum(review.wrong) == pytest.approx(len(flipped), rel=0.3)
    assert (review.films["predictions"] == 3).all()
    assert review.films["doubt"].is_monotonic_decreasing


def test_thresholds_are_the_mean_self_confidence_of_each_class_after_calibration():
    table = pd.DataFrame({"id": list("abcdefgh"), "label": [0] * 4 + [1] * 4, "net": "x"})
    table["logit"] = [-2.0, -1.5, -1.0, 2.0, 2.0, 1.5, 1.0, -2.0]
    chances = fit(table["logit"], table["label"], method="platt").apply(table)["probability"]
    own = np.where(table["label"] == 1, chances, 1 - chances)
    review = review_labels(table)
    assert review.thresholds == pytest.approx((own[:4].mean(), own[4:].mean()))
    assert review.wrong == pytest.approx((1.0, 1.0))  # of four with a label, all are near enough to a class
    assert set(review.doubted["id"]) == {"d", "h"}
    assert sorted(review.films["doubt"].iloc[:2]) == pytest.approx(sorted(1 - own[[3, 7]]))


def test_weighted_classes_and_sure_nets_change_nothing():
    table, _ = made_up(nets=1)
    plain, weighted = (review_labels(one) for one in (table, table.assign(logit=3 * table["logit"] - 1.5)))
    assert set(weighted.doubted["id"]) == set(plain.doubted["id"])
    assert weighted.films["doubt"].to_numpy() == pytest.approx(plain.films["doubt"].to_numpy(), abs=1e-3)


def test_neighbours_are_of_other_patients():
    features = np.array([[0.0, 1], [0.1, 1], [0.2, 1], [5.0, 1]])
    assert nearest(features, 0, np.array(["a", "a", "b", "c"], object), count=2).tolist() == [2, 3]

import numpy as np
import pandas as pd
import pytest
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.metrics import confusion_matrix, roc_curve

from xray_pneumonia.errors import InputError
from xray_pneumonia.evaluation.threshold import choose_threshold, parse_policy


def table(seed=0, images=300):
    rng = np.random.default_rng(seed)
    label = rng.integers(0, 2, images)
    return pd.DataFrame({"label": label, "probability": 1 / (1 + np.exp(-rng.normal(2 * label - 1, 1.5)))})


def rates(frame, threshold):
    tn, fp, fn, tp = confusion_matrix(frame["label"], frame["probability"] >= threshold).ravel()
    return tp / (tp + fn), tn / (tn + fp), fp, fn


def test_youden_reaches_the_best_of_the_roc():
    frame = table()
    fpr, tpr, _ = roc_curve(frame["label"], frame["probability"], drop_intermediate=False)
    sensitivity, specificity, *_ = rates(frame, choose_threshold(frame, policy="youden"))
    assert sensitivity + specificity - 1 == pytest.approx(max(tpr - fpr), abs=1e-9)


def test_the_other_policies_are_the_best_of_all_thresholds():
    frame = table()
    every = [rates(frame, t) for t in [*np.unique(frame["probability"]), 2]]
    for policy in ("sensitivity>=0.95", "sensitivity:0.95", "sensitivity >= 0.95"):
        sensitivity, specificity, *_ = rates(frame, choose_threshold(frame, policy=policy))
        assert sensitivity >= 0.95
        assert specificity == max(other for kept, other, *_ in every if kept >= 0.95)
    sensitivity, specificity, *_ = rates(frame, choose_threshold(frame, policy="specificity:0.9"))
    assert specificity >= 0.9
    assert sensitivity == max(kept for kept, other, *_ in every if other >= 0.9)
    _, _, alarms, misses = rates(frame, choose_threshold(frame, policy="cost:5"))
    assert 5 * misses + alarms == min(5 * fn + fp for _, _, fp, fn in every)


def test_the_middle_is_that_of_a_linear_discriminant():
    frame = table(images=400)
    frame = frame.sort_values("label").groupby("label").head(180)
    score = np.log(frame["probability"] / (1 - frame["probability"])).to_numpy()[:, None]
    fitted = LinearDiscriminantAnalysis(priors=[0.5, 0.5]).fit(score, frame["label"])
    threshold = choose_threshold(frame, policy="middle")
    assert np.log(threshold / (1 - threshold)) == pytest.approx(-fitted.intercept_[0] / fitted.coef_[0, 0], abs=1e-6)


def test_the_middle_stays_where_few_images_at_the_edge_change_and_where_nets_are_certain():
    frame = table(images=1000)
    moved = frame.copy()
    moved.loc[frame[frame["label"] == 0].nlargest(10, "probability").index, "probability"] = 0.3
    middle, edge = (
        abs(choose_threshold(moved, policy=policy) - choose_threshold(frame, policy=policy))
        for policy in ("middle", "specificity:0.98")
    )
    assert middle < edge / 5
    certain = pd.DataFrame({"label": [0, 0, 1, 1], "probability": [0.0, 0.0, 1.0, 1.0]})
    assert choose_threshold(certain, policy="middle") == pytest.approx(0.5)


def test_no_image_sits_on_the_edge():
    frame = pd.DataFrame({"label": [0, 0, 1, 1], "probability": [0.1, 0.3, 0.7, 0.9]})
    assert choose_threshold(frame, policy="youden") == pytest.approx(0.5)


@pytest.mark.parametrize(
    "policy", ["", "best", "sensitivity>=2", "sensitivity>=nan", "cost", "youden:0.5", "middle:0.5"]
)
def test_an_unknown_policy_is_refused_with_the_choices(policy):
    with pytest.raises(InputError, match="youden"):
        parse_policy(policy)


def test_one_class_cannot_choose():
    with pytest.raises(InputError, match="both classes"):
        choose_threshold(pd.DataFrame({"label": [1, 1], "probability": [0.2, 0.8]}), policy="youden")

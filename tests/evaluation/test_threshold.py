import numpy as np
import pandas as pd
import pytest
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.metrics import confusion_matrix, roc_curve

from xray_pneumonia.errors import InputError
from xray_pneumonia.evaluation.threshold import choose_threshold, parse_policy, require_enough


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


@pytest.mark.parametrize("hits", [57, 83, 93, 94])
def test_a_rate_that_can_be_met_exactly_is(hits):
    """1 - k / n >= x fails by rounding where a count does not."""
    frame = pd.DataFrame(
        {"label": [1] * 100 + [0] * 100, "probability": [0.9] * hits + [0.1] * (100 - hits) + [0.2] * 100}
    )
    assert rates(frame, choose_threshold(frame, policy=f"sensitivity:0.{hits}"))[:2] == (hits / 100, 1.0)
    turned = frame.assign(label=1 - frame["label"], probability=1 - frame["probability"])
    assert rates(turned, choose_threshold(turned, policy=f"specificity:0.{hits}"))[:2] == (1.0, hits / 100)


def test_a_cost_weighs_the_prevalence_that_was_declared():
    frame = table()
    every = [rates(frame, t) for t in [*np.unique(frame["probability"]), 2]]

    def price(sensitivity, specificity, *_):
        return 5 * 0.3 * (1 - sensitivity) + 0.7 * (1 - specificity)

    chosen = rates(frame, choose_threshold(frame, policy="cost:5@30%"))
    assert price(*chosen) == pytest.approx(min(price(*one) for one in every))


@pytest.mark.parametrize("images", [59, 200])
def test_a_rate_with_confidence_is_missed_by_one_sample_in_twenty(images):
    missed = 0
    for seed in range(200):
        ill = np.random.default_rng(seed).random(images)
        frame = pd.DataFrame({"label": [1] * images + [0], "probability": [*ill, 0.5]})
        missed += choose_threshold(frame, policy="sensitivity:0.95@95%") > 0.05  # the truth of a uniform score
    assert missed / 200 <= 0.07


def test_too_few_images_for_a_confidence_are_said():
    with pytest.raises(InputError, match="not possible with 58 ill patients in validation; it takes 59"):
        require_enough("sensitivity:0.95@95%", ill=58, well=900)
    require_enough("sensitivity:0.95@95%", ill=59, well=1)
    require_enough("sensitivity:0.95", ill=1, well=1)
    alike = pd.DataFrame({"label": [1] * 90 + [0], "probability": [*np.repeat(np.linspace(0.1, 0.9, 30), 3), 0.05]})
    with pytest.raises(InputError, match="not possible with 29 images, by patient"):
        choose_threshold(alike.assign(patient=np.arange(91) // 3), policy="sensitivity:0.95@95%")


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
    "policy",
    ["", "best", "sensitivity>=2", "sensitivity>=nan", "cost", "youden:0.5", "middle:0.5", "youden@95%", "cost:5@0%%"],
)
def test_an_unknown_policy_is_refused_with_the_choices(policy):
    with pytest.raises(InputError, match="youden"):
        parse_policy(policy)


def test_one_class_cannot_choose():
    with pytest.raises(InputError, match="both classes"):
        choose_threshold(pd.DataFrame({"label": [1, 1], "probability": [0.2, 0.8]}), policy="youden")

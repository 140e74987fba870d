import time
import tracemalloc

import numpy as np
import pandas as pd
import pytest
from scipy import stats
from scipy.special import expit, logit
from sklearn.metrics import roc_auc_score

from xray_pneumonia.evaluation.intervals import (
    Estimate,
    bootstrap,
    delong,
    delong_difference,
    interval,
    patient_weights,
    predictive_value,
    replicate,
    wilson,
)
from xray_pneumonia.evaluation.metrics import WeightedMetrics

GAP = 1.8  # between the classes, in standard deviations


def cohort(seed, *, patients, clustered=True):
    """Patients with one to four images; half of an image's deviation is its patient's."""
    rng = np.random.default_rng(seed)
    ill = rng.random(patients) < 0.5
    images = rng.integers(1, 5, patients) if clustered else np.ones(patients, int)
    owner = np.repeat(np.arange(patients), images)
    shared, own = rng.normal(size=patients), rng.normal(size=len(owner))
    deviation = np.sqrt(0.5) * shared[owner] + np.sqrt(0.5) * own if clustered else own
    logit = GAP * ill[owner] - GAP / 2 + deviation
    return pd.DataFrame(
        {"patient": owner, "label": ill[owner].astype(int), "logit": logit, "probability": 1 / (1 + np.exp(-logit))}
    )


def test_wilson_by_the_book():
    # 15 of 16: what the notebook's 93.75 % on sixteen images says
    low, high = wilson(15, 16)
    expected = stats.binomtest(15, 16).proportion_ci(method="wilson")
    assert (low, high) == pytest.approx((expected.low, expected.high), abs=1e-9)
    assert (round(low, 3), round(high, 3)) == (0.717, 0.989)
    assert np.isnan(wilson(0, 0)[0])


def test_weights_resample_whole_patients():
    blocks = list(patient_weights(50, replicates=30, seed=0, images=2**18))
    weights = np.concatenate(blocks)
    assert len(blocks) > 1
    assert weights.shape == (30, 50)
    assert (weights.sum(axis=1) == 50).all()
    again = np.concatenate(list(patient_weights(50, replicates=30, seed=0, images=2**18)))
    assert (weights == again).all()


def test_replicates_equal_a_loop_over_resampled_tables():
    table = cohort(0, patients=40)
    measures = WeightedMetrics.of(table, threshold=0.5)
    found = replicate(measures, replicates=5, seed=3)
    weights = np.concatenate(list(patient_weights(measures.patients, replicates=5, seed=3, images=measures.images)))
    for row, weight in enumerate(weights):
        drawn = table.loc[np.repeat(table.index, weight[measures.codes].astype(int))]
        assert found["auroc"][row] == pytest.approx(roc_auc_score(drawn["label"], drawn["probability"]), abs=1e-9)
        assert found["sensitivity"][row] == pytest.approx(drawn[drawn["label"] == 1]["probability"].ge(0.5).mean())


def test_all_right_is_not_certainty():
    table = cohort(0, patients=40).assign(
        logit=lambda t: 4.0 * t["label"] - 2, probability=lambda t: t["label"] * 0.8 + 0.1
    )
    found = bootstrap(table, threshold=0.5, replicates=200, seed=0)
    assert found["sensitivity"].value == 1
    assert found["sensitivity"].low < 0.95
    assert found["sensitivity"].high == pytest.approx(1)
    assert found["auroc"].low == wilson(*[table.groupby("label")["patient"].nunique().min()] * 2)[0]


def test_a_calibration_error_has_no_interval():
    found = bootstrap(cohort(0, patients=100), threshold=0.5, replicates=100, seed=0)
    error, brier = found["calibration_error"], found["brier"]
    assert (error.value > 0, error.basis) == (True, "see its floor")
    assert np.isnan([error.low, error.high]).all()
    assert brier.low < brier.value < brier.high


def test_undefined_has_no_interval():
    rest = {"images": 40, "patients": 20}
    assert str(interval(np.nan, np.ones(5), **rest)) == "undefined"
    assert str(interval(0.5, np.linspace(0, 1, 101), **rest)) == "0.500 (0.025 to 0.975)"
    assert str(interval(0.5, np.linspace(0, 1, 101), images=40, patients=19)) == "0.500 (no interval)"


def few(label, logit, patient):
    table = pd.DataFrame({"label": label, "logit": logit, "patient": patient})
    return table.assign(
        probability=1 / (1 + np.exp(-table["logit"].astype(float))), id=np.arange(len(table)).astype(str)
    )


def test_one_patient_has_no_interval_anywhere():
    found = bootstrap(few([1, 1, 1, 0, 0, 0], [1, 2, -1, -1, -2, 1], ["a"] * 6), threshold=0.5, replicates=200, seed=0)
    assert found["accuracy"].value == pytest.approx(4 / 6)
    assert all(np.isnan([one.low, one.high]).all() for one in found.values())
    assert (found["sensitivity"].images, found["sensitivity"].patients) == (3, 1)
    one_normal = few([1, 1, 1, 0, 0], [1, 2, -1, -1, -2], ["a", "b", "c", "d", "d"])
    found = bootstrap(one_normal, threshold=0.5, replicates=200, seed=0)
    assert np.isnan([found[name].low for name in ("specificity", "auroc", "balanced_accuracy")]).all()
    assert not np.isnan(found["sensitivity"].low)


def test_dependent_images_are_never_worth_more_than_independent_ones():
    right = np.array([1, 0] * 19 + [1, 1])  # 21 of 40; 19 of 20 patients have one right and one wrong
    table = few(np.ones(40), np.where(right, 1.0, -1.0), np.repeat(np.arange(20), 2))
    found = bootstrap(table, threshold=0.5, replicates=500, seed=0)["sensitivity"]
    assert found.low <= 0.375
    assert found.high >= 0.671
    effective = 40 * (stats.norm.ppf(0.975) / stats.t.ppf(0.975, 19)) ** 2
    assert (found.low, found.high) == pytest.approx(wilson(21 / 40 * effective, effective))


@pytest.mark.parametrize(("each", "low"), [(3, 0.4385), (10, 0.7225)])  # Wilson's, 3 of 3 and 10 of 10
def test_ranking_few_images_rightly_is_not_certainty(each, low):
    found = delong([0] * each + [1] * each, np.arange(2 * each))
    assert (found.value, found.high) == (1, pytest.approx(1))
    assert found.low == pytest.approx(low, abs=1e-4)


def test_balanced_accuracy_combines_the_limits_of_both_rates():
    table = few([1] * 30 + [0] * 20, [1] * 24 + [-1] * 6 + [-1] * 18 + [1] * 2, np.arange(50))
    found = bootstrap(table, threshold=0.5, replicates=400, seed=0)
    rates = [found["sensitivity"], found["specificity"]]
    assert found["balanced_accuracy"].value == pytest.approx(0.85)
    assert found["balanced_accuracy"].low == pytest.approx(0.85 - np.hypot(*(one.value - one.low for one in rates)) / 2)
    assert found["balanced_accuracy"].high == pytest.approx(
        0.85 + np.hypot(*(one.high - one.value for one in rates)) / 2
    )


def test_predictive_values_have_the_limits_of_a_ratio():
    found, cleared = Estimate(0.98, 0.95, 0.99, "", 579, 300), Estimate(1.0, 0.98, 1.0, "", 200, 150)
    ppv = predictive_value(found, cleared, value=1.0, odds=19)
    most = 0.02 / np.sqrt(0.95 * (2 * 0.98 - 0.95))  # of (1 - specificity) / sensitivity, by hand
    assert (ppv.low, ppv.high) == (pytest.approx(1 / (1 + 19 * most)), 1.0)
    assert (ppv.images, ppv.patients) == (779, 150)
    never = predictive_value(Estimate(0.0, 0.0, 0.1), Estimate(0.9, 0.8, 0.95), value=0.0, odds=19)
    assert (never.low, never.high) == (0.0, pytest.approx(1 / (1 + 19 * np.sqrt(0.75))))


def naive_delong(label, score):
    ill, well = score[label == 1], score[label == 0]
    wins = (ill[:, None] > well) + 0.5 * (ill[:, None] == well)
    return wins.mean(), wins.mean(axis=1).var(ddof=1) / len(ill) + wins.mean(axis=0).var(ddof=1) / len(well)


def test_delong_equals_its_definition():
    table = cohort(1, patients=120, clustered=False).round({"logit": 1})
    area, variance = naive_delong(table["label"].to_numpy(), table["logit"].to_numpy())
    found = delong(table["label"], table["logit"])
    assert found.value == pytest.approx(area, abs=1e-9)
    freedom = min(np.bincount(table["label"])) - 1
    half = stats.t.ppf(0.975, freedom) * np.sqrt(variance) / (area * (1 - area))
    assert [found.low, found.high] == pytest.approx(expit(logit(area) + np.array([-half, half])), abs=1e-9)
    alone = delong(table["label"], table["logit"], table["patient"])
    assert alone.low == pytest.approx(found.low, abs=1e-9)


def mixed(seed):
    """Patients with one to four images of either class; a patient's images are alike, whatever their class."""
    table, rng = cohort(seed, patients=25), np.random.default_rng(seed)
    table["label"] = rng.integers(0, 2, len(table))
    other = (table["logit"] + rng.normal(size=len(table))).round(1)
    return table["label"].tolist(), table["logit"].round(1).tolist(), other.tolist(), table["patient"].tolist()


def obuchowski(label, patient, above):
    """The mean of `above` over pairs (ill, well) and its variance (Obuchowski, Biometrics 1997), in loops."""
    ill, well = ([image for image, one in enumerate(label) if one == kind] for kind in (1, 0))
    mean = sum(above(i, j) for i in ill for j in well) / (len(ill) * len(well))
    tens, ones = ({one: 0.0 for one in patient} for _ in range(2))
    for i in ill:
        tens[patient[i]] += sum(above(i, j) for j in well) / len(well) - mean
    for j in well:
        ones[patient[j]] += sum(above(i, j) for i in ill) / len(ill) - mean
    of_ill, of_well, of_both = ({patient[image] for image in images} for images in (ill, well, ill + well))
    assert len(of_ill & of_well) > 5  # else the cross term is 0
    variance = 0.0
    for m, n, owners, products in (
        (len(ill), len(ill), of_ill, [tens[one] * tens[one] for one in of_ill]),
        (len(well), len(well), of_well, [ones[one] * ones[one] for one in of_well]),
        (len(ill), len(well), of_both, [2 * tens[one] * ones[one] for one in of_both]),
    ):
        variance += len(owners) / (len(owners) - 1) * sum(products) / (m * n)
    return mean, variance, min(len(of_ill), len(of_well)) - 1


@pytest.mark.parametrize("seed", range(3))
def test_delong_equals_obuchowski_where_patients_have_images_of_both_classes(seed):
    label, first, second, patient = mixed(seed)

    def above(score):
        return lambda i, j: (score[i] > score[j]) + 0.5 * (score[i] == score[j])

    area, variance, freedom = obuchowski(label, patient, above(first))
    found = delong(label, first, patient)
    half = (logit(found.high) - logit(found.low)) / 2 * area * (1 - area)
    assert (half / stats.t.ppf(0.975, freedom)) ** 2 == pytest.approx(variance, abs=1e-12)
    assert found.value == pytest.approx(area, abs=1e-12)
    gap, variance, _ = obuchowski(label, patient, lambda i, j: above(first)(i, j) - above(second)(i, j))
    found, p_value = delong_difference(label, first, second, patient)
    assert ((found.high - found.low) / 2 / stats.t.ppf(0.975, freedom)) ** 2 == pytest.approx(variance, abs=1e-12)
    assert p_value == pytest.approx(2 * stats.t.sf(abs(gap) / variance**0.5, freedom), abs=1e-12)


def test_delong_stays_within_what_an_area_can_be():
    worst = delong([0, 0, 0, 1, 1], [5, 2, 3, 1, 4])
    assert 0 <= worst.low <= worst.value <= worst.high <= 1
    nothing = delong([1, 1], [1, 2])
    assert np.isnan([nothing.value, nothing.low, nothing.high]).all()


def test_delong_widens_for_clusters():
    single = cohort(2, patients=60)
    table = pd.concat([single] * 2)  # every image twice tells nothing new
    once = delong(single["label"], single["logit"], single["patient"])
    twice = delong(table["label"], table["logit"], table["patient"])
    naive = delong(table["label"], table["logit"])
    assert twice.low == pytest.approx(once.low, abs=2e-3)
    assert naive.low > twice.low + 0.01


def test_delong_difference_of_a_score_with_itself():
    table = cohort(3, patients=60)
    gap, p_value = delong_difference(table["label"], table["logit"], 2 * table["logit"])
    assert (gap.value, p_value) == (0, 1)


def test_2000_replicates_of_624_images_in_two_seconds():
    table = cohort(0, patients=260)
    start = time.process_time()
    bootstrap(table, threshold=0.5, replicates=2000, seed=0)
    assert time.process_time() - start < 4  # processor time of both cores


@pytest.mark.long
def test_100000_images_in_flat_memory():
    table = cohort(0, patients=40_000)
    assert len(table) > 95_000
    tracemalloc.start()
    bootstrap(table, threshold=0.5, replicates=100, seed=0)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 400 * 2**20


@pytest.mark.long
def test_intervals_cover_the_truth():
    """95 % intervals cover in 93 to 97 % of 500 tables of clustered patients."""
    truth = {"auroc": stats.norm.cdf(GAP / np.sqrt(2)), "sensitivity": stats.norm.cdf(GAP / 2)}
    hits = {"auroc": 0, "sensitivity": 0, "delong": 0}
    for seed in range(500):
        table = cohort(seed, patients=250)
        found = bootstrap(table, threshold=0.5, replicates=500, seed=seed)
        for name, value in truth.items():
            hits[name] += found[name].low <= value <= found[name].high
        check = delong(table["label"], table["logit"], table["patient"])
        hits["delong"] += check.low <= truth["auroc"] <= check.high
    assert all(0.93 <= count / 500 <= 0.97 for count in hits.values()), hits


@pytest.mark.long
def test_the_paired_test_keeps_its_error_rate():
    """Two equally good, correlated models differ "significantly" in 4 to 6 % of 4,000 tables."""
    rejected = 0
    for seed in range(4000):
        table = cohort(seed, patients=120)
        rng = np.random.default_rng([seed, 1])
        first, second = (table["logit"] + rng.normal(0, 0.7, len(table)) for _ in range(2))
        rejected += delong_difference(table["label"], first, second, table["patient"])[1] < 0.05
    assert 0.04 <= rejected / 4000 <= 0.06, rejected / 4000

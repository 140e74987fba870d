import numpy as np
import pytest
from PIL import Image

from xray_pneumonia.data import synthetic
from xray_pneumonia.errors import InputError
from xray_pneumonia.evaluation.input_gate import (
    SIDE,
    STRANGE,
    UNLIKE,
    FeatureGate,
    fit_feature_gate,
    fit_thumbnail_gate,
    join_gates,
    read_gate,
    thumbnails,
)
from xray_pneumonia.evaluation.quality import FLAGS, InputCheck, quality_flags
from xray_pneumonia.evaluation.synthetic_outliers import out_of_distribution


@pytest.fixture(scope="module")
def films():
    drawn = [synthetic.draw(patient, 0) for patient in synthetic.draw_patients(320, 0)]
    pixels = [Image.fromarray((one * 255).astype(np.uint8)).resize((64, 64)) for one in drawn]
    return np.stack([np.asarray(one) for one in pixels])


def features(images):
    """Stand in for a net's: means of rows and columns, (N, 48), which a hand or noise has of another kind."""
    small = images.reshape(len(images), 16, -1, 16, images.shape[2] // 16).mean((2, 4))
    return np.concatenate([small.mean(1), small.mean(2), small.std(1)], axis=1)


def feature_check(films):
    fitted = fit_feature_gate(films[:180], features(films[:180]))
    check = InputCheck(fitted, lambda images: fitted.distances(features(images)))
    return InputCheck(fitted.fitted(films[180:256], check.distances(films[180:256])), check.distances)


def thumbnail_check(films):
    return InputCheck(fit_thumbnail_gate(films[:180], films[180:256]), lambda images: np.zeros(len(images)))


@pytest.fixture(scope="module", params=[feature_check, thumbnail_check])
def check(films, request):
    return request.param(films)


@pytest.fixture
def gate(check):
    return check.gate


def test_films_pass_and_strangers_do_not(films, check):
    assert check.passes(films[256:]).mean() > 0.85
    stopped = {
        name: 1 - check.passes(strange).mean() for name, strange in out_of_distribution(films[256:], seed=0).items()
    }
    assert len(stopped) == 8
    assert min(stopped.values()) > 0.8, stopped


def test_distances_are_those_of_scikit_learn(films):
    from sklearn.covariance import LedoitWolf

    seen = features(films[:180])
    scaled = (features(films) - seen.mean(0)) / seen.std(0)
    expected = LedoitWolf().fit(scaled[:180]).mahalanobis(scaled)
    assert fit_feature_gate(films[:180], seen).distances(features(films)) == pytest.approx(expected, rel=1e-3)


def test_limits_are_the_documented_quantiles_of_validation(films, check):
    distances = check.distances(films[180:256])
    look, leaning = check.gate.anomaly(films[180:256], distances).T
    first = np.quantile(distances, 0.98) if isinstance(check.gate, FeatureGate) else np.quantile(look, 0.995)
    assert check.gate.limits.tolist() == [first, np.quantile(leaning, 0.995)]


def test_a_gate_says_which_rule_stops_and_an_ensembles_measures_nothing_itself(films):
    gate = join_gates([feature_check(films).gate] * 2)
    score, reason = gate.judge(films[180:184], np.array([0, 0.9, 1.1, 3]) * gate.limits[0])
    assert list(reason) == ["", "", UNLIKE, UNLIKE]
    assert score[2:] == pytest.approx([1.1, 3])
    assert set(gate.judge(255 - films[180:184], np.zeros(4))[1]) == {STRANGE}
    assert gate.centre.size == gate.whitening.size == 0


def test_brightness_and_contrast_tell_nothing(films):
    darker = (films * 0.5 + 20).astype(np.uint8)
    assert thumbnails(darker) == pytest.approx(thumbnails(films), abs=0.15)
    assert thumbnails(films).shape == (len(films), SIDE * SIDE)


def test_a_gate_survives_the_file(films, gate, tmp_path):
    gate.write(tmp_path / "gate.npz")
    read, distances = read_gate(tmp_path / "gate.npz"), np.zeros(len(films))
    assert type(read) is type(gate)
    assert (read.judge(films, distances)[0] == gate.judge(films, distances)[0]).all()


def test_a_damaged_file_is_refused(tmp_path):
    (tmp_path / "gate.npz").write_bytes(b"no gate")
    with pytest.raises(InputError, match="is no gate"):
        read_gate(tmp_path / "gate.npz")


def test_strangers_are_seeded(films):
    one, two = out_of_distribution(films[:5], seed=1), out_of_distribution(films[:5], seed=1)
    assert all((one[name] == two[name]).all() for name in one)


def test_images_are_not_flagged_and_what_was_done_to_them_is(films, check):
    def flags_of(images):
        return quality_flags(images, check.gate.judge(images, check.distances(images))[1], check)

    films = films[180:256]
    assert sum(map(bool, flags_of(films))) <= 3
    for wrong, name in (
        (255 - films, "inverted"),
        (np.ascontiguousarray(np.rot90(films, axes=(1, 2))), "turned"),
    ):
        found = flags_of(wrong)
        assert np.mean([{"outside_training_range", name} <= set(flags) for flags in found]) > 0.7
    assert all(name in FLAGS for flags in found for name in flags)


def test_little_contrast_and_a_missing_gate_are_flagged(films):
    flat = (films[:1] // 32 + 100).astype(np.uint8)
    assert quality_flags(np.concatenate([flat, films[:1]]), ["", ""], None) == [
        ["low_information", "not_checked"],
        ["not_checked"],
    ]

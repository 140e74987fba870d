"""Losses and class weights against hand-computed values and independent formulae."""

import numpy as np
import pytest
import torch
from sklearn.metrics import log_loss
from sklearn.utils.class_weight import compute_class_weight

from xray_pneumonia.training.losses import BinaryCrossEntropy, FocalLoss, resolve_class_weights

LOGITS = torch.tensor([-2.0, 0.5, 1.0, 3.0], dtype=torch.float64)
LABELS = torch.tensor([0.0, 0.0, 1.0, 1.0], dtype=torch.float64)


def test_weights():
    assert resolve_class_weights("none", [3, 9]) == (1, 1)
    assert resolve_class_weights({"NORMAL": 3, "PNEUMONIA": 1}, [1, 1]) == (3, 1)
    assert resolve_class_weights({"negative": 3, "positive": 1}, [1, 1]) == (3, 1)
    expected = compute_class_weight("balanced", classes=np.array([0, 1]), y=np.array([0] * 3 + [1] * 9))
    assert resolve_class_weights("balanced", [3, 9]) == pytest.approx(expected)


def test_cross_entropy_equals_scikit_learns():
    loss = BinaryCrossEntropy([1, 1], class_weights="none", label_smoothing=0)
    assert float(loss(LOGITS, LABELS)) == pytest.approx(log_loss(LABELS, torch.sigmoid(LOGITS)), abs=1e-12)


def test_weighted_mean_is_over_images_as_in_keras():
    loss = BinaryCrossEntropy([1, 1], class_weights={"NORMAL": 3, "PNEUMONIA": 1}, label_smoothing=0)
    single = torch.nn.functional.binary_cross_entropy_with_logits(LOGITS, LABELS, reduction="none")
    assert float(loss(LOGITS, LABELS)) == pytest.approx(float((single * torch.tensor([3, 3, 1, 1])).sum() / 4))


@pytest.mark.parametrize("kind", [BinaryCrossEntropy, FocalLoss])
def test_validation_is_plain(kind):
    extra = {"gamma": 2.0} if kind is FocalLoss else {}
    heavy = kind([1, 1], class_weights={"NORMAL": 9, "PNEUMONIA": 2}, label_smoothing=0.2, **extra).eval()
    plain = kind([1, 1], class_weights="none", label_smoothing=0, **extra)
    assert float(heavy(LOGITS, LABELS)) == float(plain(LOGITS, LABELS))


def test_smoothing_moves_the_targets():
    loss = BinaryCrossEntropy([1, 1], class_weights="none", label_smoothing=0.2)
    p = torch.sigmoid(LOGITS)
    targets = torch.tensor([0.1, 0.1, 0.9, 0.9])
    by_hand = -(targets * p.log() + (1 - targets) * (1 - p).log()).mean()
    assert float(loss(LOGITS, LABELS)) == pytest.approx(float(by_hand))


def test_focal_loss_by_hand_and_without_focus():
    p_true = np.where(LABELS == 1, torch.sigmoid(LOGITS), 1 - torch.sigmoid(LOGITS))
    focal = FocalLoss([1, 1], class_weights="none", gamma=2.0, label_smoothing=0)
    assert float(focal(LOGITS, LABELS)) == pytest.approx(float((-((1 - p_true) ** 2) * np.log(p_true)).mean()))
    unfocused = FocalLoss([1, 1], class_weights="none", gamma=0.0, label_smoothing=0)
    plain = BinaryCrossEntropy([1, 1], class_weights="none", label_smoothing=0)
    assert float(unfocused(LOGITS, LABELS)) == pytest.approx(float(plain(LOGITS, LABELS)))

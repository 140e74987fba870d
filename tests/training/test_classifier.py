"""The step that training and validation share."""

import pytest
import torch
from torch import nn

from xray_pneumonia.training.classifier import PneumoniaClassifier


@pytest.mark.parametrize(("weight", "counted"), [(1.0, 2), (0.5, 2), (0.0, 0)])
def test_a_loss_counts_by_its_weight_and_a_stand_in_nowhere(weight, counted):
    classifier = PneumoniaClassifier(
        nn.Flatten(0), loss=nn.BCEWithLogitsLoss(), optimizer=None, scheduler=None, monitor="val/auroc", mode="max"
    )
    logits, labels = torch.tensor([-1.0, 2.0]), torch.tensor([0.0, 1.0])
    batch = {"image": logits, "label": labels, "index": torch.arange(2), "weight": weight}
    assert torch.equal(classifier.training_step(batch, 0), weight * nn.BCEWithLogitsLoss()(logits, labels))
    assert [len(each) for each in classifier.outputs["fitting"].compute()] == [counted] * 3

"""The step that training and validation share."""

import torch
from torch import nn

from xray_pneumonia.training.classifier import PneumoniaClassifier


def test_a_step_returns_the_loss_and_keeps_what_the_epoch_is_measured_on():
    classifier = PneumoniaClassifier(
        nn.Flatten(0), loss=nn.BCEWithLogitsLoss(), optimizer=None, scheduler=None, monitor="val/auroc", mode="max"
    )
    logits, labels, index = torch.tensor([-1.0, 2.0]), torch.tensor([0.0, 1.0]), torch.arange(2)
    for _ in range(2):
        loss = classifier.training_step({"image": logits, "label": labels, "index": index}, 0)
        assert torch.equal(loss, nn.BCEWithLogitsLoss()(logits, labels))
    kept = classifier.outputs["fitting"].compute()
    assert all(torch.equal(one, part.repeat(2)) for one, part in zip(kept, (logits, labels), strict=True))

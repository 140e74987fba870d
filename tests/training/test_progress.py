"""The clock and the bar let a GPU work: nobody waits for it before the last step of an epoch."""

from types import SimpleNamespace

import pytest
import torch

from xray_pneumonia.training.callbacks import Bar
from xray_pneumonia.training.progress import EpochClock


def epoch(device, *callbacks, batches=12):
    """Run an epoch's hooks; `meta` has shapes alone, so whoever reads a value raises."""
    module = SimpleNamespace(device=torch.device(device))
    trainer = SimpleNamespace(
        current_epoch=0, max_epochs=2, num_training_batches=batches, callback_metrics={}, world_size=1
    )
    for number in range(batches):
        trainer.is_last_batch = number == batches - 1
        loss = torch.tensor(0.25, device="cpu" if device == "cpu" or trainer.is_last_batch else "meta")
        batch = {"label": torch.zeros(4)}
        for callback in callbacks:
            callback.on_train_batch_start(trainer, module, batch, number)
            callback.on_train_batch_end(trainer, module, {"loss": loss}, batch, number)
        yield number


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_the_bar_reads_no_loss_of_a_gpu_before_the_end_of_an_epoch(monkeypatch, device):
    monkeypatch.setattr(torch.cuda, "synchronize", lambda where: None)
    bar = Bar(EpochClock())
    shown = [bar._progress.tasks[0].fields["facts"] for _ in epoch(device, bar)]
    bar.on_train_epoch_end(None, None)
    assert shown[5].startswith("loss 0.250") == (device == "cpu")
    assert shown[-1].startswith("loss 0.250")


@pytest.mark.parametrize(("device", "waits"), [("cpu", []), ("cuda", [11])])
def test_an_epoch_ends_when_the_gpu_is_done(monkeypatch, device, waits):
    clock, waited, done = EpochClock(), [], []
    monkeypatch.setattr(torch.cuda, "synchronize", lambda where: waited.append(len(done)))
    clock.on_train_start(None, None)
    clock.on_train_epoch_start(None, None)
    for number in epoch(device, clock):
        done.append(number)
    assert waited == waits
    assert clock.images_per_second > 0

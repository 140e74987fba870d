"""From a folder to batches."""

import shutil

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, DistributedSampler

from xray_pneumonia.config import build
from xray_pneumonia.data.loaders import EpochSampler
from xray_pneumonia.data.records import fingerprint
from xray_pneumonia.errors import DataRefused, InputError


@pytest.fixture
def make(xrays, home):
    """Build the datamodule of a composed config."""
    from hydra import compose, initialize_config_module

    def run(*overrides, root=xrays):
        with initialize_config_module("xray_pneumonia.conf", version_base="1.3"):
            cfg = compose("train", [f"data.root={root}", f"home={home}", "data.image_size=32", *overrides])
        return build(cfg.data, build(cfg.augmentation))

    return run


def roles(data):
    return data.records.groupby("split")["patient"].agg(set)


def test_train_and_validation_share_no_patient_and_the_small_split_joins_the_pool(make):
    data = make()
    data.prepare()
    by_role = roles(data)
    assert not by_role["train"] & by_role["val"]
    pooled = data.records[data.records["id"].str.startswith("val/")]
    assert set(pooled["split"]) <= {"train", "val"}
    assert (data.records["split"] == "test").sum() == data.records["id"].str.startswith("test/").sum()
    share = (data.records["split"] == "val").sum() / data.records["split"].isin(["train", "val"]).sum()
    assert 0.08 < share < 0.25


@pytest.mark.parametrize("size", [16, 100_000])
def test_every_image_comes_in_an_epoch_even_where_a_batch_holds_more_than_there_are(make, size):
    data = make(f"data.batch_size={size}")
    data.prepare()
    images = (data.records["split"] == "train").sum()
    loader = data.train_dataloader()
    assert len(loader) == -(-images // size)
    assert sum(len(batch["label"]) for batch in loader) == images


def test_the_cut_does_not_follow_the_seed_of_the_run(make):
    cuts = []
    for overrides in (["seed=1"], ["seed=2"], ["data.split_seed=5"]):
        data = make(*overrides)
        data.prepare()
        cuts.append(fingerprint(data.records))
    assert cuts[0] == cuts[1] != cuts[2]


def test_folds_validate_everybody_once(make):
    seen = []
    for fold in range(3):
        data = make("data.folds=3", f"data.fold={fold}")
        data.prepare()
        seen += data.records.loc[data.records["split"] == "val", "id"].tolist()
    pool = data.records.loc[data.records["split"].isin(["train", "val"]), "id"]
    assert sorted(seen) == sorted(pool)


def test_the_official_validation_split_is_refused(make):
    with pytest.raises(InputError, match=r"holds \d+ images, too few to choose anything .* data.split=patient"):
        make("data.split=official").prepare()


def test_a_split_without_both_classes_is_refused_with_its_counts_and_the_key(make):
    with pytest.raises(
        InputError, match=r"holds 0 NORMAL and 0 PNEUMONIA, of 0 patients; data.val_fraction=0.0001: raise"
    ):
        make("data.val_fraction=0.0001").prepare()


def test_test_patients_can_be_left_out(make, xrays, tmp_path):
    root = shutil.copytree(xrays, tmp_path / "xrays")
    path = sorted((root / "train/PNEUMONIA").iterdir())[0]
    patient = path.name.split("_")[0]
    donor = sorted((root / "test/PNEUMONIA").iterdir())[0]
    donor.rename(donor.with_name(f"{patient}_virus_88.jpeg"))
    for drop in (False, True):
        data = make(f"data.drop_test_patients={drop}", root=root)
        data.prepare()
        trained = data.records[data.records["split"].isin(["train", "val"])]
        assert (patient in set(trained["patient"])) is not drop


def test_broken_files_refuse_or_are_quarantined(make, xrays, tmp_path):
    root = shutil.copytree(xrays, tmp_path / "xrays")
    (root / "train/NORMAL/IM-9000-0001.jpeg").write_bytes(b"text")
    with pytest.raises(DataRefused, match="IM-9000-0001"):
        make(root=root).prepare()
    data = make("data.broken=quarantine", root=root)
    data.prepare()
    assert data.records.set_index("id").loc["train/NORMAL/IM-9000-0001.jpeg", "split"] == ""


def test_batches(make):
    data = make("data.batch_size=16", "augmentation=none")
    data.prepare()
    batch = next(iter(data.train_dataloader()))
    assert batch["image"].shape == (16, 1, 32, 32)
    assert batch["image"].dtype == torch.uint8
    rows = batch["index"].numpy()
    np.testing.assert_array_equal(batch["image"][:, 0].numpy(), data.images[rows])
    np.testing.assert_array_equal(batch["label"].numpy(), data.records["label"].to_numpy()[rows])
    assert set(data.records["split"].iloc[rows]) == {"train"}
    assert sum(data.class_counts()) == (data.records["split"] == "train").sum()


def epoch_of(data, epoch):
    loader = data.train_dataloader()
    loader.sampler.set_epoch(epoch)
    batches = list(loader)
    return torch.cat([b["index"] for b in batches]), torch.cat([b["image"] for b in batches])


def test_order_and_augmentation_are_functions_of_seed_and_epoch_for_any_number_of_workers(make):
    alone, helped, other = make("seed=7"), make("seed=7", "data.num_workers=2"), make("seed=8")
    for data in (alone, helped, other):
        data.prepare()
    for epoch in (0, 1):
        order, images = epoch_of(alone, epoch)
        again, same = epoch_of(helped, epoch)
        assert torch.equal(order, again)
        assert torch.equal(images, same)
        assert not torch.equal(order, epoch_of(other, epoch)[0])
    assert not torch.equal(epoch_of(alone, 0)[0], epoch_of(alone, 1)[0])
    assert sorted(epoch_of(alone, 0)[0].tolist()) == sorted(np.flatnonzero(alone.records["split"] == "train"))


def test_images_live_on_the_host_alone(make):
    for resident in ("auto", "never"):
        make(f"data.resident={resident}")
    with pytest.raises(InputError, match=r"^data.resident=always: .* use data.resident=never[^\n]*$"):
        make("data.resident=always")


def dealt(loader, world):
    """What each of several processes gets."""
    hands = []
    for rank in range(world):
        loader.sampler.share(rank=rank, world=world)
        hands.append(list(loader.sampler))
        assert len(hands[-1]) == len(loader.sampler) > 0
    return hands


@pytest.mark.parametrize(("size", "world"), [(4, 2), (3, 4), (200, 3)])
def test_processes_share_each_batch_out(make, size, world):
    """In equal parts, for which the first rows of an epoch come again at its end; validation comes once."""
    whole, several = (make(f"data.batch_size={each}", "augmentation=none") for each in (size * world, size))
    whole.prepare()
    several.prepare()
    hands = dealt(several.train_dataloader(), world)
    batches = [batch.rows for batch in whole.train_dataloader().sampler]
    first = iter(np.concatenate(batches))
    for rows, *parts in zip(batches, *hands, strict=True):
        assert len({len(part.rows) for part in parts}) == 1
        shared = [row for part in parts for row in part.rows]
        again = [next(first) for _ in range(len(shared) - len(rows))]
        assert sorted(shared) == sorted([*rows, *again])
    seen = [row for hand in dealt(several.val_dataloader(), world) for part in hand for row in part.rows.tolist()]
    assert sorted(seen) == np.flatnonzero(several.records["split"] == "val").tolist()


def test_processes_get_what_torchs_distributed_sampler_gives_them():
    ours = EpochSampler(np.arange(13), batch_size=99, shuffle=True, seed=0)
    [order] = [batch.rows for batch in ours]
    for rank in range(3):
        ours.share(rank=rank, world=3)
        theirs = DistributedSampler(order, num_replicas=3, rank=rank, shuffle=False)
        assert [row for batch in ours for row in batch.rows] == [order[index] for index in theirs]


def test_a_sample_by_patient(make):
    data = make("data.max_images=40")
    data.prepare()
    assert 20 <= len(data.records) <= 45


def test_images_grow_over_the_epochs_and_validation_sees_them_whole(make):
    sides = ["data.image_size=32", "data.progressive=[16,24,32]"]
    data = make(*sides, "augmentation=light", "data.batch_size=16")
    data.prepare()
    data.spread_over(6)
    seen = [epoch_of(data, epoch)[1].shape[-1] for epoch in range(8)]
    assert seen == [16, 16, 24, 24, 32, 32, 32, 32]
    assert next(iter(data.val_dataloader()))["image"].shape[-1] == 32
    again = make(*sides, "augmentation=light", "data.batch_size=16")
    again.prepare()
    again.spread_over(6)
    assert torch.equal(epoch_of(data, 1)[1], epoch_of(again, 1)[1])
    plain = make(*sides, "augmentation=none")
    plain.prepare()
    order, images = epoch_of(plain, 0)
    halves = plain.images[order.numpy()].reshape(-1, 16, 2, 16, 2).mean(axis=(2, 4))
    assert np.abs(images[:, 0].numpy() - halves).max() <= 0.5


@pytest.mark.parametrize("sides", ["[16,24]", "[32,16]", "[16,64]"])
def test_sides_that_do_not_end_at_the_image_size_are_refused(make, sides):
    with pytest.raises(InputError, match=r"data.progressive=.* the last of them data.image_size=32"):
        make(f"data.progressive={sides}")


def test_prefetching_in_a_thread_changes_no_batch_and_hides_no_error(make, monkeypatch):
    data = make("augmentation=light", "data.batch_size=16")
    data.prepare()
    loader = data.train_dataloader()
    prefetched, plain = list(loader), list(DataLoader.__iter__(loader))
    assert len(prefetched) == len(plain) == len(loader)
    for one, other in zip(prefetched, plain, strict=True):
        assert all(torch.equal(one[key], other[key]) for key in other)
    monkeypatch.setattr(loader.dataset, "_augment", lambda *_, **__: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        list(loader)

"""Counts what the input gates of the shipped models stop: python scripts/benchmarks/gate.py DATA.

DATA holds `chest_xray` (the public layout), `adults` (films of another hospital) and `originals` (training films as
published). Counted are the models' own validation films, also under corruptions, generated strangers, and how often
validation films are called different as a whole from those of other patients. Prints the table of docs/evaluation.md.
"""

import sys
import tempfile
from dataclasses import dataclass
from itertools import product
from pathlib import Path

import numpy as np
import pandas as pd

from xray_pneumonia.config import build
from xray_pneumonia.data.images.decode import decode, read_bytes
from xray_pneumonia.evaluation.drift import FEWEST, Home, compare_with_home, evidence_of
from xray_pneumonia.evaluation.robustness import KINDS, corrupt
from xray_pneumonia.evaluation.synthetic_outliers import out_of_distribution
from xray_pneumonia.inference.loading import load_model
from xray_pneumonia.inference.model import TrainedModel
from xray_pneumonia.stored_config import load_stored
from xray_pneumonia.types import Gray
from xray_pneumonia.workflows.evaluation_data import HeldOut, cut
from xray_pneumonia.workflows.find_model import shipped_models

CORRUPTED, SHOWN, SAMPLES, HALVES = 200, 100, 600, 10


def main() -> None:
    """Print a row for each model."""
    data = Path(sys.argv[1])
    print(
        "| model | validation | adults | least stranger | corruption 1-2 | originals | adults unlike | their "
        "answers | false alarms | a tenth ill | validation answered | of these wrong | adults answered | of these "
        "wrong |"
    )
    print("|" + " --- |" * 14)
    films: dict[int, Films] = {}
    for name, place in shipped_models().items():
        model = load_model(place, name=name)
        side = model.card.image_size
        if side not in films:  # the first model of a size has a config, an ensemble has none
            films[side] = Films.at(data, side, place)
        print(f"| {name} | {' | '.join(f'{cell:.3f}' for cell in row(model, films[side]))} |", flush=True)


@dataclass(frozen=True)
class Films:
    """Every film at one size in pixels: `labels` are those of validation and of the adults."""

    held_out: HeldOut
    adults: Gray
    originals: Gray
    corrupted: list[Gray]
    strangers: dict[str, Gray]
    labels: tuple[Gray, Gray]

    @classmethod
    def at(cls, data: Path, side: int, place: Path) -> "Films":
        """Decode the films of DATA; validation is that of the model whose folder is `place`."""
        held_out = validation(place, data / "chest_xray")
        some = spread(held_out.images, CORRUPTED)
        return cls(
            held_out,
            decoded(data / "adults", side),
            decoded(data / "originals", side),
            [corrupt(some, kind=kind, strength=strength, seed=0) for kind in KINDS for strength in (1, 2)],
            out_of_distribution(spread(held_out.images, SHOWN), seed=0),
            (held_out.records["label"].to_numpy(), ill(data / "adults")),
        )


def row(model: TrainedModel, films: Films) -> list[float]:
    """Compute the cells of a model."""
    stops = [stopped(model, images) for images in (films.held_out.images, films.adults, films.originals)]
    worst = min(stopped(model, images) for images in films.strangers.values())
    mild = float(np.mean([stopped(model, images) for images in films.corrupted]))
    drift = compare_with_home(answers(model, films.adults), home(model), positive="")
    cells = [*stops[:2], worst, mild, stops[2], drift.chance, drift.apart, *false_alarms(model, films.held_out)]
    for images, label in zip((films.held_out.images, films.adults), films.labels, strict=True):
        cells += right_and_wrong(model, images, label)
    return cells


def validation(folder: Path, root: Path) -> HeldOut:
    """Open the validation films of a shipped model, whose config says how they were cut."""
    config = load_stored((folder / "config.yaml").read_text(), origin=str(folder))
    with tempfile.TemporaryDirectory() as cache:
        config.data.root, config.data.cache_dir = str(root), cache
        data = build(config.data, build(config.augmentation))
        data.prepare()
        return cut(data, "val", str(root), set(data.records.loc[data.records["split"].eq("val"), "id"]))


def decoded(folder: Path, side: int) -> Gray:
    """Decode every film of a folder at a model's size, in pixels."""
    return np.stack([decode(read_bytes(path), side).pixels for path in sorted(folder.rglob("*.*g"))])


def ill(folder: Path) -> Gray:
    """Read the labels of a folder's films, in the order of `decoded`, from the names of their folders."""
    return np.array([path.parent.name == "PNEUMONIA" for path in sorted(folder.rglob("*.*g"))], np.uint8)


def right_and_wrong(model: TrainedModel, images: Gray, label: Gray) -> list[float]:
    """Compute the share that gate and margin let through, and the share of these that is answered wrongly."""
    table = model.decide(images)
    answered = (table["answer"] != "look closer").to_numpy()
    wrong = (table["label"] == model.card.class_names[1]).to_numpy() != (label == 1)
    return [float(answered.mean()), float(wrong[answered].mean())]


def spread(images: Gray, count: int) -> Gray:
    """Take so many images, evenly."""
    return np.asarray(images[np.linspace(0, len(images) - 1, count).astype(int)])


def answers(model: TrainedModel, images: Gray) -> pd.DataFrame:
    """Answer as `xray predict` does."""
    table = model.decide(images)
    called = (table["label"] == model.card.class_names[1]).astype(int)
    evidence = evidence_of(table["probability"], table["prevalence"].astype(float))
    known = {"gate_score": table["gate"], "called": called, "evidence": evidence}
    return pd.DataFrame(known | {"brightness": np.nan, "side": np.nan})


def stopped(model: TrainedModel, images: Gray) -> float:
    """Compute the share that the gate stops."""
    return float((answers(model, images)["gate_score"] > 1).mean())


def home(model: TrainedModel) -> Home:
    """Give what the gate knows of the validation films."""
    if model.gate is None or model.gate.home is None:
        raise SystemExit(f"{model.name}: its gate knows no validation films")
    return model.gate.home


def false_alarms(model: TrainedModel, held_out: HeldOut) -> tuple[float, float]:
    """Compute how often films of whole validation patients are called different by a home of the other half of them.

    Returns the rates for batches of `FEWEST` to 100 patients drawn at random, and for such of which a tenth is ill.
    """
    table, rng = (
        answers(model, held_out.images).assign(**held_out.records[["label", "patient"]]),
        np.random.default_rng(0),
    )
    found: dict[bool, list[bool]] = {False: [], True: []}
    for _ in range(HALVES):
        names = rng.permutation(table["patient"].unique())
        known = Home.of(table[table["patient"].isin(names[: len(names) // 2])])
        others = table[table["patient"].isin(names[len(names) // 2 :])].sample(frac=1, random_state=rng)
        films = others.drop_duplicates("patient")
        ill = films["label"].to_numpy() == 1
        rates = {False: np.ones(len(films)), True: np.where(ill, 0.1 / ill.mean(), 0.9 / (1 - ill.mean()))}
        for (few_ill, rate), count in product(rates.items(), (FEWEST, 30, 100)):
            for _ in range(SAMPLES // (3 * HALVES)):
                some = rng.choice(films["patient"], count, replace=False, p=rate / rate.sum())
                batch = others[others["patient"].isin(some)]
                found[few_ill].append(compare_with_home(batch, known, positive="").differs)
    return float(np.mean(found[False])), float(np.mean(found[True]))


if __name__ == "__main__":
    main()

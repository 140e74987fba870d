"""Measures calibration and margins of the shipped models on validation and under corruptions.

python scripts/benchmarks/answers.py DATA    (the public chest X-rays; 8 minutes on one thread, then seconds)

Every model is calibrated and gets its margin on other patients than those it is judged on: five folds by patient for
the calibration error, twenty cuts into three quarters and one for the margin. An ensemble takes the mean evidence.
"""

import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd
from hydra import compose, initialize_config_module

from xray_pneumonia.config import build
from xray_pneumonia.data.datamodule import XRayDataModule
from xray_pneumonia.evaluation.abstention import answered_and_wrong, is_certified
from xray_pneumonia.evaluation.assessment import Decision, decide
from xray_pneumonia.evaluation.calibration import Calibration, fit
from xray_pneumonia.evaluation.metrics import BINS
from xray_pneumonia.evaluation.predictions import tabulate
from xray_pneumonia.evaluation.robustness import corrupt
from xray_pneumonia.evaluation.settings import EvaluationSettings
from xray_pneumonia.inference.loading import load_bundle
from xray_pneumonia.workflows.find_model import shipped_models

SEEDS = [f"final_seed{number}" for number in range(1, 6)]
CLEAN = "validation 0"
SHIFTS = [
    *("narrower 3", "narrower 5", "wider 4", "noise 3"),
    *("sharpening 4", "rotation 4", "shift 4", "jpeg 4"),
]
PREVALENCES = (0.25, 0.5, 0.625, 0.741)
CUTS = 20
PLACE = Path(tempfile.gettempdir()) / "xray_answers"  # of decoded images and logits

Mask = npt.NDArray[np.bool_]
Logits = dict[str, list[npt.NDArray[np.float64]]]  # by corruption: one array (N,) for each net


def main() -> None:
    """Measure and print."""
    with initialize_config_module("xray_pneumonia.conf", version_base="1.3"):
        cfg = compose("train", ["experiment=final", f"data.root={sys.argv[1]}", f"home={PLACE}"])
    settings: EvaluationSettings = build(cfg.evaluation)
    table, logits = compute_logits(build(cfg.data, build(cfg.augmentation)))
    print("calibration error, mean of five seeds, films weighted to the prevalence that is shown")
    print(f"{'':13}" + "".join(f"{share:8.1%}" for share in PREVALENCES))
    for name, kinds in (("validation", [CLEAN]), ("eight shifts", SHIFTS), ("narrower 5", SHIFTS[1:2])):
        errors = [errors_of(table, logits, [net], kind, settings) for net in range(len(SEEDS)) for kind in kinds]
        print(f"{name:13}" + "".join(f"{value:8.3f}" for value in np.mean(errors, axis=0)))
    print("margin: certified on so many cuts; answered, wrong on the other quarter; wrong under the worst shift")
    for name, nets in [*((seed, [place]) for place, seed in enumerate(SEEDS)), ("final_ensemble", [0, 1, 2, 3, 4])]:
        print(f"{name:15}", describe(table, logits, nets, settings))


def compute_logits(data: XRayDataModule) -> tuple[pd.DataFrame, Logits]:
    """Compute the raw logits of every net on validation and its corruptions, once for these weights."""
    data.prepare()
    rows = np.flatnonzero(data.records["split"].eq("val"))
    table = tabulate(data.records, rows, np.zeros(len(rows))).reset_index(drop=True)
    models = [load_bundle(shipped_models()[name], name=name) for name in SEEDS]
    kept = PLACE / f"logits-{'-'.join(model.card.weights_sha256[:8] for model in models)}.npz"
    if not kept.exists():
        images = np.asarray(data.images[rows])
        found = {}
        for kind, strength in (one.split() for one in (CLEAN, *SHIFTS)):
            shown = corrupt(images, kind=kind, strength=int(strength), seed=0) if int(strength) else images
            found[f"{kind} {strength}"] = np.stack([model.uncalibrated_logits(shown) for model in models])
        np.savez(kept, allow_pickle=False, **found)
    return table, {kind: list(values) for kind, values in np.load(kept, allow_pickle=False).items()}


def decide_on(
    rows: Mask, table: pd.DataFrame, logits: Logits, nets: list[int], settings: EvaluationSettings
) -> tuple[Decision, dict[str, pd.DataFrame]]:
    """Calibrate and choose on some rows of validation; returns the decision and the tables of every corruption."""
    label = table["label"][rows]
    fitted = [fit(logits[CLEAN][net][rows], label, method="platt").naming(float(label.mean())) for net in nets]
    tables = {
        kind: table.assign(
            logit=np.mean([one.evidence(values[net]) for one, net in zip(fitted, nets, strict=True)], axis=0)
        )
        for kind, values in logits.items()
    }
    return decide(tables[CLEAN][rows], settings, fitted=Calibration(prevalence=0.5)), tables


def errors_of(
    table: pd.DataFrame, logits: Logits, nets: list[int], kind: str, settings: EvaluationSettings
) -> list[float]:
    """Compute the calibration error at each of `PREVALENCES`, every film judged by what other patients taught."""
    shown = {share: np.empty(len(table)) for share in PREVALENCES}
    for held_out in cut_patients(table, parts=5, seed=0):
        decision, tables = decide_on(~held_out, table, logits, nets, settings)
        for share, column in shown.items():
            column[held_out] = decision.calibration.at(share).apply(tables[kind][held_out])["probability"]
    ill = table["label"].to_numpy() == 1
    errors = []
    for share, column in shown.items():
        weights = np.where(ill, share / ill.sum(), (1 - share) / (~ill).sum())
        bins = np.minimum((column * BINS).astype(int), BINS - 1)
        errors.append(np.abs(np.bincount(bins, weights * (ill - column))).sum())
    return errors


def describe(table: pd.DataFrame, logits: Logits, nets: list[int], settings: EvaluationSettings) -> str:
    """Measure the margin on the quarter of the patients that it was not fitted on, in every cut."""
    rows, certified = [], 0
    for seed in range(CUTS):
        held_out = next(cut_patients(table, parts=4, seed=seed))
        decision, tables = decide_on(~held_out, table, logits, nets, settings)
        certified += decision.promise is not None and is_certified(decision.promise)
        judged = {kind: decision.calibration.apply(one[held_out]) for kind, one in tables.items()}
        rows.append([answered_and_wrong(one, decision.band) for one in judged.values()])
    answered, wrong = np.mean(rows, axis=0).T
    worst = int(np.argmax(wrong[1:])) + 1
    return (
        f"{certified} of {CUTS}; {answered[0]:.3f}, {wrong[0]:.4f}; {list(logits)[worst]}: {wrong[worst]:.4f} of "
        f"{answered[worst]:.3f} answered"
    )


def cut_patients(table: pd.DataFrame, *, parts: int, seed: int) -> Iterator[Mask]:
    """Cut the rows by patient, each class in equal parts; yields the rows of each part."""
    rng = np.random.default_rng(seed)
    owners = table.groupby("patient")["label"].max()
    owners = owners.sample(frac=1, random_state=rng)
    part = owners.groupby(owners).cumcount() % parts
    for place in range(parts):
        yield table["patient"].isin(part.index[part == place]).to_numpy()


if __name__ == "__main__":
    main()

"""Runs `xray explore`: counts, figures and audit of a data set, before anything is trained on it."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from omegaconf import DictConfig, OmegaConf

from xray_pneumonia.config import Node, build, check, leaves
from xray_pneumonia.data.augment.augmentation import Augmentation
from xray_pneumonia.data.classes import counted
from xray_pneumonia.data.datamodule import XRayDataModule
from xray_pneumonia.evaluation.report import figures
from xray_pneumonia.evaluation.report.build import render
from xray_pneumonia.terminal import console, make_table
from xray_pneumonia.tracking.run import Run, start_run
from xray_pneumonia.tracking.store import open_store
from xray_pneumonia.types import Seed, Text
from xray_pneumonia.whole_files import private
from xray_pneumonia.workflows.training_run import public_config, record_dataset

SHOWN = 12  # sample images of each class


@dataclass(frozen=True, kw_only=True)
class ExploreConfig:
    """The top-level keys of explore.yaml."""

    home: Text
    extensions: dict[str, str]
    seed: Seed
    data: Node
    augmentation: Node
    tracking: Node


def main(cfg: DictConfig) -> None:
    """Explore and print."""
    values = check(cfg, ExploreConfig)
    augmentation: Augmentation = build(cfg.augmentation, key="augmentation")
    data: XRayDataModule = build(cfg.data, augmentation)
    data.open()
    tracking = build(cfg.tracking)
    store = open_store(tracking, home=Path(cfg.home))
    with start_run(store, name=tracking.run_name, tags={"verb": "explore"}, system_metrics=False) as run:
        run.log_config(OmegaConf.to_yaml(public_config(cfg), resolve=True))
        run.log_params(dict(leaves(values)))
        with private(team=True):
            _record(run, cfg, data, augmentation)
    _print(data)
    print(f"Figures and page: {run.folder}\nSee it: {run.see_it}")
    print(f"run_id={run.run_id} images={len(data.records)} errors={len(data.audit.errors)}", flush=True)


def _record(run: Run, cfg: DictConfig, data: XRayDataModule, augmentation: Augmentation) -> None:
    """Record counts, figures and the page."""
    digest = record_dataset(run, data.records, root=cfg.data.root, stage="explore")
    counts = data.records[data.records["split"] != ""].groupby(["split", "class_name"]).size()
    counts.index = counts.index.map("data/{0[0]}_{0[1]}".format)
    run.log_params({str(name): count for name, count in counts.items()})
    run.log_metrics({f"shortcut/{name.replace(' ', '_')}": auroc for name, auroc in data.audit.shortcuts.items()})
    drawn = _draw(data, augmentation, cfg.seed)
    for title, figure in drawn.items():
        figures.save(figure, run.path(f"figures/{title.lower().replace(' ', '_')}.png"))
    page = render(
        "explore.html",
        figures=drawn,
        root=cfg.data.root,
        records=len(data.records),
        patients=data.records["patient"].nunique(),
        fingerprint=digest,
        findings=data.audit.findings,
        shortcuts=data.audit.shortcuts,
        sizes=_sizes(data.records),
        left_out=counted(data.left_out),
        corrected=str(data.corrected or ""),
    )
    run.path("explore.html").write_text(page, encoding="utf-8")


def _draw(data: XRayDataModule, augmentation: Augmentation, seed: int) -> "dict[str, Figure]":
    readable = data.records[data.records["error"] == ""]
    drawn = {"Class balance": figures.class_balance(data.records, classes=data.question.names)}
    for label, name in enumerate(data.question.names):
        part = readable[readable["label"] == label]
        rows = part.sample(min(SHOWN, len(part)), random_state=seed)
        drawn[f"Samples {name}"] = figures.sample_grid(data.images[rows.index.to_numpy()], rows)
        if augmentation.active and len(rows):
            drawn[f"Augmented {name}"] = _augmented(data, augmentation, int(rows.index[0]), seed)
    drawn["Sizes"] = figures.sizes_and_modes(readable, classes=data.question.names)
    return drawn


def _augmented(data: XRayDataModule, augmentation: Augmentation, row: int, seed: int) -> "Figure":
    """Show one image as six epochs would see it."""
    image = np.asarray(data.images[[row]])
    seen = [augmentation(image, seed=seed, epoch=epoch, records=[row])[0] for epoch in range(6)]
    return figures.grid(np.stack(seen), [f"epoch {epoch + 1}" for epoch in range(6)], ["#444444"] * 6)


def _sizes(records: pd.DataFrame) -> list[list[object]]:
    groups = records[records["error"] == ""].groupby(["class_name", "mode"])
    table = groups.agg(n=("id", "size"), w=("width", "median"), h=("height", "median"), b=("bytes", "median"))
    return [[*key, int(row.n), int(row.w), int(row.h), round(row.b / 1e3, 1)] for key, row in table.iterrows()]  # type: ignore[misc]


def _print(data: XRayDataModule) -> None:
    """Print counts and findings."""
    out, heads = console(80), (*data.question.names, "patients")
    title = f"{len(data.records)} images of {data.records['patient'].nunique()} patients"
    rows = make_table(title, ("split", *heads), right=heads)
    for split, part in data.records.groupby(data.records["split"].replace("", "excluded")):
        numbers = [int((part["label"] == label).sum()) for label in (0, 1)]
        rows.add_row(str(split), *map(str, numbers), str(part["patient"].nunique()))
    out.print(rows)
    if data.left_out:
        out.print(f"Left out, of neither class: {counted(data.left_out)}")
    nothing = "The audit found nothing: no broken file, no duplicate, no leak."
    out.print("\n".join(map(str, data.audit.findings)) or nothing)

"""The model card: what a run can say of the model, as rows of the report and answers to its checklist."""

from collections.abc import Mapping
from typing import Any

import pandas as pd

from xray_pneumonia.evaluation.assessment import Judgement
from xray_pneumonia.evaluation.report.text import SPLITS, percent, spread, times
from xray_pneumonia.evaluation.settings import EvaluationSettings

USE = "a second opinion beside a radiologist's reading of an upright frontal chest film; never the only reading"
LIMITS = (
    "The public films are of children of 1 to 5 years from one hospital; on children elsewhere, and on adults, such "
    "models have done far worse.",
    "It knows two answers. Any other finding (a tumour, a fracture, tuberculosis) is called one of them.",
    "It sees a small gray square of the film and no history, no temperature, no second view.",
    "A heat map shows where evidence lies, not why; it is no proof that the answer is right.",
    "It was not tested in clinical use and is no medical device.",
)


def model_facts(
    config: Mapping[str, Any], tags: Mapping[str, str], judgement: Judgement, settings: EvaluationSettings
) -> dict[str, str]:
    """List what a reader must know of the model.

    Args:
        config: the plain config of the training.
        tags: of its run.
        judgement: of the model.
        settings: of the evaluation.
    """
    decision, data = judgement.decision, config["data"]
    calibration = decision.calibration
    return {
        "Intended use": USE,
        "Net": f"{_last(config['model'])}, input {data['image_size']} x {data['image_size']} gray pixels",
        "Training": f"{_last(config['loss'])}, class weights {config['loss'].get('class_weights')}; "
        f"{_last(config['optimizer'])}, learning rate {config['optimizer'].get('lr'):g}; at most "
        f"{config['trainer']['max_epochs']} epochs, {_kept(config)}; seed {config['seed']}",
        "Records": f"fingerprint {tags.get('records_fingerprint', 'unknown')[:16]}",
        "Config": f"sha256 {tags.get('config_sha256', 'unknown')[:16]}",
        "Code": f"commit {tags.get('mlflow.source.git.commit', 'unknown')[:12]}, uncommitted changes: "
        f"{tags.get('git.dirty', 'unknown')}; torch {tags.get('version.torch', 'unknown')}",
        "Calibration": f"logit / {calibration.temperature:.3f} + {calibration.bias:.3f}, fitted on validation",
        "Operating point": f"probability {decision.threshold:.4f}, policy {decision.policy}, chosen on validation",
        "Band of abstention": f"{decision.band.low:.4f} to {decision.band.high:.4f}, at most "
        f"{settings.abstention_error:.1%} of either class answered wrongly on validation",
        "Intervals": f"95 %, {settings.replicates} resamplings of patients; proportions after Wilson",
    }


def checklist_answers(
    config: Mapping[str, Any], records: pd.DataFrame, judgement: Judgement, *, split: str, openings: int
) -> dict[str, str]:
    """Answer what a run can answer of TRIPOD+AI and CLAIM; all else stays open."""
    at, data = judgement.at_point, config["data"]
    ill = int(judgement.table["label"].sum())
    leads = ", ".join(
        f"{name.replace('_', ' ')} {percent(at[name].value)} ({spread(at[name])})"
        for name in ("auroc", "sensitivity", "specificity")
    )
    return {
        "title": "deep learning, diagnosis of pneumonia on frontal chest films (population: a human's to state)",
        "use": USE,
        "objective": f"evaluation on the {SPLITS[split]} split" + (" during development" if split == "val" else ""),
        "data": f"{data['root']}; audited for broken files, duplicates, near-duplicates and shared patients",
        "preparation": f"gray, {data['image_size']} x {data['image_size']} pixels, scaled inside the net",
        "predictors": "pixels alone; names, sizes and modes of files never reach the net",
        "size": f"{judgement.images} images of {judgement.patients} patients ({ill} images with pneumonia); no "
        "calculation was made, the intervals show what it suffices for",
        "missing": "unreadable files stop the run or are left out by name; no values are imputed",
        "partitions": f"split `{data['split']}` (validation {data['val_fraction']:.0%}); no patient and no "
        "two copies of a film on both sides",
        "model": f"{_last(config['model'])}; {_kept(config)} of its epochs",
        "measures": "discrimination, calibration, error rates and predictive values, each with an interval by patient",
        "updating": "calibration and operating point fitted on validation, "
        + ("the very split judged here" if split == "val" else "never on the split judged here"),
        "imbalance": f"class weights in the loss: {config['loss'].get('class_weights')}; calibrated after",
        "fairness": "subgroups by "
        + (", ".join(sorted({one.column for one in judgement.subgroups})) or "nothing known")
        + "; age, sex and origin are not in the records (a human's to add)",
        "output": f"calibrated probability; called PNEUMONIA from {judgement.decision.threshold:.4f} "
        f"({judgement.decision.policy})",
        "differences": "none: a cut of the same patients' pool"
        if split == "val"
        else "see subgroups; a human's to state",
        "code": "config, code commit, versions and fingerprints are in the run",
        "participants": f"{judgement.patients} patients, {len(records)} records in the split",
        "specification": "weights, config and pre-processing are in the run as one bundle",
        "performance": leads
        + (f"; the split had been opened {times(openings)}, this one included" if openings else ""),
        "heterogeneity": f"{len(judgement.subgroups)} subgroups with intervals" if judgement.subgroups else "",
        "limits": " ".join(LIMITS[:2]),
        "usability": "a gate stops what is no upright frontal film; uncertain films are left to a closer look",
    }


def _kept(config: Mapping[str, Any]) -> str:
    chosen = config["trainer"].get("keep", "best") == "best"
    return f"the best by {config['monitor']} on validation" if chosen else "the last"


def _last(node: Mapping[str, Any]) -> str:
    return str(node.get("_target_", "?")).rpartition(".")[2]

"""Fills in the model card and the reporting checklist with what a run knows of its model."""

from collections.abc import Mapping
from importlib.resources import files
from typing import Any

import yaml

from xray_pneumonia.evaluation.assessment import Assessment
from xray_pneumonia.evaluation.intervals import FEWEST, Estimate
from xray_pneumonia.evaluation.report.text import SPLITS, meaning, number, percent, promise, spread, times, untold
from xray_pneumonia.evaluation.settings import EvaluationSettings
from xray_pneumonia.types import CLASSES, Classes, spoken

USE = "a second opinion beside a radiologist's reading of an upright frontal chest film; never the only reading"
POPULATION = (
    "The public films are of children of 1 to 5 years from one hospital; on children elsewhere, and on adults, such "
    "models have done far worse."
)
ELSEWHERE = "On films of other hospitals, machines and ages than those it was trained on, such models do far worse."


def limitations(classes: Classes) -> list[str]:
    """List the limits of use of a model that tells these classes apart."""
    known = "" if classes == CLASSES else f", {classes[0]} and {classes[1]}"
    return [
        POPULATION if classes == CLASSES else ELSEWHERE,
        f"It knows two answers{known}. Any other finding (a tumour, a fracture"
        f"{', tuberculosis' if classes == CLASSES else ''}) is called one of them.",
        "It sees a small gray square of the film and no history, no temperature, no second view.",
        "A heat map shows where evidence lies, not why; it is no proof that the answer is right.",
        "It was not tested in clinical use and is no medical device.",
    ]


def model_facts(
    config: Mapping[str, Any],
    tags: Mapping[str, str],
    assessment: Assessment,
    settings: EvaluationSettings,
    *,
    classes: Classes = CLASSES,
) -> dict[str, str]:
    """List the rows of the model card, from the plain config and the tags of the training."""
    decision, data = assessment.decision, config["data"]
    calibration, check = decision.calibration, assessment.calibration
    return {
        "Intended use": USE,
        "Net": f"{_class_name(config['model'])}, input {data['image_size']} x {data['image_size']} gray pixels",
        "Training": f"{_class_name(config['loss'])}, class weights {config['loss'].get('class_weights')}; "
        f"{_class_name(config['optimizer'])}, learning rate {config['optimizer'].get('lr'):g}; at most "
        f"{config['trainer']['max_epochs']} epochs, {_kept(config)}; seed {config['seed']}",
        "Records": f"fingerprint {tags.get('records_fingerprint', 'unknown')[:16]}",
        "Config": f"sha256 {tags.get('config_sha256', 'unknown')[:16]}",
        "Code": f"commit {tags.get('mlflow.source.git.commit', 'unknown')[:12]}, uncommitted changes: "
        f"{tags.get('git.dirty', 'unknown')}; torch {tags.get('version.torch', 'unknown')}",
        "Calibration": f"evidence = logit / {calibration.temperature:.3f} + {calibration.bias:.3f}, fitted on "
        f"validation; shown {_shown_at(calibration.prevalence)}",
        "Operating point": f"probability {decision.threshold:.4f}, policy {decision.policy}, chosen on validation",
        "What a probability means": meaning(
            0.8, prevalence=calibration.prevalence, threshold=decision.threshold, finding=spoken(classes[1])
        ),
        "Look closer": f"{decision.band.low:.4f} to {decision.band.high:.4f}. {promise(decision.promise)}",
        "Intervals": f"95 %, {settings.replicates} resamplings of patients; rates after Wilson, AUROC after DeLong on "
        f"the logit scale; none of fewer than {FEWEST} patients (of each class)",
        "Calibration error": f"{number(check.error)} {_shown_at(check.prevalence)}, on {assessment.images} images of "
        f"{assessment.patients} patients, of which chance alone gives {number(check.floor)}; slope "
        f"{check.slope}, intercept {check.intercept}",
    }


def checklist_answers(
    config: Mapping[str, Any], assessment: Assessment, *, split: str, openings: int, classes: Classes = CLASSES
) -> dict[str, str]:
    """Answer the items of the checklist that a run can answer, by the key `fact` of each."""
    at, data = assessment.at_point, config["data"]
    positive = spoken(classes[1])
    ill = int(assessment.table["label"].sum())
    leads = ", ".join(f"{name} {_with_count(at[name])}" for name in ("auroc", "sensitivity", "specificity"))
    return {
        "title": f"deep learning, diagnosis of {positive} on frontal chest films (population: a human's to state)",
        "use": USE,
        "objective": f"evaluation on the {SPLITS[split]} split" + (" during development" if split == "val" else ""),
        "data": f"{data['root']}; audited for broken files, duplicates, near-duplicates and shared patients",
        "preparation": f"gray, {data['image_size']} x {data['image_size']} pixels, scaled inside the net",
        "predictors": "pixels alone; names, sizes and modes of files never reach the net",
        "size": f"{assessment.images} images of {assessment.patients} patients ({ill} images with {positive}); no "
        "calculation was made, the intervals show what it suffices for",
        "missing": "unreadable files stop the run or are left out by name; no values are imputed",
        "partitions": f"split `{data['split']}` (validation {data['val_fraction']:.0%}); no patient and no "
        "two copies of a film on both sides",
        "model": f"{_class_name(config['model'])}; {_kept(config)} of its epochs",
        "measures": "discrimination, calibration, error rates and predictive values, each with an interval by patient",
        "updating": "calibration and operating point fitted on validation, "
        + ("the very split judged here" if split == "val" else "never on the split judged here"),
        "imbalance": f"class weights in the loss: {config['loss'].get('class_weights')}; calibrated after",
        "fairness": "subgroups by "
        + (", ".join(sorted({one.column for one in assessment.subgroups})) or "nothing known")
        + "; age, sex and origin are not in the records (a human's to add)",
        "output": f"calibrated probability; called {classes[1]} from {assessment.decision.threshold:.4f} "
        f"({assessment.decision.policy})",
        "differences": "none: a cut of the same patients' pool"
        if split == "val"
        else "see subgroups; a human's to state",
        "code": "config, code commit, versions and fingerprints are in the run",
        "participants": f"{assessment.patients} patients, {assessment.images} records in the split",
        "specification": "weights, config and pre-processing are in the run as one bundle",
        "performance": leads
        + (f"; the split had been opened {times(openings)}, this one included" if openings else ""),
        "heterogeneity": f"{len(assessment.subgroups)} subgroups with intervals" if assessment.subgroups else "",
        "limits": " ".join(limitations(classes)[:2]),
        "usability": "a gate stops what is no upright frontal film; uncertain films are left to a closer look",
    }


def fill_checklist(answers: Mapping[str, str]) -> list[dict[str, str]]:
    """Give the items of TRIPOD+AI and CLAIM: `item`, `topic`, `claim` and `answer`, "" where it is left to a human."""
    items = yaml.safe_load((files("xray_pneumonia.evaluation.report") / "checklist.yaml").read_text(encoding="utf-8"))
    return [{**item, "answer": answers.get(item.get("fact", ""), "")} for item in items]


def _shown_at(prevalence: float | None) -> str:
    return "at the prevalence of validation" if prevalence is None else f"where {percent(prevalence)} are ill"


def _kept(config: Mapping[str, Any]) -> str:
    chosen = config["trainer"].get("keep", "best") == "best"
    return f"the best by {config['monitor']} on validation" if chosen else "the last"


def _class_name(node: Mapping[str, Any]) -> str:
    return str(node.get("_target_", "?")).rpartition(".")[2]


def _with_count(one: Estimate) -> str:
    rate = untold(one) or f"{percent(one.value)} ({spread(one)})"
    return f"{rate} on {one.images} images of {one.patients} patients"

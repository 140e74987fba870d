"""Audit the data before every training: broken files, wrong labels, leakage between splits, shortcuts.

Errors would falsify every later figure and stop the training; warnings are logged. The findings depend on the cache's
key alone, so they are stored in its folder.
"""

import contextlib
import json
from dataclasses import asdict, dataclass, field
from typing import Literal

import numpy as np
import numpy.typing as npt
import pandas as pd

from xray_pneumonia.data.images.cache import ImageCache
from xray_pneumonia.data.images.sandbox import DOUBTFUL
from xray_pneumonia.data.near_duplicates import near_pairs
from xray_pneumonia.data.patients import unknown
from xray_pneumonia.errors import DataRefused
from xray_pneumonia.types import Gray
from xray_pneumonia.whole_files import file_sha256, write_whole

AUDIT_VERSION = 7  # raise it whenever the same cache gives other findings, or words
SHORTCUT_AUROC = 0.7
NEAR = 8  # gray levels that compression moves a value
TWO_VALUED = 0.8  # the share of such pixels in a mask at 32 x 32 pixels; 0.44 is the most in 543 X-rays
SHOWN = 10  # examples listed of each finding

Pairs = npt.NDArray[np.int64]
Level = Literal["error", "warning"]
Broken = Literal["refuse", "quarantine"]  # what to do with files that cannot be read
BROKEN_FILES = "broken_files"


@dataclass(frozen=True)
class Finding:
    """One kind of problem: how often it occurs, what it means, and the first examples."""

    level: Level
    code: str
    count: int
    message: str
    examples: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        """Render as a headline and an indented list."""
        more = [f"... and {self.count - len(self.examples)} more"] if self.count > len(self.examples) > 0 else []
        return "\n    ".join([f"{self.level} {self.code} ({self.count}): {self.message}", *self.examples, *more])


@dataclass(frozen=True)
class Audit:
    """The findings of an audit.

    `twins` lists pairs of rows that show the same X-ray, byte for byte or resized and re-encoded.
    `shortcuts` maps facts of the file, which no model sees, to the AUROC they reach on their own.
    """

    findings: list[Finding]
    twins: list[tuple[int, int]]
    shortcuts: dict[str, float]

    @property
    def errors(self) -> list[Finding]:
        """The findings that stop a training."""
        return [one for one in self.findings if one.level == "error"]

    @property
    def warnings(self) -> list[Finding]:
        """The findings that are logged."""
        return [one for one in self.findings if one.level == "warning"]

    def require_clean(self, *, broken: Broken = "refuse") -> None:
        """Raise DataRefused with every error found, but broken files where they are quarantined."""
        errors = [one for one in self.errors if broken == "refuse" or one.code != BROKEN_FILES]
        if errors:
            raise DataRefused("the audit refuses these data:\n  " + "\n  ".join(map(str, errors)))


def audit(cache: ImageCache) -> Audit:
    """Audit the records of a cache, or read the findings of an earlier audit of the same cache."""
    facts = file_sha256(cache.folder / "facts.csv")  # they change where a file is read at the second try
    file = cache.folder / f"audit-{AUDIT_VERSION}-{facts[:16]}.json"
    with contextlib.suppress(FileNotFoundError, ValueError, KeyError, TypeError):  # missing, or damaged
        stored = json.loads(file.read_text(encoding="utf-8"))
        findings = [Finding(**finding) for finding in stored["findings"]]
        return Audit(findings, [(a, b) for a, b in stored["twins"]], stored["shortcuts"])
    fresh = examine(cache.records, cache.images)
    write_whole(file, [json.dumps(asdict(fresh)).encode()], sync=False, shared=True)
    return fresh


def examine(records: pd.DataFrame, images: Gray) -> Audit:
    """Audit records, or a part of them; their index says which of the images (N, H, W) are theirs."""
    readable = records[records["error"] == ""]
    exact = _exact_pairs(readable)
    near = _near_pairs(readable, images)
    shortcuts = _shortcuts(readable)
    checked = [
        _broken(records),
        _doubtful(readable),
        *_classes(readable),
        _masks(readable, images),
        *_pair_findings(records, exact, "duplicates", "the same bytes"),
        *_pair_findings(records, near, "twins", "the same X-ray, resized or re-encoded,"),
        _shared_patients(readable),
        _unknown_patients(readable),
        _unknown_subtypes(readable),
        _strong_shortcuts(shortcuts),
    ]
    findings = [finding for finding in checked if finding.count]
    twins = [(int(a), int(b)) for a, b in np.concatenate([exact, near])]
    return Audit(findings, twins, shortcuts)


def _broken(records: pd.DataFrame) -> Finding:
    broken = records[records["error"] != ""]
    examples = [f"{row.id}: {row.error}: {row.detail}" for row in broken.head(SHOWN).itertuples()]
    message = "files that cannot be read; remove or replace them, or leave them out with data.broken=quarantine"
    return Finding("error", BROKEN_FILES, len(broken), message, examples)


def _doubtful(records: pd.DataFrame) -> Finding:
    """Find images of which `xray predict` gives no sure answer."""
    notes = [" ".join(sorted(DOUBTFUL.intersection(note.split()))) for note in records["notes"]]
    examples = [f"{name}: {note}" for name, note in zip(records["id"], notes, strict=True) if note]
    message = (
        "files may be damaged, or contradict themselves (about 2 in 1,000 whole ones look so); `xray predict` answers "
        '"look closer" to them; look at them, then replace them or leave them out'
    )
    return Finding("warning", "doubtful_files", len(examples), message, examples[:SHOWN])


def _classes(records: pd.DataFrame) -> list[Finding]:
    return [
        Finding(
            "warning" if split == "val" else "error",  # train and val are cut anew, unless data.split=official
            "one_class",
            1,
            f"split {split} holds {part['class_name'].iloc[0]} only; AUROC is undefined; add images of "
            f"{_other(records, part)} to it, or leave the whole split out of the data",
        )
        for split, part in records.groupby("split")
        if part["label"].nunique() < 2
    ]


def _masks(records: pd.DataFrame, images: Gray) -> Finding:
    """Find pictures of two gray values, but for the seam that resizing leaves between them."""
    masks = records[np.array([_two_valued(images[row]) for row in records.index], bool)]
    message = (
        "pictures have two gray values, as masks have, and no X-ray; move them out of the data, or list the X-rays in "
        "a CSV (data.root=CSV)"
    )
    return Finding("warning", "masks", len(masks), message, masks["id"].head(SHOWN).tolist())


def _two_valued(image: Gray) -> bool:
    counts = np.bincount(image.ravel(), minlength=256)
    least, most = np.flatnonzero(counts)[[0, -1]]
    extremes = counts[: least + NEAR].sum() + counts[most + 1 - NEAR :].sum()
    return bool(most - least > 2 * NEAR and extremes >= TWO_VALUED * image.size)


def _other(records: pd.DataFrame, part: pd.DataFrame) -> str:
    other = records.loc[records["label"] != part["label"].iloc[0], "class_name"]
    return str(other.iloc[0]) if len(other) else "the other class"


def _exact_pairs(records: pd.DataFrame) -> Pairs:
    """Pair each record with the first one of the same bytes."""
    first = records.groupby("sha256")["label"].transform(lambda group: group.index[0])
    later = records.index[records.index != first]
    return np.stack([first[later].to_numpy(), later.to_numpy()], axis=1).astype(np.int64)


def _near_pairs(records: pd.DataFrame, images: Gray) -> Pairs:
    """Pair records of different bytes that show the same X-ray."""
    unique = records.drop_duplicates("sha256")
    return near_pairs(images, unique.index.to_numpy(np.int64), unique["dhash"].tolist())


def _pair_findings(records: pd.DataFrame, pairs: Pairs, code: str, what: str) -> list[Finding]:
    left, right = records.loc[pairs[:, 0]], records.loc[pairs[:, 1]]
    across = left["split"].to_numpy() != right["split"].to_numpy()
    unlike = left["label"].to_numpy() != right["label"].to_numpy()
    kinds: list[tuple[Level, str, npt.NDArray[np.bool_], str]] = [
        ("error" if code == "duplicates" else "warning", "labels", unlike, "under two labels; remove the wrong one"),
        ("error", "across_splits", across, "in two splits; remove one of each pair"),
        ("warning", "within_split", ~across & ~unlike, "twice in a split; they are kept on one side of every cut"),
    ]
    names = records["id"]
    return [
        Finding(
            level,
            f"{code}_{kind}",
            int(hit.sum()),
            f"{what} {meaning}",
            [f"{names[a]} = {names[b]}" for a, b in pairs[hit][:SHOWN]],
        )
        for level, kind, hit, meaning in kinds
    ]


def _shared_patients(records: pd.DataFrame) -> Finding:
    splits = records.groupby("patient")["split"].agg(lambda names: " and ".join(sorted(set(names))))
    shared = splits[splits.str.contains(" and ")]
    message = (
        "patients in several splits of the folder; train and val are cut anew by patient, but figures on test may "
        "flatter (`xray train data.drop_test_patients=true` leaves their training images out)"
    )
    examples = [f"{patient}: {names}" for patient, names in shared.head(SHOWN).items()]
    return Finding("warning", "patients_across_splits", len(shared), message, examples)


def _unknown_patients(records: pd.DataFrame) -> Finding:
    """Find images with no patient but their own name, which are split as if each were of another patient."""
    alone = records[unknown(records)]
    message = (
        "images whose names follow no known scheme, so each counts as one patient: `by patient` means by file, "
        "and figures flatter where a patient has several; name the patients in a CSV's column `patient` "
        "(data.root=CSV), by a pattern (data.patient=REGEX), or by the hashed PatientID of DICOM (data.patient=dicom)"
    )
    examples = alone["id"].head(SHOWN).tolist()
    return Finding("warning", "unknown_patients", len(alone), message, examples)


def _unknown_subtypes(records: pd.DataFrame) -> Finding:
    unknown = records[(records["patient"] != "") & records["subtype"].eq("unknown")]
    message = "pneumonias of unknown kind (bacteria or virus): their names follow no known scheme"
    return Finding("warning", "unknown_subtype", len(unknown), message)


def _shortcuts(records: pd.DataFrame) -> dict[str, float]:
    """Predict the label from facts of the file alone: each one by itself, and a small tree on all of them.

    A single fact scores max(AUROC, 1 - AUROC); the tree is scored out of fold, folds grouped by patient.
    """
    from sklearn.metrics import roc_auc_score  # over a second to import, and needed once for each cache
    from sklearn.model_selection import StratifiedGroupKFold, cross_val_predict
    from sklearn.tree import DecisionTreeClassifier

    patients = records.groupby("label")["patient"].nunique()
    if len(patients) < 2 or patients.min() < 5:
        return {}
    facts = records[["width", "height", "bytes"]].assign(
        pixels=records["width"] * records["height"], rgb=(records["mode"] != "L").astype(int)
    )
    label = records["label"].to_numpy()
    alone = {str(name): float(roc_auc_score(label, facts[name])) for name in facts}
    tree = DecisionTreeClassifier(max_depth=6, min_samples_leaf=20, random_state=0)
    folds = StratifiedGroupKFold(5, shuffle=True, random_state=0)
    scores = cross_val_predict(tree, facts, label, groups=records["patient"], cv=folds, method="predict_proba")
    return {name: max(auroc, 1 - auroc) for name, auroc in alone.items()} | {
        "all of them": float(roc_auc_score(label, scores[:, 1]))
    }


def _strong_shortcuts(shortcuts: dict[str, float]) -> Finding:
    strong = {name: auroc for name, auroc in shortcuts.items() if auroc >= SHORTCUT_AUROC}
    message = "facts of the file alone predict the label; no model sees them, but images may carry their traces"
    examples = [f"{name}: AUROC {auroc:.3f}" for name, auroc in strong.items()]
    return Finding("warning", "shortcuts", len(strong), message, examples)

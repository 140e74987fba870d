"""Ensembles: a folder with nothing but `ensemble.json`, which names its members and says how they answer as one.

The members are bundles in folders beside it, so that no weights are stored twice. Their answer is the
mean of their calibrated logits, calibrated once more.
"""

import json
import os
from dataclasses import asdict
from pathlib import Path
from typing import Any

from xray_pneumonia.errors import InputError
from xray_pneumonia.inference.bundle import MOST_OF_CARD, WEIGHTS, Card, file_sha256, parse_card, require_plain
from xray_pneumonia.inference.bundles import Bundle, calibrated, open_bundle, require_classes
from xray_pneumonia.inference.calibrated import Mean

ENSEMBLE = "ensemble.json"
MOST_MEMBERS = 100


def save_ensemble(folder: Path, members: list[str], card: Card) -> None:
    """Write `ensemble.json`.

    Args:
        folder: of the ensemble; made where it is missing.
        members: names of the folders beside it that hold the members' bundles; the first one's gate and
            heat maps are the ensemble's.
        card: of the ensemble: `net` is empty, calibration, operating point and band are about the mean of
            the members' calibrated logits.

    Raises:
        InputError: a member is not there, named twice, or of another image size.
    """
    bundles = _open_members(folder, members)
    _require_fitting(folder, card, bundles)
    known = [{"name": name, "weights_sha256": file_sha256(folder.parent / name / WEIGHTS)} for name in members]
    folder.mkdir(parents=True, exist_ok=True)
    text = json.dumps({"members": known, "card": asdict(card)}, indent=2)
    (folder / ENSEMBLE).write_text(text, encoding="utf-8")


def open_ensemble(folder: Path, *, name: str) -> Bundle:
    """Open an ensemble as the one model it is.

    Args:
        folder: that holds `ensemble.json`.
        name: what to call it.

    Raises:
        InputError: the file or a member is missing, damaged or altered, or they do not fit each other.
    """
    path = folder / ENSEMBLE
    try:
        values = json.loads(require_plain(path, most=MOST_OF_CARD).read_text(encoding="utf-8"))
        card = parse_card(json.dumps(values["card"]), name=str(path))
        names = [str(one["name"]) for one in values["members"]]
        hashes = [str(one["weights_sha256"]) for one in values["members"]]
    except (OSError, ValueError, TypeError, KeyError, RecursionError) as error:
        raise InputError(f"{path}: describes no ensemble: {error!r}") from error
    require_classes(card, name=str(path))
    bundles = _open_members(folder, names)
    _require_fitting(folder, card, bundles)
    for member, expected in zip(names, hashes, strict=True):
        if file_sha256(folder.parent / member / WEIGHTS) != expected:
            raise InputError(f"{path}: the weights of {member} are not those it was made with; fetch the model again")
    first, mean = bundles[0], Mean([one.answer for one in bundles])
    return Bundle(name, folder, card, first.gate, first.net, calibrated(mean, card), tuple(bundles))


def _open_members(folder: Path, names: list[str]) -> list[Bundle]:
    if not 0 < len(names) <= MOST_MEMBERS or len(set(names)) < len(names):
        raise InputError(
            f"{folder / ENSEMBLE}: members={names[:3]}... ({len(names)}): name each once, at most {MOST_MEMBERS}"
        )
    return [open_bundle(_member(folder, name), name=name) for name in names]


def _member(folder: Path, name: Any) -> Path:
    """Name a member's folder, which stands beside the ensemble's and nowhere else."""
    if not isinstance(name, str) or Path(name).name != name or name in {"", ".", ".."}:
        raise InputError(f"{folder / ENSEMBLE}: member {name!r}: should be the name of a folder beside {folder}")
    place = folder.parent / name
    if os.path.islink(place):  # unlike Path's, it takes any name
        raise InputError(f"{folder / ENSEMBLE}: member {name!r}: is a link; put the folder itself beside {folder}")
    return place


def _require_fitting(folder: Path, card: Card, bundles: list[Bundle]) -> None:
    for bundle in bundles:
        if bundle.card.image_size != card.image_size:
            raise InputError(
                f"{folder / ENSEMBLE}: {bundle.name} sees {bundle.card.image_size} pixels, the ensemble "
                f"{card.image_size}; an ensemble needs one image size"
            )

"""Reads and writes `ensemble.json`: the members of an ensemble, and the card of what they answer together.

Members are bundles in folders next to the ensemble's own, so that no weights are stored twice.
"""

import json
import os
from pathlib import Path
from typing import Any

from xray_pneumonia.errors import InputError
from xray_pneumonia.inference.bundle import MAX_CARD_BYTES, WEIGHTS, Card, parse_card, require_plain
from xray_pneumonia.whole_files import file_sha256

ENSEMBLE = "ensemble.json"
MAX_MEMBERS = 100


def require_alike(card: Card, first: Card, *, origin: str, names: tuple[str, str]) -> None:
    """Raise InputError unless two models, `names`, can be of one ensemble: of one question and one image size."""
    if card.image_size != first.image_size:
        raise InputError(
            f"{origin}: {names[0]} sees {card.image_size} pixels, {names[1]} {first.image_size}; an ensemble needs one "
            "image size"
        )
    if card.class_names != first.class_names:
        told, known = (" and ".join(one.class_names) for one in (card, first))
        raise InputError(f"{origin}: {names[0]} tells {told} apart, {names[1]} {known}; an ensemble needs one question")


def save_ensemble(folder: Path, members: list[str], card: Card) -> None:
    """Write `ensemble.json`.

    Args:
        folder: of the ensemble; made where it is missing.
        members: names of the folders next to it that hold the members' bundles; the first one's heat maps are
            the ensemble's.
        card: of the ensemble: `net` is empty, calibration, operating point and band are for the mean of the members'
            evidence.

    Raises:
        InputError: a member is named twice, or lies elsewhere.
        OSError: a member has no weights.
    """
    places = _member_folders(folder, members)
    known = [{"name": place.name, "weights_sha256": file_sha256(place / WEIGHTS)} for place in places]
    folder.mkdir(parents=True, exist_ok=True)
    text = json.dumps({"members": known, "card": card.values()}, indent=2)
    (folder / ENSEMBLE).write_text(text, encoding="utf-8")


def read_ensemble(folder: Path) -> tuple[Card, dict[Path, str]]:
    """Read an ensemble's card, and its members' folders with the sha256 of their weights.

    Raises:
        InputError: the file is missing or damaged, or a member is named twice or lies elsewhere.
    """
    path = folder / ENSEMBLE
    try:
        values = json.loads(require_plain(path, most=MAX_CARD_BYTES).read_text(encoding="utf-8"))
        card = parse_card(json.dumps(values["card"]), name=str(path))
        names = [str(one["name"]) for one in values["members"]]
        hashes = [str(one["weights_sha256"]) for one in values["members"]]
    except (OSError, ValueError, TypeError, KeyError, RecursionError) as error:
        raise InputError(f"{path}: describes no ensemble: {error!r}") from error
    return card, dict(zip(_member_folders(folder, names), hashes, strict=True))


def _member_folders(folder: Path, names: list[str]) -> list[Path]:
    if not 0 < len(names) <= MAX_MEMBERS or len(set(names)) < len(names):
        raise InputError(
            f"{folder / ENSEMBLE}: members={names[:3]}... ({len(names)}): name each once, at most {MAX_MEMBERS}"
        )
    return [_member_folder(folder, name) for name in names]


def _member_folder(folder: Path, name: Any) -> Path:
    """Locate a member's folder, which lies next to the ensemble's and nowhere else."""
    if not isinstance(name, str) or Path(name).name != name or name in {"", ".", ".."}:
        raise InputError(f"{folder / ENSEMBLE}: member {name!r}: should be the name of a folder next to {folder}")
    place = folder.parent / name
    if os.path.islink(place):  # unlike Path's, it takes any name
        raise InputError(f"{folder / ENSEMBLE}: member {name!r}: is a link; put the folder itself next to {folder}")
    return place

"""Reads and writes bundles: `model.safetensors` and `model.json`, all that a prediction needs; no pickle."""

import json
import stat
from collections.abc import Mapping
from dataclasses import MISSING, asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from xray_pneumonia.errors import InputError
from xray_pneumonia.evaluation.abstention import Promise
from xray_pneumonia.evaluation.assessment import Decision
from xray_pneumonia.signatures import problems
from xray_pneumonia.types import CLASSES, Classes, Fraction, OpenFraction, Positive, Side, spoken
from xray_pneumonia.whole_files import file_sha256

SCHEMA = 1  # raise it when a field changes its meaning
WEIGHTS, CARD, GATE = "model.safetensors", "model.json", "gate.npz"
MAX_BYTES, MAX_CARD_BYTES = 2**31, 2**20  # no model of this package is larger


@dataclass(frozen=True, kw_only=True)
class Card:
    """What a model's answers need besides its weights.

    Args:
        net: the config group `model`; empty for an ensemble.
        class_names: by label.
        image_size: height and width of what the net sees, in pixels.
        temperature: divides the logits; 1 until a calibration is fitted.
        bias: is added after that; the sum is the evidence.
        prevalence: the share of ill patients among whom the probabilities hold; null in models of version 0.1.0, whose
            bias contains that of their validation split.
        operating_point: the probability, at that prevalence, from which an image is called PNEUMONIA.
        operating_point_policy: how it was chosen.
        band: the model abstains at calibrated probabilities between these two; empty in a model without a band.
        promise: what the band's margin promises; null in models of version 0.1.0.
        records_fingerprint: of the records it was trained on.
        run_id: of the training; of several, joined by commas.
        versions: of the packages that wrote it.
        evidence: what it was trained and validated on, such as `val/images`, `val/patients` and `val/auroc`.
        weights_sha256: of the file of weights; empty in models written before it was kept.
        lineage: of an adapted model: its parent and the hash of its weights, how it was adapted, to how many films.
        extensions: modules of the user's own with which it was trained, and the hashes of their sources.
    """

    net: dict[str, Any]
    class_names: list[str]
    image_size: Side
    temperature: Positive
    operating_point: Fraction
    operating_point_policy: str
    records_fingerprint: str
    run_id: str
    versions: dict[str, str]
    bias: float = 0.0
    band: list[Fraction] = field(default_factory=list)
    schema: int = SCHEMA
    evidence: dict[str, float] = field(default_factory=dict)
    weights_sha256: str = ""
    prevalence: OpenFraction | None = None
    promise: Promise | None = None
    lineage: dict[str, str] = field(default_factory=dict)
    extensions: dict[str, str] = field(default_factory=dict)

    def values(self) -> dict[str, Any]:
        """List the fields as they are stored; `extensions` and `lineage` are left out where they are empty."""
        return {name: value for name, value in asdict(self).items() if value or name not in {"extensions", "lineage"}}

    @property
    def classes(self) -> Classes:
        """The class names by label."""
        return self.class_names[0], self.class_names[1]

    @property
    def answers(self) -> dict[str, str]:
        """How the answers of a `Band` are worded with these classes."""
        return dict(zip(("normal", "pneumonia"), map(spoken, self.classes), strict=True))

    def with_decision(self, decision: Decision) -> "Card":
        """Copy the card with another calibration, operating point and band."""
        return replace(
            self,
            temperature=decision.calibration.temperature,
            bias=decision.calibration.bias,
            prevalence=decision.calibration.prevalence,
            operating_point=decision.threshold,
            operating_point_policy=decision.policy,
            band=[decision.band.low, decision.band.high],
            promise=decision.promise,
        )


def save_bundle(folder: Path, net: nn.Module, card: Card) -> None:
    """Write weights and card; the card gets the weights' hash."""
    folder.mkdir(parents=True, exist_ok=True)
    save_file({name: tensor.contiguous() for name, tensor in net.state_dict().items()}, folder / WEIGHTS)
    written = card.values() | {"weights_sha256": file_sha256(folder / WEIGHTS)}
    (folder / CARD).write_text(json.dumps(written, indent=2), encoding="utf-8")


def read_bundle(folder: Path) -> tuple[Card, dict[str, Tensor]]:
    """Read the card and the weights.

    Raises:
        InputError: a file is missing, of another schema, or the weights are not those of the card.
    """
    try:
        text = require_plain(folder / CARD, most=MAX_CARD_BYTES).read_text(encoding="utf-8")
        card = parse_card(text, name=str(folder / CARD))
        weights = load_file(require_plain(folder / WEIGHTS, most=MAX_BYTES))
    except (OSError, ValueError, KeyError, RecursionError, SafetensorError) as error:
        raise InputError(f"{folder}: is no bundle ({CARD}, {WEIGHTS}): {error}") from error
    if card.weights_sha256 and card.weights_sha256 != file_sha256(folder / WEIGHTS):
        raise InputError(f"{folder}/{WEIGHTS}: is not the file that {CARD} was written with; fetch the model again")
    return card, weights


def parse_card(text: str, *, name: str) -> Card:
    """Parse a card, which is untrusted input.

    Raises:
        InputError: it is of another schema or has other classes, or a field is missing, unknown or out of range.
        ValueError: it is no JSON.
    """
    values = json.loads(text)
    if not isinstance(values, Mapping):
        raise InputError(f"{name}: holds no card of a model")
    if values.get("schema", SCHEMA) != SCHEMA:
        raise InputError(f"{name}: schema {values.get('schema')}; this version reads {SCHEMA}")
    defaults = {one.name: one.default for one in fields(Card) if one.default is not MISSING}
    values = {"band": [], "evidence": {}, "extensions": {}, "lineage": {}, **defaults, **values}
    found = problems(values, Card, prefix="")
    if not found and (len(values["band"]) not in {0, 2} or values["band"] != sorted(values["band"])):
        found.append(f"band={values['band']!r}: should be empty or a lower and an upper probability")
    found += [] if found else _wrong_classes(values["class_names"])
    if found:
        raise InputError(f"{name}: {found[0][:500]}")
    return Card(**values)


def _wrong_classes(names: list[str]) -> list[str]:
    """Say what is wrong with class names, which stand in tables, pages and answers."""
    keys = [name.casefold() for name in names]
    if len(set(keys)) != 2 or len(names) != 2 or not all(one.isprintable() and 0 < len(one) <= 200 for one in names):
        return [f"class_names={names}: should be two printable names, the negative one first"]
    if keys == [name.casefold() for name in reversed(CLASSES)]:
        return [f"class_names={names}: this version knows {list(CLASSES)}, in this order"]
    return []


def require_plain(path: Path, *, most: int) -> Path:
    """Refuse, before it is opened, what is no regular file of its own folder; returns the path.

    Args:
        path: of a file that somebody else may have made: a pipe would block for ever, a link lead anywhere.
        most: bytes.

    Raises:
        InputError: it is none, or larger.
        OSError: it does not exist.
    """
    try:
        real = path.resolve(strict=True)
    except RuntimeError as error:
        raise InputError(f"{path}: is a link to itself") from error
    if real.parent != path.parent.resolve():
        raise InputError(f"{path}: is a link that leads out of its folder; put the file itself there")
    found = real.stat()
    if not stat.S_ISREG(found.st_mode):
        raise InputError(f"{path}: is no regular file")
    if found.st_size > most:
        raise InputError(f"{path}: has {found.st_size} bytes; at most {most} are read")
    return path

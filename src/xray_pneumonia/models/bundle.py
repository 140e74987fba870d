"""The bundle: `model.safetensors` and `model.json`, from which predictions can be made alone; no pickle."""

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from xray_pneumonia.errors import InputError

SCHEMA = 1  # raise it when a field changes its meaning


@dataclass(frozen=True, kw_only=True)
class Card:
    """What travels with the weights.

    Args:
        net: the config group `model`.
        class_names: by label.
        image_size: height and width of what the net sees, in pixels.
        temperature: divides the logits; 1 until a calibration is fitted.
        bias: is added after that.
        operating_point: the probability from which an image is called PNEUMONIA.
        operating_point_policy: how it was chosen.
        band: calibrated probabilities between these two mean "look closer"; none in a model without one.
        records_fingerprint: of the records it was trained on.
        run_id: of the training.
        versions: of the packages that wrote it.
    """

    net: dict[str, Any]
    class_names: list[str]
    image_size: int
    temperature: float
    operating_point: float
    operating_point_policy: str
    records_fingerprint: str
    run_id: str
    versions: dict[str, str]
    bias: float = 0.0
    band: list[float] = field(default_factory=list)
    schema: int = SCHEMA


def save_bundle(folder: Path, net: nn.Module, card: Card) -> None:
    """Write the two files."""
    folder.mkdir(parents=True, exist_ok=True)
    save_file({name: tensor.contiguous() for name, tensor in net.state_dict().items()}, folder / "model.safetensors")
    (folder / "model.json").write_text(json.dumps(asdict(card), indent=2), encoding="utf-8")


def read_bundle(folder: Path) -> tuple[Card, dict[str, Tensor]]:
    """Read the card and the weights.

    Raises:
        InputError: a file is missing or of another schema.
    """
    try:
        card = json.loads((folder / "model.json").read_text(encoding="utf-8"))
        weights = load_file(folder / "model.safetensors")
    except (OSError, ValueError, RecursionError, SafetensorError) as error:
        raise InputError(f"{folder}: is no bundle (model.json, model.safetensors): {error}") from error
    schema = card.get("schema") if isinstance(card, dict) else None
    if schema != SCHEMA:
        raise InputError(f"{folder}/model.json: schema {schema}; this version reads {SCHEMA}")
    return Card(**card), weights

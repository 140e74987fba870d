"""Answers a film from the archive: its structured report and its secondary capture, for `xray serve dicom.port=...`."""

from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from xray_pneumonia.evaluation.report.text import percent
from xray_pneumonia.inference.model import TrainedModel
from xray_pneumonia.pacs import replies
from xray_pneumonia.types import Gray
from xray_pneumonia.workflows.contact_sheet import describe_evidence, meaning, word_probability

STRENGTH = 0.6  # of the heat over the film


def make_answer(
    reading: Any, heat_map: Callable[[Path], tuple[bytes, str]], model: TrainedModel, journal: Any
) -> Callable[[Path, Any], list[bytes]]:
    """Make the function that answers a film; `heat_map` gives the layer as PNG (empty where there is none), and why."""
    card = model.card
    reader = replies.Reader(model.name, (card.weights_sha256 or card.run_id)[:12], card.class_names[1])

    def answer(path: Path, film: Any) -> list[bytes]:
        row = reading.read(path)
        journal.answered(row, model=reader.version, reader="dicom")
        if row.get("error"):
            unread = f"This film could not be read: {row['message']}. {replies.WARNING}."
            return [replies.report(film, row, reader, comment=unread)]
        data, attempt = reading.picture(path)
        words = f"{row['decision']}, probability {percent(row['probability'])}: {meaning(card, row)}"
        said = f"{words}. {word_probability(card)(row['probability'])} {describe_evidence(card)}"
        comment = f"{said} {replies.WARNING}. Model {reader.name} {reader.version}."
        picture = _overlaid(data, heat_map(path)[0], width=attempt.width, height=attempt.height)
        lines = [words, f"model {reader.name} {reader.version}"]
        return [
            replies.report(film, row, reader, comment=comment),
            replies.capture(film, picture, reader, lines=lines),
        ]

    return answer


def _overlaid(film: bytes, heat: bytes, *, width: int, height: int) -> Gray:
    """Lay a heat map over a film, in the film's shape; returns (H, W, 3)."""
    with Image.open(BytesIO(film), formats=("PNG",)) as image:
        page = image.convert("RGBA")
    if heat:
        with Image.open(BytesIO(heat), formats=("PNG",)) as image:
            layer = image.convert("RGBA").resize(page.size, Image.Resampling.BICUBIC)
        layer.putalpha(layer.getchannel("A").point(lambda opacity: round(STRENGTH * opacity)))
        page = Image.alpha_composite(page, layer)
    scale = max(page.size) / max(width, height)
    sides = (max(1, round(width * scale)), max(1, round(height * scale)))
    return np.asarray(page.convert("RGB").resize(sides, Image.Resampling.BILINEAR))

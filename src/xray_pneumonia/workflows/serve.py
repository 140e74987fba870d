"""Runs `xray serve`, a page and an interface for readers of X-rays; and serves bundles through MLflow.

Every logged model names this module as its loader: `mlflow.pyfunc.load_model` and `mlflow models serve` call
`_load_pyfunc`.
"""

import base64
import binascii
import ipaddress
import os
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from omegaconf import DictConfig

from xray_pneumonia.config import Node, anchor, build, check
from xray_pneumonia.data.images.decode import decode
from xray_pneumonia.data.images.limits import ImageError
from xray_pneumonia.errors import InputError
from xray_pneumonia.evaluation import gradcam
from xray_pneumonia.evaluation.input_gate import FLAGS
from xray_pneumonia.evaluation.report.model_card import LIMITATIONS, USE
from xray_pneumonia.inference.loading import load_model
from xray_pneumonia.inference.model import TrainedModel
from xray_pneumonia.types import Count, Gray, Port, Positive, Processes, Text
from xray_pneumonia.workflows.contact_sheet import MEANS, describe_evidence
from xray_pneumonia.workflows.find_model import find_and_load
from xray_pneumonia.workflows.predict import HeatMaps, classify, dicom_rules

TOKEN = "XRAY_SERVE_TOKEN"
SHORTEST_TOKEN = 16


@dataclass(frozen=True, kw_only=True)
class ServeConfig:
    """The top-level keys of serve.yaml."""

    home: Text
    model: Text
    host: Text
    port: Port
    allowed_hosts: list[str]
    keep: Text | None
    audit: Text
    most_waiting: Count
    upload_mb: Count
    upload_seconds: Positive
    modalities: list[str]
    views: list[str]
    body_parts: list[str]
    any_preamble: bool
    workers: Processes | None
    limits: Node
    tracking: Node


def main(cfg: DictConfig) -> None:
    """Serve until stopped.

    Raises:
        InputError: the address is not to be had, or not without a token; a package of the extra `serve` is missing.
    """
    anchor(cfg)
    check(cfg, ServeConfig)
    tokens = _tokens(cfg.host)
    try:
        from xray_pneumonia.serving import app, guard, reader, records, server
    except ImportError as error:
        raise InputError(f"xray serve: {error.name} is missing; pip install 'xray-pneumonia[serve]'") from error
    listener = server.listen(cfg.host, cfg.port)
    model = find_and_load(cfg.model, tracking=build(cfg.tracking), home=Path(cfg.home), engine="torch")
    os.umask(0o077)
    journal = records.Journal(Path(cfg.audit), Path(cfg.keep) if cfg.keep else None)
    reading = reader.Reader(
        lambda attempts: classify(attempts, model, None),
        image_size=model.card.image_size,
        rules=dicom_rules(cfg),
        limits=build(cfg.limits),
        workers=cfg.workers or os.cpu_count() or 1,
    )
    with reading:
        service = app.Service(
            reader=reading,
            heat_map=_heat_maps(reading, model),
            describe=lambda row, prevalence: _describe(row, model),
            model=_facts(model),
            journal=journal,
            most_waiting=cfg.most_waiting,
        )
        rules = guard.Rules(
            hosts=guard.host_names(cfg.host, cfg.allowed_hosts),
            tokens=tokens,
            most_bytes=cfg.upload_mb * 2**20,
            seconds=cfg.upload_seconds,
        )
        _warm_up(model)
        host, port = listener.getsockname()[:2]
        print(f"A second opinion beside a radiologist's reading; no medical device. Audit lines: {cfg.audit}")
        print(f"url=http://{f'[{host}]' if ':' in host else host}:{port} model={model.name}", flush=True)
        server.run(app.make_app(service, rules), listener)


def _tokens(host: str) -> tuple[str, ...]:
    """Read the tokens, of which other machines need one.

    Raises:
        InputError: others could reach the server without a token, or a token is short.
    """
    tokens = tuple(filter(None, os.environ.get(TOKEN, "").split(",")))
    if any(len(token) < SHORTEST_TOKEN for token in tokens):
        raise InputError(f"{TOKEN}: use at least {SHORTEST_TOKEN} characters, as from `openssl rand -hex 16`")
    if not tokens and not _is_local(host):
        raise InputError(
            f"host={host}: other machines could send films and read answers; set {TOKEN} to a secret of at least "
            f"{SHORTEST_TOKEN} characters, or leave host=127.0.0.1"
        )
    return tokens


def _is_local(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _warm_up(model: TrainedModel) -> None:
    """Run the model once, which takes longer than every later time."""
    model.decide(np.zeros((1, model.card.image_size, model.card.image_size), np.uint8))


def _heat_maps(reading: Any, model: TrainedModel) -> Callable[[Path], tuple[bytes, str]]:
    """Make the function that draws a heat map as a layer over the film."""
    from xray_pneumonia.serving.reader import png

    maps, lock = HeatMaps(model.require_net(), Path()), threading.Lock()

    def draw(path: Path) -> tuple[bytes, str]:
        attempt = reading.decode(path)
        if attempt.pixels is None:
            return b"", attempt.message
        with lock:
            heat = maps.compute(attempt.pixels[None])
        if heat is not None and heat.any():
            return png(gradcam.layer(heat[0])), ""
        if maps.informative is False:
            return b"", "Heat maps are withheld: nets with random weights draw much the same."
        return b"", "Nothing in this film speaks for the finding, so there is no heat map."

    return draw


def _facts(model: TrainedModel) -> dict[str, Any]:
    """Describe the model for the page and `/v1/models`."""
    card = model.card
    return {
        "name": model.name,
        "version": (card.weights_sha256 or card.run_id)[:12],
        "run_id": card.run_id,
        "classes": list(card.class_names),
        "question": f"{card.class_names[1]} or {card.class_names[0]}",
        "image_size": card.image_size,
        "operating_point": card.operating_point,
        "prevalence": None,
        "decisions": {"positive": "pneumonia", "uncertain": "look closer", "negative": "normal"},
        "evidence": describe_evidence(card),
        "use": f"Use: {USE}.",
        "limitations": list(LIMITATIONS),
    }


def _describe(row: Mapping[str, Any], model: TrainedModel) -> dict[str, Any]:
    """Make the JSON of an answer from a row of `xray predict`."""
    sure = "positive" if row["label"] == model.card.class_names[1] else "negative"
    names = ("decision", "label", "probability", "operating_point", "reason", "sha256", "width", "height")
    return {
        **{name: row[name] for name in names},
        "kind": "uncertain" if row["decision"] == "look closer" else sure,
        "flags": [{"name": flag, "meaning": FLAGS.get(flag, flag)} for flag in row["flags"]],
        "words": MEANS[row["decision"]],
        "model": model.name,
        "version": (model.card.weights_sha256 or model.card.run_id)[:12],
    }


class BundleModel:
    """A trained model with the interface of MLflow's pyfunc."""

    def __init__(self, model: TrainedModel) -> None:
        self._model = model
        self._side = model.card.image_size

    def predict(self, model_input: pd.DataFrame | dict[str, Any], params: Any = None) -> pd.DataFrame:
        """Classify X-rays.

        Args:
            model_input: a table or dict with the column `image` (the bytes of a PNG or JPEG file; base64 is
                read too) or `pixels` (S x S gray values).
            params: are not used.

        Returns:
            One row for each: `probability`, `label`, `operating_point`, `answer`, `abstention`. What cannot be
            read has probability NaN, no label, and the reason as its abstention.

        Raises:
            ValueError: the input is neither of these.
        """
        decoded = self._decode_all(model_input)
        images = {row: one for row, one in enumerate(decoded) if not isinstance(one, ImageError)}
        stacked = np.stack(list(images.values())) if images else np.empty((0, self._side, self._side), np.uint8)
        table = self._model.decide(stacked).drop(columns="gate").set_index(pd.Index(list(images), dtype=int))
        table = table.reindex(range(len(decoded)))
        for row, error in enumerate(decoded):
            if isinstance(error, ImageError):
                table.loc[row, ["answer", "label", "abstention"]] = ["look closer", "", f"unreadable: {error}"]
                table.loc[row, "operating_point"] = self._model.card.operating_point
        return table

    def _decode_all(self, given: Any) -> list[Gray | ImageError]:
        given = {name: list(given[name]) for name in given}
        for name, read, deep in (("image", self._decode, 1), ("pixels", self._check, 3)):
            values = given.get(name)
            if values is not None and len(values) == 1 and _depth(values[0]) == deep:
                values = values[0]  # MLflow puts the lists of a dict into one row
            if values is not None and len(values) and not any(one is None for one in values):
                return [read(one) for one in values]
        raise ValueError(f"columns {sorted(given)}: give `image` (bytes of a PNG or JPEG) or `pixels` in every row")

    def _decode(self, data: Any) -> Gray | ImageError:
        try:
            if isinstance(data, str):
                data = base64.b64decode(data, validate=True)
            return decode(bytes(data), self._side).pixels
        except binascii.Error:
            return ImageError("not_an_image", "is no base64")
        except ImageError as error:
            return error

    def _check(self, values: Any) -> Gray:
        pixels = np.asarray(list(values))  # a column of lists comes as an array of arrays
        pixels = pixels[0] if pixels.ndim == 3 and len(pixels) == 1 else pixels
        side = self._side
        if pixels.shape != (side, side) or pixels.min() < 0 or pixels.max() > 255 or (pixels % 1).any():
            raise ValueError(f"pixels {pixels.shape}: this model reads {side} x {side} whole numbers from 0 to 255")
        return pixels.astype(np.uint8)


def _depth(value: Any) -> int:
    return 1 + _depth(value[0]) if isinstance(value, list | np.ndarray) and len(value) else 0


def _load_pyfunc(path: str) -> BundleModel:
    return BundleModel(load_model(Path(path), name=path))

"""Runs `xray serve`: a page and an interface for readers of X-rays.

Models logged by version 0.1.0 name this module as their loader: MLflow calls `_load_pyfunc`.
"""

import ipaddress
import os
import threading
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from omegaconf import DictConfig

from xray_pneumonia.config import Node, build, check
from xray_pneumonia.data.images.sandbox import Attempt
from xray_pneumonia.errors import InputError
from xray_pneumonia.evaluation import gradcam
from xray_pneumonia.evaluation.calibration import translate
from xray_pneumonia.evaluation.quality import FLAGS
from xray_pneumonia.evaluation.report.model_card import USE, limitations
from xray_pneumonia.evaluation.report.text import promise
from xray_pneumonia.inference.model import TrainedModel
from xray_pneumonia.types import Count, Port, Positive, Processes, Text
from xray_pneumonia.workflows.contact_sheet import describe_evidence, meaning, word_probability
from xray_pneumonia.workflows.find_model import find_and_load
from xray_pneumonia.workflows.predict import COMPARED, HeatMaps, classify, dicom_rules
from xray_pneumonia.workflows.prediction_files import Row
from xray_pneumonia.workflows.pyfunc import _load_pyfunc  # noqa: F401

TOKEN = "XRAY_SERVE_TOKEN"
SHORTEST_TOKEN = 16


@dataclass(frozen=True, kw_only=True)
class ServeConfig:
    """The top-level keys of serve.yaml."""

    home: Text
    extensions: dict[str, str]
    model: Text
    host: Text
    port: Port
    allowed_hosts: list[Text]
    keep: Text | None
    audit: Text
    most_waiting: Count
    upload_mb: Count
    upload_seconds: Positive
    modalities: list[Text]
    views: list[Text]
    body_parts: list[Text]
    any_preamble: bool
    workers: Processes | None
    dicom: Node
    limits: Node
    tracking: Node


def main(cfg: DictConfig) -> None:
    """Serve until stopped.

    Raises:
        InputError: the address is not to be had, or not without a token; a package of the extra `serve` is missing.
    """
    check(cfg, ServeConfig)
    tokens = _tokens(cfg.host)
    try:
        from xray_pneumonia.serving import app, reader, records, server
    except ImportError as error:
        raise InputError(f"xray serve: {error.name} is missing; pip install 'xray-pneumonia[serve]'") from error
    listener = server.listen(cfg.host, cfg.port)
    model = find_and_load(cfg.model, tracking=build(cfg.tracking), home=Path(cfg.home), engine="torch")
    os.umask(0o077)
    journal = records.Journal(Path(cfg.audit), Path(cfg.keep) if cfg.keep else None)
    maps = HeatMaps(model.require_net(), Path(), fewest=COMPARED)
    reading = reader.Reader(
        lambda attempts: _classify(attempts, model, maps),
        image_size=model.card.image_size,
        rules=dicom_rules(cfg),
        limits=build(cfg.limits),
        workers=cfg.workers or os.cpu_count() or 1,
    )
    heat_map = _heat_maps(reading, maps)
    with reading, _dicom_node(cfg, reading, heat_map, model, journal) as node:
        service = app.Service(
            reader=reading,
            heat_map=heat_map,
            describe=lambda row, prevalence: _describe(row, model, prevalence),
            model=_facts(model),
            journal=journal,
            films=lambda: (node.counts(), node.events) if node else ({}, {}),
            most_waiting=cfg.most_waiting,
        )
        _warm_up(model)
        host, port = listener.getsockname()[:2]
        print(f"A second opinion beside a radiologist's reading; no medical device. Audit lines: {cfg.audit}")
        print(f"url=http://{f'[{host}]' if ':' in host else host}:{port} model={model.name}", flush=True)
        server.run(app.make_app(service, _rules(cfg, tokens)), listener)


def _rules(cfg: DictConfig, tokens: tuple[str, ...]) -> Any:
    from xray_pneumonia.serving.guard import Rules, host_names

    return Rules(
        hosts=host_names(cfg.host, cfg.allowed_hosts),
        tokens=tokens,
        most_bytes=cfg.upload_mb * 2**20,
        seconds=cfg.upload_seconds,
    )


def _dicom_node(
    cfg: DictConfig, reading: Any, heat_map: Callable[[Path], tuple[bytes, str]], model: TrainedModel, journal: Any
) -> AbstractContextManager[Any]:
    """Make the DICOM node, if `dicom.port` asks for one.

    Raises:
        InputError: a package of the extra `pacs` is missing, or senders or archive are not named.
    """
    if cfg.dicom.port is None:
        return nullcontext()
    try:
        from xray_pneumonia.pacs.node import Node
        from xray_pneumonia.workflows.dicom_replies import make_answer
    except ImportError as error:
        raise InputError(f"dicom.port: {error.name} is missing; pip install 'xray-pneumonia[pacs]'") from error
    answer = make_answer(reading, heat_map, model, journal)
    return Node(build(cfg.dicom), host=cfg.host, answer=answer, modalities=list(cfg.modalities))


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


def _classify(attempts: list[Attempt], model: TrainedModel, maps: HeatMaps) -> list[Row]:
    """Make the rows of decoded films; those called positive show whether heat maps can be trusted."""
    rows = classify(attempts, model, None)
    pairs = zip(attempts, rows, strict=True)
    maps.offer(one.pixels for one, row in pairs if one.pixels is not None and row["label"] == model.card.class_names[1])
    return rows


def _heat_maps(reading: Any, maps: HeatMaps) -> Callable[[Path], tuple[bytes, str]]:
    """Make the function that draws a heat map as a layer over the film."""
    from xray_pneumonia.serving.reader import png

    lock = threading.Lock()

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
    negative, positive = card.answers.values()
    return {
        "name": model.name,
        "version": (card.weights_sha256 or card.run_id)[:12],
        "run_id": card.run_id,
        "classes": list(card.class_names),
        "question": f"{card.class_names[1]} or {card.class_names[0]}",
        "image_size": card.image_size,
        "operating_point": card.operating_point,
        "prevalence": card.prevalence,
        "decisions": {"negative": negative, "positive": positive, "uncertain": "look closer"},
        "evidence": describe_evidence(card),
        "promise": promise(card.promise),
        "use": f"Use: {USE}.",
        "limitations": list(limitations(card.classes)),
    }


def _describe(row: Mapping[str, Any], model: TrainedModel, prevalence: float | None) -> dict[str, Any]:
    """Make the JSON of an answer from a row of `xray predict`, shown at a prevalence or the model's own."""
    card = model.card
    if card.prevalence and prevalence:
        points = translate([row["probability"], row["operating_point"]], prevalence=card.prevalence, to=prevalence)
        row = {**row, "probability": float(points[0]), "operating_point": float(points[1])}
        card = replace(card, prevalence=prevalence, operating_point=row["operating_point"])
    sure = "positive" if row["label"] == model.card.class_names[1] else "negative"
    meant = meaning(card, dict(row))
    names = ("decision", "label", "probability", "operating_point", "reason", "sha256", "width", "height")
    return {
        **{name: row[name] for name in names},
        "prevalence": card.prevalence,
        "kind": "uncertain" if row["decision"] == "look closer" else sure,
        "flags": [{"name": flag, "meaning": FLAGS.get(flag, flag)} for flag in row["flags"]],
        "words": f"{meant[0].upper()}{meant[1:]}. {word_probability(card)(row['probability'])}",
        "rests_on": describe_evidence(card),
        "model": model.name,
        "version": (model.card.weights_sha256 or model.card.run_id)[:12],
    }

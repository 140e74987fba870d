"""Builds the loggers that a config names beside MLflow; what they write lies in the folder of the run."""

import inspect
from collections.abc import Sequence
from importlib.util import find_spec

from pytorch_lightning.loggers import Logger

from xray_pneumonia.config import Node, build, locate
from xray_pneumonia.errors import InputError
from xray_pneumonia.library_classes import PLACES
from xray_pneumonia.tracking.run import Run

PACKAGES = {"TensorBoardLogger": "tensorboard", "WandbLogger": "wandb"}  # extras of the same names


def require_packages(nodes: Sequence[Node]) -> None:
    """Raise InputError unless the packages of loggers are installed."""
    for position, node in enumerate(nodes):
        package = PACKAGES.get(node["_target_"].rpartition(".")[2], "")
        if package and not find_spec(package):
            raise InputError(
                f"loggers.{position}._target_={node['_target_']}: {package} is not installed: "
                f"pip install 'xray-pneumonia[{package}]'"
            )


def build_loggers(nodes: Sequence[Node], run: Run) -> list[Logger]:
    """Build loggers; each process of a resumed run gets a version of its own."""
    return [_build(node, run) for node in nodes]


def _build(node: Node, run: Run) -> Logger:
    kind = node["_target_"].rpartition(".")[2].lower().removesuffix("logger")
    folder = run.path(f"loggers/{kind}/file").parent
    places = {"save_dir": str(folder), "name": run.name if kind == "wandb" else ""}
    taken = [name for name in inspect.signature(locate(node["_target_"])).parameters if name in PLACES]
    logger = build({**node, **{name: places[name] for name in taken if name in places}}, key="loggers")
    if not isinstance(logger, Logger):
        raise InputError(
            f"loggers: {node['_target_']}: makes a {type(logger).__name__}, should make a Lightning logger"
        )
    return logger

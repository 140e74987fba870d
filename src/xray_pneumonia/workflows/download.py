"""`xray download`: the public X-rays, laid out for `xray train`."""

from dataclasses import dataclass
from pathlib import Path

from omegaconf import DictConfig

from xray_pneumonia.config import check
from xray_pneumonia.data.download import install
from xray_pneumonia.types import Text


@dataclass(frozen=True, kw_only=True)
class DownloadConfig:
    """The top-level keys of download.yaml."""

    home: Text
    dataset: Text
    target: Text


def main(cfg: DictConfig) -> None:
    """Fetch, check and say what to do next."""
    check(cfg, DownloadConfig)
    images = install(cfg.dataset, Path(cfg.target))
    print(f"{images} images at {cfg.target}, counts as published; next: xray explore data.root={cfg.target}")

"""Collects where a run comes from: the commit, uncommitted changes, versions, machine."""

import hashlib
import json
import platform
import re
import subprocess
from collections.abc import Iterable
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

from xray_pneumonia.tracking.process import user

PACKAGES = (
    "xray-pneumonia", "torch", "torchvision", "pytorch-lightning", "torchmetrics", "hydra-core", "omegaconf", "mlflow",
    "albumentations", "numpy", "pandas", "scikit-learn", "pillow", "scipy", "safetensors",
)  # fmt: skip
MAX_DIFF = 2**20  # characters


@dataclass(frozen=True)
class Provenance:
    """`tags` for MLflow, `environment` as JSON, `diff` of the working tree against the commit."""

    tags: dict[str, str]
    environment: str
    diff: str


def collect(computing: Iterable[str]) -> Provenance:
    """Describe machine, packages, code (`computing`: patterns below this package) and its repository, if any."""
    import torch

    commit, diff = _git("rev-parse", "HEAD"), _git("diff", "HEAD")[:MAX_DIFF]
    machine = {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "processor": torch.backends.cpu.get_cpu_capability(),
        **cpu(),
        "gpu": ", ".join(torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())) or "none",
        "threads": str(torch.get_num_threads()),
    }
    versions = {name: version(name) for name in PACKAGES} | {"torch": torch.__version__}  # says CPU or CUDA too
    tags = {f"machine.{key}": value for key, value in machine.items()}
    tags |= {"version.torch": versions["torch"], "version.xray-pneumonia": versions["xray-pneumonia"]}
    if commit:
        tags |= {"mlflow.source.git.commit": commit, "git.dirty": str(bool(diff)).lower()}
    code = {"commit": commit, "dirty": bool(diff), "source_sha256": _source(computing)}
    return Provenance(tags, json.dumps({"machine": machine, "versions": versions, "code": code}, indent=2), diff)


def source_tags(verb: str) -> dict[str, str]:
    """Name user, command and commit of a run, as MLflow's own tags."""
    tags = {"mlflow.source.name": f"xray {verb}", "mlflow.source.type": "LOCAL", "mlflow.user": user()}
    commit = _git("rev-parse", "HEAD")
    return tags | ({"mlflow.source.git.commit": commit} if commit else {})


def cpu() -> dict[str, str]:
    """Name the processor, and hash its instruction sets: the same program rounds differently with others."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return {"cpu": platform.processor() or platform.machine(), "cpu_flags": "unknown"}
    known: dict[str, str] = dict(re.findall(r"^(model name|flags|Features)\s*:\s*(.*)$", text, re.MULTILINE))
    flags = sorted(known.get("flags", known.get("Features", "")).split())
    return {"cpu": known.get("model name", platform.machine()), "cpu_flags": _digest(" ".join(flags).encode())}


def _source(patterns: Iterable[str]) -> str:
    """Hash code, to compare it where there is no repository."""
    root = Path(__file__).parents[1]
    files = sorted(path for pattern in patterns for path in root.glob(pattern))
    return _digest(b"".join(f"{path.relative_to(root)}".encode() + path.read_bytes() for path in files))


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _git(*arguments: str) -> str:
    command = ["git", "-C", str(Path(__file__).parent), *arguments]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True, errors="replace")
    except (OSError, subprocess.SubprocessError):
        return ""  # no git, or the package is installed outside a repository
    return done.stdout.strip()

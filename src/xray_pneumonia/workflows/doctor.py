"""Reports on the machine, the packages, the store, unsent runs and dead ones (`xray doctor`); imports no torch."""

import os
import platform
import shutil
import tempfile
from dataclasses import dataclass, field
from importlib.metadata import requires, version
from pathlib import Path

import psutil
from omegaconf import DictConfig
from packaging.requirements import Requirement
from rich.console import Console
from rich.progress import track
from rich.table import Table

from xray_pneumonia.config import Node, build, check
from xray_pneumonia.errors import InputError, Unwell
from xray_pneumonia.masking import masked
from xray_pneumonia.tracking import sync
from xray_pneumonia.tracking.locations import STAGED
from xray_pneumonia.tracking.provenance import cpu
from xray_pneumonia.tracking.spool import spools
from xray_pneumonia.tracking.store import Store, TrackingSettings, open_database, resolve_uri
from xray_pneumonia.tracking.store_errors import query
from xray_pneumonia.types import Text

LOADER_MODULE = "xray_pneumonia.workflows.serve"  # with which MLflow opens the bundles that version 0.1.0 spooled
LOW = 5 * 2**30  # bytes; a sweep's checkpoints need that soon
SHARED = Path("/dev/shm")
LOW_SHARED = 2**28  # bytes; workers pass batches through it
GPU_DEVICES = ("/dev/nvidiactl", "/dev/dxg", "/dev/kfd")  # of NVIDIA, of NVIDIA in Windows' Linux, of AMD


@dataclass(frozen=True, kw_only=True)
class DoctorConfig:
    """The top-level keys of doctor.yaml."""

    home: Text
    sync: bool
    mark: bool
    tracking: Node


@dataclass
class Report:
    """Rows (subject, finding, problem), and the problems that a person must see to."""

    rows: list[tuple[str, str, str]] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)

    def add(self, subject: str, finding: str, problem: str = "") -> None:
        """Add a row; `problem` names what is wrong with it and the cure."""
        self.rows.append((subject, finding, problem))
        self.problems += [problem] if problem else []


def main(cfg: DictConfig) -> None:
    """Look, send, mark and print.

    Raises:
        Unwell: something is left that a person must see to.
    """
    check(cfg, DoctorConfig)
    home, tracking = Path(cfg.home), build(cfg.tracking)
    report = Report()
    _machine(report)
    _packages(report)
    _disks(report, home)
    if cfg.sync:  # makes a database again that was removed or emptied
        _sync(report, tracking, home)
    store = _store(report, tracking, home)
    waiting = _unsent(report, home, syncing=cfg.sync)
    stale = _stale(report, store, home, mark=cfg.mark) if store else 0
    _leftovers(report, home)
    _print(report)
    print(f"problems={len(report.problems)} unsent={waiting} stale={stale}", flush=True)
    if report.problems:
        raise Unwell(f"{len(report.problems)} problems: " + "; ".join(report.problems))


def _machine(report: Report) -> None:
    report.add("system", f"{platform.system()} {platform.release()}, Python {platform.python_version()}")
    memory = psutil.virtual_memory()
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    report.add("processor", f"{usable} cores ({cpu()['cpu']}), load {os.getloadavg()[0]:.1f}")
    report.add("memory", f"{_size(memory.available)} of {_size(memory.total)} free")
    report.add("GPU", ", ".join(_gpus()) or "none that torch can use")


def _gpus() -> list[str]:
    """Name the GPUs that torch can use; it takes a second to import, so only where there may be one."""
    if not any(os.path.exists(path) for path in GPU_DEVICES):
        return []
    import torch

    return [torch.cuda.get_device_name(number) for number in range(torch.cuda.device_count())]


def _packages(report: Report) -> None:
    """List the packages that this one requires, and those that its pins exclude."""
    for need in map(Requirement, requires("xray-pneumonia") or []):
        if need.marker is None or need.marker.evaluate({"extra": ""}):
            found = version(need.name)
            wrong = not need.specifier.contains(found, prereleases=True)
            report.add(need.name, found, f"{need.name} {found}: install {need.name}{need.specifier}" if wrong else "")


def _disks(report: Report, home: Path) -> None:
    places = {f"disk of {home}": (home, LOW), "disk for temporary files": (Path(tempfile.gettempdir()), LOW)}
    places |= {"shared memory": (SHARED, LOW_SHARED)} if SHARED.is_dir() else {}
    for subject, (place, least) in places.items():
        free = shutil.disk_usage(next(path for path in [place, *place.parents] if path.exists())).free
        problem = f"{place}: {_size(free)} free are few; make room" if free < least else ""
        report.add(subject, f"{_size(free)} free", problem)


def _store(report: Report, tracking: TrackingSettings, home: Path) -> Store | None:
    """Ask the store for its experiments; creates nothing."""
    uri = resolve_uri(tracking.uri, home)
    try:
        store = open_database(tracking, home=home)
        count = len(query(uri, lambda: store.client.search_experiments()))
    except InputError as error:
        if "there is no such database" in str(error):
            report.add("store", f"{masked(uri)}: none yet; the first run makes it")
        else:
            report.add("store", masked(uri), str(error))
        return None
    report.add("store", f"{masked(uri)}: answers, {count} experiments")
    return store


def _sync(report: Report, tracking: TrackingSettings, home: Path) -> None:
    waiting = len(sync.unsent(home))
    quiet = not Console(stderr=True).is_terminal
    sent = sync.sync(resolve_uri(tracking.uri, home), home, loader_module=LOADER_MODULE)
    for one in track(sent, "Sending", total=waiting, console=Console(stderr=True), disable=quiet, transient=True):
        other = f", in MLflow {one.mlflow_id}" if one.mlflow_id not in {None, one.run_id} else ""
        done = "not sent" if one.problem else f"sent, {one.status}"
        report.add(f"run {one.run_id}", done + other, f"run {one.run_id}: {one.problem}" if one.problem else "")


def _unsent(report: Report, home: Path, *, syncing: bool) -> int:
    waiting = sync.unsent(home)
    for one in waiting if not syncing else ():
        state = one.status or "killed"
        refused = f", {one.refused} refused by the store for ever" if one.refused else ""
        report.add(f"run {one.run_id}", f"unsynced, {state}: {one.entries} entries{refused}; `xray doctor sync`")
    if not waiting:
        report.add("unsent", "nothing")
    return len(waiting)


def _stale(report: Report, store: Store, home: Path, *, mark: bool) -> int:
    """Find runs whose process is gone."""
    found = sync.stale(store, home)
    if mark:
        sync.mark_killed(store, found)
    for run in found:
        done = "marked KILLED" if mark else "mark=true marks it KILLED"
        report.add(f"run {run.run_id}", f"RUNNING, but pid {run.tags['pid']} on {run.tags['host']} is gone: {done}")
    if not found:
        report.add("runs whose process is gone", "none")
    return len(found)


def _leftovers(report: Report, home: Path) -> None:
    """Find staged files that no spool waits to send."""
    waiting = {spool.run_id for spool in spools(home)}
    kept = [path for path in (home / STAGED).glob("*") if path.is_dir() and path.name not in waiting]
    if kept:
        total = _size(sum(file.stat().st_size for path in kept for file in path.rglob("*") if file.is_file()))
        report.add("local copies", f"{len(kept)} runs, {total}, all in the store; rm -r {home / STAGED} frees it")


def _print(report: Report) -> None:
    table = Table(show_header=False, box=None, pad_edge=False)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for subject, finding, problem in report.rows:
        separator = ": " if finding and problem else ""
        table.add_row(subject, f"{finding}{separator}[bold red]{problem}[/]" if problem else finding)
    Console(width=None if Console().is_terminal else 120, highlight=False).print(table)


def _size(number: float) -> str:
    return f"{number / 2**30:.1f} GB" if number >= 2**30 else f"{number / 2**20:.0f} MB"

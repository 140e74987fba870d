"""Samples processor, memory, disk, network and GPU in a background thread."""

import logging
import threading
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Protocol

from xray_pneumonia.tracking.process import now

EVERY = 2.0  # seconds
log = logging.getLogger(__name__)


class LogMetrics(Protocol):
    """Takes metrics of a step."""

    def __call__(self, metrics: Mapping[str, float], *, step: int) -> None:
        """Take them."""


class SystemMetrics:
    """Runs MLflow's collectors; its own monitor asks the store before each sample, and ends when that fails.

    The step of a sample is the seconds `since` the run started, in milliseconds since 1970.
    """

    def __init__(self, log_metrics: LogMetrics, *, since: int) -> None:
        self._log_metrics, self._since = log_metrics, since
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._work, name="system metrics", daemon=True)
        self._thread.start()

    def finish(self) -> None:
        """Take no more samples."""
        self._done.set()
        self._thread.join(timeout=EVERY)

    def _work(self) -> None:
        sample = _collector()
        while not self._done.wait(EVERY):
            try:
                values = sample()
            except Exception as error:  # a driver's fault must not end a training
                log.warning("no more system metrics: %s", error)
                return
            if not self._done.is_set():
                self._log_metrics(values, step=(now() - self._since) // 1000)


def _collector() -> Callable[[], dict[str, float]]:
    from mlflow.system_metrics.metrics.cpu_monitor import CPUMonitor
    from mlflow.system_metrics.metrics.disk_monitor import DiskMonitor
    from mlflow.system_metrics.metrics.gpu_monitor import GPUMonitor
    from mlflow.system_metrics.metrics.network_monitor import NetworkMonitor

    collectors = [CPUMonitor(), DiskMonitor(), NetworkMonitor()]
    with suppress(Exception):  # no GPU, no driver, no library
        collectors.append(GPUMonitor())

    def sample() -> dict[str, float]:
        values: dict[str, float] = {}
        for one in collectors:
            one.collect_metrics()
            values |= one.aggregate_metrics()
            one.clear_metrics()
        return {f"system/{name}": value for name, value in values.items()}

    return sample

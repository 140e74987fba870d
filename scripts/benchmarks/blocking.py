"""Measures for how long logging an epoch's metrics blocks, with a store that answers, is dead, or hangs.

Usage: python scripts/benchmarks/blocking.py

`dead_server.py` measures the time of whole epochs; this is the part of it that tracking takes, which a busy machine
changes less.
"""

import os
import socket
import statistics
import tempfile
import time
from pathlib import Path

from xray_pneumonia.tracking.run import start_run
from xray_pneumonia.tracking.store import TrackingSettings, open_or_offline


def main() -> None:
    """Log thirty epochs of twelve metrics to each store."""
    with socket.socket() as silent, tempfile.TemporaryDirectory() as home:
        silent.bind(("127.0.0.1", 0))
        silent.listen(64)  # takes connections, and says nothing
        hangs = f"http://127.0.0.1:{silent.getsockname()[1]}"
        for name, uri in {"answers": None, "dead": "http://127.0.0.1:9", "hangs": hangs}.items():
            spent = epochs(uri, Path(home) / name)
            middle, load = statistics.median(spent), os.getloadavg()[0]
            print(f"{name}: median {middle:.1f} ms, longest {max(spent):.1f} ms an epoch; load {load:.1f}", flush=True)


def epochs(uri: str | None, home: Path) -> list[float]:
    """Milliseconds that each epoch's metrics took."""
    settings = TrackingSettings(uri=uri, experiment_name="x", run_name=None, system_metrics=False, required=False)
    spent = []
    with start_run(open_or_offline(settings, home=home), name=None, tags={}, system_metrics=False) as run:
        for epoch in range(30):
            start = time.perf_counter()
            run.log_metrics({f"val/{number}": 0.5 for number in range(12)}, step=epoch)
            spent.append(1000 * (time.perf_counter() - start))
            time.sleep(0.1)
    return spent


if __name__ == "__main__":
    main()

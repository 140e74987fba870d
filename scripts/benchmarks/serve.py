"""Measures `xray serve` under load, and MLflow's server with the same model; usage: serve.py FILMS [--requests N].

Eight clients send the films of a folder, as files; for each server the answers a second, the median and the 99th
percentile of the waiting time, errors, and how much its memory grew between the first hundred answers and the last.
Then eight associations send them by C-STORE, each film a study of its own, and an archive in this process receives the
reports: films a second until all are there, the same growth, and how long one film alone takes from C-STORE to report.
"""

import argparse
import base64
import itertools
import json
import os
import signal
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import psutil
from PIL import Image
from pydicom import Dataset, FileMetaDataset
from pydicom.uid import ComprehensiveSRStorage, ExplicitVRLittleEndian, SecondaryCaptureImageStorage, generate_uid
from pydicom.uid import DigitalXRayImageStorageForPresentation as DX
from pynetdicom import AE, build_context, evt

import xray_pneumonia

CLIENTS = 8
NODE, ARCHIVE = 8711, 8712  # ports
MODEL = Path(xray_pneumonia.__file__).parent / "weights" / "final"


@contextmanager
def running(command: list[str], url: str) -> Iterator[psutil.Process]:
    """Start a server and wait until it answers; prints how long that took."""
    start = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)
    try:
        while True:
            try:
                urllib.request.urlopen(url, timeout=5).read()
                break
            except OSError:
                if process.poll() is not None:
                    raise SystemExit(f"{command[0]} ended with {process.returncode}") from None
                time.sleep(0.1)
        print(f"  answers {time.perf_counter() - start:.1f} s after its start")
        yield psutil.Process(process.pid)
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def memory(process: psutil.Process) -> float:
    """Sum the resident memory of a process and its children, in MiB."""
    return sum(one.memory_info().rss for one in (process, *process.children(recursive=True))) / 2**20


def processor(process: psutil.Process) -> float:
    """Sum the processor time of a process and its children, in seconds."""
    return sum(sum(one.cpu_times()[:2]) for one in (process, *process.children(recursive=True)))


def load(process: psutil.Process, films: list[bytes], requests: int, send: Callable[[bytes], object]) -> None:
    """Let the clients send so many films, and print what it was like."""
    numbers, waits, errors, sizes = itertools.count(), [], [], []
    lock = threading.Lock()

    def client() -> None:
        while (number := next(numbers)) < requests:
            start = time.perf_counter()
            try:
                send(films[number % len(films)])
            except (OSError, ValueError) as error:
                errors.append(error)
            with lock:
                waits.append(time.perf_counter() - start)
                if len(waits) in {100, requests}:
                    sizes.append(memory(process))

    threads = [threading.Thread(target=client) for _ in range(CLIENTS)]
    start = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    seconds = time.perf_counter() - start
    print(
        f"  {requests / seconds:.0f} films/s, median {1000 * np.median(waits):.0f} ms, "
        f"99 % within {1000 * np.quantile(waits, 0.99):.0f} ms, {len(errors)} errors, "
        f"memory {sizes[0]:.0f} MiB, later {sizes[-1] - sizes[0]:+.0f} MiB"
    )


def as_dicom(film: bytes) -> Dataset:
    """Make a chest film of an image, as a study of its own."""
    pixels = np.asarray(Image.open(BytesIO(film)).convert("L"))
    data = Dataset()
    data.file_meta = FileMetaDataset()
    data.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    data.SOPClassUID, data.Modality = DX, "DX"
    data.SOPInstanceUID, data.StudyInstanceUID, data.SeriesInstanceUID = (generate_uid() for _ in range(3))
    data.PatientID, data.BodyPartExamined, data.ViewPosition = "1", "CHEST", "PA"
    data.Rows, data.Columns = pixels.shape
    data.SamplesPerPixel, data.PixelRepresentation, data.PhotometricInterpretation = 1, 0, "MONOCHROME2"
    data.BitsAllocated = data.BitsStored = 8
    data.HighBit, data.PixelData = 7, pixels.tobytes()
    return data


def store(films: list[Dataset], sent: dict[str, float], errors: list[object]) -> None:
    """Send films in one association, again where they are not acknowledged; notes when each began, by its study."""
    entity = AE("MODALITY")
    entity.add_requested_context(DX, ExplicitVRLittleEndian)
    waiting = films[::-1]
    while waiting:
        association = entity.associate("127.0.0.1", NODE, ae_title="XRAY")
        while waiting and association.is_established:
            sent.setdefault(waiting[-1].StudyInstanceUID, time.perf_counter())
            if (status := association.send_c_store(waiting[-1]).get("Status")) == 0:
                waiting.pop()
            else:
                errors.append(status)
        association.release()


def load_dicom(process: psutil.Process, films: list[bytes], requests: int) -> None:
    """Let eight associations send so many films, then one film after the other, and print what it was like."""
    sent, arrived, sizes, errors = dict[str, float](), dict[str, float](), list[float](), list[object]()

    def receive(event: evt.Event) -> int:
        if event.request.AffectedSOPClassUID == ComprehensiveSRStorage:
            arrived[event.dataset.StudyInstanceUID] = time.perf_counter()
            if len(arrived) in {100, requests}:
                sizes.append(memory(process))
        return 0

    archive = AE("ARCHIVE")
    archive.supported_contexts = [
        build_context(kind) for kind in (ComprehensiveSRStorage, SecondaryCaptureImageStorage)
    ]
    archive.start_server(("127.0.0.1", ARCHIVE), block=False, evt_handlers=[(evt.EVT_C_STORE, receive)])
    made = [as_dicom(films[number % len(films)]) for number in range(requests)]
    threads = [threading.Thread(target=store, args=(made[at::CLIENTS], sent, errors)) for at in range(CLIENTS)]
    start, used = time.perf_counter(), processor(process)
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    received = time.perf_counter() - start
    while len(arrived) < requests:
        time.sleep(0.05)
    used, waits = processor(process) - used, [arrived[study] - sent[study] for study in arrived]
    print(
        f"  {requests / received:.0f} films/s received, {requests / (max(arrived.values()) - start):.1f} answered, "
        f"{1000 * used / requests:.0f} ms of processor time each, {len(errors)} errors; "
        f"report after {np.median(waits):.0f} s (median), "
        f"memory {sizes[0]:.0f} MiB, later {sizes[-1] - sizes[0]:+.0f} MiB"
    )
    alone = []
    for film in map(as_dicom, films[:20]):
        store([film], sent, errors)
        while film.StudyInstanceUID not in arrived:
            time.sleep(0.01)
        alone.append(arrived[film.StudyInstanceUID] - sent[film.StudyInstanceUID])
    print(f"  one film alone: report after {np.median(alone):.1f} s (median of {len(alone)})")
    archive.shutdown()


def main() -> None:
    """Load both servers with the same films."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("films", type=Path)
    parser.add_argument("--requests", type=int, default=1000)
    given = parser.parse_args()
    films = [path.read_bytes() for path in sorted(given.films.rglob("*.*")) if path.is_file()][:200]

    def post(url: str, body: bytes, kind: str) -> object:
        request = urllib.request.Request(url, body, {"Content-Type": kind})
        with urllib.request.urlopen(request, timeout=60) as answer:
            return json.loads(answer.read())

    def to_mlflow(film: bytes) -> object:
        body = {"dataframe_split": {"columns": ["image"], "data": [[base64.b64encode(film).decode()]]}}
        return post("http://127.0.0.1:8702/invocations", json.dumps(body).encode(), "application/json")

    with TemporaryDirectory() as folder:
        print(f"xray serve, {CLIENTS} clients")
        command = [sys.executable, "-m", "xray_pneumonia.cli", "serve", "port=8701", f"home={folder}"]
        with running(command, "http://127.0.0.1:8701/health") as process:
            one = "http://127.0.0.1:8701/v1/predict"
            load(process, films, given.requests, lambda film: post(one, film, "application/octet-stream"))
        print(f"xray serve dicom.port, {CLIENTS} associations")
        command += [f"dicom.port={NODE}", "dicom.allow=[MODALITY@127.0.0.1]", "dicom.settle=0"]
        with running(
            [*command, f"dicom.reply_to=ARCHIVE@127.0.0.1:{ARCHIVE}"], "http://127.0.0.1:8701/health"
        ) as process:
            load_dicom(process, films, given.requests)
        print(f"mlflow models serve, {CLIENTS} clients")
        bundle = Path(folder) / "model"
        save = (
            "import mlflow.pyfunc as p, sys;"
            "p.save_model(sys.argv[1], loader_module='xray_pneumonia.workflows.pyfunc', data_path=sys.argv[2])"
        )
        subprocess.run([sys.executable, "-c", save, bundle, MODEL], check=True, capture_output=True)
        command = [sys.executable, "-m", "mlflow", "models", "serve", "-m", str(bundle), "--env-manager", "local"]
        os.environ["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        with running([*command, "--port", "8702"], "http://127.0.0.1:8702/ping") as process:
            load(process, films, given.requests, to_mlflow)


if __name__ == "__main__":
    main()

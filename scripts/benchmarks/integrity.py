"""Times `xray predict` and a cold cache with and without checks for damage: python scripts/benchmarks/integrity.py DIR.

DIR holds X-rays in the public layout. Commands take turns, each in a process of its own; ratios are of processor time,
which other work on the machine changes least. With `--before SRC`, "without" is another commit, whose `src` that is:
`git archive COMMIT src | tar x -C FOLDER`.
"""

import argparse
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

WITHOUT = """
from io import BytesIO
import numpy as np
from PIL import Image
from xray_pneumonia.data.images import decode

def plain(data, *, colour, sides, scaled):
    image = Image.open(BytesIO(data))
    image.draft("RGB" if colour else None, scaled)
    return np.asarray(image)

decode.whole_jpeg = plain
decode.require_whole_png = lambda data: None
decode.tear = lambda gray: 0.0
"""
PATCH = f"""
from xray_pneumonia import child_process
child_process.PROGRAM = child_process.PROGRAM.replace("from xray", {f"exec({WITHOUT!r})"!r} + "; from xray")
"""
PREDICT = """
import sys
from xray_pneumonia import cli
sys.exit(cli.main())
"""
CACHE = """
import sys
from xray_pneumonia.data.images.cache import open_cache
from xray_pneumonia.data.records import scan
open_cache(scan(sys.argv[1]), folder=sys.argv[2], image_size=128)
"""


def timed(source: str, *command: str) -> tuple[float, float]:
    """Run Python code with arguments; returns seconds of wall time and of processor time, children included."""
    start, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_CHILDREN)
    place = os.environ | {"PYTHONPATH": source}
    subprocess.run([sys.executable, "-c", *command], check=True, capture_output=True, env=place)
    wall, after = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_CHILDREN)
    return wall, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def compare(name: str, rounds: int, run: dict[str, tuple[str, ...]], fresh: Path) -> None:
    """Run commands in turn and print the ratio of their times."""
    times: dict[str, list[tuple[float, float]]] = {each: [] for each in run}
    for _ in range(rounds):
        for each, command in run.items():
            shutil.rmtree(fresh, ignore_errors=True)
            times[each].append(timed(*command))
    found = {each: np.array(pairs) for each, pairs in times.items()}
    wall, work = np.median(found["with"] / found["without"], axis=0)
    seconds = {each: float(np.median(pairs[:, 1])) for each, pairs in found.items()}
    print(f"{name}: {work:.3f} of processor time ({seconds['with']:.2f} and {seconds['without']:.2f} s), "
          f"{wall:.3f} of wall time, {rounds} rounds", flush=True)  # fmt: skip


def main() -> None:
    """Print one line for each command."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("root", type=Path, help="X-rays in the public layout; `predict` reads some, the cache all")
    parser.add_argument("--films", type=int, default=300, help="of `predict`")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--before", default="", help="the `src` of another commit")
    given = parser.parse_args()
    print(f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}")
    with tempfile.TemporaryDirectory() as folder:
        films, fresh = Path(folder) / "films", Path(folder) / "fresh"
        found = sorted(path for path in given.root.rglob("*") if path.suffix in {".jpeg", ".png"})
        for path in found[:: max(1, len(found) // given.films)][: given.films]:
            place = films / "train" / path.parent.name / path.name
            place.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, place)
        patch = "" if given.before else PATCH
        for name, program, arguments in (
            ("predict", PREDICT, ("predict", f"input={films}", f"output={fresh}")),
            ("cold cache", CACHE, (str(given.root), str(fresh))),
        ):
            run = {"without": (given.before, patch + program, *arguments), "with": ("", program, *arguments)}
            compare(name, given.rounds, run, fresh)


if __name__ == "__main__":
    main()

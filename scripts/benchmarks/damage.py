"""Damage real X-rays in every format and count what the decoder does: refuses, doubts ("torn"), or takes for whole.

python scripts/benchmarks/damage.py DATA [--films 80]

DATA is the folder with `chest_xray` in the public layout. A damage counts where more than 2 % of the pixels change by
more than 16 gray levels. Prints a table for docs/reliability.md.
"""

import argparse
import random
from collections.abc import Callable
from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import Image
from pydicom import uid
from pydicom.dataset import FileDataset, FileMetaDataset

from xray_pneumonia.data.images.decode import decode
from xray_pneumonia.data.images.limits import ImageError
from xray_pneumonia.types import Gray

SIZE = 128
HOLE = 0.1  # of the data
draw = random.Random(0)


def jpeg(pixels: Gray) -> tuple[bytes, int]:
    """Encode; returns the file and where its compressed data begin."""
    file = BytesIO()
    Image.fromarray(pixels).save(file, "JPEG", quality=90)
    data = file.getvalue()
    start = data.index(b"\xff\xda")
    return data, start + 2 + int.from_bytes(data[start + 2 : start + 4], "big")


def png(pixels: Gray) -> tuple[bytes, int]:
    """Encode; returns the file and where its compressed data begin."""
    file = BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    data = file.getvalue()
    return data, data.index(b"IDAT") + 4


def dicom(pixels: Gray) -> tuple[bytes, int]:
    """Store uncompressed; returns the file and where its pixels begin."""
    meta = FileMetaDataset()
    meta.TransferSyntaxUID = uid.ExplicitVRLittleEndian
    meta.MediaStorageSOPClassUID = uid.DigitalXRayImageStorageForPresentation
    meta.MediaStorageSOPInstanceUID = uid.generate_uid()
    made = FileDataset("", {}, file_meta=meta, preamble=b"\0" * 128)
    made.Modality, made.Rows, made.Columns, made.SamplesPerPixel = "DX", *pixels.shape, 1
    made.PhotometricInterpretation, made.BitsAllocated, made.BitsStored, made.HighBit = "MONOCHROME2", 8, 8, 7
    made.PixelRepresentation, made.PixelData = 0, pixels.tobytes()
    file = BytesIO()
    made.save_as(file, enforce_file_format=True)
    return file.getvalue(), len(file.getvalue()) - pixels.size


def damages() -> dict[str, Callable[[bytes, int], bytes]]:
    """Name what may happen to the data that begin at a position."""

    def place(data: bytes, start: int, length: int) -> int:
        return draw.randrange(start + 50, len(data) - length - 20)

    def cut_out(data: bytes, start: int) -> bytes:
        at = place(data, start, 16)
        return data[:at] + data[at + 16 :]

    def moved(data: bytes, start: int) -> bytes:
        at = place(data, start, 16)
        return data[:at] + data[at + 16 :] + bytes(16)

    def hole(data: bytes, start: int) -> bytes:
        size = int(HOLE * (len(data) - start))
        at = place(data, start, size)
        return data[:at] + bytes(size) + data[at + size :]

    def swapped(data: bytes, start: int) -> bytes:
        step = (len(data) - start) // 8
        a, c = start + 2 * step, start + 5 * step
        return data[:a] + data[c : c + step] + data[a + step : c] + data[a : a + step] + data[c + step :]

    def tail(data: bytes, start: int) -> bytes:
        half = start + (len(data) - start) // 2
        return data[:half] + bytes(len(data) - half)

    def half_gone(data: bytes, start: int) -> bytes:
        return data[: start + (len(data) - start) // 2]

    def flipped(data: bytes, start: int) -> bytes:
        at = place(data, start, 1)
        return data[:at] + bytes([data[at] ^ (1 << draw.randrange(8))]) + data[at + 1 :]

    return {
        "second half gone": half_gone,
        "16 bytes cut out": cut_out,
        "16 bytes cut out, length kept": moved,
        "hole of a tenth": hole,
        "two blocks swapped": swapped,
        "second half zeroed": tail,
        "one bit flipped": flipped,
    }


def outcome(data: bytes, whole: Gray) -> str:
    """Decode; say what became of the damage."""
    try:
        decoded = decode(data, SIZE)
    except ImageError:
        return "refused"
    gone = float((np.abs(decoded.pixels.astype(int) - whole.astype(int)) > 16).mean())
    if gone <= 0.02:
        return "harmless"
    return "doubted" if "torn" in decoded.notes else "silent"


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("--films", type=int, default=80)
    options = parser.parse_args()
    files = sorted((options.data / "chest_xray" / "train").rglob("*.jpeg"))
    files = files[:: max(1, len(files) // options.films)][: options.films]
    pictures = [np.asarray(Image.open(file).convert("L")) for file in files]
    print(f"{len(pictures)} films\n\n| format | damage | refused | doubted | harmless | silent |\n|{' --- |' * 6}")
    for name, encode in (("JPEG", jpeg), ("PNG", png), ("DICOM, uncompressed", dicom)):
        encoded = [encode(picture) for picture in pictures]
        whole = [decode(data, SIZE) for data, _ in encoded]
        torn = sum("torn" in each.notes for each in whole)
        print(f"| {name} | none | 0 | {torn} | {len(whole) - torn} | |")
        for damage, apply in damages().items():
            found = [outcome(apply(*each), one.pixels) for each, one in zip(encoded, whole, strict=True)]
            counts = " | ".join(str(found.count(kind)) for kind in ("refused", "doubted", "harmless", "silent"))
            print(f"| {name} | {damage} | {counts} |", flush=True)


if __name__ == "__main__":
    main()

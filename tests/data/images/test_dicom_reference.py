"""Gray levels of rendered DICOM files against dcmtk's `dcmj2pnm`: at most one level apart on average."""

import shutil
import subprocess
from io import BytesIO
from itertools import product

import numpy as np
import pytest
from PIL import Image
from pydicom import Dataset, uid
from pydicom.dataset import FileDataset, FileMetaDataset

from xray_pneumonia.data.images.dicom import read_radiograph
from xray_pneumonia.data.images.limits import DicomRules

pytestmark = pytest.mark.skipif(not shutil.which("dcmj2pnm"), reason="needs dcmtk: apt-get install dcmtk")
RANDOM = np.random.default_rng(0)
SMOOTH = np.add.outer(np.linspace(0, 1, 60), np.linspace(0, 1, 80)) / 2


def values(bits, *, signed=False):
    """A smooth film with noise, over most of its range."""
    noisy = np.clip(SMOOTH + RANDOM.normal(0, 0.02, SMOOTH.shape), 0, 1)
    top = 2**bits - 1
    numbers = np.rint(noisy * 0.9 * top + 0.03 * top).astype(np.int64)
    return (
        (numbers - 2 ** (bits - 1)).astype(np.int16) if signed else numbers.astype(np.uint16 if bits > 8 else np.uint8)
    )


def table(bits, *, entries, first=0):
    item = Dataset()
    curve = np.rint(np.linspace(0, 1, entries) ** 0.7 * (2**bits - 1)).astype(np.uint16 if bits > 8 else np.uint8)
    item.LUTDescriptor, item.LUTData = [entries, first, bits], curve.tobytes()
    return [item]


def saved(path, pixels, bits, **tags):
    meta = FileMetaDataset()
    meta.TransferSyntaxUID = uid.ExplicitVRLittleEndian
    meta.MediaStorageSOPClassUID = uid.DigitalXRayImageStorageForPresentation
    meta.MediaStorageSOPInstanceUID = uid.generate_uid()
    file = FileDataset("", {}, file_meta=meta, preamble=b"\0" * 128)
    file.SOPClassUID, file.SOPInstanceUID = meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID
    file.Modality, file.ViewPosition, file.BodyPartExamined = "DX", "PA", "CHEST"
    file.Rows, file.Columns = pixels.shape
    file.SamplesPerPixel, file.PhotometricInterpretation = 1, "MONOCHROME2"
    file.BitsAllocated, file.BitsStored, file.HighBit = 8 * pixels.itemsize, bits, bits - 1
    file.PixelRepresentation = int(pixels.dtype.kind == "i")
    file.PixelData = pixels.tobytes()
    for name, value in tags.items():
        setattr(file, name, value)
    buffer = BytesIO()
    file.save_as(buffer, enforce_file_format=True)
    path.write_bytes(buffer.getvalue())
    return path


def of_dcmtk(path, *options):
    done = subprocess.run(["dcmj2pnm", *options, str(path)], capture_output=True, check=True)
    return np.asarray(Image.open(BytesIO(done.stdout)).convert("L")).astype(int)


def window(bits, *, signed, slope=1.0, intercept=0.0):
    middle = (0 if signed else 2 ** (bits - 1)) * slope + intercept
    return {"WindowCenter": middle + 0.1 * 2**bits * slope, "WindowWidth": 0.6 * 2**bits * slope}


CASES = {}
for bits, signed, photometric in product((8, 10, 12, 14, 16), (False, True), ("MONOCHROME1", "MONOCHROME2")):
    if signed and bits == 8:
        continue
    name = f"{bits} bits{' signed' * signed} {photometric}"
    plain = {"PhotometricInterpretation": photometric}
    CASES[f"{name}, window"] = (bits, signed, plain | window(bits, signed=signed), ["+Wi", "1"])
    CASES[f"{name}, range"] = (bits, signed, plain, ["+Wm"])
for function in ("LINEAR", "SIGMOID"):
    tags = window(12, signed=False) | {"VOILUTFunction": function}
    CASES[f"function {function}"] = (12, False, tags, ["+Wi", "1", "+Wfs" if function == "SIGMOID" else "+Wfl"])
for slope, intercept in ((2.0, -1000.0), (0.5, 10.0)):
    tags = window(12, signed=False, slope=slope, intercept=intercept)
    tags |= {"RescaleSlope": slope, "RescaleIntercept": intercept, "RescaleType": "US"}
    CASES[f"rescale {slope:g} {intercept:g}"] = (12, False, tags, ["+Wi", "1"])
for lut_bits, shape in product((8, 12, 16), ("MONOCHROME1", "MONOCHROME2")):
    tags = {"VOILUTSequence": table(lut_bits, entries=4096), "PhotometricInterpretation": shape}
    CASES[f"VOI LUT of {lut_bits} bits {shape}"] = (12, False, tags, ["+Wl", "1"])
tags = {"ModalityLUTSequence": table(16, entries=4096), "WindowCenter": 30000, "WindowWidth": 50000}
CASES["modality LUT"] = (12, False, tags, ["+Wi", "1"])
for photometric, shape in product(("MONOCHROME1", "MONOCHROME2"), ("IDENTITY", "INVERSE")):
    tags = window(12, signed=False) | {"PhotometricInterpretation": photometric, "PresentationLUTShape": shape}
    CASES[f"{photometric} {shape}"] = (12, False, tags, ["+Wi", "1"])


@pytest.mark.parametrize("name", CASES)
def test_gray_levels_are_those_of_dcmtk(tmp_path, name):
    bits, signed, tags, options = CASES[name]
    path = saved(tmp_path / "film.dcm", values(bits, signed=signed), bits, **tags)
    ours = read_radiograph(path.read_bytes(), rules=DicomRules()).pixels.astype(int)
    difference = np.abs(ours - of_dcmtk(path, *options)).mean()
    assert difference <= 1, difference


def test_about_fifty_films_are_compared():
    assert len(CASES) >= 50

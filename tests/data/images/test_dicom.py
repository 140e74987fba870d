"""DICOM: the order of steps against hand-computed values, and what is refused, with a real file for every row."""

import logging
import struct
import subprocess
import sys
from io import BytesIO

import gdcm
import numpy as np
import pytest
from pydicom import Dataset, dcmread, uid
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.pixels import apply_windowing

from xray_pneumonia.data.images import dicom
from xray_pneumonia.data.images.decode import decode
from xray_pneumonia.data.images.dicom_rendering import windowed
from xray_pneumonia.data.images.limits import ImageError

SECRET = "Doe^Jane"
RAMP = np.tile(np.linspace(0, 4095, 64).astype(np.uint16), (64, 1))
JPEG_LOSSLESS, JPEG_2000 = gdcm.TransferSyntax.JPEGLosslessProcess14_1, gdcm.TransferSyntax.JPEG2000Lossless


def film(
    values=RAMP, *, syntax=uid.ExplicitVRLittleEndian, stored_as=uid.DigitalXRayImageStorageForPresentation, **tags
):
    """A radiograph with a patient's name in its header, as a data set."""
    meta = FileMetaDataset()
    meta.TransferSyntaxUID, meta.MediaStorageSOPClassUID = syntax, stored_as
    meta.MediaStorageSOPInstanceUID = uid.generate_uid()
    made = FileDataset("", {}, file_meta=meta, preamble=b"\0" * 128)
    made.SOPClassUID, made.PatientName, made.PatientID = stored_as, SECRET, "4711"
    made.Modality, made.ViewPosition, made.BodyPartExamined = "DX", "PA", "CHEST"
    made.Rows, made.Columns = values.shape[:2]
    made.SamplesPerPixel, made.PhotometricInterpretation = 1, "MONOCHROME2"
    made.BitsAllocated = 8 * values.itemsize
    made.BitsStored, made.HighBit = (12, 11) if values.itemsize == 2 else (8, 7)
    made.PixelRepresentation = int(values.dtype.kind == "i")
    made.PixelData = values.tobytes()
    for name, value in tags.items():
        if value is None:
            delattr(made, name)
        else:
            setattr(made, name, value)
    return made


def save(made, *, preamble=b"\0" * 128):
    buffer = BytesIO()
    made.save_as(buffer, enforce_file_format=True)
    return preamble + buffer.getvalue()[128:]


def lut(entries, *, first=0, bits=16):
    item = Dataset()
    item.LUTDescriptor, item.LUTData = [len(entries), first, bits], np.asarray(entries, np.uint16).tobytes()
    return [item]


def pixels(**tags):
    values = tags.pop("values", RAMP)
    return decode(save(film(values, **tags)), 64).pixels.astype(int)


def compressed(syntax, values=RAMP):
    """Compress with gdcm, as an archive would."""
    reader = gdcm.ImageReader()
    stream = gdcm.ImageChangeTransferSyntax()
    with_pixels = BytesIO(save(film(values)))
    path = _scratch / f"{syntax}.dcm"
    path.write_bytes(with_pixels.getvalue())
    reader.SetFileName(str(path))
    assert reader.Read()
    stream.SetTransferSyntax(gdcm.TransferSyntax(syntax))
    stream.SetInput(reader.GetImage())
    assert stream.Change()
    writer = gdcm.ImageWriter()
    writer.SetFile(reader.GetFile())
    writer.SetImage(stream.GetOutput())
    writer.SetFileName(str(path))
    assert writer.Write()
    return path.read_bytes()


@pytest.fixture(autouse=True)
def _folder(tmp_path):
    global _scratch
    _scratch = tmp_path


def code(data):
    with pytest.raises(ImageError) as caught:
        decode(data, 64)
    assert SECRET not in str(caught.value)
    assert "\n" not in str(caught.value)
    return caught.value.code


def test_without_a_window_the_full_range_is_shown():
    np.testing.assert_allclose(pixels(), np.tile(np.linspace(0, 255, 64), (64, 1)), atol=1)
    np.testing.assert_allclose(pixels(values=RAMP // 4 + 500), np.tile(np.linspace(0, 255, 64), (64, 1)), atol=1)


def test_monochrome1_is_inverted():
    np.testing.assert_array_equal(pixels(PhotometricInterpretation="MONOCHROME1"), 255 - pixels())


def test_signed_pixels():
    signed = (RAMP.astype(np.int32) - 2048).astype(np.int16)
    np.testing.assert_array_equal(pixels(values=signed), pixels())
    # -2048 .. 2047 through a window from 0 on: the left half is black
    half = pixels(values=signed, WindowCenter=1024, WindowWidth=2048)
    assert half[0, :31].max() == 0
    np.testing.assert_allclose(half[0, 32:], np.linspace(4, 255, 32), atol=2)


def test_bits_beyond_those_stored_are_dropped():
    np.testing.assert_array_equal(pixels(values=RAMP | 0xF000), pixels())
    signed = RAMP.astype(np.int16) - 2048
    np.testing.assert_array_equal(pixels(values=signed & 0xFFF), pixels(values=signed))
    drawn_on = film(RAMP | (np.eye(64, dtype=np.uint16) << 15))
    assert code(save(drawn_on)) == "bad_pixel_data"
    drawn_on.add_new(0x60020102, "US", 15)
    np.testing.assert_array_equal(decode(save(drawn_on), 64).pixels, pixels())


COLOUR = {"SamplesPerPixel": 3, "PhotometricInterpretation": "RGB", "BitsStored": 8, "HighBit": 7}
JPEG_LS = gdcm.TransferSyntax.JPEGLSLossless


@pytest.mark.parametrize(
    ("syntax", "tags"),
    [(each, tags) for each in (JPEG_2000, JPEG_LS) for tags in ({"Rows": 32}, {"BitsStored": 10, "HighBit": 9}, COLOUR)]
    + [(JPEG_2000, {"PixelRepresentation": 1})],
)
def test_a_picture_inside_is_compared_with_its_tags(syntax, tags):
    made = dcmread(BytesIO(compressed(syntax)))
    for tag, value in tags.items():
        setattr(made, tag, value)
    assert code(save(made)) in {"bad_pixel_data", "unsupported_mode"}


def test_rescale_comes_before_the_window():
    # 2 x - 1000, then a window from 0 to 1000: black below 500, white above 1000
    seen = pixels(RescaleSlope=2, RescaleIntercept=-1000, WindowCenter=500.5, WindowWidth=1001)
    expected = np.clip((2.0 * RAMP - 1000) / 1000, 0, 1) * 255
    np.testing.assert_allclose(seen, expected, atol=1)


def test_a_window_comes_before_the_inversion():
    seen = pixels(WindowCenter=1000, WindowWidth=500, PhotometricInterpretation="MONOCHROME1")
    np.testing.assert_array_equal(seen, 255 - pixels(WindowCenter=1000, WindowWidth=500))
    assert seen[0, 0] == 255


def test_the_first_of_several_windows_is_taken():
    several = pixels(WindowCenter=[1000, 3000], WindowWidth=[500, 100])
    np.testing.assert_array_equal(several, pixels(WindowCenter=1000, WindowWidth=500))


@pytest.mark.parametrize("function", ["LINEAR", "LINEAR_EXACT", "SIGMOID"])
@pytest.mark.parametrize(("centre", "width"), [(2048, 4096), (1000, 300.5), (-100, 50), (700, 1)])
def test_windows_are_those_of_the_standard(function, centre, width):
    values = np.arange(4096)
    described = film(WindowCenter=centre, WindowWidth=width, VOILUTFunction=function)
    with np.errstate(over="ignore"):
        reference = apply_windowing(values, described) / 4095
    np.testing.assert_allclose(windowed(values.astype(float), centre, width, function=function), reference, atol=1e-9)


def test_lookup_tables_replace_rescale_and_window():
    square = (np.arange(4096) ** 2 // 4096).astype(int)
    expected = np.clip(square[RAMP] / square.max(), 0, 1) * 255
    np.testing.assert_allclose(pixels(VOILUTSequence=lut(square)), expected, atol=1)
    np.testing.assert_allclose(pixels(ModalityLUTSequence=lut(square), ModalityLUTType="US"), expected, atol=1)


@pytest.mark.parametrize("syntax", [uid.ImplicitVRLittleEndian, uid.ExplicitVRLittleEndian])
def test_native_syntaxes_agree(syntax):
    np.testing.assert_array_equal(pixels(syntax=syntax), pixels())


@pytest.mark.parametrize("syntax", [JPEG_LOSSLESS, JPEG_2000, gdcm.TransferSyntax.JPEGLSLossless])
def test_lossless_compression_changes_nothing(syntax):
    data = compressed(syntax)
    assert dcmread(BytesIO(data)).file_meta.TransferSyntaxUID.is_compressed
    np.testing.assert_array_equal(decode(data, 64).pixels, pixels())


def test_a_missing_decoder_is_named_with_its_cure():
    (_scratch / "film.dcm").write_bytes(compressed(JPEG_2000))
    program = (
        "import sys; sys.modules['gdcm'] = None\n"
        "from xray_pneumonia.data.images import decode, limits\n"
        "try: decode.decode(open(sys.argv[1], 'rb').read(), 64)\n"
        "except limits.ImageError as error: print(error.code, error)"
    )
    done = subprocess.run([sys.executable, "-c", program, _scratch / "film.dcm"], capture_output=True, text=True)
    assert done.stdout.startswith("missing_decoder transfer syntax 1.2.840.10008.1.2.4.90 (JPEG 2000")
    assert "pip install 'xray-pneumonia[dicom]'" in done.stdout


def without_prefix():
    return save(film())[132:]


def wrong_length(by):
    data = film()
    data.PixelData = data.PixelData + b"\0" * by if by > 0 else data.PixelData[:by]
    return save(data)


def lying(**tags):
    """Claim other sides than the pixels have."""
    data = film()
    for name, value in tags.items():
        setattr(data, name, value)
    return save(data)


def nested():
    """Sequences within sequences, deeper than any stack."""
    item = struct.pack("<HHI", 0xFFFE, 0xE000, 0xFFFFFFFF)
    sequence = struct.pack("<HH2s2xI", 0x0028, 0x3010, b"SQ", 0xFFFFFFFF)
    data = save(film(PixelData=None))
    return data + (sequence + item) * 20_000


REFUSED = {
    "not_an_image (no prefix)": without_prefix,
    "not_an_image (no preamble either)": lambda: save(film())[128:],
    "bad_pixel_data (none)": lambda: save(film(PixelData=None)),
    "bad_pixel_data (shorter)": lambda: wrong_length(-64),
    "bad_pixel_data (longer)": lambda: wrong_length(64),
    "too_many_pixels": lambda: lying(Rows=65535, Columns=65535),
    "too_small": lambda: lying(Rows=1, Columns=4096),
    "unsupported_syntax (deflated)": lambda: save(film(syntax=uid.DeflatedExplicitVRLittleEndian)),
    "unsupported_syntax (video)": lambda: save(film(syntax=uid.MPEG2MPML, PixelData=encapsulate([b"\0\0"]))),
    "multi_frame": lambda: save(film(NumberOfFrames=2)),
    "wrong_modality (CT)": lambda: save(film(Modality="CT")),
    "wrong_modality (MR)": lambda: save(film(Modality="MR")),
    "wrong_modality (none)": lambda: save(film(Modality=None)),
    "wrong_view": lambda: save(film(ViewPosition="LL")),
    "wrong_body_part": lambda: save(film(BodyPartExamined="HAND")),
    "dicomdir": lambda: save(film(stored_as=uid.MediaStorageDirectoryStorage)),
    "bad_preamble (PE)": lambda: save(film(), preamble=b"MZ".ljust(128, b"\0")),
    "bad_preamble (ELF)": lambda: save(film(), preamble=b"\x7fELF".ljust(128, b"\0")),
    "bad_preamble (script)": lambda: save(film(), preamble=b"#!/bin/sh\n".ljust(128)),
    "bad_window": lambda: save(film(WindowCenter=100, WindowWidth=0)),
    "bad_window (presentation LUT)": lambda: save(film(PresentationLUTSequence=lut(range(4096), bits=8))),
    "bad_window (presentation LUT of no bits)": lambda: save(film(PresentationLUTSequence=lut(range(4096), bits=0))),
    "bad_window (function)": lambda: save(film(WindowCenter=100, WindowWidth=9, VOILUTFunction="CUBIC")),
    "unsupported_mode (colour)": lambda: save(film(PhotometricInterpretation="RGB")),
    "unsupported_mode (bits)": lambda: save(film(BitsStored=17)),
    "no_information": lambda: save(film(np.full((64, 64), 7, np.uint16))),
    "damaged_dicom": lambda: save(film())[:140] + bytes(range(256)),
    "damaged_dicom (nested)": nested,
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused(case):
    assert code(REFUSED[case]()) == case.split(" ")[0]


def test_the_size_is_checked_before_pixels_are_decoded(monkeypatch):
    monkeypatch.setattr(dicom, "_decoded", lambda _: pytest.fail("decoded"))
    assert code(lying(Rows=65535, Columns=65535)) == "too_many_pixels"


def test_a_tiff_preamble_is_harmless():
    assert decode(save(film(), preamble=b"II*\0".ljust(128, b"\0")), 64).mode == "MONOCHROME2"


def test_any_cut_gives_a_refusal_and_never_a_picture():
    data = save(film())
    for end in range(140, len(data) - 2, 97):
        code(data[:end])


def test_patients_are_never_mentioned(caplog, capfd, recwarn):
    caplog.set_level(logging.DEBUG)
    broken = film(BodyPartExamined=SECRET, ViewPosition=SECRET)
    assert code(save(broken)) == "wrong_view"
    for tag in ("Modality", "ViewPosition", "BodyPartExamined"):
        with pytest.raises(ImageError, match=f"{tag} is none of the usual codes"):
            decode(save(film(**{tag: SECRET.upper()})), 64)
    with pytest.raises(ImageError, match="ViewPosition LL;"):
        decode(save(film(ViewPosition="LL")), 64)
    decode(save(film()), 64)
    code(save(film())[:-700])
    windowed = save(film(WindowCenter=12345678, WindowWidth=100))
    assert code(windowed.replace(b"12345678", SECRET.encode())) == "damaged_dicom"  # pydicom's error quotes it
    assert SECRET not in caplog.text + "".join(capfd.readouterr())
    assert not [warning for warning in recwarn if SECRET in str(warning.message)]

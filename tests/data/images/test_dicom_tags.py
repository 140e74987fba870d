"""Tags that say whether a DICOM file is an upright frontal chest film, and how it is to be shown."""

from io import BytesIO
from pathlib import Path

import numpy as np
import pydicom.data
import pytest
from PIL import Image
from pydicom import Dataset, uid
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.encaps import encapsulate

from xray_pneumonia.data.images.decode import decode
from xray_pneumonia.data.images.limits import DicomRules, ImageError
from xray_pneumonia.data.records import scan

RAMP = np.tile(np.linspace(0, 2047, 64).astype(np.uint16), (64, 1))
RULES = DicomRules()
SHOWN = np.tile(np.linspace(0, 255, 64), (64, 1))


def film(values=RAMP, *, syntax=uid.ExplicitVRLittleEndian, preamble=b"\0" * 128, **tags):
    meta = FileMetaDataset()
    meta.TransferSyntaxUID = syntax
    meta.MediaStorageSOPClassUID = uid.DigitalXRayImageStorageForPresentation
    meta.MediaStorageSOPInstanceUID = uid.generate_uid()
    made = FileDataset("", {}, file_meta=meta, preamble=preamble)
    made.SOPClassUID, made.Modality, made.ViewPosition, made.BodyPartExamined = meta[0x20002].value, "DX", "PA", "CHEST"
    made.Rows, made.Columns, made.SamplesPerPixel = *values.shape[:2], 3 if values.ndim == 3 else 1
    made.PhotometricInterpretation = "RGB" if values.ndim == 3 else "MONOCHROME2"
    if values.ndim == 3:
        made.PlanarConfiguration = 0
    made.BitsAllocated, made.BitsStored = 8 * values.itemsize, 12 if values.itemsize == 2 else 8
    made.HighBit, made.PixelRepresentation, made.PixelData = made.BitsStored - 1, 0, values.tobytes()
    for name, value in tags.items():
        setattr(made, name, value)
    buffer = BytesIO()
    made.save_as(buffer, enforce_file_format=True)
    return buffer.getvalue()


def shown(*arguments, rules=RULES, **tags):
    return decode(film(*arguments, **tags), 64, rules=rules).pixels.astype(int)


def refused(data, code, match=None, rules=RULES):
    with pytest.raises(ImageError, match=match) as caught:
        decode(data, 64, rules=rules)
    assert caught.value.code == code


def test_patients_are_hashed_and_never_named(tmp_path):
    ids = {"a": "Doe^Jane", "b": "Doe^Jane ", "c": "17", "d": ""}
    for folder, names in (("NORMAL", "ab"), ("PNEUMONIA", "cd")):
        (tmp_path / "train" / folder).mkdir(parents=True)
        for name in names:
            (tmp_path / "train" / folder / f"{name}.dcm").write_bytes(film(PatientID=ids[name]))
    (tmp_path / "train" / "NORMAL" / "e.png").write_bytes(b"no DICOM")
    a, b, e, c, d = scan(tmp_path, patient="dicom")["patient"]
    assert a == b != c
    assert len(a) == len(c) == 16
    assert (d, e) == ("d", "e")


@pytest.mark.parametrize("photometric", ["MONOCHROME1", "MONOCHROME2"])
@pytest.mark.parametrize("window", [{}, {"WindowCenter": 1024, "WindowWidth": 2048}])
def test_padding_counts_in_no_stretch_and_is_black(photometric, window):
    values = RAMP.copy()
    values[:8] = 4095
    seen = shown(values, PixelPaddingValue=4095, PhotometricInterpretation=photometric, **window)
    assert seen[:8].max() == 0
    expected = SHOWN if photometric == "MONOCHROME2" else 255 - SHOWN
    np.testing.assert_allclose(seen[8:], expected[8:], atol=1)


def test_padding_may_be_a_range():
    values = RAMP.copy()
    values[:4], values[4:8] = 4000, 4095
    seen = shown(values, PixelPaddingValue=4095, PixelPaddingRangeLimit=4000)
    assert seen[:8].max() == 0
    np.testing.assert_allclose(seen[8:], SHOWN[8:], atol=1)


@pytest.mark.parametrize(
    ("photometric", "shape", "negative", "contradicts"),
    [
        ("MONOCHROME2", "IDENTITY", False, False),
        ("MONOCHROME2", "INVERSE", True, True),
        ("MONOCHROME1", "INVERSE", True, False),
        ("MONOCHROME1", "IDENTITY", False, True),
    ],
)
def test_a_presentation_lut_inverts_once(photometric, shape, negative, contradicts):
    seen = decode(film(PhotometricInterpretation=photometric, PresentationLUTShape=shape), 64)
    np.testing.assert_allclose(seen.pixels, 255 - SHOWN if negative else SHOWN, atol=1)
    assert ("contradictory_lut" in seen.notes) == contradicts


def test_one_bright_pixel_does_not_darken_the_lung():
    values = (RAMP // 8).astype(np.uint16)
    values[40, 10] = 4095
    seen = shown(values)
    assert np.ptp(np.delete(seen, 40, axis=0)) > 240


def test_one_bright_pixel_does_not_darken_a_16_bit_png():
    values = (RAMP // 8).astype(np.uint16)
    values[40, 10] = 4095
    file = BytesIO()
    Image.fromarray(values).save(file, "PNG")
    assert np.ptp(np.delete(decode(file.getvalue(), 64).pixels, 40, axis=0)) > 240


@pytest.mark.parametrize("window", [(40, 80), (5000, 100), (2047, 3)])
def test_a_window_that_shows_next_to_nothing_is_refused(window):
    centre, width = window
    refused(film(WindowCenter=centre, WindowWidth=width), "bad_window", f"window centre {centre}, width {width} shows")


def jpeg(mode, **options):
    file = BytesIO()
    Image.fromarray((RAMP // 8).astype(np.uint8)).convert(mode).save(file, "JPEG", **options)
    return file.getvalue()


def in_jpeg(data, **tags):
    values = np.zeros((64, 64), np.uint8)
    return film(values, syntax=uid.JPEGBaseline8Bit, PixelData=encapsulate([data]), **tags)


def test_a_jpeg_inside_is_compared_with_its_tags():
    np.testing.assert_allclose(decode(in_jpeg(jpeg("L")), 64).pixels, SHOWN, atol=4)
    refused(in_jpeg(jpeg("RGB")), "unsupported_mode", "its JPEG has 3 components, SamplesPerPixel says 1")
    refused(in_jpeg(jpeg("L"), Rows=60), "bad_pixel_data", "its JPEG has 64 x 64 pixels, the tags say 64 x 60")
    whole = jpeg("L", quality=95)
    refused(in_jpeg(whole[: len(whole) * 3 // 4] + b"\xff\xd9"), "truncated", "is cut or damaged")


def test_twelve_bits_of_jpeg_extended_are_named_with_the_cure():
    frame = jpeg("L")
    place = frame.index(b"\xff\xc0")
    twelve = frame[:place] + b"\xff\xc1" + frame[place + 2 : place + 4] + bytes([12]) + frame[place + 5 :]
    values = np.zeros((64, 64), np.uint16)
    data = film(values, syntax=uid.JPEGExtended12Bit, PixelData=encapsulate([twelve]))
    refused(data, "missing_decoder", "the decoder reads 8 of this syntax; convert the file")


@pytest.mark.parametrize(
    ("directions", "change", "notes"),
    [
        (["L", "F"], lambda x: x, ()),
        (["L", "FR"], lambda x: x, ()),
        (["R", "F"], lambda x: x[:, ::-1], ("mirrored_back",)),
        (["L", "H"], lambda x: x[::-1], ("turned_upright",)),
        (["R", "H"], lambda x: x[::-1, ::-1], ("turned_upright", "mirrored_back")),
        (["F", "L"], lambda x: x.T, ("turned_upright",)),
        (["", ""], lambda x: x, ()),
    ],
)
def test_a_film_is_turned_as_its_orientation_says(directions, change, notes):
    values = np.add.outer(np.linspace(0, 500, 64), np.linspace(0, 1500, 64)).astype(np.uint16)
    seen = decode(film(values, PatientOrientation=directions), 64)
    np.testing.assert_array_equal(seen.pixels, change(decode(film(values), 64).pixels))
    assert seen.notes == notes


def view_code(value, meaning="x"):
    item = Dataset()
    item.CodeValue, item.CodingSchemeDesignator, item.CodeMeaning = value, "SCT", meaning
    return [item]


@pytest.mark.parametrize(
    "tags",
    [
        {"PatientOrientation": ["A", "F"]},
        {"PatientOrientation": ["P", "F"]},
        {"PatientOrientation": ["L", "P"]},
        {"ViewCodeSequence": view_code("399067008")},
        {"ViewCodeSequence": view_code("399173006")},
        {"ViewPosition": "LL"},
        {"ViewPosition": "PA LATERAL"},
        {"ViewPosition": "LATERAL"},
        {"ViewPosition": "LLD"},
        {"ViewPosition": None, "SeriesDescription": "Thorax lateral"},
        {"ViewPosition": None, "ProtocolName": "CHEST_LAT"},
        {"ViewPosition": "", "AcquisitionDeviceProcessingDescription": "CHEST,Lateral"},
        {"ViewCodeSequence": view_code("OWN", "Lateral projection")},
    ],
    ids=str,
)
def test_other_views_are_refused(tags):
    refused(film(**tags), "wrong_view")


NOWHERE = {"BodyPartExamined": None}


@pytest.mark.parametrize(
    ("tags", "code"),
    [
        ({**NOWHERE, "AnatomicRegionSequence": view_code("72696002", "Knee")}, "wrong_body_part"),
        ({**NOWHERE, "StudyDescription": "Abdomen supine"}, "wrong_body_part"),
        ({"PatientSpeciesDescription": "Canis lupus"}, "no_patient"),
        ({"PatientSpeciesCodeSequence": view_code("L-80A00")}, "no_patient"),
        ({"QualityControlImage": "YES"}, "no_patient"),
    ],
    ids=str,
)
def test_other_parts_animals_and_phantoms_are_refused(tags, code):
    refused(film(**tags), code)


@pytest.mark.parametrize(
    "tags",
    [
        {"ViewCodeSequence": view_code("272479007")},
        {"ViewCodeSequence": view_code("399348003")},
        {"ViewPosition": "AP SUPINE"},
        {"ViewPosition": "PA ERECT"},
        {"ViewPosition": ""},
        {"BodyPartExamined": "TORAX"},
        {"BodyPartExamined": ""},
        {"ViewPosition": "PA", "SeriesDescription": "chest pa + lateral"},
        {"ViewPosition": None, "SeriesDescription": "chest ap/lat"},
        {**NOWHERE, "AnatomicRegionSequence": view_code("51185008")},
        {**NOWHERE, "AnatomicRegionSequence": view_code("OWN", "Thorax"), "StudyDescription": "thorax, hand"},
        {"PatientSpeciesDescription": "Homo sapiens", "PatientSpeciesCodeSequence": view_code("337915000")},
    ],
    ids=str,
)
def test_frontal_chests_in_other_words_are_read(tags):
    np.testing.assert_allclose(shown(**tags), SHOWN, atol=1)


@pytest.mark.parametrize(
    "tags",
    [
        {"PresentationIntentType": "FOR PROCESSING"},
        {"SOPClassUID": uid.DigitalXRayImageStorageForProcessing},
    ],
    ids=str,
)
def test_raw_values_are_refused(tags):
    refused(film(**tags), "for_processing", "FOR PRESENTATION")


def test_colours_are_read_where_they_are_gray():
    gray = np.repeat((RAMP // 8).astype(np.uint8)[..., None], 3, axis=2)
    np.testing.assert_allclose(shown(gray), SHOWN, atol=1)
    gray[..., 0] //= 2
    refused(film(gray), "not_xray_like")


def test_rules_widen_what_is_read():
    program = b"MZ".ljust(128, b"\0")
    refused(film(preamble=program), "bad_preamble", "any_preamble=true")
    shown(preamble=program, rules=DicomRules(any_preamble=True))
    shown(BodyPartExamined="PECHO", rules=DicomRules(body_parts=("CHEST", "PECHO")))
    shown(ViewPosition="LLD", rules=DicomRules(views=("AP", "PA", "LLD")))
    shown(Modality="RF", rules=DicomRules(modalities=("RF",)))


SAMPLES = sorted((Path(pydicom.data.__file__).parent / "test_files").rglob("*.dcm"))


def test_every_file_of_pydicom_gets_an_answer_or_a_code():
    assert len(SAMPLES) > 60
    codes = {}
    for file in SAMPLES:
        try:
            decode(file.read_bytes(), 64)
            codes[file.name] = "read"
        except ImageError as error:
            codes[file.name] = error.code
    assert set(codes.values()) <= {
        "read", "bad_pixel_data", "bad_preamble", "bad_window", "damaged_dicom", "dicomdir", "missing_decoder",
        "multi_frame", "no_information", "not_an_image", "odd_aspect", "too_small", "truncated", "unsupported_mode",
        "unsupported_syntax", "wrong_body_part", "wrong_modality", "wrong_view",
    }  # fmt: skip

"""Render the stored values of a DICOM radiograph to gray levels, in the order of PS3.3 C.7.6.3 and C.11.

Stored values, padding, modality LUT or rescale, VOI LUT or window, presentation LUT, photometric interpretation.
Stored values have at most 16 bits, so each step is computed once for every possible value; the pixels are looked up.
"""

import numpy as np
import numpy.typing as npt
from pydicom import Dataset
from pydicom.pixels.processing import apply_modality_lut

from xray_pneumonia.data.images.dicom_tags import clean, word
from xray_pneumonia.data.images.limits import FAR, OUTLIERS, ImageError
from xray_pneumonia.types import Gray

OVERLAYS = [0x60000102 + group for group in range(0, 0x200000, 0x20000)]  # OverlayBitPosition of 16 overlays
LEAST_SHOWN = 0.1  # share of the pixels that a window must show between black and white

Values = npt.NDArray[np.float64]
Integers = npt.NDArray[np.int64]


def render(file: Dataset, decoded: npt.NDArray[np.integer]) -> tuple[Gray, tuple[str, ...]]:
    """Render a radiograph.

    Args:
        file: its tags, MONOCHROME1 or MONOCHROME2, 8 or 16 bits allocated.
        decoded: (H, W), the values as the file holds them.

    Returns:
        (H, W) uint8, and `contradictory_lut` where presentation LUT and photometric interpretation disagree.

    Raises:
        ImageError: a window that is none or shows next to nothing, an impossible rescale, nothing but padding.
    """
    values = _possible_values(file)
    stored = _places(file, decoded)
    padding = _padding(file, values)
    present = stored[~padding[stored]]
    if not present.size:
        raise ImageError("no_information", "all pixels are padding")
    light = _light(file, _shades(file, values), present)
    light, notes = _presented(light, file)
    light[padding] = 0
    return np.rint(255 * light).astype(np.uint8)[stored], notes


def _possible_values(file: Dataset) -> Integers:
    low = -(2 ** (file.BitsStored - 1)) if file.PixelRepresentation else 0
    return np.arange(low, low + 2**file.BitsStored)


def _padding(file: Dataset, values: Integers) -> npt.NDArray[np.bool_]:
    """Mark the values that are padding, PS3.3 C.7.5.1.1.2; both ends of their range count."""
    if file.get("PixelPaddingValue") in (None, ""):
        return np.zeros(len(values), bool)
    first = int(file.PixelPaddingValue)
    last = int(first if file.get("PixelPaddingRangeLimit") in (None, "") else file.PixelPaddingRangeLimit)
    return (values >= min(first, last)) & (values <= max(first, last))


def _shades(file: Dataset, values: Integers) -> Values:
    """Map every value that could be stored by modality LUT or rescale slope and intercept."""
    table = file.get("ModalityLUTSequence")
    shades = _look_up(table[0], values) if table else apply_modality_lut(values, file)
    if not np.isfinite(shades).all():
        raise ImageError("damaged_dicom", "rescale slope or intercept is no finite number")
    return np.asarray(shades, np.float64)


def _places(file: Dataset, decoded: npt.NDArray[np.integer]) -> Integers:
    """Find for each pixel its place in `_possible_values`; bits beyond those stored are dropped.

    Raises:
        ImageError: these differ between pixels and are neither signs nor overlays, so that they are part of the values.
    """
    ends = (int(decoded.min()), int(decoded.max()))
    low, high = (end >> (file.BitsStored - file.PixelRepresentation) for end in ends)
    is_sign = bool(file.PixelRepresentation) and (low, high) in {(-1, 0), (0, 1)}
    if low != high and not is_sign and not any(tag in file for tag in OVERLAYS):
        raise ImageError("bad_pixel_data", f"values from {ends[0]} to {ends[1]} in {file.BitsStored} bits (BitsStored)")
    places = decoded.astype(np.int64) & (2**file.BitsStored - 1)
    return np.asarray(places ^ (2 ** (file.BitsStored - 1)) if file.PixelRepresentation else places)


def _look_up(item: Dataset, values: Integers) -> Integers:
    """Map values by a lookup table, PS3.3 C.11.1.1.1; pydicom's own wraps around where entries have 8 bits."""
    entries, first, _ = (int(each) for each in item.LUTDescriptor)
    entries = entries or 2**16
    packed = item["LUTData"].value
    if isinstance(packed, bytes):
        curve = np.frombuffer(packed, np.uint8 if len(packed) in {entries, entries + 1} else "<u2")
    else:
        curve = np.ravel(packed)
    return curve[:entries].astype(np.int64)[np.clip(values - first, 0, entries - 1)]


def _light(file: Dataset, shades: Values, present: Integers) -> Values:
    """Map the shades to 0 (black) .. 1 (white) by VOI LUT, window, or their range."""
    if file.get("VOILUTSequence"):
        curve = _look_up(file.VOILUTSequence[0], np.rint(shades).astype(np.int64))
        most = 2 ** int(file.VOILUTSequence[0].LUTDescriptor[2]) - 1
        light = curve / (most if curve.max() * FAR >= most else curve.max())  # some name more bits than they fill
        name = "VOI LUT"
    elif file.get("WindowCenter") not in (None, "") and file.get("WindowWidth") not in (None, ""):
        centre, width = (float(np.ravel(file[tag].value)[0]) for tag in ("WindowCenter", "WindowWidth"))
        light = windowed(shades, centre, width, function=word(file, "VOILUTFunction") or "LINEAR")
        name = f"window centre {centre:g}, width {width:g}"
    else:
        return stretched(shades, shades[present])
    shown = ((light > 0) & (light < 1))[present].mean()
    if shown < LEAST_SHOWN:
        raise ImageError("bad_window", f"the {name} shows {shown:.0%} of the pixels between black and white")
    return np.asarray(np.clip(light, 0, 1), np.float64)


def windowed(values: Values, centre: float, width: float, *, function: str) -> Values:
    """Map values to 0 (black) .. 1 (white) by a window, PS3.3 C.11.2.1.2 and C.11.2.1.3.

    Raises:
        ImageError: the window or its function is not one of the standard's.
    """
    least = 1.0 if function == "LINEAR" else np.nextafter(0, 1)
    if not (np.isfinite(centre) and np.isfinite(width) and width >= least):
        raise ImageError("bad_window", f"window centre {centre:g}, width {width:g}, function {function}")
    if function == "SIGMOID":
        return np.asarray(1 / (1 + np.exp(np.clip(-4 * (values - centre) / width, -700, 700))))
    if function == "LINEAR_EXACT":
        return np.clip((values - centre) / width + 0.5, 0, 1)
    if function == "LINEAR":
        if width == 1:
            return np.asarray(values > centre - 0.5, np.float64)
        return np.clip((values - (centre - 0.5)) / (width - 1) + 0.5, 0, 1)
    raise ImageError("bad_window", f"window function {clean(function)}; LINEAR, LINEAR_EXACT and SIGMOID are known")


def stretched(values: Values, present: Values) -> Values:
    """Map values to 0 .. 1 by the range of those that are present; far outliers are clipped.

    Args:
        values: (V,) to be mapped.
        present: those of the pixels.
    """
    low, high = float(present.min()), float(present.max())
    first, last = (float(each) for each in np.percentile(present, [OUTLIERS, 100 - OUTLIERS]))
    if last > first and high - low > FAR * (last - first):
        low, high = first, last
    return np.clip((values - low) / (high - low), 0, 1) if high > low else np.zeros_like(values)


def _presented(light: Values, file: Dataset) -> tuple[Values, tuple[str, ...]]:
    """Apply the presentation LUT and the photometric interpretation, which say the same twice (PS3.3 C.8.11.3.1.2)."""
    if file.get("PresentationLUTSequence"):
        item = file.PresentationLUTSequence[0]
        entries, _, bits = (int(each) for each in item.LUTDescriptor)
        curve = _look_up(item, np.rint(light * ((entries or 2**16) - 1)).astype(np.int64))
        if curve.max() >= 2**bits or not bits:
            raise ImageError("bad_window", f"the presentation LUT holds values up to {curve.max()} in {bits} bits")
        light = curve / (2**bits - 1)
    shape, negative = word(file, "PresentationLUTShape"), file.PhotometricInterpretation == "MONOCHROME1"
    contradiction = shape in {"IDENTITY", "INVERSE"} and (shape == "INVERSE") != negative
    if shape == "INVERSE" or (negative and shape != "IDENTITY"):  # the presentation LUT rules, as in dcmtk
        light = 1 - light
    return light, ("contradictory_lut",) * contradiction

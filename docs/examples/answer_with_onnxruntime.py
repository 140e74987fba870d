"""Answer an X-ray (8-bit PNG or JPEG) without this package: python answer_with_onnxruntime.py model.onnx film.jpeg."""

import json
import sys

import numpy as np
import onnxruntime
from PIL import Image, ImageOps


def answer(graph, film):
    session = onnxruntime.InferenceSession(graph)
    known = session.get_modelmeta().custom_metadata_map  # also: card, band, gate, prevalence, preprocessing
    side, (negative, positive) = int(known["image_size"]), json.loads(known["labels"])
    image = Image.open(film)
    image.draft("RGB" if image.mode == "RGB" else None, (2 * side, 2 * side))  # JPEG alone: decodes fewer pixels
    gray = ImageOps.exif_transpose(image).convert("L").resize((side, side), Image.Resampling.BILINEAR)
    [probability] = session.run(["probability"], {"pixels": np.asarray(gray, np.uint8)[None, None]})[0]
    return float(probability), positive if probability >= float(known["operating_point"]) else negative


if __name__ == "__main__":
    print(*answer(*sys.argv[1:3]))

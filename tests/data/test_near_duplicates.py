"""Twins are found as a comparison of every pair would find them."""

import numpy as np
import pytest
from PIL import Image

from xray_pneumonia.data.near_duplicates import MAX_BITS, MIN_CORRELATION, near_pairs

SIDE = 32


@pytest.fixture(scope="module")
def images():
    """Images of one kind, each with copies that are ever less alike, and two of one gray."""
    rng = np.random.default_rng(0)

    def smooth(cells):
        field = Image.fromarray(rng.normal(size=(cells, cells)).astype(np.float32))
        return np.asarray(field.resize((SIDE, SIDE), Image.Resampling.BICUBIC))

    chest = 2 * smooth(4)
    made = [np.full((SIDE, SIDE), 100.0), np.full((SIDE, SIDE), 101.0)]
    for _ in range(60):
        image = chest + smooth(8)
        made += [127 + 30 * (image + noise * rng.normal(size=image.shape)) for noise in (0, 0.05, 0.3, 0.6)]
        made.append(20 + 100 * image / image.max())  # another exposure
    return np.clip(made, 0, 255).astype(np.uint8)


@pytest.fixture(scope="module")
def hashes(images):
    small = [np.asarray(Image.fromarray(image).resize((17, 16), Image.Resampling.BILINEAR)) for image in images]
    return [np.packbits(each[:, 1:] > each[:, :-1]).tobytes().hex() for each in small]


def every_pair(images, rows, hashes):
    bits = np.array([[int(digit) for digit in f"{int(one, 16):0256b}"] for one in hashes])
    found = []
    for i in range(len(rows)):
        for j in range(i + 1, len(rows)):
            a, b = images[rows[i]], images[rows[j]]
            alike = a.std() > 0 < b.std() and np.corrcoef(a.ravel(), b.ravel())[0, 1] >= MIN_CORRELATION
            if alike and (bits[i] != bits[j]).sum() <= MAX_BITS:
                found.append((rows[i], rows[j]))
    return found


@pytest.mark.parametrize("block", [7, 1024])
def test_the_pairs_are_those_of_every_comparison(images, hashes, block, monkeypatch):
    monkeypatch.setattr("xray_pneumonia.data.near_duplicates.BLOCK", block)
    monkeypatch.setattr("xray_pneumonia.data.near_duplicates.WIDE", 2 * block)
    rows = np.flatnonzero(np.arange(len(images)) % 7)  # some rows cannot be read
    found = near_pairs(images, rows, [hashes[row] for row in rows])
    expected = every_pair(images, rows, [hashes[row] for row in rows])
    assert len(expected) > 50
    assert list(map(tuple, found)) == expected


@pytest.mark.parametrize("count", [0, 1, 2])
def test_few_images(images, hashes, count):
    assert near_pairs(images, np.arange(count), hashes[:count]).shape == (0, 2)

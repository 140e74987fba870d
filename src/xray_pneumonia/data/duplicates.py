"""Pictures of the same film, resized or re-encoded: found among 100,000 without looking at each pair.

Films whose pixels correlate lie close together in every projection. So they are sorted along the direction in which
films differ most, and only those near each other there are compared: first in 16 numbers, then by the bits of their
hashes, then pixel by pixel. What is left out could not have passed the last test.
"""

import math
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from xray_pneumonia.types import Gray

# Measured on the 5,216 public training files: no two different films reach a correlation of 0.97 at
# 128 x 128 pixels, and a film resized and re-encoded stays above 0.99 and within 16 bits.
TWIN_BITS = 32  # of 256
TWIN_CORRELATION = 0.985
PARTS = 4  # of a side, where films are looked at coarsely
BLOCK = 1024  # films at a time
WIDE = 4096  # against so many others

Rows = npt.NDArray[np.int64]
Points = npt.NDArray[np.float32]


def near_pairs(images: Gray, rows: Rows, hashes: list[str]) -> Rows:
    """Pair films whose hashes differ in few bits and whose pixels correlate.

    Args:
        images: (N, H, W) uint8.
        rows: M of the films, in rising order.
        hashes: M difference hashes, 64 hex digits each.

    Returns:
        (P, 2) pairs of rows, sorted, the smaller one first.
    """
    if not len(rows):
        return np.empty((0, 2), np.int64)
    words = np.frombuffer(bytes.fromhex("".join(hashes)), np.uint64).reshape(len(rows), -1)
    found = [np.empty((0, 2), np.int64)]
    for pairs in _close_pairs(_coarse(images, rows)):
        bits = np.bitwise_count(words[pairs[:, 0]] ^ words[pairs[:, 1]]).sum(axis=1)
        candidates = np.sort(rows[pairs[bits <= TWIN_BITS]], axis=1)
        found += [_correlated(images, part) for part in np.array_split(candidates, len(candidates) // BLOCK + 1)]
    both = np.concatenate(found)
    return both[np.lexsort((both[:, 1], both[:, 0]))]


def _coarse(images: Gray, rows: Rows) -> Points:
    """Project films, standardised to length 1, onto the means of 4 x 4 parts: this brings no two further apart.

    Returns:
        (M, 16) the projections, turned so that the first number differs most; not a number for a film of one gray,
        which correlates with nothing.
    """
    side = images.shape[1]
    part = np.arange(side) * PARTS // side
    across = np.eye(PARTS, dtype=np.float32)[part]  # (side, 4): which part a column lies in
    basis = np.einsum("ia,jb->ijab", across, across).reshape(side * side, PARTS * PARTS)
    basis /= np.sqrt(np.maximum(basis.sum(axis=0), 1))  # columns of length 1
    points = np.empty((len(rows), PARTS * PARTS), np.float32)
    for start in range(0, len(rows), BLOCK):
        films = images[rows[start : start + BLOCK]].reshape(-1, side * side).astype(np.float32)
        films -= films.mean(axis=1, keepdims=True)
        with np.errstate(invalid="ignore"):
            points[start : start + BLOCK] = films @ basis / np.sqrt(np.einsum("ij,ij->i", films, films))[:, None]
    known = points[np.isfinite(points).all(axis=1)]
    directions = np.linalg.svd(known - known.mean(axis=0), full_matrices=False)[2] if len(known) > 1 else np.eye(1)
    return np.asarray(points @ directions.T if len(directions) == points.shape[1] else points, np.float32)


def _close_pairs(points: Points) -> Iterator[Rows]:
    """Yield pairs of points as close as the projections of correlated films must be, some blocks at a time."""
    reach = math.sqrt(2 - 2 * TWIN_CORRELATION) + 1e-3  # between films of length 1; and what rounding takes
    known = np.flatnonzero(np.isfinite(points).all(axis=1))
    order = known[np.argsort(points[known, 0], kind="stable")]
    sorted_points = points[order]
    half = np.einsum("ij,ij->i", sorted_points, sorted_points) / 2
    last = np.searchsorted(sorted_points[:, 0], sorted_points[:, 0] + reach, side="right")
    for start in range(0, len(order), BLOCK):
        here = slice(start, start + BLOCK)
        end = int(last[here].max())
        for left in range(start, end, WIDE):
            there = slice(left, min(left + WIDE, end))
            near = sorted_points[here] @ sorted_points[there].T - half[there]  # |a - b|^2 = |a|^2 + |b|^2 - 2 ab
            a, b = np.nonzero(near >= (half[here] - reach**2 / 2)[:, None])
            ahead = b + left > a + start
            yield np.stack([order[a[ahead] + start], order[b[ahead] + left]], axis=1)


def _correlated(images: Gray, pairs: Rows) -> Rows:
    flat = images[pairs].reshape(len(pairs), 2, images.shape[1] * images.shape[2]).astype(np.float32)
    flat -= flat.mean(axis=2, keepdims=True)
    norms = np.linalg.norm(flat, axis=2).prod(axis=1) + 1e-9
    alike: npt.NDArray[np.bool_] = (flat[:, 0] * flat[:, 1]).sum(axis=1) / norms >= TWIN_CORRELATION
    return np.asarray(pairs[alike])

#!/usr/bin/env python3
"""Prints the expected values of src/data/resize.rs's tests from OpenCV itself (`pip install opencv-python-headless numpy`)."""
import cv2
import numpy as np


def noise(n):
    return ((np.arange(n, dtype=np.uint64) * 2654435761 % 2**32) >> 24).astype(np.uint8)


def fnv(data):
    h = 0xCBF29CE484222325
    for b in data:
        h = ((h ^ b) * 0x100000001B3) % 2**64
    return h


def resize(image, oh, ow):
    return cv2.resize(image, (ow, oh), interpolation=cv2.INTER_LINEAR)


print(f"// OpenCV {cv2.__version__}")
for h, w, oh, ow in [(1, 1, 1, 4), (1, 2, 1, 8), (2, 2, 3, 3), (5, 5, 9, 9), (4, 6, 2, 3), (3, 5, 7, 2)]:
    out = resize(noise(h * w).reshape(h, w), oh, ow).ravel().tolist()
    print(f"        assert_eq!(resize(&noise({h * w}), {h}, {w}, {oh}, {ow}), {out});")
for h, w, oh, ow in [
    (28, 28, 96, 96), (28, 28, 224, 224), (28, 28, 64, 64), (28, 28, 32, 32), (28, 28, 14, 14), (28, 28, 7, 7),
    (28, 28, 20, 20), (5, 5, 9, 9), (1, 1, 4, 4), (1, 7, 4, 3), (7, 1, 3, 9), (28, 20, 31, 77), (64, 48, 33, 96),
]:  # fmt: skip
    print(f"            (({h}, {w}, {oh}, {ow}), 0x{fnv(resize(noise(h * w).reshape(h, w), oh, ow).ravel().tolist()):016x}),")

#!/usr/bin/env python3
"""Makes data/fashion-mnist-sample/: a small, class-balanced part of the real Fashion-MNIST.

    python3 scripts/make_sample.py /usr/share/datasets/fashion-mnist data/fashion-mnist-sample

The first 10 * PER_CLASS images are drawn from each set with a fixed seed. Every run of ten images holds each class
once (in a random order), so any prefix is balanced as well. The four files are ordinary idx files, compressed with
zopfli where it is installed (`pip install zopfli`; the shipped files are made with it) and with gzip -9 where it is
not: the images are the same, the files about 2 % larger.
"""
import gzip
import hashlib
import pathlib
import random
import struct
import sys

SEED = 2019
PER_CLASS = {"train": 200, "t10k": 50}


def compress(raw: bytes) -> bytes:
    try:
        from zopfli.gzip import compress as zopfli
    except ImportError:
        return gzip.compress(raw, 9, mtime=0)
    return zopfli(raw, numiterations=50)


def main(source: pathlib.Path, target: pathlib.Path) -> None:
    target.mkdir(parents=True, exist_ok=True)
    total = 0
    for split, per_class in PER_CLASS.items():
        rng = random.Random(SEED)  # only random() is used: its sequence is the same in every Python 3
        images = gzip.decompress((source / f"{split}-images-idx3-ubyte.gz").read_bytes())
        labels = gzip.decompress((source / f"{split}-labels-idx1-ubyte.gz").read_bytes())
        magic, count, rows, cols = struct.unpack(">4I", images[:16])
        assert magic == 2051 and struct.unpack(">2I", labels[:8]) == (2049, count)
        size = rows * cols
        shuffled = sorted(range(count), key=lambda _: rng.random())
        by_class = [[i for i in shuffled if labels[8 + i] == c][:per_class] for c in range(10)]
        chosen = []
        for round_ in zip(*by_class):
            chosen += sorted(round_, key=lambda _: rng.random())
        outputs = {
            f"{split}-images-idx3-ubyte.gz": struct.pack(">4I", 2051, len(chosen), rows, cols)
            + b"".join(images[16 + i * size : 16 + (i + 1) * size] for i in chosen),
            f"{split}-labels-idx1-ubyte.gz": struct.pack(">2I", 2049, len(chosen))
            + bytes(labels[8 + i] for i in chosen),
        }
        for name, raw in outputs.items():
            packed = compress(raw)
            (target / name).write_bytes(packed)
            total += len(packed)
            print(f"{name}: {len(chosen)} items, {len(packed)} bytes, content {hashlib.sha256(raw).hexdigest()}")
    print(f"{total} bytes in all")


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    main(pathlib.Path(sys.argv[1]), pathlib.Path(sys.argv[2]))

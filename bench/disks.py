"""The disks that are sent: made once per run, from a seed, so that two runs have the same bytes. Writes files."""

from __future__ import annotations

import mmap
import os
import random
from pathlib import Path
from typing import Iterator, List, Tuple

PAGE_BYTES = 4096
_CHUNK_BYTES = 16 << 20
_ZERO_RUN_BYTES = 1 << 20


def noise(path: Path, size_bytes: int, seed: int = 0) -> Path:
    """A disk full of random data, which nothing can compress."""
    rng = random.Random(seed)
    with open(path, "wb") as file:
        for at in range(0, size_bytes, _CHUNK_BYTES):
            file.write(rng.randbytes(min(_CHUNK_BYTES, size_bytes - at)))
    return path


def half_empty(path: Path, size_bytes: int) -> Path:
    """Every other mebibyte is zeros. They are written: a logical volume has no holes."""
    noise(path, size_bytes, seed=1)
    with open(path, "r+b") as file:
        for at in range(0, size_bytes, 2 * _ZERO_RUN_BYTES):
            file.seek(at)
            file.write(bytes(min(_ZERO_RUN_BYTES, size_bytes - at)))
    return path


def sparse(path: Path, size_bytes: int, data_bytes: int) -> Path:
    """Holes, but for some data in pieces of 1 MiB all over it."""
    rng = random.Random(2)
    with open(path, "wb") as file:
        file.truncate(size_bytes)
        for slot in sorted(rng.sample(range(size_bytes >> 20), data_bytes >> 20)):
            file.seek(slot << 20)
            file.write(rng.randbytes(1 << 20))
    return path


def changed(path: Path, base: Path, share: float, *, run_pages: int = 1, seed: int = 3) -> Tuple[Path, int]:
    """A copy of `base` with that share of its pages changed, in runs of `run_pages`; how many bytes those are."""
    rng = random.Random(seed)
    with open(base, "rb") as source, open(path, "wb") as file:
        while chunk := source.read(_CHUNK_BYTES):
            file.write(chunk)
        pages = file.tell() // PAGE_BYTES
        runs = max(1, round(pages * share / run_pages))
        for slot in sorted(rng.sample(range(pages // run_pages), runs)):
            file.seek(slot * run_pages * PAGE_BYTES)
            file.write(rng.randbytes(run_pages * PAGE_BYTES))
    return path, runs * run_pages * PAGE_BYTES


def text(path: Path, size_bytes: int) -> Path:
    """A disk full of log lines, which compress well."""
    rng = random.Random(4)
    words = [f"{rng.randrange(1 << 40):x}" for _ in range(3000)]
    block = "\n".join(" ".join(rng.choices(words, k=12)) for _ in range(160_000)).encode()
    with open(path, "wb") as file:
        for at in range(0, size_bytes, len(block)):
            turned = (at // len(block)) * 4099 % len(block)
            file.write((block[turned:] + block[:turned])[: size_bytes - at])
    return path


def same(one: Path, other: Path) -> bool:
    """Whether two disks hold the same bytes; holes are not read."""
    with open(one, "rb") as a, open(other, "rb") as b:
        size = os.fstat(a.fileno()).st_size
        if os.fstat(b.fileno()).st_size < size:
            return False
        for start, end in _union(sorted([*_data(a.fileno(), size), *_data(b.fileno(), size)])):
            for at in range(start, end, _CHUNK_BYTES):
                length = min(_CHUNK_BYTES, end - at)
                if os.pread(a.fileno(), length, at) != os.pread(b.fileno(), length, at):
                    return False
    return True


def touch_memory(size_bytes: int) -> None:
    """Use that much memory once and free it.

    A virtual machine's host takes freed memory back, and giving it again costs more than any copy. Whoever is
    measured next gets memory that is there already.
    """
    with mmap.mmap(-1, size_bytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | mmap.MAP_POPULATE):
        pass


def _data(fd: int, size: int) -> Iterator[Tuple[int, int]]:
    at = 0
    while at < size:
        try:
            at = os.lseek(fd, at, os.SEEK_DATA)
        except OSError:  # ENXIO: nothing but a hole
            return
        end = min(size, os.lseek(fd, at, os.SEEK_HOLE))
        yield at, end
        at = end


def _union(ranges: List[Tuple[int, int]]) -> Iterator[Tuple[int, int]]:
    last = 0
    for start, end in ranges:
        start = max(start, last)
        if start < end:
            yield start, end
            last = end

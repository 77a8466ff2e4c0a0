"""Workloads on big files: sequential and random reads and writes."""

from __future__ import annotations

import functools
import os
import random
from pathlib import Path

from tests.bench.bare import PART
from tests.bench.client import each
from tests.bench.material import BLOCK, CHUNK, chunk_at, chunks
from tests.bench.scale import KIB, Scale
from tests.bench.stage import Stage
from tests.bench.workloads.workload import Unit, Workload, parallel

SEED = 70_30
CHANGE = BLOCK[1 : 1 + 4 * KIB]  # begins at no multiple of 4 KiB of a big file


def write_file(path: Path, size: int) -> None:
    """Writes a big file in calls of 1 MiB."""
    with path.open("wb", buffering=0) as out:
        for chunk in chunks(size):
            out.write(chunk)


def read_file(path: Path, size: int) -> None:
    """Reads a big file in calls of 1 MiB and checks each by its first bytes; a wrong or short one raises."""
    buffer = memoryview(bytearray(CHUNK))
    with path.open("rb", buffering=0) as file:
        offset = 0
        while count := file.readinto(buffer):
            if offset % CHUNK == 0 and buffer[:64] != chunk_at(offset)[:64]:
                raise OSError(f"wrong bytes at {offset}")
            offset += count
    if offset != size:
        raise OSError(f"{offset} bytes of {size}")


def write_streams(stage: Stage, *, streams: int) -> None:
    home, size = stage.home, stage.scale.big // streams
    with stage.clock():
        parallel(lambda i: write_file(home / f"big{i}", size), streams)
    stage.expect(streams, size * streams)


def write_bare(stage: Stage, *, streams: int) -> None:
    """Multipart uploads, 12 parts at once each."""
    size = stage.scale.big // streams
    with stage.clock():
        parallel(lambda i: stage.bare.put_parts(f"{stage.prefix}/big{i}", chunks(size)), streams)


def _big_files(stage: Stage, streams: int) -> tuple[list[str], int]:
    size = stage.scale.big // streams
    return [stage.dataset.big(size, i) for i in range(streams)], size


def read_streams(stage: Stage, *, streams: int) -> None:
    keys, size = _big_files(stage, streams)
    with stage.clock():
        parallel(lambda i: read_file(stage.top / keys[i], size), streams)


def read_bare(stage: Stage, *, streams: int) -> None:
    """Ranges of 8 MiB, eight at once."""
    keys, size = _big_files(stage, streams)
    ranges = [(key, start) for key in keys for start in range(0, size, PART)]
    with stage.clock():
        each(lambda r: stage.bare.get(r[0], r[1], min(PART, size - r[1])), ranges, threads=8)


def read_whole(stage: Stage) -> None:
    """A file whose ETag is its MD5."""
    key = stage.dataset.big_whole(stage.scale.big)
    with stage.clock():
        read_file(stage.top / key, stage.scale.big)


def read_whole_bare(stage: Stage) -> None:
    key, size = stage.dataset.big_whole(stage.scale.big), stage.scale.big
    with stage.clock():
        each(lambda at: stage.bare.get(key, at, min(PART, size - at)), range(0, size, PART), threads=8)


def _offsets(scale: Scale, block: int) -> list[int]:
    count = scale.small_reads if block == 4 * KIB else scale.large_reads
    draw = random.Random(SEED)
    return [draw.randrange(scale.big // block) * block for _ in range(count)]


def read_random(stage: Stage, *, block: int) -> None:
    key = stage.dataset.big(stage.scale.big)
    offsets = _offsets(stage.scale, block)
    with (stage.top / key).open("rb", buffering=0) as file, stage.clock():
        for offset in offsets:
            data = os.pread(file.fileno(), block, offset)
            start = offset % len(BLOCK)
            if data[:64] != BLOCK[start : start + 64] or len(data) != block:
                raise OSError(f"wrong bytes at {offset}")


def read_random_bare(stage: Stage, *, block: int) -> None:
    """The same ranges, one after the other, without any read-ahead."""
    key = stage.dataset.big(stage.scale.big)
    offsets = _offsets(stage.scale, block)
    with stage.clock():
        each(lambda offset: stage.bare.get(key, offset, block), offsets, threads=1)


def mix(stage: Stage) -> None:
    """70 % reads and 30 % writes of 4 KiB in a file that is in the bucket, then close."""
    key, size, block = f"{stage.prefix}/mixed", stage.scale.mixed, 4 * KIB
    stage.client.put_directory(stage.prefix)
    stage.client.put_parts(key, chunks(size))
    draw, last = random.Random(SEED), 0
    with stage.clock():
        file = os.open(stage.top / key, os.O_RDWR)
        try:
            for _ in range(stage.scale.mix_calls):
                offset = draw.randrange(size // block) * block
                if draw.random() < 0.7:
                    os.pread(file, block, offset)
                else:
                    os.pwrite(file, CHANGE, offset)
                    last = offset
        finally:
            os.close(file)
    stage.expect(1, size)
    stage.expect_bytes("mixed", CHANGE, at=last)


def _random_reads(scale: Scale, *, block: int) -> float:
    return len(_offsets(scale, block))


def _big(scale: Scale) -> float:
    return scale.big


def _streams(streams: int) -> list[Workload]:
    tail, words = ("", "1 stream") if streams == 1 else (str(streams), f"{streams} streams")
    write = functools.partial(write_streams, streams=streams)
    read = functools.partial(read_streams, streams=streams)
    floors = functools.partial(write_bare, streams=streams), functools.partial(read_bare, streams=streams)
    return [
        Workload(f"seq_write{tail}", f"sequential write, {words}", Unit.MB, _big, write, floors[0], stores=True),
        Workload(f"seq_read{tail}", f"sequential read, {words}", Unit.MB, _big, read, floors[1]),
    ]


def _random(block: int) -> Workload:
    return Workload(
        f"rand_read_{block // KIB}k",
        f"random read of {block // KIB} KiB",
        Unit.CALLS,
        functools.partial(_random_reads, block=block),
        functools.partial(read_random, block=block),
        functools.partial(read_random_bare, block=block),
    )


BULK = [
    *_streams(1),
    *_streams(4),
    Workload("seq_read_md5", "sequential read, its MD5 known", Unit.MB, _big, read_whole, read_whole_bare),
    _random(4 * KIB),
    _random(256 * KIB),
    Workload("rand_mix", "random 4 KiB, 70/30", Unit.CALLS, lambda scale: scale.mix_calls, mix, stores=True),
]

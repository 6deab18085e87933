"""The embedding cache: what it remembers, and that its failure fails nothing."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from cloud_worker.cache import CachedEncoder, EmbeddingCache, cache_key
from streams.errors import EncoderError
from tests.encoders import HashEncoder, hash_vector

ROOT = Path(__file__).parents[2]
DIM = 64

WRITER = """
import sys
from pathlib import Path
from cloud_worker.cache import CachedEncoder, EmbeddingCache
from tests.encoders import HashEncoder
name, folder, size = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3])
encoder = CachedEncoder(HashEncoder(64), EmbeddingCache(folder, size))
for turn in range(int(sys.argv[4])):
    encoder.encode([f"{name} {turn} {i}" for i in range(20)])
    print(turn, encoder.failures, flush=True)
"""


def writer(name: str, folder: Path, *, size: int = 50_000_000, turns: int = 10**9) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", WRITER, name, str(folder), str(size), str(turns)],
        stdout=subprocess.PIPE,
        text=True,
        cwd=ROOT,
    )


def test_a_text_is_encoded_once_and_costs_nothing_later(tmp_path):
    inner = HashEncoder(DIM)
    first = CachedEncoder(inner, cache := EmbeddingCache(tmp_path, 10_000_000))
    fresh = first.encode(["a b", "c"])
    mixed = first.encode(["c", "d", "a b"])
    cache.close()
    later = CachedEncoder(inner, EmbeddingCache(tmp_path, 10_000_000)).encode(["a b", "c"])
    assert inner.asked == [["a b", "c"], ["d"], []]
    np.testing.assert_array_equal(later.vectors, fresh.vectors)
    np.testing.assert_array_equal(mixed.vectors[[2, 0]], fresh.vectors)
    assert (fresh.cached, mixed.cached, later.cached) == (0, 2, 2)
    assert mixed.tokens.tolist() == [0, 3, 0]


def test_models_do_not_share_entries(tmp_path):
    cache = EmbeddingCache(tmp_path, 10_000_000)
    CachedEncoder(HashEncoder(DIM, "one"), cache).encode(["a"])
    other = HashEncoder(DIM, "other")
    CachedEncoder(other, cache).encode(["a"])
    assert other.asked == [["a"]]
    assert cache_key("m", "xt") != cache_key("mx", "t")


def test_it_stays_within_its_size_and_keeps_what_is_in_use(tmp_path):
    size = 2_000_000
    inner = HashEncoder(DIM)
    encoder = CachedEncoder(inner, EmbeddingCache(tmp_path, size))
    for turn in range(150):
        encoder.encode(["always wanted", *(f"once {turn} {i}" for i in range(100))])
        used = sum(path.stat().st_size for path in tmp_path.rglob("data.mdb"))
        assert used < 1.3 * size
    assert encoder.failures == 0
    assert sum("always wanted" in texts for texts in inner.asked) == 1
    inner.asked.clear()
    encoder.encode(["once 0 0", "once 149 0"])
    assert inner.asked == [["once 0 0"]], "the oldest went, the newest is there"


def test_a_damaged_entry_is_a_miss(tmp_path):
    cache = EmbeddingCache(tmp_path, 10_000_000)
    key = cache_key("test-encoder", "a")
    CachedEncoder(HashEncoder(DIM), cache).encode(["a"])
    with cache._open[1].begin(write=True) as txn:
        raw = bytearray(txn.get(key))
        raw[5] ^= 1
        txn.put(key, bytes(raw))
    assert cache.get([key], DIM) == [None]
    assert cache.get([key], DIM + 1) == [None]


def test_what_another_boot_left_is_not_read(tmp_path):
    left = tmp_path / "boot-1234" / "g1"
    left.mkdir(parents=True)
    (left / "data.mdb").write_bytes(os.urandom(100_000))
    encoder = CachedEncoder(HashEncoder(DIM), EmbeddingCache(tmp_path, 10_000_000))
    assert encoder.encode(["a"]).cached == 0
    assert not left.exists()


@pytest.mark.chaos
def test_it_is_whole_after_kill_9_in_the_midst_of_writing(tmp_path):
    process = writer("w", tmp_path)
    for _ in range(5):
        process.stdout.readline()
    time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait()
    cache = EmbeddingCache(tmp_path, 50_000_000)
    texts = [f"w {turn} {i}" for turn in range(5) for i in range(20)]
    found = cache.get([cache_key("test-encoder", text) for text in texts], DIM)
    assert all(entry is not None for entry in found), "what was written before the kill is there"
    np.testing.assert_allclose([entry[0] for entry in found], [hash_vector(text, DIM) for text in texts], atol=1e-6)


def test_several_processes_share_it_through_many_rotations(tmp_path):
    size = 300_000
    processes = [writer(name, tmp_path, size=size, turns=150) for name in "abc"]
    outputs = [process.communicate(timeout=120)[0].split("\n") for process in processes]
    assert [process.returncode for process in processes] == [0, 0, 0]
    assert {line.split()[1] for lines in outputs for line in lines if line} == {"0"}, "no access failed"
    generations = [int(path.name[1:]) for path in tmp_path.glob("*/g*")]
    assert min(generations) > 1
    assert len(generations) <= 3


def test_threads_share_one_instance(tmp_path):
    encoder = CachedEncoder(HashEncoder(DIM), EmbeddingCache(tmp_path, 600_000))
    texts = [[f"{i % 7} {j}" for j in range(30)] for i in range(60)]
    with ThreadPoolExecutor(6) as pool:
        for asked, batch in zip(texts, pool.map(encoder.encode, texts), strict=True):
            np.testing.assert_allclose(batch.vectors, [hash_vector(text, DIM) for text in asked], atol=1e-6)
    assert encoder.failures == 0


FULL_DISK = """
import resource, signal, sys
from pathlib import Path
import numpy as np
from cloud_worker.cache import CachedEncoder, EmbeddingCache
from tests.encoders import HashEncoder, hash_vector
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
encoder = CachedEncoder(HashEncoder(64), EmbeddingCache(Path(sys.argv[1]), 50_000_000))
encoder.encode(["before"])
resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000))
for turn in range(30):
    texts = [f"{turn} {i}" for i in range(50)]
    np.testing.assert_allclose(encoder.encode(texts).vectors, [hash_vector(t, 64) for t in texts], atol=1e-6)
print(encoder.failures > 0, encoder.encode(["before"]).cached)
"""


def test_a_full_disk_costs_encodings_but_fails_nothing(tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", FULL_DISK, str(tmp_path)], capture_output=True, text=True, cwd=ROOT, check=False
    )
    assert done.stdout.split()[-2:] == ["True", "1"], done.stderr


def test_an_encoder_that_fails_leaves_nothing_behind(tmp_path):
    inner = HashEncoder(DIM)
    encoder = CachedEncoder(inner, EmbeddingCache(tmp_path, 10_000_000))
    inner.failing = EncoderError("away")
    with pytest.raises(EncoderError):
        encoder.encode(["a"])
    inner.failing = None
    assert encoder.encode(["a"]).cached == 0

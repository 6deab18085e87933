"""A content-addressed cache of text vectors on disk, and the encoder that asks it first.

Layout: ``<folder>/<boot>/g<number>``, up to two LMDB environments, the *generations*. Writes go to the newest one; when
it holds half of the allowed size, a newer one is begun and the one before the last is deleted. A hit in the older
generation is written to the newer one, so what is in use stays: rotation forgets whole halves, without any bookkeeping
of last uses.

The key is a hash of the model id and the text, so an entry is never out of date: any process may write it, in any
order, and losing it costs one encoding. Therefore LMDB runs without syncing. That is safe over a kill -9 of a process,
but not over a crash of the machine, so the files of one boot are never read after the next one: they lie under the
kernel's boot id, and those of other boots are deleted. And therefore a failure of the cache, a full disk above all,
never fails the work: it is logged, counted and lived without.
"""

from __future__ import annotations

import contextlib
import hashlib
import shutil
import struct
import threading
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import lmdb
import numpy as np
import numpy.typing as npt

from cloud_worker.encoder.base import EncodedBatch, Encoder
from streams.boot import boot_id
from streams.errors import StoreError
from streams.log import get_logger

KEY_BYTES: Final = 20
MAX_READERS: Final = 512
ROOM: Final = 1.25
"""LMDB address space over the size at which a generation is full: the last batch must fit."""
_PAGE: Final = 4096
_TAIL: Final = struct.Struct("<II")  # tokens, CRC-32 of everything before
_PREFIX: Final = "g"

log = get_logger(__name__)


class EmbeddingCache:
    """The store. Several processes may share the folder, all with the same `max_bytes`; threads may share an instance.

    Parameters
    ----------
    folder
        Made when missing. Only one instance a process may have it open (an LMDB rule).
    max_bytes
        Of all generations together.

    Raises
    ------
    StoreError
        The folder cannot be used at all. So do all methods; `CachedEncoder` turns that into a miss.
    """

    def __init__(self, folder: Path, max_bytes: int) -> None:
        self._folder = folder / boot_id()
        self._half = max(int(max_bytes / 2), 64 * _PAGE)
        self._open: dict[int, Any] = {}
        self._lock = threading.Lock()
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            for other in set(folder.iterdir()) - {self._folder}:
                shutil.rmtree(other, ignore_errors=True)
            self._refresh()
        except (OSError, lmdb.Error) as exc:
            raise StoreError(f"embedding cache {folder} cannot be opened: {exc}") from exc

    def get(self, keys: Sequence[bytes], dim: int) -> list[tuple[npt.NDArray[np.float32], int] | None]:
        """Look up keys: the vector (dim,) and its token count, or None.

        Raises
        ------
        StoreError
            The folder could not be read.
        """
        found: list[tuple[npt.NDArray[np.float32], int] | None] = [None] * len(keys)
        kept: list[tuple[bytes, bytes]] = []
        try:
            with self._lock:
                self._refresh()
                newest = max(self._open)
                for number in sorted(self._open, reverse=True):
                    with self._open[number].begin() as txn:
                        for index, key in enumerate(keys):
                            if found[index] is None and (raw := txn.get(key)) is not None:
                                found[index] = _unpack(raw, dim)
                                if number != newest and found[index] is not None:
                                    kept.append((key, raw))
        except (OSError, lmdb.Error) as exc:
            raise StoreError(f"embedding cache {self._folder} cannot be read: {exc}") from exc
        if kept:
            with contextlib.suppress(StoreError):  # what was found is found, even where nothing can be written
                self._write(kept)
        return found

    def put(self, keys: Sequence[bytes], vectors: npt.NDArray[np.float32], tokens: npt.NDArray[np.int64]) -> None:
        """Store (B, dim) vectors and their token counts in one transaction.

        Raises
        ------
        StoreError
            The folder could not be written: disk full, no permission.
        """
        self._write([(key, _pack(vectors[i], int(tokens[i]))) for i, key in enumerate(keys)])

    def close(self) -> None:
        """Let go of the files."""
        with self._lock:
            for environment in self._open.values():
                environment.close()
            self._open.clear()

    def _write(self, entries: Sequence[tuple[bytes, bytes]]) -> None:
        entries = sorted(dict(entries).items())
        try:
            with self._lock:
                self._refresh()
                newest = max(self._open)
                if _used(self._open[newest]) >= self._half:
                    newest = self._rotate(newest)
                try:
                    with self._open[newest].begin(write=True) as txn:
                        txn.cursor().putmulti(entries)
                except lmdb.MapFullError:
                    newest = self._rotate(newest)
                    with self._open[newest].begin(write=True) as txn:
                        txn.cursor().putmulti(entries)
        except (OSError, lmdb.Error) as exc:
            raise StoreError(f"embedding cache {self._folder} cannot be written: {exc}") from exc

    def _refresh(self) -> None:
        """Follow what other processes did to the generations."""
        present = {number for each in self._folder.glob(f"{_PREFIX}*") if (number := _number(each)) is not None}
        for gone in set(self._open) - present:
            self._open.pop(gone).close()
        for number in sorted(present)[-2:]:
            self._ensure(number)
        if not self._open:
            self._ensure(1)

    def _rotate(self, full: int) -> int:
        """Begin the generation after `full`, delete all before `full`."""
        self._ensure(full + 1)
        for path in self._folder.glob(f"{_PREFIX}*"):
            number = _number(path)
            if number is not None and number < full:
                if number in self._open:
                    self._open.pop(number).close()
                # Another process that still reads it keeps its mapping; the disk is freed when it looks again.
                shutil.rmtree(path, ignore_errors=True)
        return full + 1

    def _ensure(self, number: int) -> None:
        if number in self._open:
            return
        environment = lmdb.open(
            str(self._folder / f"{_PREFIX}{number}"),
            map_size=int(self._half * ROOM) + 256 * _PAGE,
            max_readers=MAX_READERS,
            sync=False,
            metasync=False,
        )
        environment.reader_check()
        self._open[number] = environment


class CachedEncoder:
    """The encoder port again: asks the cache, encodes the rest once, remembers it.

    Parameters
    ----------
    encoder
        Who encodes what is not there.
    cache
        Where it is looked up.

    Attributes
    ----------
    failures
        Times the cache could not be read or written; the work went on without it.
    """

    def __init__(self, encoder: Encoder, cache: EmbeddingCache) -> None:
        self._encoder = encoder
        self._cache = cache
        self.failures = 0

    @property
    def model_id(self) -> str:
        """The encoder's."""
        return self._encoder.model_id

    @property
    def dim(self) -> int:
        """The encoder's."""
        return self._encoder.dim

    def encode(self, texts: Sequence[str]) -> EncodedBatch:
        """Encode (B,) texts; `tokens` is 0 and `cached` counts where the cache knew the vector.

        Raises
        ------
        EncoderError
            As the encoder says. A failing cache raises nothing.
        """
        keys = [cache_key(self.model_id, text) for text in texts]
        known = self._look_up(keys)
        missing = [index for index, entry in enumerate(known) if entry is None]
        fresh = self._encoder.encode([texts[index] for index in missing])
        if missing:
            self._remember([keys[index] for index in missing], fresh)
        vectors = np.empty((len(texts), self.dim), np.float32)
        tokens = np.zeros(len(texts), np.int64)
        for index, entry in enumerate(known):
            if entry is not None:
                vectors[index] = entry[0]
        vectors[missing], tokens[missing] = fresh.vectors, fresh.tokens
        return EncodedBatch(vectors, tokens, len(texts) - len(missing))

    def _look_up(self, keys: Sequence[bytes]) -> list[tuple[npt.NDArray[np.float32], int] | None]:
        try:
            return self._cache.get(keys, self.dim)
        except StoreError as exc:
            self._failed(exc)
            return [None] * len(keys)

    def _remember(self, keys: Sequence[bytes], fresh: EncodedBatch) -> None:
        try:
            self._cache.put(keys, fresh.vectors, fresh.tokens)
        except StoreError as exc:
            self._failed(exc)

    def _failed(self, exc: StoreError) -> None:
        self.failures += 1
        if self.failures & (self.failures - 1) == 0:  # the 1st, 2nd, 4th, 8th ...: a full disk fails at every batch
            log.warning("embedding cache failed; going on without it", error=str(exc), failures=self.failures)


def cache_key(model_id: str, text: str) -> bytes:
    """Address of a text's vector under a model."""
    digest = hashlib.blake2b(model_id.encode(), digest_size=KEY_BYTES)
    digest.update(b"\x00")
    digest.update(text.encode("utf-8", "surrogatepass"))
    return digest.digest()


def _pack(vector: npt.NDArray[np.float32], tokens: int) -> bytes:
    raw = np.ascontiguousarray(vector, dtype="<f4").tobytes()
    return raw + _TAIL.pack(tokens, zlib.crc32(raw))


def _unpack(raw: bytes, dim: int) -> tuple[npt.NDArray[np.float32], int] | None:
    """None for what is damaged or of another length."""
    if len(raw) != dim * 4 + _TAIL.size:
        return None
    body, (tokens, crc) = raw[: -_TAIL.size], _TAIL.unpack(raw[-_TAIL.size :])
    if zlib.crc32(body) != crc:
        return None
    return np.frombuffer(body, dtype="<f4").astype(np.float32, copy=False), tokens


def _used(environment: Any) -> int:
    """Bytes of the file that hold something."""
    info = environment.info()
    return int((info["last_pgno"] + 1) * _PAGE)


def _number(path: Path) -> int | None:
    digits = path.name.removeprefix(_PREFIX)
    return int(digits) if digits.isdigit() else None

"""The device store on LMDB: one environment for each partition.

It runs without fsync: after kill -9 the operating system still writes every page, and after a power loss the changelog
has everything. What must not happen is to trust a file that a power loss tore. So the environment notes the boot id of
the machine while it is open and a mark when it was closed cleanly; one that was neither closed cleanly nor written
since the last boot is dropped and restored from the changelog.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Final

import lmdb
import msgspec

from device_agent.store import Position
from streams.errors import StoreError

_META: Final = b"\x00"
"""Device ids hold no NUL (`device_agent.processor` refuses them), so these keys are free."""
_POSITION: Final = b"\x00position"
_CHANGELOG: Final = b"\x00changelog"
_OPENED: Final = b"\x00opened-in-boot"
_CLOSED: Final = b"closed"


class LmdbStore:
    """`device_agent.store.Store` in a directory.

    Parameters
    ----------
    path
        Directory of this partition's environment; made when missing.
    map_size
        Bytes of address space. Choose it large at once: it is reserved, not used, and growing it while another process
        is attached corrupts.
    boot
        Identity of the running system, see `streams.boot`.

    Raises
    ------
    StoreError
        The directory cannot be opened or written.
    """

    def __init__(self, path: Path, *, map_size: int, boot: str) -> None:
        self.path = path
        self._boot = boot.encode()
        self._map_size = map_size
        self._env = self._open()
        with self._env.begin() as txn:
            opened = txn.get(_OPENED)
        self.dropped = opened not in (None, _CLOSED, self._boot)
        if self.dropped:
            self.clear()
        self._mark_open()

    def _mark_open(self) -> None:
        """Say durably that the files are in use: after a power loss an older mark of a clean close must not stand."""
        self._put([(_OPENED, self._boot or b"unknown")])
        self._env.sync(True)

    def _open(self) -> lmdb.Environment:
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            env = lmdb.open(str(self.path), map_size=self._map_size, sync=False, max_dbs=0, max_readers=512)
            env.reader_check()
        except (OSError, lmdb.Error) as exc:
            raise StoreError(
                f"device store {self.path} cannot be opened: {exc}",
                remedy="check its permissions and free disk, or delete the folder: it is restored from the changelog",
            ) from exc
        return env

    def position(self) -> Position:
        """Return what the last write said."""
        with self._env.begin() as txn:
            raw = txn.get(_POSITION)
        return msgspec.msgpack.decode(raw, type=Position) if raw else Position()

    def changelog_offset(self) -> int:
        """Next offset of the changelog that this store has not seen."""
        with self._env.begin() as txn:
            return int.from_bytes(txn.get(_CHANGELOG) or b"", "big")

    def read(self, keys: Sequence[bytes]) -> list[bytes | None]:
        """Records of these devices, in the order asked."""
        try:
            with self._env.begin() as txn:
                return [txn.get(key) for key in keys]
        except lmdb.Error as exc:
            raise StoreError(f"device store {self.path} cannot be read: {exc}") from exc

    def write(self, records: Iterable[tuple[bytes, bytes]], position: Position, changelog_offset: int) -> None:
        """Write everything in one transaction."""
        meta = [
            (_POSITION, msgspec.msgpack.encode(position)),
            (_CHANGELOG, changelog_offset.to_bytes(8, "big")),
        ]
        self._put([*sorted(records), *meta])

    def _put(self, pairs: Iterable[tuple[bytes, bytes]]) -> None:
        try:
            with self._env.begin(write=True) as txn:
                for key, value in pairs:
                    txn.put(key, value)
        except lmdb.MapFullError as exc:
            raise StoreError(
                f"device store {self.path} is full: its map has {self._map_size / 2**30:.3g} GiB",
                remedy="raise device.map_size_gb (all workers stopped), then start again",
            ) from exc
        except (OSError, lmdb.Error) as exc:
            raise StoreError(
                f"device store {self.path} cannot be written: {exc}", remedy="check the free disk and its permissions"
            ) from exc

    def items(self) -> Iterable[tuple[bytes, bytes]]:
        """All records in key order."""
        with self._env.begin() as txn:
            for key, value in txn.cursor():
                if not key.startswith(_META):
                    yield key, value

    def clear(self) -> None:
        """Forget everything: remove the files and begin anew."""
        self._env.close()
        shutil.rmtree(self.path)
        self._env = self._open()
        self._mark_open()

    def close(self) -> None:
        """Make everything durable, then leave the mark of a clean close."""
        try:
            self._env.sync(True)
            self._put([(_OPENED, _CLOSED)])
            self._env.sync(True)
        except lmdb.Error as exc:
            raise StoreError(f"device store {self.path} cannot be closed: {exc}") from exc
        finally:
            self._env.close()

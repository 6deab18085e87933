"""What only the LMDB store promises: what survives which kind of end, and what a full disk does."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from device_agent.lmdb_store import LmdbStore
from device_agent.store import Position
from streams.boot import boot_id
from streams.errors import StoreError

MiB = 1 << 20


def opened(path: Path, boot: str = "this-boot", map_size: int = 64 * MiB) -> LmdbStore:
    return LmdbStore(path, map_size=map_size, boot=boot)


def test_what_was_written_is_there_after_a_clean_close_and_a_reboot(tmp_path: Path) -> None:
    store = opened(tmp_path / "s")
    store.write([(b"a", b"1")], Position(interactions=5), 8)
    store.close()
    again = opened(tmp_path / "s", boot="next-boot")
    assert not again.dropped
    assert (again.read([b"a"]), again.position().interactions, again.changelog_offset()) == ([b"1"], 5, 8)
    again.close()


def test_files_of_an_unclean_end_before_the_last_boot_are_dropped(tmp_path: Path) -> None:
    store = opened(tmp_path / "s", boot="old-boot")
    store.write([(b"a", b"1")], Position(interactions=5), 8)
    store._env.close()  # the power went
    again = opened(tmp_path / "s", boot="new-boot")
    assert again.dropped
    assert (again.read([b"a"]), again.position(), again.changelog_offset()) == ([None], Position(), 0)
    again.close()


def test_what_was_written_is_there_after_kill_9(tmp_path: Path) -> None:
    script = f"""
        import os, signal, sys
        from pathlib import Path
        from device_agent.lmdb_store import LmdbStore
        from streams.boot import boot_id
        from device_agent.store import Position
        store = LmdbStore(Path({str(tmp_path / "s")!r}), map_size=64 << 20, boot=boot_id())
        for n in range(1, 200):
            store.write([(str(i).encode(), bytes([n]) * 500) for i in range(50)], Position(interactions=n), n)
        os.kill(os.getpid(), signal.SIGKILL)
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(script)], check=False, env=_env(), timeout=60)
    assert done.returncode == -signal.SIGKILL
    store = opened(tmp_path / "s", boot=boot_id())
    assert not store.dropped
    assert store.position().interactions == 199
    assert all(value == bytes([199]) * 500 for _, value in store.items())
    store.close()


def test_a_full_map_is_a_clear_error_and_leaves_the_last_write_whole(tmp_path: Path) -> None:
    store = opened(tmp_path / "s", map_size=1 * MiB)
    store.write([(b"a", b"1")], Position(interactions=1), 1)
    with pytest.raises(StoreError, match=r"full.*map_size_gb"):
        store.write([(str(i).encode(), b"x" * 4096) for i in range(1000)], Position(interactions=2), 2)
    assert (store.read([b"a", b"1"]), store.position().interactions) == ([b"1", None], 1)
    store.write([(b"b", b"2")], Position(interactions=3), 3)
    assert store.read([b"b"]) == [b"2"]
    store.close()


def test_a_full_disk_is_a_clear_error_and_leaves_the_last_write_whole(tmp_path: Path) -> None:
    """The kernel refuses to let the data file grow, as it does when the disk is full."""
    script = f"""
        import resource, signal
        from pathlib import Path
        from device_agent.lmdb_store import LmdbStore
        from device_agent.store import Position
        from streams.errors import StoreError
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        store = LmdbStore(Path({str(tmp_path / "s")!r}), map_size=64 << 20, boot="b")
        store.write([(b"a", b"1")], Position(interactions=1), 1)
        resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, resource.RLIM_INFINITY))
        try:
            store.write([(str(i).encode(), b"x" * 4096) for i in range(1000)], Position(interactions=2), 2)
        except StoreError as exc:
            print("refused:", exc)
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        assert store.read([b"a", b"5"]) == [b"1", None], store.read([b"a", b"5"])
        assert store.position().interactions == 1
        store.write([(b"b", b"2")], Position(interactions=3), 3)
        assert store.read([b"b"]) == [b"2"]
        store.close()
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)],
        check=True,
        env=_env(),
        timeout=60,
        capture_output=True,
        text=True,
    )
    assert "refused: device store" in done.stdout
    assert "free disk" in done.stdout


def test_a_folder_that_cannot_be_made_is_a_clear_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(StoreError, match="cannot be opened"):
        opened(tmp_path / "file" / "s")


def _env() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}

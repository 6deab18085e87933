"""Logging: structlog to stderr, one JSON object a line, or readable lines on a terminal. Secrets are masked.

A module takes its logger with `get_logger(__name__)`; a process calls `configure_logging` once, at its start.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import MutableMapping
from typing import Any, Final, TextIO

import structlog

MASK: Final = "**********"

_SECRET_WORDS: Final = ("password", "secret", "api_key", "apikey", "token_value", "authorization", "credential")

_LIBRARIES: Final = (
    "kafka", "aiokafka", "faust", "mode", "httpx", "httpcore", "uvicorn", "asyncio", "sentence_transformers",
)  # fmt: skip
"""Never below WARNING: at DEBUG kafka-python logs an admin client's whole configuration, password included."""


def get_logger(name: str) -> structlog.stdlib.BoundLogger:
    """Return the logger of a module; its events carry the module's name as ``logger``."""
    return structlog.stdlib.get_logger(name)


def configure_logging(level: str, process_name: str, *, stream: TextIO | None = None) -> None:
    """Set up the logging of this process; calling it again replaces the former set-up.

    Parameters
    ----------
    level
        ``debug``, ``info``, ``warning`` or ``error``.
    process_name
        Stands in every line as ``process``, for instance ``device-0``.
    stream
        Where to; stderr by default.
    """
    stream = sys.stderr if stream is None else stream
    shared: list[structlog.typing.Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_logger_name,
        structlog.stdlib.add_log_level,
        structlog.stdlib.ExtraAdder(),
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        _ProcessName(process_name),
        mask_secrets,
    ]
    structlog.configure(
        processors=[
            structlog.stdlib.filter_by_level,
            *shared,
            structlog.stdlib.PositionalArgumentsFormatter(),
            structlog.processors.StackInfoRenderer(),
            structlog.stdlib.ProcessorFormatter.wrap_for_formatter,
        ],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=False,  # modules take theirs before this runs
    )
    last: list[structlog.typing.Processor]
    if stream.isatty():
        last = [structlog.dev.ConsoleRenderer()]
    else:
        last = [structlog.processors.format_exc_info, structlog.processors.JSONRenderer(default=str)]
    handler = logging.StreamHandler(stream)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *last],
        )
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
    for name in _LIBRARIES:
        logging.getLogger(name).setLevel(max(logging.WARNING, root.level))
    # It warns of each tenth of a second that a busy machine let it wait.
    logging.getLogger("kafka.net.selector").setLevel(max(logging.ERROR, root.level))


class _ProcessName:
    def __init__(self, name: str) -> None:
        self._name = name

    def __call__(self, _logger: Any, _method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
        event["process"] = self._name
        return event


def mask_secrets(_logger: Any, _method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """Replace the values of keys that name a secret, in nested mappings too."""
    for key, value in event.items():
        event[key] = _masked(key, value)
    return event


def _masked(key: object, value: Any) -> Any:
    if isinstance(key, str) and any(word in key.lower() for word in _SECRET_WORDS):
        return MASK
    if isinstance(value, dict):
        return {inner: _masked(inner, content) for inner, content in value.items()}
    return value

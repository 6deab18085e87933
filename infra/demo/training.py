"""The bundle of a demo: the one of these very data, or one trained now in a process of its own.

A process of its own gives its memory back, and leaves this one free to start Kafka in the meantime.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Callable
from types import TracebackType
from typing import Final, Self

from cloud_worker.encoder.factory import encoder_id
from cloud_worker.training.bundles import check_data, find_bundle
from infra.workspace import as_environment
from streams.bundle import Bundle, load_bundle
from streams.datasets import Prepared
from streams.errors import BundleError, ProcessFailed
from streams.settings import Settings

SPLIT: Final = "0.7,0.1,0.2"
"""A test period twice as long as usual: there is more to watch."""
END_S: Final = 0.5
"""A training that is cut short has nothing to bring in order: bundles appear whole or not at all."""


class BundleInTheMaking:
    """Finds the bundle when it is entered, or begins to train one; ends the training when it is left.

    Parameters
    ----------
    say
        Told when a training begins.
    """

    def __init__(self, settings: Settings, prepared: Prepared, say: Callable[[str], None]) -> None:
        self._settings = settings.model_copy(update={"dataset": prepared.manifest.name})
        self._prepared = prepared
        self._say = say
        self._found: Bundle | None = None
        self._training: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        self._found = self._look()
        if self._found is None:
            name = self._prepared.manifest.name
            self._say(
                f"training a bundle of {name} in a hurry: the first time only (`driftline train` makes a better one)"
            )
            self._training = subprocess.Popen(
                [sys.executable, "-m", "infra", "train", "--quick", "--split", SPLIT, "--dataset", name],
                env={**os.environ, **as_environment(self._settings)},
                stdout=sys.stderr,  # stdout is the result's
            )
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        training = self._training
        if training is None or training.poll() is not None:
            return
        training.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            training.wait(END_S)
        training.kill()
        training.wait()

    def result(self) -> Bundle:
        """Wait for the training, if there is one.

        Raises
        ------
        ProcessFailed
            It failed.
        BundleError
            It left no bundle.
        """
        if self._found is not None:
            return self._found
        assert self._training is not None
        name = self._prepared.manifest.name
        if status := self._training.wait():
            raise ProcessFailed(f"training a bundle of {name} ended with exit code {status}; its words are above")
        self._found = self._look()
        if self._found is None:
            raise BundleError(
                f"training ended well and left no bundle of dataset {name} under {self._settings.home / 'bundles'}"
            )
        return self._found

    def _look(self) -> Bundle | None:
        manifest, settings = self._prepared.manifest, self._settings
        if settings.bundle:
            given = load_bundle(settings.bundle, part="device")
            check_data(given.manifest, self._prepared)
            return given
        path = find_bundle(settings.home, manifest.name, manifest.hash, encoder=encoder_id(settings.cloud))
        return None if path is None else load_bundle(path, part="device")

"""The global options, and the settings that follow from them."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from streams.settings import Settings

PROCESS_NAME = "driftline"
"""How this process is named in its log lines; a worker sets a name of its own."""


@dataclass
class CliContext:
    """What a verb finds in ``ctx.obj``.

    The global options are put into this process's environment for the time of the command. There ``load_settings()``
    finds them wherever it is called, with the precedence that a flag has, and so do the processes that we start.
    """

    given: dict[str, str] = field(default_factory=dict)
    _before: dict[str, str | None] = field(default_factory=dict)

    def apply(self, variables: dict[str, str | None]) -> None:
        """Take over the options that were given: name of the environment variable to value."""
        self.given = {name: value for name, value in variables.items() if value is not None}
        self._before = {name: os.environ.get(name) for name in self.given}
        os.environ.update(self.given)

    def restore(self) -> None:
        """Put the environment back."""
        for name, value in self._before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value

    @cached_property
    def settings(self) -> Settings:
        """The settings, read when first asked for (pydantic takes half a second); logging follows their level.

        Raises
        ------
        SettingsError
            As ``load_settings`` does.
        """
        from streams.log import configure_logging
        from streams.settings import load_settings

        settings = load_settings()
        configure_logging(settings.log_level, PROCESS_NAME)
        return settings

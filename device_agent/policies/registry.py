"""Finding a policy by name and building it from an arm's parameters.

Policies of your own go beside the built-in ones through the entry-point group ``driftline.policies``::

    [project.entry-points."driftline.policies"]
    my-policy = "my_package.policies:MyPolicy"

The object is called with the arm's parameters as keyword arguments and returns a `device_agent.policies.base.Policy`;
a subclass of `BasePolicy` has them checked against its fields. A built-in name cannot be taken over.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib.metadata import EntryPoint, entry_points
from types import MappingProxyType
from typing import Final

import msgspec

from device_agent.policies.base import BasePolicy, Policy
from device_agent.policies.disagreement import Disagreement
from device_agent.policies.drift import Drift
from device_agent.policies.fixed import Always, EveryN, Never, Random, Ttl
from device_agent.policies.reliability import Reliability
from device_agent.policies.worth import Worth
from streams.errors import SettingsError
from streams.experiment.arms import ArmSpec

GROUP: Final = "driftline.policies"

BUILT_IN: Final[Mapping[str, type[BasePolicy]]] = MappingProxyType(
    {
        "never": Never,
        "always": Always,
        "every-n": EveryN,
        "ttl": Ttl,
        "drift": Drift,
        "reliability": Reliability,
        "worth": Worth,
        "disagreement": Disagreement,
        "random": Random,
    }
)


def policy_names() -> list[str]:
    """Every policy that an arm can name, built in or installed."""
    return sorted({*BUILT_IN, *_installed()})


def build_policy(arm: ArmSpec) -> Policy:
    """The policy of an arm.

    Raises
    ------
    SettingsError
        No policy has that name, it cannot be imported, or a parameter is unknown, missing or out of range.
    """
    factory = BUILT_IN.get(arm.policy) or _load(arm)
    try:
        if isinstance(factory, type) and issubclass(factory, BasePolicy):
            policy: object = msgspec.convert(dict(arm.params), factory)
        else:
            policy = factory(**arm.params)
    except (msgspec.ValidationError, TypeError, ValueError) as exc:
        raise SettingsError(f"arm {arm.name!r}: policy {arm.policy!r}: {exc}", remedy=_usage(factory)) from exc
    if not isinstance(policy, Policy):
        raise SettingsError(
            f"arm {arm.name!r}: {arm.policy!r} made a {type(policy).__name__}, which is no policy",
            remedy="it needs `reasons` and `decide(signals, scratch)`",
        )
    return policy


def _installed() -> dict[str, EntryPoint]:
    return {each.name: each for each in entry_points(group=GROUP)}


def _load(arm: ArmSpec) -> Callable[..., object]:
    installed = _installed()
    if arm.policy not in installed:
        raise SettingsError(
            f"arm {arm.name!r}: there is no policy {arm.policy!r}", remedy=f"there are: {', '.join(policy_names())}"
        )
    try:
        loaded = installed[arm.policy].load()
    except (ImportError, AttributeError) as exc:
        raise SettingsError(
            f"arm {arm.name!r}: policy {arm.policy!r} ({installed[arm.policy].value}) cannot be imported: {exc}",
            remedy="install the package that brings it again",
        ) from exc
    if not callable(loaded):
        raise SettingsError(f"arm {arm.name!r}: policy {arm.policy!r} is a {type(loaded).__name__}, wants a callable")
    factory: Callable[..., object] = loaded
    return factory


def _usage(factory: Callable[..., object]) -> str:
    if not (isinstance(factory, type) and issubclass(factory, BasePolicy)):
        return "look into the documentation of that policy"
    fields = msgspec.structs.fields(factory)
    listed = ", ".join(each.name + ("" if each.required else f" (default {each.default})") for each in fields)
    return f"its parameters are: {listed}"

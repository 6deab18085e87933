"""Arms: a policy with its parameters, declared by a flag or in an experiment file.

A flag reads ``[NAME=]POLICY[:KEY=VALUE[,KEY=VALUE…]]``: ``never``, ``every-n:n=10``, ``slow=every-n:n=50``.
An experiment file is TOML::

    [experiment]
    name = "demo"
    design = "paired"        # or "split"
    salt = "2026-11"

    [[arm]]
    name = "steady"          # optional
    policy = "every-n"
    n = 10
"""

from __future__ import annotations

import hashlib
import re
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from streams.errors import SettingsError

Value = bool | int | float | str
Design = Literal["paired", "split"]

BUCKETS = 10_000
MAX_ARMS = 16
_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,47}")


@dataclass(frozen=True)
class ArmSpec:
    """One arm of an experiment: a policy with its parameters."""

    name: str
    policy: str
    params: Mapping[str, Value] = field(default_factory=dict)

    def flag(self) -> str:
        """The arm as a flag that `parse_arm` reads back."""
        params = ",".join(f"{key}={_show(value)}" for key, value in self.params.items())
        return f"{self.name}={self.policy}" + (f":{params}" if params else "")


@dataclass(frozen=True)
class Experiment:
    """Arms and how devices meet them.

    ``paired``: every device runs all arms. ``split``: each device belongs to one arm, by a salted hash into 10,000
    buckets.
    """

    name: str
    arms: tuple[ArmSpec, ...]
    design: Design = "paired"
    salt: str = ""

    def arm_of(self, device_id: str) -> int | None:
        """Index of the device's arm in a split experiment; None in a paired one."""
        if self.design == "paired":
            return None
        digest = hashlib.blake2b(f"{self.salt}\x00{device_id}".encode(), digest_size=8).digest()
        return int.from_bytes(digest, "little") % BUCKETS * len(self.arms) // BUCKETS


def parse_arm(text: str) -> ArmSpec:
    """Read an arm flag.

    Raises
    ------
    SettingsError
        It is not of the form ``[NAME=]POLICY[:KEY=VALUE,…]``.
    """
    head, _, tail = text.strip().partition(":")
    name, equals, policy = head.partition("=")
    if not equals:
        policy, name = (
            name,
            re.sub(r"[^a-z0-9._-]", "-", text.strip().lower().replace(":", "-").replace("=", "")),
        )
    params: dict[str, Value] = {}
    for pair in filter(None, tail.split(",")):
        key, eq, value = pair.partition("=")
        if not eq or not key.strip():
            raise SettingsError(
                f"arm {text!r}: {pair!r} is not KEY=VALUE",
                remedy="write it like every-n:n=10 or slow=every-n:n=50",
            )
        params[key.strip()] = _value(value.strip())
    return _checked(ArmSpec(name.strip() if equals else name, policy.strip(), params), text)


def parse_arms(texts: Iterable[str], *, name: str = "adhoc", design: Design = "paired", salt: str = "") -> Experiment:
    """An experiment from arm flags.

    Raises
    ------
    SettingsError
        No arm, too many, or two of one name.
    """
    return _experiment(name, [parse_arm(text) for text in texts], design, salt)


def load_experiment(path: Path) -> Experiment:
    """Read an experiment file.

    Raises
    ------
    SettingsError
        The file is missing, is not TOML, or has a key that means nothing here.
    """
    try:
        document = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as exc:
        raise SettingsError(f"experiment file {path} cannot be read: {exc.strerror}") from exc
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as exc:
        raise SettingsError(f"experiment file {path} is not TOML: {exc}") from exc
    if unknown := set(document) - {"experiment", "arm"}:
        raise SettingsError(f"experiment file {path}: unknown key {min(unknown)!r}")
    head = document.get("experiment", {})
    arms = document.get("arm", [])
    if not isinstance(head, dict) or not isinstance(arms, list) or not all(isinstance(arm, dict) for arm in arms):
        raise SettingsError(f"experiment file {path}: wants one [experiment] table and [[arm]] tables")
    if unknown := set(head) - {"name", "design", "salt"}:
        raise SettingsError(f"experiment file {path}: unknown key experiment.{min(unknown)}")
    specs = []
    for table in arms:
        params = dict(table)
        policy = params.pop("policy", None)
        if not isinstance(policy, str):
            raise SettingsError(f"experiment file {path}: an [[arm]] has no policy")
        name = params.pop("name", None)
        if not all(isinstance(value, bool | int | float | str) for value in params.values()):
            raise SettingsError(f"experiment file {path}: arm {name or policy!r} has a parameter that is no scalar")
        bare = ArmSpec("x", policy, params)
        specs.append(_checked(ArmSpec(str(name), policy, params), str(path)) if name else parse_arm(bare.flag()[2:]))
    design = as_design(head.get("design", "paired"), f"experiment file {path}: design")
    return _experiment(str(head.get("name", path.stem)), specs, design, str(head.get("salt", "")))


def as_design(text: object, where: str) -> Design:
    """Check that it is a design.

    Raises
    ------
    SettingsError
        It is none.
    """
    if text not in ("paired", "split"):
        raise SettingsError(f"{where} is {text!r}, wants 'paired' or 'split'")
    return text


def _experiment(name: str, arms: list[ArmSpec], design: Design, salt: str) -> Experiment:
    if not arms:
        raise SettingsError(
            "an experiment needs at least one arm", remedy="pass --arm, for instance --arm every-n:n=10"
        )
    if len(arms) > MAX_ARMS:
        raise SettingsError(f"{len(arms)} arms; at most {MAX_ARMS} fit into one experiment")
    names = [arm.name for arm in arms]
    if twice := {each for each in names if names.count(each) > 1}:
        raise SettingsError(f"two arms are called {min(twice)!r}", remedy="name them: --arm NAME=POLICY:…")
    return Experiment(name, tuple(arms), design, salt)


def _checked(arm: ArmSpec, source: str) -> ArmSpec:
    if not _NAME.fullmatch(arm.name):
        raise SettingsError(f"{source}: arm name {arm.name!r} wants up to 48 of a-z, 0-9, '.', '_', '-'")
    if not _NAME.fullmatch(arm.policy):
        raise SettingsError(f"{source}: {arm.policy!r} is not a policy name")
    return arm


def _value(text: str) -> Value:
    if text.lower() in ("true", "false"):
        return text.lower() == "true"
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


def _show(value: Value) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)

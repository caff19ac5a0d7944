"""The configuration file -> one frozen `Config` (SPEC section 9). May read that file, and nothing else.

To add a key: a field here, one line in `parse`, a comment in etc/target.yaml. Field names are the keys' names.
"""

from __future__ import annotations

import graphlib
import ipaddress
import os
import re
import urllib.parse
from dataclasses import dataclass, field, fields
from typing import Any, Final, Literal, Mapping, Tuple

from anvil_dr import naming, settings
from anvil_dr.errors import ConfigError, ImageNameError, UsageError

DEFAULT_PATH: Final = "/etc/anvil-dr/target.yaml"

_RATE = re.compile(r"([0-9]{1,18})(?:\.([0-9]{1,6}))?\s?([KMGT]?)", re.IGNORECASE)
_FACTORS = {"": 1, "K": 1024, "M": 1024**2, "G": 1024**3, "T": 1024**4}
_LEAST_RATE: Final = 1024
_MOST_RATE: Final = 1024**5
_DURATION = re.compile(r"([0-9]{1,9})\s?([smhd]?)", re.IGNORECASE)
_SECONDS = {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86400}
# lvm(8), VALID NAMES; a name is at most 127 characters.
_GROUP = re.compile(r"(?!-)(?!\.{1,2}$)[A-Za-z0-9+_.-]{1,127}")
# unix(7): sun_path holds 108 bytes, the last of them 0.
_SOCKET_PATH_BYTES = 107
_DAY = 86400


@dataclass(frozen=True)
class StoreConfig:
    """Where images are kept."""

    kind: Literal["fs", "lvm"]
    locations: Tuple[str, ...]
    """The directory, or the volume groups in the order of the file."""


@dataclass(frozen=True)
class SignOfLife:
    """What shows in a rehearsal that a server has come up."""

    kind: Literal["any", "agent", "serial", "time"] = "any"
    """`any`: its agent answers, or else it has run for a while."""
    pattern: str = ""
    """Regular expression for what it writes to its serial port."""
    seconds: int = 0
    """How long it must have run."""


@dataclass(frozen=True)
class ServerActivation:
    """How one server is booted on the day."""

    start_after: Tuple[str, ...] = ()
    """Servers that are booted before this one."""
    start_delay: int = 0
    """Seconds to wait once they are."""
    addresses: Tuple[str, ...] = ()
    """IP addresses that the server itself answers on when it's alive."""
    sign_of_life: SignOfLife = SignOfLife()
    """What shows in a rehearsal that it has come up."""


@dataclass(frozen=True)
class ActivationConfig:
    """How servers are booted on the day."""

    connect: str = "qemu:///system"
    servers: Mapping[str, ServerActivation] = field(default_factory=dict)
    check: bool = True
    """Whether the service looks after each job, and daily, if the servers could be booted."""
    overlays: str = ""
    """Where --overlay and rehearsals keep what servers write; empty: beside the state directory."""


@dataclass(frozen=True)
class Config:
    """Everything an admin can choose, checked. A value that is here can be used as it is."""

    name: str
    store: StoreConfig
    copies: int = 2
    min_set_age: int = 0
    """Seconds. A set younger than that is replaced by the next job, rather than the oldest one recycled."""
    verify: Literal["none", "read-back"] = "none"
    """Whether a set is read again from its drives before it counts as complete."""
    use_cache: bool = True
    require_cache: bool = False
    auto_import: bool = False
    """Whether a drive that was filled at a node is imported as soon as it's plugged in."""
    cache_signature: str = ".dr_cache"
    definitions: str = "/shared/definitions"
    state: str = "/var/lib/anvil-dr"
    runtime: str = "/run/anvil-dr"
    bandwidth_limit: int = 0
    """Bytes a second; 0 = none."""
    activation: ActivationConfig = ActivationConfig()

    @property
    def overlays(self) -> str:
        """Not below the state directory: QEMU runs as a user that may not pass it."""
        return self.activation.overlays or f"{self.state}-overlays"

    @property
    def socket(self) -> str:
        """Where the service listens."""
        return os.path.join(self.runtime, "target.sock")


def load(path: str = DEFAULT_PATH) -> Config:
    """Read and check a configuration file. Raise ConfigError naming the file, the key and the line."""
    try:
        with open(path, "rb") as file:
            content = file.read(settings.MAX_BYTES + 1)
    except FileNotFoundError as error:
        message = "there is no such file; the shortest one that works is a line like 'store: fs:/srv/dr'"
        raise ConfigError(f"{message}, and etc/target.yaml of anvil-dr shows every key", path=path) from error
    except OSError as error:
        raise ConfigError(f"cannot be read: {error.strerror}", path=path) from error
    try:
        text = content.decode("utf-8")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise ConfigError("is not UTF-8 text", path=path, line=line) from error
    return parse(text, path)


def parse(text: str, path: str) -> Config:
    """Check the text of a configuration file; `path` is for error messages only. Raise ConfigError."""
    top = settings.read(text, path)
    top.only(_names(Config))
    config = Config(
        name=_name(top),
        store=_store(top),
        copies=top.integer("copies", Config.copies, least=1, most=999),
        min_set_age=_duration(top, "min_set_age", Config.min_set_age),
        verify=_verify(top),
        use_cache=top.boolean("use_cache", Config.use_cache),
        require_cache=top.boolean("require_cache", Config.require_cache),
        auto_import=top.boolean("auto_import", Config.auto_import),
        cache_signature=_file_name(top, "cache_signature", Config.cache_signature),
        definitions=_directory(top, "definitions", Config.definitions),
        state=_directory(top, "state", Config.state),
        runtime=_directory(top, "runtime", Config.runtime),
        bandwidth_limit=_rate(top, "bandwidth_limit", Config.bandwidth_limit),
        activation=_activation(top.section("activation")),
    )
    _fit_together(top, config)
    if len(os.fsencode(config.socket)) > _SOCKET_PATH_BYTES:
        raise top.error("runtime", f"is too long: {config.socket} must fit in {_SOCKET_PATH_BYTES} bytes (unix(7))")
    return config


def parse_rate(text: str) -> int:
    """`0`, `65536`, `10M`, `1.5G` (powers of 1024) -> bytes a second. Raise UsageError."""
    match = _RATE.fullmatch(text.strip())
    if match is None:
        raise UsageError(f"not a rate: {text!r} (bytes a second, or with K, M, G or T after it, such as 10M)")
    whole, fraction, unit = match.groups()
    factor = _FACTORS[unit.upper()]
    rate = int(whole) * factor + (int(fraction) * factor // 10 ** len(fraction) if fraction else 0)
    if rate < _LEAST_RATE and (int(whole) or int(fraction or 0)):
        # A unit was forgotten, most likely. A server is off for as long as its image takes.
        raise UsageError(f"not a rate: {text!r} is less than 1K a second; is M missing after it, as in 10M?")
    if rate > _MOST_RATE:
        raise UsageError(f"not a rate: {text!r} is more than 1024T a second; 0 means that there is no limit")
    return rate


def _names(kind: Any) -> Tuple[str, ...]:
    return tuple(one.name for one in fields(kind))


def _name(top: settings.Section) -> str:
    name = top.text("name", os.uname().nodename.partition(".")[0] or "dr")
    if len(name) > 64:
        raise top.error("name", "must be 64 characters at most")
    return name


def _store(top: settings.Section) -> StoreConfig:
    kind, colon, rest = top.text("store").partition(":")
    if kind == "fs" and colon:
        return StoreConfig("fs", (_absolute(top, "store", rest),))
    if kind not in ("lvm", "vg") or not colon:
        raise top.error("store", "must be 'fs:/a/directory' or 'lvm:group,group'")
    groups = tuple(group.strip() for group in rest.split(","))
    for position, group in enumerate(groups):
        if not _GROUP.fullmatch(group):
            raise top.error("store", f"{group!r} cannot be the name of a volume group")
        if group in groups[:position]:
            raise top.error("store", f"volume group {group} is there twice")
    return StoreConfig("lvm", groups)


def _fit_together(top: settings.Section, config: Config) -> None:
    """What would be taken, and do something else than it says."""
    if config.auto_import and not config.use_cache:
        raise top.error("auto_import", "cannot be true while use_cache is false")
    if config.require_cache and not config.use_cache:
        raise top.error("require_cache", "cannot be true while use_cache is false")
    if config.require_cache and config.copies > 1:
        raise top.error("require_cache", f"does nothing with copies: {config.copies}, only with 1; leave it out")
    if config.min_set_age and config.copies == 1:
        raise top.error("min_set_age", "does nothing with copies: 1; keep 2 copies or more, or leave it out")
    if config.store.kind != "fs":
        return
    store = config.store.locations[0]
    # When the store's file system is not mounted, they would be begun anew below it.
    for key, folder in (("state", config.state), ("runtime", config.runtime)):
        if os.path.commonpath((store, folder)) == store:
            message = f"{folder} must not lie in the store's directory ({store}); choose another folder for {key}"
            raise top.error(key if key in top else "store", message)
    if config.overlays == store:
        message = f"must not be the store's own directory ({store}); a folder of their own in it will do"
        raise top.section("activation").error("overlays", message)


def _directory(section: settings.Section, key: str, default: str) -> str:
    return _absolute(section, key, section.text(key, default))


def _absolute(section: settings.Section, key: str, path: str) -> str:
    if not path.startswith("/"):
        raise section.error(key, f"must be an absolute path, not {path!r}")
    if ".." in path.split("/"):
        raise section.error(key, f"must not hold '..': {path}")
    clean = "/" + os.path.normpath(path).lstrip("/")
    if clean == "/":
        raise section.error(key, "must not be the root directory")
    return clean


def _file_name(section: settings.Section, key: str, default: str) -> str:
    name = section.text(key, default)
    if "/" in name or name in (".", "..") or len(os.fsencode(name)) > 255:
        raise section.error(key, f"must be the name of a file, without a path, not {name!r}")
    return name


def _rate(section: settings.Section, key: str, default: int) -> int:
    try:
        return parse_rate(section.scalar(key, str(default)))
    except UsageError as error:
        raise section.error(key, str(error)) from error


def _duration(section: settings.Section, key: str, default: int) -> int:
    text = section.scalar(key, str(default))
    match = _DURATION.fullmatch(text.strip())
    if match is None:
        raise section.error(key, f"not a time: {text!r} (seconds, or with m, h or d after it, such as 12h)")
    return int(match[1]) * _SECONDS[match[2].lower()]


def _verify(top: settings.Section) -> Literal["none", "read-back"]:
    word = top.text("verify", Config.verify)
    if word not in ("none", "read-back"):
        raise top.error("verify", f"must be none or read-back, not {word!r}")
    return "none" if word == "none" else "read-back"


def _activation(section: settings.Section) -> ActivationConfig:
    section.only(_names(ActivationConfig))
    connect = section.text("connect", ActivationConfig.connect)
    if not urllib.parse.urlsplit(connect).scheme or ":/" not in connect:
        raise section.error("connect", f"must be a libvirt URI such as qemu:///system, not {connect!r}")
    listed = section.section("servers")
    servers = {name: _server(name, listed.section(name)) for name in listed.keys}
    try:
        order = {name: server.start_after for name, server in servers.items()}
        tuple(graphlib.TopologicalSorter(order).static_order())
    except graphlib.CycleError as error:
        circle = error.args[1]
        # CycleError lists each before the one that waits for it, the first again at the end.
        waiting = next(name for name in listed.keys if name in circle)
        message = f"no server of these can be the first: {' before '.join(circle)}"
        raise listed.section(waiting).error("start_after", message) from error
    check = section.boolean("check", ActivationConfig.check)
    overlays = _directory(section, "overlays", "") if "overlays" in section else ""
    return ActivationConfig(connect, servers, check, overlays)


def _server(name: str, section: settings.Section) -> ServerActivation:
    try:
        naming.check_server_name(name)
    except ImageNameError as error:
        raise section.error("", str(error)) from error
    section.only(_names(ServerActivation))
    after = section.texts("start_after")
    if name in after:
        raise section.error("start_after", "a server cannot wait for itself")
    addresses = section.texts("addresses")
    for address in addresses:
        try:
            ipaddress.ip_address(address)
        except ValueError as error:
            raise section.error("addresses", f"not an IP address: {address!r}") from error
    delay = section.integer("start_delay", 0, least=0, most=_DAY)
    return ServerActivation(after, delay, addresses, _sign_of_life(section))


def _sign_of_life(section: settings.Section) -> SignOfLife:
    said = section.scalar("sign_of_life", "")
    kind, colon, pattern = said.partition(":")
    if not said:
        return SignOfLife()
    if said == "agent":
        return SignOfLife("agent")
    if re.fullmatch(r"[1-9][0-9]{0,4}", said) and int(said) <= _DAY:
        return SignOfLife("time", seconds=int(said))
    if kind != "serial" or not colon or not pattern.strip():
        raise section.error("sign_of_life", "must be 'agent', a number of seconds, or 'serial: ' and a pattern")
    try:
        re.compile(pattern.strip())
    except re.error as error:
        raise section.error("sign_of_life", f"{pattern.strip()!r} is no regular expression: {error}") from error
    return SignOfLife("serial", pattern.strip())

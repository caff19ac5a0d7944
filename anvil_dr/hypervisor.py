"""The only importer of libvirt: domains, what the host can give them, and libvirt's errors in our words.

May touch: libvirt, through one connection. Nothing here defines a domain, and nothing must (SPEC section 7).
"""

from __future__ import annotations

import logging
import queue
import shutil
import threading
import time
from contextlib import contextmanager
from types import TracebackType
from typing import Any, Callable, Dict, Final, FrozenSet, Iterator, Optional, Tuple, Type

import libvirt  # type: ignore[import-untyped, unused-ignore]
import libvirt_qemu  # type: ignore[import-untyped, unused-ignore]

from anvil_dr.errors import HypervisorError, ShutdownRefusedError
from anvil_dr.ports import Domain, DomainCapabilities, DomainState, HostFacts, Network, Platform
from anvil_dr.preflight import domain_capabilities

log = logging.getLogger(__name__)

_STATES: Final[Dict[int, DomainState]] = {
    libvirt.VIR_DOMAIN_NOSTATE: "running",
    libvirt.VIR_DOMAIN_RUNNING: "running",
    libvirt.VIR_DOMAIN_BLOCKED: "running",
    libvirt.VIR_DOMAIN_PAUSED: "paused",
    libvirt.VIR_DOMAIN_SHUTDOWN: "shutting down",
    libvirt.VIR_DOMAIN_SHUTOFF: "shut off",
    libvirt.VIR_DOMAIN_CRASHED: "crashed",
    libvirt.VIR_DOMAIN_PMSUSPENDED: "suspended",
}
_OFF: Final = ("shut off", "gone", "crashed")
_CONNECT_SECONDS: Final = 20.0
_SBIN: Final = "/usr/sbin:/usr/bin:/usr/local/sbin"
"""Where its daemons are; an ordinary user's PATH does not say so."""
_POLL_SECONDS: Final = 0.1
_CONSOLE_POLL_SECONDS: Final = 0.05


def connect(uri: str, *, timeout_seconds: float = _CONNECT_SECONDS) -> LibvirtHypervisor:
    """Connect to libvirt. Raise HypervisorError, saying what to do about it."""
    # The default handler prints every error on stderr, also those that are expected and dealt with.
    libvirt.registerErrorHandler(lambda context, error: None, None)
    answers: queue.Queue[Any] = queue.Queue()

    def open_and_ask() -> None:
        try:
            connection = libvirt.open(uri)
            connection.getLibVersion()
            answers.put(connection)
        except libvirt.libvirtError as error:
            answers.put(error)

    # libvirt waits for a daemon that hangs for ever, and takes no notice of Ctrl-C meanwhile.
    threading.Thread(target=open_and_ask, name="libvirt", daemon=True).start()
    try:
        answer = answers.get(timeout=timeout_seconds)
    except queue.Empty:
        raise HypervisorError(
            f"libvirtd does not answer ({uri}): it hangs. Restart it, servers run on: systemctl restart libvirtd"
        ) from None
    if isinstance(answer, libvirt.libvirtError):
        raise HypervisorError(_why_no_connection(uri, answer), libvirt_code=answer.get_error_code()) from answer
    return LibvirtHypervisor(answer)


class LibvirtHypervisor:
    """One connection to libvirt; a ports.Hypervisor. libvirt lets any number of threads use it."""

    def __init__(self, connection: Any) -> None:
        self._connection = connection

    def active(self) -> Tuple[Domain, ...]:
        found = []
        with _asking("cannot list the domains"):
            for domain in self._connection.listAllDomains(libvirt.VIR_CONNECT_LIST_DOMAINS_ACTIVE):
                try:
                    found.append(_value(domain))
                except libvirt.libvirtError as error:
                    # It ended between the list and the question.
                    if error.get_error_code() != libvirt.VIR_ERR_NO_DOMAIN:
                        raise
        return tuple(sorted(found, key=lambda domain: domain.name))

    def state(self, name: str) -> DomainState:
        with _asking(f"cannot ask for the state of {name}"):
            try:
                return _state(self._connection.lookupByName(name))
            except libvirt.libvirtError as error:
                if error.get_error_code() == libvirt.VIR_ERR_NO_DOMAIN:
                    return "gone"
                raise

    def definition(self, name: str) -> str:
        # INACTIVE leaves out what was chosen for this run, such as the console's port. A transient domain keeps its
        # aliases and indexes all the same; createXML takes them back.
        flags = libvirt.VIR_DOMAIN_XML_INACTIVE | libvirt.VIR_DOMAIN_XML_SECURE
        with _asking(f"cannot read the definition of {name}"):
            return str(self._connection.lookupByName(name).XMLDesc(flags))

    def shutdown(self, name: str, *, timeout_seconds: float) -> None:
        began = time.monotonic()
        try:
            if self.state(name) in ("paused", "suspended"):
                raise HypervisorError(f"{name} is paused, so it cannot shut down; let it run: virsh resume {name}")
            by_agent = self._shutdown_by_agent(name)
        except HypervisorError as error:
            raise ShutdownRefusedError(str(error), libvirt_code=error.libvirt_code) from error
        # An agent that took the order and does nothing leaves the second half to ACPI.
        agent_until = began + timeout_seconds / 2 if by_agent else began
        asked_by_acpi = False
        while True:
            state = self.state(name)
            if state in _OFF:
                log.info("shut down server=%s seconds=%.1f", name, time.monotonic() - began)
                return
            now = time.monotonic()
            if not asked_by_acpi and now >= agent_until:
                self._shutdown_by_acpi(name, agent_has_it=by_agent)
                asked_by_acpi = True
            if now >= began + timeout_seconds:
                raise HypervisorError(
                    f"{name} did not shut down within {timeout_seconds:g} seconds (it is {state}); "
                    "it has been asked to, and may still go off"
                )
            time.sleep(_POLL_SECONDS)

    def start(self, name: str) -> None:
        with _asking(f"cannot start {name}"):
            self._connection.lookupByName(name).create()
        log.info("started server=%s", name)

    def is_saved(self, name: str) -> bool:
        with _asking(f"cannot ask whether {name} is saved"):
            return bool(self._connection.lookupByName(name).hasManagedSaveImage())

    def boot(self, xml: str, *, paused: bool = False, autodestroy: bool = False) -> Domain:
        flags = libvirt.VIR_DOMAIN_START_PAUSED if paused else 0
        flags |= libvirt.VIR_DOMAIN_START_AUTODESTROY if autodestroy else 0
        with _asking("cannot boot"):
            domain = _value(self._connection.createXML(xml, flags))
        log.info("booted server=%s uuid=%s paused=%s", domain.name, domain.uuid, paused)
        return domain

    def resume(self, name: str) -> None:
        with _asking(f"cannot resume {name}"):
            self._connection.lookupByName(name).resume()

    def destroy(self, name: str) -> None:
        with _asking(f"cannot end {name}"):
            try:
                self._connection.lookupByName(name).destroy()
            except libvirt.libvirtError as error:
                # Not there, or there and not running: either way there is nothing to end.
                if error.get_error_code() not in (libvirt.VIR_ERR_NO_DOMAIN, libvirt.VIR_ERR_OPERATION_INVALID):
                    raise
                return
        log.info("destroyed server=%s", name)

    def host(self) -> HostFacts:
        with _asking("cannot ask what the host has"):
            _, memory_mib, cpus, *_ = self._connection.getInfo()
            cells = libvirt.VIR_NODE_MEMORY_STATS_ALL_CELLS
            kib = _unless_unsupported(lambda: self._connection.getMemoryStats(cells))
            capabilities = self._connection.getCapabilities()
        if kib is None:
            return HostFacts(cpus=cpus, memory_bytes=memory_mib << 20, available_bytes=None)
        # getFreeMemory leaves out the page cache, which after a night of receiving is nearly everything.
        available = sum(int(kib.get(part, 0)) for part in ("free", "buffers", "cached"))
        qemu_user = domain_capabilities.read_qemu_user(capabilities)
        return HostFacts(cpus, int(kib["total"]) << 10, available << 10, qemu_user)

    def networks(self) -> Tuple[Network, ...]:
        with _asking("cannot list libvirt's networks"):
            # A libvirt without its network driver has no networks.
            networks = _unless_unsupported(self._connection.listAllNetworks) or ()
            return tuple(sorted((Network(n.name(), bool(n.isActive())) for n in networks), key=lambda n: n.name))

    def network_filters(self) -> FrozenSet[str]:
        with _asking("cannot list libvirt's network filters"):
            return frozenset(_unless_unsupported(self._connection.listNWFilters) or ())

    def machines(self, arch: Optional[str]) -> Tuple[str, ...]:
        with _asking("cannot ask what this host can run"):
            return domain_capabilities.read_machines(self._connection.getCapabilities(), arch)

    def capabilities(self, platform: Platform) -> Optional[DomainCapabilities]:
        wanted = (platform.emulator, platform.arch, platform.machine, platform.virt_type)
        with _asking("this host cannot run it"):
            text = _unless_unsupported(lambda: self._connection.getDomainCapabilities(*wanted, 0))
        if text is None:
            return None
        return domain_capabilities.read_domain_capabilities(text)

    def cpu_problem(self, cpu_xml: str, platform: Platform) -> str:
        # With this flag libvirt raises the names of the features instead of returning a bare "incompatible".
        flags = libvirt.VIR_CONNECT_COMPARE_CPU_FAIL_INCOMPATIBLE
        with _asking("cannot compare the CPU"):
            wanted = (platform.emulator, platform.arch, platform.machine, platform.virt_type)
            try:
                self._connection.compareHypervisorCPU(*wanted, cpu_xml, flags)
            except libvirt.libvirtError as error:
                if error.get_error_code() == libvirt.VIR_ERR_CPU_INCOMPATIBLE:
                    return str(error.get_error_message())
                raise
        return ""

    def dry_run(self, xml: str) -> None:
        with _asking("this host cannot run it"):
            _unless_unsupported(lambda: self._connection.domainXMLToNative("qemu-argv", xml, 0))

    def agent_answers(self, name: str, *, timeout_seconds: int) -> bool:
        with _asking(f"cannot reach {name}"):
            domain = self._connection.lookupByName(name)
            try:
                libvirt_qemu.qemuAgentCommand(domain, '{"execute": "guest-ping"}', timeout_seconds, 0)
            except libvirt.libvirtError as error:
                # No channel for it in the domain, or nobody at its other end.
                silent = (libvirt.VIR_ERR_AGENT_UNRESPONSIVE, libvirt.VIR_ERR_AGENT_UNSYNCED)
                if error.get_error_code() in (*silent, libvirt.VIR_ERR_ARGUMENT_UNSUPPORTED):
                    return False
                raise
        return True

    def screenshot(self, name: str) -> bytes:
        picture = bytearray()
        with _asking(f"cannot see the screen of {name}"):
            stream = self._connection.newStream(0)
            self._connection.lookupByName(name).screenshot(stream, 0, 0)
            stream.recvAll(lambda _, data, __: picture.extend(data), None)
            stream.finish()
        return bytes(picture)

    def console_text(self, name: str, until: str, *, timeout_seconds: float) -> str:
        end, wanted, text = time.monotonic() + timeout_seconds, until.encode(), bytearray()
        with _asking(f"cannot read the console of {name}"):
            stream = self._connection.newStream(libvirt.VIR_STREAM_NONBLOCK)
            domain = self._connection.lookupByName(name)
            domain.openConsole(None, stream, libvirt.VIR_DOMAIN_CONSOLE_FORCE)
            try:
                while wanted not in text:
                    data = stream.recv(1 << 16)
                    if isinstance(data, bytes) and data:
                        text += data
                    elif data == b"" or time.monotonic() > end:
                        why = "it ended" if data == b"" else f"nothing came within {timeout_seconds:g} seconds"
                        last = text[-400:].decode(errors="replace").strip()
                        raise HypervisorError(f"waiting for {until!r} on the console of {name}: {why}; last: {last}")
                    else:
                        # Without an event loop, what the stream brings is only read off the socket while a call
                        # waits for its answer: any call.
                        domain.isActive()
                        time.sleep(_CONSOLE_POLL_SECONDS)
            finally:
                stream.abort()
        return text[: text.index(wanted) + len(wanted)].decode(errors="replace")

    def close(self) -> None:
        with _asking("cannot close the connection"):
            self._connection.close()

    def __enter__(self) -> LibvirtHypervisor:
        return self

    def __exit__(
        self, kind: Optional[Type[BaseException]], error: Optional[BaseException], trace: Optional[TracebackType]
    ) -> None:
        self.close()

    def _shutdown_by_agent(self, name: str) -> bool:
        with _asking(f"cannot shut down {name}"):
            domain = self._connection.lookupByName(name)
        try:
            domain.shutdownFlags(libvirt.VIR_DOMAIN_SHUTDOWN_GUEST_AGENT)
        except libvirt.libvirtError as error:
            log.debug("no agent server=%s said=%s", name, error)
            return False
        log.info("shutdown asked server=%s by=agent", name)
        return True

    def _shutdown_by_acpi(self, name: str, *, agent_has_it: bool) -> None:
        try:
            with _asking(f"cannot shut down {name}"):
                self._connection.lookupByName(name).shutdownFlags(libvirt.VIR_DOMAIN_SHUTDOWN_ACPI_POWER_BTN)
        except HypervisorError as refused:
            if agent_has_it:
                raise
            try:
                state = self.state(name)
            except HypervisorError:
                raise refused from None  # the connection broke, and the order may have been taken before that
            if state not in _OFF:
                raise ShutdownRefusedError(str(refused), libvirt_code=refused.libvirt_code) from refused
            return  # it went off by itself meanwhile
        log.info("shutdown asked server=%s by=acpi", name)


@contextmanager
def _asking(what: str) -> Iterator[None]:
    """Turn libvirt's error into ours, with `what` we wanted before its own words."""
    try:
        yield
    except libvirt.libvirtError as error:
        said = error.get_error_message() or str(error)
        raise HypervisorError(f"{what}: {said}", libvirt_code=error.get_error_code()) from error


def _unless_unsupported(ask: Callable[[], Any]) -> Any:
    """The answer; None from a driver of libvirt that doesn't know the question, such as its own for tests."""
    try:
        return ask()
    except libvirt.libvirtError as error:
        if error.get_error_code() == libvirt.VIR_ERR_NO_SUPPORT:
            return None
        raise


def _state(domain: Any) -> DomainState:
    return _STATES[domain.state()[0]]


def _value(domain: Any) -> Domain:
    return Domain(
        name=domain.name(),
        uuid=domain.UUIDString(),
        state=_state(domain),
        persistent=bool(domain.isPersistent()),
        disk_paths=domain_capabilities.disk_sources(domain.XMLDesc(0)),
    )


def _daemon_advice() -> str:
    """EL has one daemon for each hypervisor, Debian one for all."""
    if shutil.which("libvirtd", path=_SBIN):
        return "libvirtd is not running; start it with: systemctl start libvirtd"
    if shutil.which("virtqemud", path=_SBIN):
        return "virtqemud is not running; start it with: systemctl start virtqemud.socket"
    return (
        "libvirt is not installed; apt install libvirt-daemon-system qemu-system-x86 qemu-utils, "
        "or dnf install libvirt qemu-kvm qemu-img"
    )


def _why_no_connection(uri: str, error: Any) -> str:
    said = error.get_error_message() or str(error)
    if "Failed to connect socket" in said and "Permission denied" not in said:
        return f"{_daemon_advice()} ({uri})"
    if "Permission denied" in said or error.get_error_code() in (
        libvirt.VIR_ERR_AUTH_FAILED,
        libvirt.VIR_ERR_AUTH_CANCELLED,
        libvirt.VIR_ERR_AUTH_UNAVAILABLE,
    ):
        return f"not allowed to use libvirt ({uri}): run this as root"
    return f"cannot connect to libvirt at {uri}: {said}"

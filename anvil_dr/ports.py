"""What the use cases need from the world, as Protocols. Adapters and test doubles implement them.

Imports only model. Every method may raise the errors it names; no method returns False for failure.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Callable, ContextManager, Dict, FrozenSet, Iterable, Iterator, Literal, Optional, Protocol, Tuple

from anvil_dr.model import CacheDrive, Location, Owner, Sequence, StoredImage


@dataclass(frozen=True)
class Completed:
    """What a command that succeeded said."""

    argv: Tuple[str, ...]
    stdout: bytes
    stderr: bytes


class CommandRunner(Protocol):
    """Runs one command of the system. `command.run` is the adapter."""

    def __call__(
        self, argv: Tuple[str, ...], *, timeout_seconds: float = ..., stdin: bytes = ...
    ) -> Completed:
        """Raise CommandError for a non-zero exit, a missing program or a timeout."""
        ...


class Image(Protocol):
    """The bytes of one image, or of one source disk, while it is open."""

    @property
    def size_bytes(self) -> int: ...

    @property
    def path(self) -> str: ...

    def read_into(self, offset_bytes: int, buffer: memoryview) -> None:
        """Fill `buffer` from `offset_bytes`; past the end it is filled with zeros. Raise ImageIOError."""
        ...

    def write(self, offset_bytes: int, data: memoryview) -> None:
        """Write all of `data`. Raise ImageIOError, also where it would go past the end."""
        ...

    def zero(self, offset_bytes: int, length_bytes: int) -> None:
        """Make a range read back as zeros, as cheaply as the image can. Raise ImageIOError."""
        ...

    def data_ranges(self, offset_bytes: int, length_bytes: int) -> Iterator[Tuple[int, int]]:
        """The (offset, length) parts of a range that may hold other than zeros, in order.

        What lies between them is known to read as zeros (holes). One range where the kernel cannot tell.
        """
        ...

    def flush(self) -> None:
        """Put everything written on stable storage (fdatasync). Raise ImageIOError."""
        ...

    def forget_cached(self) -> None:
        """Have what is on stable storage read from there the next time, and not from memory. Raise ImageIOError."""
        ...

    def close(self) -> None: ...


class Store(Protocol):
    """Where images are kept. Names are the SPEC's; places are the adapter's."""

    @property
    def kind(self) -> Literal["fs", "lvm"]: ...

    def check(self) -> None:
        """Raise StoreError, naming the place, if the store cannot be used now."""
        ...

    def locations(self) -> Tuple[Location, ...]:
        """In the order of the configuration. Raise StoreError."""
        ...

    def images(self, server: Optional[str] = None) -> Tuple[StoredImage, ...]:
        """Every image that belongs to a known owner, or to this server. Raise StoreError.

        An image that cannot be looked at is left out, unless its server was asked for: then it's an error.
        """
        ...

    def path(self, owner: Owner, sequence: Sequence) -> str:
        """The path that a definition says: stable whatever place the image lies in. No I/O."""
        ...

    def create(
        self, owner: Owner, size_bytes: int, location: str, *, data_bytes: Optional[int] = None
    ) -> StoredImage:
        """A new `_incomplete` image. Its content is unspecified until written or zeroed (SPEC section 6).

        `data_bytes`: what it will take at most where images are sparse; all of its size, if that is not known.
        Raise StoreFullError, StoreError (also if an image of that name exists).
        """
        ...

    def resize(self, image: StoredImage, size_bytes: int, *, data_bytes: Optional[int] = None) -> StoredImage:
        """Grow or shrink in place. Raise ImageInUseError, StoreFullError, StoreError."""
        ...

    def rename(self, image: StoredImage, sequence: Sequence) -> StoredImage:
        """Give it another sequence, durably. Raise StoreError if the new name is taken."""
        ...

    def remove(self, image: StoredImage) -> None:
        """Free it. Raise ImageInUseError, StoreError."""
        ...

    def open(self, image: StoredImage, *, writable: bool) -> Image:
        """Open its bytes; writable images keep QEMU off where that is possible. Raise ImageInUseError, StoreError."""
        ...

    def users(self, images: Iterable[StoredImage]) -> Dict[StoredImage, str]:
        """Who else has them open, in words for an error message; those that nobody has are not in it.

        Asked for all of them at once: a look may cost a command, or a walk through every process. Raise StoreError.
        """
        ...

    def is_known_zero(self, image: StoredImage) -> bool:
        """True if a newly created image is guaranteed to read as zeros (a sparse file); a volume never is."""
        ...


OwnerSource = Callable[[], Iterable[Owner]]
"""Where a store that cannot tag its images learns whose they are: the state database."""


# — cache drives —


class CacheFolder(Protocol):
    """One cache drive while it is in use: it is mounted, and stays so until it is let go."""

    @property
    def drive(self) -> CacheDrive: ...

    @property
    def folder(self) -> str:
        """The root of its file system. Nothing may be written there by path unless `check` has just been called."""
        ...

    @property
    def store(self) -> Store:
        """Images as ordinary files in that root. It never creates or opens one elsewhere, whatever is mounted."""
        ...

    def check(self) -> None:
        """Raise CacheDriveError if the drive is gone, or cannot be written to any more."""
        ...


class CacheDrives(Protocol):
    """The drives of this machine that carry the cache signature (SPEC section 5)."""

    def survey(self) -> Tuple[CacheDrive, ...]:
        """Every drive that could be one: those that can be used in that order, then the others with their problem.

        Changes nothing on any of them. Raise CacheDriveError.
        """
        ...

    def use(self, drive: CacheDrive) -> ContextManager[CacheFolder]:
        """Mount it if need be, and unmount it again when nobody uses it any more. Raise CacheDriveError."""
        ...

    def tidy(self) -> None:
        """At the service's start: unmount what one that died left mounted. Raise CacheDriveError."""
        ...


# — the hypervisor —

DomainState = Literal["running", "paused", "suspended", "shutting down", "shut off", "crashed", "gone"]
"""What a domain does. `gone`: there is none of that name, which is how a transient one ends."""


@dataclass(frozen=True)
class Domain:
    """One active domain."""

    name: str
    uuid: str
    state: DomainState
    persistent: bool
    disk_paths: Tuple[str, ...]
    """Every file and device under its disks, those under an overlay too."""


@dataclass(frozen=True)
class Network:
    """One of libvirt's networks."""

    name: str
    active: bool


@dataclass(frozen=True)
class HostFacts:
    """What the machine under the hypervisor has."""

    cpus: int
    memory_bytes: int
    available_bytes: Optional[int]
    """What new domains can have without swapping; None where the hypervisor cannot say."""
    qemu_user: Optional[Tuple[int, int]] = None
    """The user and group that guests run as; None where the hypervisor cannot say."""


@dataclass(frozen=True)
class Platform:
    """The hardware that a definition asks to be emulated; None where it leaves the choice to the host."""

    virt_type: str
    """`kvm` or `qemu`."""
    arch: Optional[str] = None
    machine: Optional[str] = None
    emulator: Optional[str] = None


@dataclass(frozen=True)
class DomainCapabilities:
    """What one emulator can give to a domain of one machine type."""

    machine: str
    """Its full name, where an alias such as `q35` was asked for."""
    max_cpus: Optional[int]
    cpu_modes: Tuple[str, ...]
    """Those supported, of host-passthrough, host-model, maximum and custom."""
    cpu_models: Tuple[str, ...]
    """Models that it knows."""
    usable_cpu_models: Tuple[str, ...]
    """Models whose every feature is there."""
    loaders: Tuple[str, ...]
    """Firmware files that it would choose itself."""
    tpm_backends: Tuple[str, ...]
    tpm_versions: Tuple[str, ...]


class Hypervisor(Protocol):
    """Domains on this machine. Nothing here can define one. Every method may raise HypervisorError."""

    def active(self) -> Tuple[Domain, ...]:
        """The domains that run, or are paused, now; in the order of their names."""
        ...

    def state(self, name: str) -> DomainState:
        """What the domain of this name does."""
        ...

    def definition(self, name: str) -> str:
        """The XML that would make this domain again, its secrets included (a console's password).

        Of a persistent domain: its stored configuration. Of a transient one: what it runs with.
        """
        ...

    def shutdown(self, name: str, *, timeout_seconds: float) -> None:
        """Ask the guest to shut down, through its agent or else by ACPI, and wait until it is off.

        Raise ShutdownRefusedError if the order was not taken, so that nobody has asked it; HypervisorError if it still
        runs after that time, or nobody can tell: it may yet go off.
        """
        ...

    def start(self, name: str) -> None:
        """Start a persistent domain that is shut off."""
        ...

    def boot(self, xml: str, *, paused: bool = False, autodestroy: bool = False) -> Domain:
        """Make and start a transient domain; it is never defined. With `autodestroy` it ends with the connection."""
        ...

    def resume(self, name: str) -> None:
        """Let a paused domain run."""
        ...

    def destroy(self, name: str) -> None:
        """End a domain at once, as if its power were cut. Nothing happens if it is not active."""
        ...

    def host(self) -> HostFacts: ...

    def networks(self) -> Tuple[Network, ...]: ...

    def network_filters(self) -> FrozenSet[str]:
        """The names of its network filters."""
        ...

    def machines(self, arch: Optional[str]) -> Tuple[str, ...]:
        """The machine types that it has for this architecture, or the host's own; empty if it cannot say."""
        ...

    def capabilities(self, platform: Platform) -> Optional[DomainCapabilities]:
        """What it can give to such a domain; None if it cannot say.

        Raise HypervisorError if it has no such emulator, machine or type.
        """
        ...

    def cpu_problem(self, cpu_xml: str, platform: Platform) -> str:
        """Why a `<cpu>` element can't be had here, in libvirt's words; empty if it can."""
        ...

    def dry_run(self, xml: str) -> None:
        """Raise HypervisorError if this domain cannot be turned into a command line here."""
        ...

    def agent_answers(self, name: str, *, timeout_seconds: int) -> bool:
        """True if the guest agent in this domain answers a ping."""
        ...

    def screenshot(self, name: str) -> bytes:
        """What the guest's first screen shows now: a PNG, or a PPM."""
        ...

    def console_text(self, name: str, until: str, *, timeout_seconds: float) -> str:
        """What the guest writes to its console from now on, up to and including `until`.

        Raise HypervisorError, with the last of what was read, if it doesn't come in that time or the domain ends.
        """
        ...

    def close(self) -> None: ...


class SourceHypervisor(Hypervisor, Protocol):
    """What a node's servers are shut down and started with."""

    def is_saved(self, name: str) -> bool:
        """True if its memory was saved to disk (virsh managedsave), so that it will go on where it stopped."""
        ...


# — the machine under it —


@dataclass(frozen=True)
class PathFacts:
    """What a path leads to now, symlinks followed."""

    kind: Literal["file", "block", "directory", "other", "missing"]
    identity: str = ""
    """The same for two paths to the same bytes, whatever they are called: of a device its number."""


class Host(Protocol):
    """What only the machine itself can say of itself. Nothing here changes it, and nothing raises."""

    def path(self, path: str) -> PathFacts: ...

    def closed_folder(self, path: str, user: int, group: int) -> str:
        """The first folder above this path that this user may not pass; empty if there is none, or nobody can tell."""
        ...

    def has_interface(self, name: str) -> bool:
        """True if there is a network interface, such as a bridge, of this name."""
        ...

    def has_pci_device(self, address: str) -> bool:
        """`address` as lspci writes it: `0000:3b:00.0`."""
        ...

    def has_usb_device(self, vendor: str, product: str) -> bool:
        """Four hexadecimal digits each."""
        ...

    def has_iommu(self) -> bool:
        """True if the kernel could give a PCI device to a guest."""
        ...

    def available_memory_bytes(self) -> int:
        """What can be had without swapping: MemAvailable of proc(5)."""
        ...

    def free_hugepages_bytes(self) -> int: ...

    def listening_problem(self, address: str, port: int) -> str:
        """Why nobody could listen there now; empty if somebody could.

        Port 0 asks for the address alone, and an empty address for the port on any.
        """
        ...

"""What the use cases need from the world, as Protocols. Adapters and test doubles implement them.

Imports only model. Every method may raise the errors it names; no method returns False for failure.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Callable, Iterable, Iterator, Literal, Optional, Protocol, Tuple

from anvil_dr.model import Location, Owner, Sequence, StoredImage


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

    def images(self) -> Tuple[StoredImage, ...]:
        """Every image that belongs to a known owner. Raise StoreError."""
        ...

    def path(self, owner: Owner, sequence: Sequence) -> str:
        """The path that a definition says: stable whatever place the image lies in. No I/O."""
        ...

    def create(self, owner: Owner, size_bytes: int, location: str) -> StoredImage:
        """A new `_incomplete` image. Its content is unspecified until written or zeroed (SPEC section 6).

        Raise StoreFullError, StoreError (also if an image of that name exists).
        """
        ...

    def resize(self, image: StoredImage, size_bytes: int) -> StoredImage:
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

    def user(self, image: StoredImage) -> Optional[str]:
        """Who else has it open, in words for an error message; None if nobody."""
        ...

    def is_known_zero(self, image: StoredImage) -> bool:
        """True if a newly created image is guaranteed to read as zeros (a sparse file); a volume never is."""
        ...


OwnerSource = Callable[[], Iterable[Owner]]
"""Where a store that cannot tag its images learns whose they are: the state database."""

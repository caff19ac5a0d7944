"""Which servers may be kept off for their images, and what is in the way of the others. Pure."""

from __future__ import annotations

from typing import Callable, Dict, Final, Optional

from anvil_dr.errors import SourceError
from anvil_dr.ports import DomainState
from anvil_dr.sending.off_note import OffNote

OFF: Final = ("shut off", "gone")

CANNOT_BE_STARTED: Final[Dict[str, str]] = {
    "crashed": "it has crashed and still holds its disks",
    "gone": "it is not defined here any more; if it was moved to another machine, start nothing here",
}
"""Why, by what `Keeper` finds when it is to be started."""

_CANNOT_BE_SHUT_DOWN: Final[Dict[str, str]] = {
    "paused": "is paused, so it cannot shut down; resume it or shut it down first",
    "suspended": "is suspended, so it cannot shut down; wake it or shut it down first",
    "shutting down": "is shutting down; try again when it's off",
    "crashed": "has crashed and still holds its disks; end it first with: virsh destroy",
}


def refuse(
    name: str, state: DomainState, left: Optional[OffNote], *, saved: Callable[[], bool], shut_down: bool
) -> None:
    """Raise SourceError if a server in this state cannot be kept off.

    `left`: what a run that was killed, or still lives, has noted. `saved`: whether one that is off has its memory
    saved; asked only then. Without `shut_down` one that runs must not be shut down.
    """
    if left is not None and left.held:
        raise SourceError(held_by_another(name))
    if state == "gone" and left is not None and not left.transient:
        raise SourceError(
            f"{name} was shut down for its image at {left.since} and is not defined on this machine any more; "
            f"if it is on no other one either: {by_hand(name, left, state)}"
        )
    if state == "gone":
        if left is not None and left.doubt:
            raise SourceError(
                f"{name} was shut down for its image at {left.since}, {left.doubt}, and it does not run here; "
                f"if it runs nowhere else: {by_hand(name, left, state)}"
            )
        return
    if state == "shut off":
        if saved():
            raise SourceError(
                f"{name} is not shut off but saved with its memory, so its disks are not at rest; "
                "start it and shut it down, or drop its memory with: virsh managedsave-remove"
            )
        return
    if state in _CANNOT_BE_SHUT_DOWN:
        raise SourceError(f"{name} {_CANNOT_BE_SHUT_DOWN[state]}")
    if not shut_down:
        raise SourceError(f"{name} is running, so its image would be torn; shut it down, or use --shutdown")


def held_by_another(name: str) -> str:
    """Why a server must not be touched that another run keeps off."""
    return f"{name} is being imaged by another run of anvil-dr-send on this node; wait for that one to end"


def by_hand(name: str, left: Optional[OffNote], state: Optional[DomainState]) -> str:
    """The command that starts a server in this state, which is None if libvirt does not say."""
    if left is not None and left.transient:
        start = f"virsh create {left.definition_path}"
    elif left is not None and left.definition is not None and state == "gone":
        start = f"virsh define {left.definition_path} && virsh start {name}"
    else:
        start = f"virsh start {name}"
    return f"virsh destroy {name} && {start}" if state == "crashed" else start

"""Gives an activated server's images back to the jobs. Touches the state; looks at the store."""

from __future__ import annotations

from anvil_dr.errors import ImageInUseError, UsageError
from anvil_dr.ports import Store
from anvil_dr.state import State
from anvil_dr.words import listed


def release(server: str, store: Store, state: State) -> None:
    """Take the mark away. What the server wrote here is overwritten by its next jobs.

    Raise UsageError if it isn't activated, ImageInUseError while it runs, StateError, StoreError.
    """
    activated = sorted(state.activations())
    if server not in activated:
        there = f"activated: {listed(activated)}" if activated else "no server is"
        raise UsageError(f"server {server} is not activated; {there}")
    for image in store.images():
        if image.owner.server == server:
            user = store.user(image)
            if user is not None:
                raise ImageInUseError(image.path, f"{user}; shut the server down first")
    state.release(server)

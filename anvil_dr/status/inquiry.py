"""Asks the running service what no file says: which jobs it is working on. Touches the service's socket."""

from __future__ import annotations

import os
import socket
from typing import Tuple

from anvil_dr.errors import AnvilDrError, ServiceError
from anvil_dr.model import RunningJob
from anvil_dr.wire.channel import Channel, frame_buffer
from anvil_dr.wire.protocol import VERSION, Error, Hello, Kind, Status, decode

_SILENCE_SECONDS = 10.0


def running_jobs(socket_path: str) -> Tuple[RunningJob, ...]:
    """The jobs of the service that listens there. Raise ServiceError, in words, if it does not tell."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        connection.settimeout(_SILENCE_SECONDS)
        try:
            connection.connect(socket_path)
        except (FileNotFoundError, ConnectionRefusedError) as error:
            raise ServiceError(
                f"nobody listens on {socket_path}; see: systemctl status anvil-dr-target.socket anvil-dr-target"
            ) from error
        except OSError as error:
            raise ServiceError(f"{socket_path}: {error.strerror or error}") from error
        channel = Channel(*(os.dup(connection.fileno()),) * 2, silence_seconds=_SILENCE_SECONDS)
        try:
            return _ask(channel)
        except ServiceError:
            raise
        except AnvilDrError as error:
            raise ServiceError(f"{socket_path}: {error}") from error
        finally:
            channel.close()


def _ask(channel: Channel) -> Tuple[RunningJob, ...]:
    hello = Hello((VERSION,), (), program="anvil-dr-status", purpose="status")
    channel.send(hello.kind, hello.encode())
    kind, content = channel.receive(frame_buffer())
    if kind is Kind.ERROR:
        raise ServiceError(f"it refuses to answer: {decode(Error, content).message}")
    if kind is not Kind.STATUS:
        raise ServiceError(f"it answers with {kind.name}")
    return tuple(RunningJob(**vars(one)) for one in decode(Status, content).jobs)

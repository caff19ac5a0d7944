"""Whose fault it was: what fails on a cache drive names the drive. Touches nothing."""

from __future__ import annotations

from contextlib import contextmanager
from typing import Iterator, Union

from anvil_dr.errors import AnvilDrError, CacheDriveError, ImageIOError, StoreError
from anvil_dr.model import CacheDrive
from anvil_dr.ports import CacheFolder


@contextmanager
def blamed_on(folder: CacheFolder) -> Iterator[None]:
    """Name the drive for whatever fails in here, except for the bytes of an image that lies elsewhere."""
    try:
        with blamed_for_bytes(folder):
            yield
    except CacheDriveError:
        raise
    except (StoreError, OSError) as error:
        raise _blame(folder, error) from error


@contextmanager
def blamed_for_bytes(folder: CacheFolder) -> Iterator[None]:
    """Name the drive where it was one of its images that could not be read or written."""
    try:
        yield
    except ImageIOError as error:
        if error.path.startswith(folder.folder.rstrip("/") + "/"):
            raise _blame(folder, error) from error
        raise


def known_as(drive: CacheDrive) -> str:
    """What a person finds it by: its path now, and what is printed on it."""
    label = ", ".join(filter(None, [drive.model, drive.serial]))
    return f"{drive.device} ({label})" if label else drive.device


def _blame(folder: CacheFolder, error: Union[AnvilDrError, OSError]) -> CacheDriveError:
    return CacheDriveError(known_as(folder.drive), str(error))

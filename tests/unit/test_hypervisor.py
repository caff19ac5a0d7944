"""What libvirt's own driver for tests can show of the adapter; tests/qemu has the rest, on real servers."""

from __future__ import annotations

import pytest

from anvil_dr.errors import ShutdownRefusedError
from anvil_dr.hypervisor import connect


def test_a_libvirt_without_its_driver_for_network_filters_has_none() -> None:
    with connect("test:///default") as hypervisor:
        assert hypervisor.network_filters() == frozenset()


def test_an_order_to_shut_down_that_libvirt_does_not_take_is_told_from_a_guest_that_is_slow() -> None:
    """That driver knows neither an agent nor ACPI."""
    with connect("test:///default") as hypervisor:
        assert hypervisor.state("test") == "running"
        with pytest.raises(ShutdownRefusedError, match="cannot shut down test"):
            hypervisor.shutdown("test", timeout_seconds=5)
        with pytest.raises(ShutdownRefusedError, match="Domain not found"):
            hypervisor.shutdown("Web01", timeout_seconds=5)
        assert hypervisor.state("test") == "running"

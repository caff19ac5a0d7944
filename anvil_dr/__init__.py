"""Disaster recovery for small KVM clusters: servers' images arrive, are kept, and boot on the worst day."""

__version__ = "0.1.0"

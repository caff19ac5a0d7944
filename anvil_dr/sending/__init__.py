"""The node: what is sent of which server, read from its disks while it is off."""

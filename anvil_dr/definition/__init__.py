"""A server's definition (libvirt domain XML): read, made fit for the DR box, compared, asked what it needs.

Pure: no file, no network, no hypervisor; lxml only. Definitions that come from a node are hostile until
`make_dr_definition` has let them through (SPEC section 7). Read in this order:

- `reading`: text -> Definition, or one clear DefinitionError
- `disks`: the disks of a server, and their names
- `making`: the DR definition; `firmware`, `devices`, `disk_rules`, `characters`, `network_rules` and
  `memory_files` hold its rules
- `differing`: how a source's definition and the DR definition differ, in words
- `requirements`: what a definition needs from the host that boots it
"""

from anvil_dr.definition.devices import take_off_host
from anvil_dr.definition.differing import differences
from anvil_dr.definition.disks import SourceDisk, disk_name, source_disks
from anvil_dr.definition.making import DiskTarget, Made, make_dr_definition
from anvil_dr.definition.memory_files import avoid as avoid_memory_files
from anvil_dr.definition.reading import Definition, parse, server_name, uuid_of
from anvil_dr.definition.requirements import (
    CpuRequirement,
    DiskRequirement,
    GraphicsRequirement,
    HostdevRequirement,
    NetworkRequirement,
    Requirements,
    TpmRequirement,
    requirements,
)

__all__ = [
    "CpuRequirement",
    "Definition",
    "DiskRequirement",
    "DiskTarget",
    "GraphicsRequirement",
    "HostdevRequirement",
    "Made",
    "NetworkRequirement",
    "Requirements",
    "SourceDisk",
    "TpmRequirement",
    "avoid_memory_files",
    "differences",
    "disk_name",
    "make_dr_definition",
    "parse",
    "requirements",
    "server_name",
    "source_disks",
    "take_off_host",
    "uuid_of",
]

"""Disaster recovery for small KVM clusters: servers' images arrive, are kept, and boot on the worst day.

Along the path of the data:

    sending       the node: reads a server's disks while it is off
    wire          what both ends say, and how bytes become digests, differences and frames
    relay         the ssh end on the DR box; service: its unix socket
    receiving     a session, a job, a server, a disk: each as a transaction
    caching       a detour over cache drives, for servers with one copy; cache finds and mounts them
    cycling       which images belong together, what they are called next, where a new one goes
    stores        files in a directory, volumes in groups
    records       what must survive a reboot
    definition    a source's domain XML made fit for this box
    preflight     what would keep a server from booting here
    activation    the worst day; hypervisor: libvirt
    rehearsal     the same on throw-away copies
    failback      the way home
    status        what the admin sees
    cli           one small file per command

`errors`, `model` and `ports` are what all of them speak in.
"""

__version__ = "0.1.0"

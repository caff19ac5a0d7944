"""What is to be sent of a server that libvirt has: its definition and disks are read from there (SPEC section 9).

Talks to libvirt through ports.Hypervisor, and opens disks to learn their sizes. The server may still run: it's shut
down, if that is wanted, when its turn comes.
"""

from __future__ import annotations

from typing import Dict, List, Sequence, Set, Tuple

from anvil_dr import definition, firmware_files
from anvil_dr.definition import SourceDisk
from anvil_dr.errors import DefinitionError, SourceError, UsageError
from anvil_dr.sending.job import OutgoingDisk, OutgoingServer
from anvil_dr.sending.keep_off import Keeper
from anvil_dr.sending.outgoing import Prepared, outgoing_disk, prepare, refuse_format


class DomainReader:
    """Builds outgoing servers from domains."""

    def __init__(
        self,
        keeper: Keeper,
        *,
        leave_out: Sequence[str] = (),
        nvram_folder: str = firmware_files.NVRAM_FOLDER,
        tpm_folder: str = firmware_files.TPM_FOLDER,
    ) -> None:
        """`leave_out` names disks that are not to be sent: by path, description or target."""
        self._keeper, self._leave_out = keeper, tuple(leave_out)
        self._nvram_folder, self._tpm_folder = nvram_folder, tpm_folder
        self._left_out: Set[str] = set()

    def read(self, names: Sequence[str]) -> Prepared:
        """Build these servers. Raise UsageError for a server that is named twice, or a disk that none of them has."""
        for position, name in enumerate(names):
            if name in names[:position]:
                raise UsageError(f"server {name} is named twice")
        prepared = prepare(names, self._server)
        unknown = [path for path in self._leave_out if path not in self._left_out]
        if unknown and not prepared.failed:
            raise UsageError(f"--leave-out {unknown[0]}: no server of this job has such a disk")
        return prepared

    def _server(self, name: str) -> OutgoingServer:
        self._keeper.check(name)
        xml = self._keeper.definition(name)
        needs = definition.requirements(xml)
        self._keeper.check_survives_shutdown(name, needs.tpm)
        disks, left_out = self._disks(name, definition.source_disks(definition.parse(xml)))
        firmware = firmware_files.of_domain(needs, nvram_folder=self._nvram_folder, tpm_folder=self._tpm_folder)
        return OutgoingServer(
            name=name,
            definition=xml,
            disks=disks,
            keep_off=lambda: self._keeper.off(name),
            left_out=left_out,
            firmware=firmware.read(),
            read_firmware=firmware.read,
        )

    def _disks(self, server: str, disks: Sequence[SourceDisk]) -> Tuple[Tuple[OutgoingDisk, ...], Tuple[str, ...]]:
        sent: Dict[str, OutgoingDisk] = {}
        left_out: List[str] = []
        for disk in disks:
            if not disk.is_storage:
                continue
            named = [name for name in self._leave_out if disk.is_one_of((name,))]
            if named:
                self._left_out.update(named)
                left_out += named
                continue
            outgoing = self._disk(server, disk)
            if outgoing.name in sent:
                raise SourceError(
                    f"server {server}: {sent[outgoing.name].path} and {outgoing.path} would both be named "
                    f"{outgoing.name}; a job file can name them",
                    path=outgoing.path,
                )
            sent[outgoing.name] = outgoing
        if not sent:
            raise SourceError(f"server {server} has no disk that could be imaged")
        return tuple(sent.values()), tuple(left_out)

    def _disk(self, server: str, disk: SourceDisk) -> OutgoingDisk:
        if not disk.imageable or disk.path is None:
            raise SourceError(
                f"server {server}: {disk} cannot be imaged; to send the server without it: "
                f"--leave-out '{disk.path or disk.target}'"
            )
        refuse_format(server, disk)
        try:
            name = definition.disk_name(disk.path)
        except DefinitionError as error:
            raise DefinitionError(str(error), server=server) from error
        return outgoing_disk(name, disk.path, disk.path)

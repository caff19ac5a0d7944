"""What XML from a node cannot do, and the rules that no golden definition shows."""

from __future__ import annotations

from typing import Collection, List, Mapping, Optional

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from lxml import etree

from anvil_dr import definition
from anvil_dr.definition import DiskTarget, Made
from anvil_dr.definition.notes import MAX_WARNINGS
from anvil_dr.errors import DefinitionError

SOURCE = "/dev/vg0/web01_0"
IMAGE = "/dev/anvil-dr/web01_web01_0_1"
NVRAM = "/shared/definitions/nvram/web01.fd"
PATHS = {SOURCE: DiskTarget(IMAGE, "block")}
HVM = "<os><type arch='x86_64' machine='q35'>hvm</type></os>"
DISK = f"<disk type='block' device='disk'><source dev='{SOURCE}'/><target dev='vda' bus='virtio'/></disk>"


def domain(devices: str = "", *, os: str = HVM, rest: str = "", disk: str = DISK) -> str:
    return (
        f"<domain type='kvm'><name>web01</name><memory>1048576</memory>{rest}{os}"
        f"<devices>{disk}{devices}</devices></domain>"
    )


def make(
    xml: str,
    *,
    paths: Mapping[str, DiskTarget] = PATHS,
    left_out: Collection[str] = (),
    nvram: Optional[str] = NVRAM,
) -> Made:
    return definition.make_dr_definition(xml, "web01", paths, left_out, nvram)


def made(xml: str, path: str) -> etree._Element:
    found = etree.fromstring(make(xml).xml).find(path)
    assert found is not None
    return found


# — reading —


@pytest.mark.parametrize(
    ("xml", "said"),
    [
        ("", "not well-formed"),
        ("<domain", "line 1: not well-formed"),
        ("<domain>\n<name>\n</domain>", "line 3: not well-formed"),
        ("<domain><name>&nbsp;</name></domain>", "not well-formed"),
        ("<domain>\x00</domain>", "not well-formed"),
        ("<domain>\ud800</domain>", "not valid Unicode"),
        ("<network/>", "root element is <network>, not <domain>"),
        ("<domain xmlns='urn:x'/>", "not <domain>"),
        ("<a>" * 300, "depth"),
        ("<domain type='kvm'><devices/><devices/></domain>", "a second <devices>"),
        ("\n<!-- a --><?b?>\n<!DOCTYPE domain><domain/>", "document type"),
        ("<domain><!DOCTYPE domain></domain>", "not well-formed"),
    ],
)
def test_what_cannot_be_read_is_refused_in_one_line(xml: str, said: str) -> None:
    with pytest.raises(DefinitionError) as refused:
        definition.parse(xml)
    assert said in str(refused.value) and "\n" not in str(refused.value)


def test_a_definition_that_is_too_large_is_refused_unread() -> None:
    with pytest.raises(DefinitionError, match="larger than 1048576 bytes"):
        definition.parse("<domain>" + "\u00e4" * 600_000)
    with pytest.raises(DefinitionError, match="larger than 100 bytes"):
        definition.parse(f"<domain><title>{'x' * 100}</title></domain>", max_bytes=100)


@pytest.mark.parametrize("first", ["", "a='>' ", 'a=">" ', """a='">' """])
@pytest.mark.parametrize("end", ["/></domain>", "<", " b='<", "'"])
def test_a_flood_of_attributes_that_would_take_minutes_to_parse_is_refused_unread(first: str, end: str) -> None:
    flood = " ".join(f"a{number}=''" for number in range(5_000))
    with pytest.raises(DefinitionError, match="line 2: .* longer than"):
        definition.parse(f"<domain>\n<name {first}{flood}{end}")


def test_a_long_text_is_no_flood() -> None:
    note = 'it\'s "here" > there. ' * 3000
    assert made(domain(rest=f"<description>{note}</description>"), "description").text == note


def test_the_word_doctype_may_be_in_a_comment() -> None:
    assert definition.server_name(definition.parse("<!-- <!DOCTYPE --><domain><name>a</name></domain>")) == "a"


def test_a_declared_encoding_does_not_change_what_is_read() -> None:
    xml = "<?xml version='1.0' encoding='UTF-16'?><domain><name>w\u00e4b</name></domain>"
    assert definition.server_name(definition.parse(xml)) == "w\u00e4b"


def test_a_name_is_what_libvirt_takes_it_for() -> None:
    assert definition.server_name(definition.parse("<domain><name>a<!-- x -->b<![CDATA[c]]></name></domain>")) == "abc"


# — what stops a job —


@pytest.mark.parametrize(
    ("xml", "said"),
    [
        (domain(os=""), "full virtual machine"),
        (domain(os="<os><type>exe</type><init>/sbin/init</init></os>"), "full virtual machine"),
        (domain(os="<os><type machine='a/b'>hvm</type></os>"), "machine 'a/b'"),
        (domain(os="<os firmware='../x'><type>hvm</type></os>"), "firmware '../x' is unknown"),
        (domain(os="<os><type>hvm</type><initrd>/boot/initrd</initrd></os>"), "<initrd>"),
        (domain(rest="<bootloader>/usr/bin/pygrub</bootloader>"), "<bootloader>"),
        (domain("<disk type='dir' device='disk'><source dir='/'/><target dev='vdb'/></disk>"), r"disk vdb \(/\)"),
        (domain("<disk type='vhostuser' device='disk'><source type='unix' path='/run/s'/><target dev='vdb'/></disk>"),
         r"vhostuser disk vdb \(vhostuser:/run/s\)"),
        (domain("<disk type='nvme' device='disk'><source type='pci' namespace='1'><address domain='0x0' bus='0x5'"
                " slot='0x0' function='0x0'/></source><target dev='vdb'/></disk>"), "nvme:0000:05:00.0/1"),
        (domain("<disk type='file' device='disk'><target dev='vdb'/></disk>"), r"disk vdb \(no source\)"),
        (domain("<disk type='file' device='tape'><target dev='vdb'/></disk>"), "unknown device 'tape'"),
        (domain("<disk type='file' device='disk'/>"), "no target"),
        (domain("<hostdev mode='subsystem' type='scsi_host'><source protocol='vhost' wwpn='naa.5'/></hostdev>"),
         "scsi_host:naa.5"),
        (domain(disk=DISK.replace("<target", "<driver type='qcow2'/><encryption format='luks'/><target")), "encrypted"),
        (domain(disk=DISK.replace("'/><target", "'><slices><slice type='storage' offset='1' size='2'/></slices>"
                                  "</source><target")), "slice"),
    ],
)  # fmt: skip
def test_a_server_that_could_not_be_whole_here_fails_its_job(xml: str, said: str) -> None:
    with pytest.raises(DefinitionError, match=said) as refused:
        make(xml)
    assert refused.value.server == "web01"


def test_a_disk_cannot_be_in_the_job_and_left_out_of_it() -> None:
    with pytest.raises(DefinitionError, match="in the job and left out"):
        make(domain(), left_out=[SOURCE])


@pytest.mark.parametrize("device", ["cdrom", "floppy"])
def test_a_medium_cannot_be_imaged_as_if_it_were_a_disk(device: str) -> None:
    with pytest.raises(DefinitionError, match="has no disk"):
        make(domain(disk=DISK.replace("device='disk'", f"device='{device}'")))


def test_a_misspelt_name_among_those_left_out_is_told() -> None:
    assert make(domain(), left_out=["/dev/vg0/typo"]).warnings == (
        "/dev/vg0/typo is left out, but the definition has no such disk",
    )


# — disks —


def test_type_path_and_format_change_together_and_formats_own_options_go() -> None:
    disk = (
        f"<disk device='disk' type='block'><driver name='qemu' type='qcow2' discard='unmap' discard_no_unmap='on'/>"
        f"<source dev='{SOURCE}'/><target dev='vda'/></disk>"
    )
    xml = make(domain(disk=disk), paths={SOURCE: DiskTarget("/srv/dr/a.raw", "file")}).xml
    element = etree.fromstring(xml).find("devices/disk")
    assert element is not None and (element.get("type"), element.find("source").attrib) == (
        "file",
        {"file": "/srv/dr/a.raw"},
    )
    assert element.find("driver").attrib == {"name": "qemu", "type": "raw", "discard": "unmap"}


def test_a_disk_without_a_driver_gets_one_that_says_raw() -> None:
    assert made(domain(), "devices/disk/driver").attrib == {"name": "qemu", "type": "raw"}


def test_a_disk_that_qemu_decrypts_keeps_the_name_of_its_secret() -> None:
    encryption = (
        "<encryption format='luks'><secret type='passphrase' usage='/luks/web01' evil='x'/><evil/></encryption>"
    )
    inside = DISK.replace("'/><target", f"'>{encryption}</source><target")
    for disk in (inside, DISK.replace("<target", f"{encryption}<target")):
        result = make(domain(disk=disk))
        secret = etree.fromstring(result.xml).find("devices/disk/encryption/secret")
        assert secret is not None and secret.attrib == {"type": "passphrase", "usage": "/luks/web01"}
        assert result.warnings[0].startswith("disk vda is encrypted")


@pytest.mark.parametrize("name", ["shareable", "transient"])
def test_a_disk_that_others_would_share_or_that_forgets_becomes_an_ordinary_one(name: str) -> None:
    result = make(domain(disk=DISK.replace("<target", f"<{name}/><target")))
    assert f"<{name}" not in result.xml and len(result.warnings) == 1


def test_a_nodes_disk_in_another_place_of_the_same_element_is_not_taken() -> None:
    twice = DISK.replace("<target", "<source dev='/dev/sda'/><target dev='vdz'/><target", 1)
    disk = made(domain(disk=twice), "devices/disk")
    assert [source.get("dev") for source in disk.findall("source")] == [IMAGE]
    assert len(disk.findall("target")) == 1


# — firmware —

OVMF = "/usr/share/OVMF/OVMF_CODE_4M.fd"


def uefi(loader: str = "", nvram: str = "", attribute: str = "") -> str:
    return domain(os=f"<os{attribute}><type machine='q35'>hvm</type>{loader}{nvram}</os>")


def test_a_uefi_server_without_a_variable_store_of_its_own_gets_the_place_of_ours() -> None:
    assert made(uefi(attribute=" firmware='efi'"), "os/nvram").text == NVRAM
    assert made(uefi(f"<loader type='pflash'>{OVMF}</loader>"), "os/nvram").text == NVRAM


def test_a_variable_store_that_is_a_source_like_a_disks_is_replaced_whole() -> None:
    store = "<nvram type='network'><source protocol='iscsi' name='x/0'><host name='192.0.2.1'/></source></nvram>"
    nvram = made(uefi(f"<loader type='pflash'>{OVMF}</loader>", store), "os/nvram")
    assert (nvram.text, len(nvram), dict(nvram.attrib)) == (NVRAM, 0, {})


def test_a_variable_store_keeps_the_format_that_its_bytes_have() -> None:
    loader = f"<loader type='pflash' format='qcow2'>{OVMF}</loader>"
    nvram = made(uefi(loader, "<nvram format='qcow2' templateFormat='qcow2'>/x</nvram>"), "os/nvram")
    assert dict(nvram.attrib) == {"format": "qcow2"}


def test_a_server_without_uefi_has_no_variable_store() -> None:
    assert NVRAM not in make(domain()).xml
    assert NVRAM not in make(uefi(f"<loader type='pflash' stateless='yes'>{OVMF}</loader>", "<nvram>/x</nvram>")).xml
    assert NVRAM not in make(uefi(attribute=" firmware='bios'")).xml


def test_without_a_place_for_the_variables_the_hosts_own_are_used_and_a_warning_says_so() -> None:
    template = "<nvram template='/usr/share/OVMF/OVMF_VARS_4M.fd'>/var/lib/libvirt/qemu/nvram/x.fd</nvram>"
    result = make(uefi(f"<loader type='pflash'>{OVMF}</loader>", template), nvram=None)
    nvram = etree.fromstring(result.xml).find("os/nvram")
    assert nvram is not None and (nvram.text, nvram.get("template")) == (None, "/usr/share/OVMF/OVMF_VARS_4M.fd")
    assert "UEFI variables are not part of the job" in result.warnings[0]


@pytest.mark.parametrize(
    "path", ["/etc/shadow", "/usr/share/OVMF/../../../etc/shadow", "/usr/share/OVMF//x", "OVMF.fd"]
)
def test_firmware_from_anywhere_else_is_replaced_by_the_hosts_own(path: str) -> None:
    result = make(uefi(f"<loader readonly='yes' secure='yes' type='pflash'>{path}</loader>"))
    os = etree.fromstring(result.xml).find("os")
    assert os is not None and os.get("firmware") == "efi" and dict(os.find("loader").attrib) == {"secure": "yes"}
    assert path in result.warnings[0] and path not in result.xml


def test_firmware_is_chosen_by_path_or_by_the_host_but_never_by_both() -> None:
    """libvirt 9.0: "loader attribute 'readonly' cannot be specified when firmware autoselection is enabled"."""
    features = "<firmware><feature enabled='yes' name='secure-boot'/></firmware>"
    both = f"{features}<loader readonly='yes' type='pflash'>{OVMF}</loader>"
    by_path = made(uefi(both.replace(" type", " format='qcow2' type"), "", " firmware='efi'"), "os")
    assert by_path.get("firmware") is None and by_path.find("firmware") is None
    for written in (both, both.replace(" type", " format='raw' type")):
        chosen = made(uefi(written, "", " firmware='efi'"), "os")
        assert (chosen.get("firmware"), chosen.find("loader"), OVMF in make(uefi(written)).xml) == ("efi", None, True)
        assert chosen.find("firmware/feature") is not None and chosen.findtext("nvram") == NVRAM
    by_host = made(uefi(f"{features}<loader readonly='yes' type='pflash' secure='yes'/>", "", " firmware='efi'"), "os")
    assert dict(by_host.find("loader").attrib) == {"secure": "yes"} and by_host.find("firmware/feature") is not None


@pytest.mark.parametrize("said", [" readonly='no'", ""])
def test_the_firmware_of_every_guest_here_cannot_be_written_by_one(said: str) -> None:
    result = make(uefi(f"<loader{said} type='pflash'>{OVMF}</loader>"))
    loader = etree.fromstring(result.xml).find("os/loader")
    assert loader is not None and (loader.get("readonly"), loader.text) == ("yes", OVMF)
    assert [OVMF in warning for warning in result.warnings] == ([True] if said else [])


@pytest.mark.parametrize(
    ("loader", "attribute"),
    [("<loader readonly='yes' type='pflash'>/opt/fw/CODE.fd</loader>", ""), ("", " firmware='efi'")],
)
def test_where_the_host_chooses_the_firmware_it_chooses_the_template_too(loader: str, attribute: str) -> None:
    """libvirt 9.0: "nvram attribute 'template' cannot be specified when firmware autoselection is enabled"."""
    template = "<nvram template='/usr/share/OVMF/OVMF_VARS_4M.fd'>/var/lib/libvirt/qemu/nvram/x.fd</nvram>"
    os = etree.fromstring(make(uefi(loader, template, attribute), nvram=None).xml).find("os")
    assert os is not None and os.get("firmware") == "efi" and os.find("nvram") is None


# — devices —


def test_a_network_card_of_this_host_is_shared_and_never_taken_over() -> None:
    def result(mode: str) -> Made:
        return make(domain(f"<interface type='direct'><source dev='eno1' mode='{mode}'/></interface>"))

    source = etree.fromstring(result("passthrough").xml).find("devices/interface/source")
    assert source is not None and dict(source.attrib) == {"dev": "eno1", "mode": "bridge"}
    assert len(result("passthrough").warnings) == 1 and result("private").warnings == ()


def test_a_seclabel_cannot_run_qemu_as_root() -> None:
    result = make(domain(rest="<seclabel type='static' model='dac'><label>root:root</label></seclabel>"))
    assert "seclabel" not in result.xml and len(result.warnings) == 1


def test_what_the_guest_is_told_by_smbios_and_by_fwcfg_is_kept_side_by_side() -> None:
    smbios = "<sysinfo type='smbios'><system><entry name='serial'>4711</entry></system></sysinfo>"
    fwcfg = (
        "<sysinfo type='fwcfg'><entry name='opt/org.example/a'>{}</entry>"
        "<entry name='opt/org.example/b' file='/etc/shadow'/></sysinfo>"
    )
    result = make(domain(rest=smbios + fwcfg))
    entries = etree.fromstring(result.xml).findall("sysinfo//entry")
    assert [(entry.get("name"), entry.text) for entry in entries] == [("serial", "4711"), ("opt/org.example/a", "{}")]
    assert [warning for warning in result.warnings if "opt/org.example/b" in warning] == list(result.warnings)


def test_a_new_generation_id_tells_the_guest_that_it_was_put_back() -> None:
    assert made(domain(rest="<genid>9f5c1d2e-0b7a-4c63-a1f8-64e2d3b5c7a9</genid>"), "genid").text is None


@pytest.mark.parametrize(
    ("said", "kept"),
    [
        ("5C3B1F0A9D1E4B6B8A3C0F6A1D2E3B4C", "5c3b1f0a-9d1e-4b6b-8a3c-0f6a1d2e3b4c"),
        (" 5c3b1f0a-9d1e4b6b-8a3c-0f6a1d2e3b4c ", "5c3b1f0a-9d1e-4b6b-8a3c-0f6a1d2e3b4c"),
        ("..", None),
    ],
)
def test_a_uuid_names_files_here_so_that_it_is_one(said: str, kept: Optional[str]) -> None:
    assert etree.fromstring(make(domain(rest=f"<uuid>{said}</uuid>")).xml).findtext("uuid") == kept


def test_a_usb_device_is_not_taken_from_the_dr_box_even_if_it_is_asked_for_by_name() -> None:
    source = "<source startupPolicy='mandatory' missing='yes'><vendor id='0x0529'/><product id='0x0001'/></source>"
    result = make(domain(f"<hostdev mode='subsystem' type='usb'>{source}</hostdev>"))
    assert etree.fromstring(result.xml).find("devices/hostdev") is None
    assert "usb:0x0529:0x0001" in result.warnings[0]


@pytest.mark.parametrize(
    ("inside", "action"), [("coredump-restart", "restart"), ("coredump-destroy", "destroy"), ("preserve", "preserve")]
)
def test_a_crash_of_the_guest_writes_no_dump_of_its_memory(inside: str, action: str) -> None:
    assert made(domain(rest=f"<on_crash>{inside}</on_crash>"), "on_crash").text == action


@pytest.mark.parametrize(
    ("backing", "kept"),
    [
        ("<source type='file'/><allocation mode='immediate'/>", ["allocation"]),
        ("<access mode='shared'/>", []),
        ("<source type='memfd'/><access mode='shared'/>", ["source", "access"]),
    ],
)
def test_the_memory_of_a_server_is_no_file_of_the_dr_box(backing: str, kept: List[str]) -> None:
    cells = "<cpu><numa><cell id='0' cpus='0' memory='1048576' memAccess='shared'/></numa></cpu>"
    dimm = "<memory model='dimm' access='shared'><target><size>1024</size><node>0</node></target></memory>"
    root = etree.fromstring(make(domain(dimm, rest=f"<memoryBacking>{backing}</memoryBacking>{cells}")).xml)
    assert [child.tag for child in root.iterfind("memoryBacking/*")] == kept
    assert not root.xpath("//@memAccess | //memory/@access")


def test_a_place_on_the_nodes_pci_bus_is_never_taken_from_this_host() -> None:
    address = "<address domain='0x0000' bus='0x00' slot='0x1f' function='0x2'/>"
    result = make(domain(f"<hostdev mode='subsystem' type='pci' managed='yes'><source>{address}</source></hostdev>"))
    assert "hostdev" not in result.xml and "pci:0000:00:1f.2" in result.warnings[0]


def test_an_encrypted_tpm_says_that_it_needs_a_secret() -> None:
    backend = "<backend type='emulator'><encryption secret='6dd3e4a5-1d76-44ce-961f-f119f5aad935'/></backend>"
    result = make(domain(f"<tpm model='tpm-crb'>{backend}</tpm>"))
    assert "persistent_state" in result.xml and "secret" in result.warnings[0]


def test_launch_security_keeps_no_session_of_the_nodes_processor() -> None:
    inside = "<policy>0x3</policy><dhCert>AA</dhCert><session>BB</session>"
    result = make(domain(rest=f"<launchSecurity type='sev'>{inside}</launchSecurity>"))
    assert "<policy>" in result.xml and "session>" not in result.xml and len(result.warnings) == 1


def test_an_unknown_element_goes_and_the_warning_names_it() -> None:
    result = make(domain("<timeMachine/>", rest="<quantum/>"))
    assert result.warnings == (
        "<quantum> removed: it is not known to be safe here",
        "<timeMachine> removed: it is not known to be safe here",
    )


def test_a_flood_of_warnings_ends() -> None:
    result = make(domain("".join(f"<unknown{number}/>" for number in range(5_000))))
    assert len(result.warnings) == MAX_WARNINGS + 1 and result.warnings[-1] == "and 4900 more of this kind"


def test_a_warning_is_one_printable_line_whatever_the_node_wrote() -> None:
    evil = "a&#10;b&#x202e;&#x85;" + "c" * 500
    for warning in make(domain(f"<emulator>{evil}</emulator><hostdev type='{evil}'/>")).warnings:
        assert warning.isprintable() and len(warning) < 300


# — anything at all —


@given(st.text() | st.text(alphabet="<>/!?-[]&;'\" =adomin:\n\t"))
@example("<!DOCTYPE")
@example("<?")
@example("<!--")
@example("<domain/>")
@example("<domain type='kvm'><name/></domain>")
def test_junk_raises_nothing_but_a_definition_error(junk: str) -> None:
    for read in (
        lambda: make(junk),
        lambda: definition.requirements(junk),
        lambda: definition.source_disks(definition.parse(junk)),
        lambda: definition.differences(junk, junk),
        lambda: definition.disk_name(junk),
    ):
        try:
            read()
        except DefinitionError:
            pass


TAGS = st.sampled_from(
    "disk source target driver backingStore mirror interface serial console channel graphics listen gl video model"
    " acceleration hostdev address adapter rng backend tpm encryption secret input audio sound filesystem memory"
    " path shmem server log protocol script rom controller emulator watchdog panic redirdev smartcard database"
    " vsock cid crypto lease iommu hub nvram loader boot firmware acpi label seclabel alias binary reservations unknown"
    " {urn:x}source {urn:x}disk {http://libvirt.org/schemas/domain/qemu/1.0}commandline".split()
)
ATTRIBUTES = st.sampled_from(
    "type device dev file path dir mode model name backend tap vhost logFile socket rendernode evdev secret bus host"
    " service server tty display xauth bridge network address uuid auto autoport port protocol wwpn {urn:x}file".split()
)
PLACE = "/evil/place"
VALUES = st.sampled_from(
    [PLACE, f"..{PLACE}", f"unix:{PLACE}", f"file://{PLACE}", f"/usr/share/OVMF/..{PLACE}"]
    + "file block network volume cdrom floppy disk lun unix pty tcp bind connect random egd builtin emulator external"
    " usb pci scsi bridge user ethernet vnc spice mouse dimm nvdimm raw yes virtio vda br0".split()
)
TOP = st.sampled_from(
    "devices os features cpu clock metadata sysinfo memoryBacking cputune seclabel resource pm memtune idmap"
    " {http://libvirt.org/schemas/domain/qemu/1.0}commandline {urn:x}devices".split()
)


def element(tag: str, attributes: Mapping[str, str], text: str, children: Collection[etree._Element]) -> etree._Element:
    made_up = etree.Element(tag, dict(attributes))
    made_up.text = text
    made_up.extend(children)
    return made_up


def trees(
    tags: st.SearchStrategy[str], children: st.SearchStrategy[etree._Element]
) -> st.SearchStrategy[etree._Element]:
    return st.builds(
        element, tags, st.dictionaries(ATTRIBUTES, VALUES, max_size=4), VALUES, st.lists(children, max_size=4)
    )


LEAVES = st.builds(element, TAGS, st.dictionaries(ATTRIBUTES, VALUES, max_size=4), VALUES, st.just(()))
DEVICES = st.lists(trees(TAGS, trees(TAGS, LEAVES)), max_size=6)


@given(DEVICES, st.lists(trees(TOP, trees(TAGS, LEAVES)), max_size=2, unique_by=lambda tree: tree.tag))
@pytest.mark.slow
def test_no_path_of_the_nodes_choosing_reaches_the_definition(
    devices: Collection[etree._Element], others: Collection[etree._Element]
) -> None:
    root = etree.fromstring(domain())
    for other in others:
        there = root.find(other.tag)
        if there is None:
            root.append(other)
        elif other.tag == "os":
            there.extend(list(other))
    root.find("devices").extend(devices)
    xml = etree.tostring(root, encoding="unicode")
    left_out = [PLACE, *(disk.get("dev") for disk in root.iter("target") if disk.get("dev"))]
    try:
        result = make(xml, left_out=left_out)
    except DefinitionError:
        return
    assert PLACE not in result.xml and "urn:x" not in result.xml and "qemu:" not in result.xml
    assert definition.requirements(result.xml).name == "web01"

"""From untrusted text to a Definition, or to one clear DefinitionError. Pure.

What keeps a hostile document from costing more than it is worth:

- no document type at all, so no entities, internal or external;
- libxml2's own limits stay on (256 levels of depth);
- `MAX_TAG_CHARACTERS`: libxml2 compares every attribute of an element with every other one, so one megabyte
  of attributes takes minutes to parse. How long a tag is bounds how many it can have. Text may be long: nothing
  is compared in it, and a description or an `<entry>` of sysinfo often is.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final, Iterator, List, Optional

from lxml import etree

from anvil_dr.errors import DefinitionError

MAX_BYTES: Final = 1024 * 1024
MAX_TAG_CHARACTERS: Final = 32 * 1024

_ONLY_ONCE: Final = frozenset(
    "name uuid genid memory currentMemory maxMemory vcpu os features cpu clock devices metadata".split()
)
"""libvirt reads these by path, and so from the first or from all of them; which one is not worth guessing.

Not `sysinfo`: there is one for each type, smbios and fwcfg.
"""

_TAG: Final = re.compile("""<(?:[^>"']|"[^"]*"|'[^']*')*""")
"""From its `<` to its end: a `>` in quotes is none. It stops at a quote that is not closed, as libxml2 does."""


@dataclass(frozen=True)
class Definition:
    """A `<domain>` that was read. `root` is not shared with anybody."""

    root: etree._Element


def parse(xml: str, *, max_bytes: int = MAX_BYTES) -> Definition:
    """Read libvirt domain XML that may come from anybody.

    Comments and processing instructions are left out, so that text is what libvirt takes it for. Raise
    DefinitionError that names what is wrong, with the line where there is one.
    """
    data = _encoded(xml, max_bytes)
    _refuse_long_tags(xml)
    if _has_document_type(xml):
        raise DefinitionError("it has a document type (<!DOCTYPE>), which a definition never needs")
    try:
        root = etree.fromstring(data, _parser())
    except etree.XMLSyntaxError as error:
        raise DefinitionError(_in_words(error)) from None
    if root.getroottree().docinfo.internalDTD is not None:
        raise DefinitionError("it has a document type, which a definition never needs")
    if root.tag != "domain":
        raise DefinitionError(f"the root element is <{shown(tag_of(root))}>, not <domain>")
    _refuse_repetition(root)
    return Definition(root)


def server_name(definition: Definition) -> str:
    """The server's name, exactly as libvirt takes it. Raise DefinitionError if there is none."""
    name = text_of(definition.root, "name")
    if not name:
        raise DefinitionError("it has no <name>")
    return name


# — what the other modules of this package read with —


def elements(parent: etree._Element, name: Optional[str] = None) -> Iterator[etree._Element]:
    """The child elements, as they were when this is called: removing them meanwhile is safe."""
    children: List[etree._Element] = [child for child in parent if isinstance(child.tag, str)]
    return iter([child for child in children if name is None or child.tag == name])


def text_of(parent: etree._Element, path: str) -> Optional[str]:
    """The text of the first element at `path`; None if there is no such element, "" if it is empty."""
    found = parent.find(path)
    return None if found is None else found.text or ""


def attribute_of(parent: etree._Element, path: str, name: str) -> Optional[str]:
    """An attribute of the first element at `path`."""
    found = parent.find(path)
    return None if found is None else found.get(name)


def read_uuid(text: str) -> Optional[str]:
    """A UUID as libvirt writes it, from any way that it reads one (virUUIDParse); None if it is none."""
    digits = "".join(text.split()).replace("-", "").lower()
    if not re.fullmatch("[0-9a-f]{32}", digits):
        return None
    return "-".join((digits[:8], digits[8:12], digits[12:16], digits[16:20], digits[20:]))


def uuid_of(definition: Definition) -> Optional[str]:
    """The domain's UUID as libvirt writes it; None if it has none."""
    return read_uuid(text_of(definition.root, "uuid") or "")


def line_of(element: etree._Element) -> int:
    """The line that an element begins on; 0 for one that was not read."""
    line: object = element.sourceline
    return line if isinstance(line, int) else 0


def tag_of(element: etree._Element) -> str:
    """The element's name as a person writes it: a namespace becomes its usual prefix."""
    name = etree.QName(element)
    if not name.namespace:
        return name.localname
    return f"{element.prefix or name.namespace}:{name.localname}"


def shown(value: str, limit: int = 80) -> str:
    """A foreign value, safe to put into a message: printable, on one line, not too long."""
    safe = "".join(character if character.isprintable() else "?" for character in value)
    return safe if len(safe) <= limit else safe[:limit] + "…"


# — inner parts —


def _parser() -> etree.XMLParser:
    return etree.XMLParser(
        encoding="utf-8",  # ours, whatever the declaration says
        resolve_entities=False,
        no_network=True,
        load_dtd=False,
        dtd_validation=False,
        attribute_defaults=False,
        huge_tree=False,
        recover=False,
        remove_comments=True,
        remove_pis=True,
        strip_cdata=True,
    )


def _encoded(xml: str, max_bytes: int) -> bytes:
    if len(xml) > max_bytes:
        raise DefinitionError(f"it is larger than {max_bytes} bytes")
    try:
        data = xml.encode("utf-8")
    except UnicodeEncodeError as error:
        raise DefinitionError(f"character {error.start} is not valid Unicode") from None
    if len(data) > max_bytes:
        raise DefinitionError(f"it is larger than {max_bytes} bytes")
    return data


def _refuse_long_tags(xml: str) -> None:
    """A `<` cannot be inside a tag, so each one is looked at, whether or not it begins one."""
    start = xml.find("<")
    while start >= 0:
        following = xml.find("<", start + 1)
        end = len(xml) if following < 0 else following
        if end - start > MAX_TAG_CHARACTERS:
            tag = _TAG.match(xml, start, end)
            if tag is not None and len(tag.group()) > MAX_TAG_CHARACTERS:
                line = xml.count("\n", 0, start) + 1
                raise DefinitionError(f"line {line}: one tag is longer than {MAX_TAG_CHARACTERS} characters")
        start = following


def _has_document_type(xml: str) -> bool:
    """Whether a document type stands where XML allows one: before the root element."""
    at = 1 if xml.startswith("\ufeff") else 0
    while True:
        while at < len(xml) and xml[at].isspace():
            at += 1
        if xml.startswith("<?", at):
            at = _after(xml, "?>", at + 2)
        elif xml.startswith("<!--", at):
            at = _after(xml, "-->", at + 4)
        else:
            return xml.startswith("<!", at)


def _after(xml: str, mark: str, start: int) -> int:
    found = xml.find(mark, start)
    return len(xml) if found < 0 else found + len(mark)


def _in_words(error: etree.XMLSyntaxError) -> str:
    said = re.sub(r", line \d+, column \d+$", "", error.msg or "unreadable")
    line = error.position[0] if error.position else 0
    return f"{f'line {line}: ' if line else ''}not well-formed XML: {shown(' '.join(said.split()), 200)}"


def _refuse_repetition(root: etree._Element) -> None:
    seen = set()
    for element in elements(root):
        if element.tag in _ONLY_ONCE:
            if element.tag in seen:
                raise DefinitionError(f"line {line_of(element)}: there is a second <{element.tag}>")
            seen.add(element.tag)

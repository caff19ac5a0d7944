"""The direction of the house: edges -> use cases -> ports and pure -> model and errors, and one gateway per effect.

Read from the sources' syntax trees; nothing is imported. Modules that don't exist yet are not missed.
"""

from __future__ import annotations

import ast
import re
from pathlib import Path
from typing import Dict, Iterator, List, Set

import pytest

PACKAGE = Path(__file__).resolve().parents[2] / "anvil_dr"

FOUNDATION = {"errors", "model", "ports"}
# These must be pure. Others say so of themselves in their docstring ("Pure", "Values only") and are held to it.
PURE = {"errors", "model", "naming", "definition"} | {
    "cycling.sets", "cycling.rotation", "cycling.placement", "wire.delta", "wire.protocol", "wire.digest"
}  # fmt: skip
USE_CASES = {"sending", "receiving", "failback", "caching", "activation", "rehearsal", "status"}
EDGES = {"service", "relay", "cli"}
ADAPTERS = {"command", "stores", "cache", "hypervisor"}
# Not a store's: the bytes of an open image, which the node reads its disks through too; and what is policy only.
NO_ADAPTERS = {"stores.open_image", "stores.qemu_lock", "cache.cache_rules"}
NAMES_ADAPTERS = {"cli", "service", "demo"}

IMPURE = {"os", "subprocess", "socket", "logging", "libvirt", "libvirt_qemu", "pyudev"}
OS_WITHOUT_EFFECT = {"os.makedev", "os.fsdecode", "os.fsencode"}
GATEWAYS = {"subprocess": "command", "libvirt": "hypervisor", "libvirt_qemu": "hypervisor"}
OF_DURABLE = {"os.fsync", "os.fdatasync", "os.replace", "os.rename", "os.renames", "os.link", "shutil.move"}
PATH_METHODS = {"rename", "replace", "hardlink_to", "link_to"}


def modules() -> Dict[str, str]:
    """`stores.lvm` -> its source."""
    found = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path.read_text(encoding="utf-8")
    return found


MODULES = modules()


def imports(name: str, tree: ast.AST) -> Iterator[str]:
    """Every dotted name that a module imports, ours as `anvil_dr.…`."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                package = ["anvil_dr", *name.split(".")][: -node.level]
                base = ".".join([*package, *([base] if base else [])])
            yield from (f"{base}.{alias.name}" for alias in node.names)


def own(imported: Set[str]) -> Set[str]:
    """Our modules among what is imported: `stores.lvm` for anvil_dr.stores.lvm.LvmStore, if there is such a module."""
    found = set()
    for parts in (one.split(".")[1:] for one in imported if one.startswith("anvil_dr.")):
        known = [".".join(parts[:length]) for length in range(len(parts), 0, -1)]
        found.add(next((one for one in known if one in MODULES), parts[0]))
    return found


def is_pure(name: str, tree: ast.Module) -> bool:
    said = ast.get_docstring(tree) or ""
    return not PURE.isdisjoint({name, name.split(".")[0]}) or re.search(r"\b(Pure|Values only)\b", said) is not None


def uses_of_os(tree: ast.AST) -> Set[str]:
    """Every os.… that is mentioned, and `os` itself where it is imported to be used any other way."""
    plain = [node for node in ast.walk(tree) if isinstance(node, ast.Name) and node.id == "os"]
    dotted = [
        node.attr
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "os"
    ]
    from_os = any(isinstance(node, ast.ImportFrom) and node.module == "os" for node in ast.walk(tree))
    return {f"os.{name}" for name in dotted} | ({"os"} if from_os or len(plain) > len(dotted) else set())


def calls_of_durable(tree: ast.AST) -> Iterator[str]:
    """What only durable.py may do, by its name or as a method of a path.

    A path's rename and replace take one argument, a string's replace two or three, a store's rename two.
    """
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            called = f"{node.value.id}.{node.attr}"
            if called in OF_DURABLE:
                yield called
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            if node.func.attr in PATH_METHODS and len(node.args) == 1 and not node.keywords:
                yield f"a path's {node.func.attr}"


def faults(name: str, source: str) -> List[str]:
    tree = ast.parse(source)
    room = name.split(".")[0]
    imported = set(imports(name, tree))
    ours = own(imported)
    rooms = {one.split(".")[0] for one in ours}
    outside = {one.split(".")[0] for one in imported}
    found = []
    if room in FOUNDATION or is_pure(name, tree):
        harmless = {"os"} if PURE.isdisjoint({room, name}) and uses_of_os(tree) <= OS_WITHOUT_EFFECT else set()
        found += [f"is pure and imports {one}" for one in sorted(outside & IMPURE - harmless)]
        found += [
            f"is pure and imports {one}"
            for one in sorted(ours)
            if one.split(".")[0] not in FOUNDATION and not is_pure(one, ast.parse(MODULES.get(one, "")))
        ]
    if room == "errors":
        found += [f"imports {one}" for one in sorted(ours)]
    if room == "model":
        found += [f"imports {one}" for one in sorted(ours - {"errors"})]
    if room == "ports":
        found += [f"imports {one}" for one in sorted(ours - {"errors", "model"})]
    if not (PURE - FOUNDATION).isdisjoint({room, name}) and "ports" in ours:
        found.append("decides and imports ports")
    if room not in EDGES | {"demo"}:
        found += [f"imports the edge {one}" for one in sorted(rooms & EDGES)]
    if room in ADAPTERS:
        found += [f"is an adapter and imports the use case {one}" for one in sorted(rooms & USE_CASES)]
    if room not in NAMES_ADAPTERS:
        adapters = {one for one in ours - NO_ADAPTERS if one.split(".")[0] in ADAPTERS - {room}}
        found += [f"names the adapter {one}" for one in sorted(adapters)]
    found += [f"imports {one}" for one, gateway in GATEWAYS.items() if one in outside and name != gateway]
    if name != "durable":
        found += [f"imports {one}" for one in sorted(imported & OF_DURABLE)]
        found += [f"calls {one}" for one in sorted(set(calls_of_durable(tree)))]
    return found


@pytest.mark.parametrize("name", sorted(MODULES))
def test_a_module_imports_only_what_its_room_may(name: str) -> None:
    assert faults(name, MODULES[name]) == []


def test_the_package_is_found() -> None:
    assert {"errors", "model", "ports", "command", "durable"} <= set(MODULES)


@pytest.mark.parametrize(
    ("name", "source"),
    [
        ("naming", "import os"),
        ("naming", "import os.path"),
        ("cycling.rotation", "from logging import getLogger"),
        ("wire.protocol", "def f():\n    import socket"),
        ("cycling.placement", "from anvil_dr.stores import lvm"),
        ("cycling.placement", "import anvil_dr.durable"),
        ("cycling.rotation", "from anvil_dr.ports import Store"),
        ("model", "from anvil_dr import naming"),
        ("model", "from . import naming"),
        ("errors", "from anvil_dr.model import Owner"),
        ("ports", "from anvil_dr.naming import image_name"),
        ("receiving.receive", "import subprocess"),
        ("receiving.receive", "from anvil_dr.stores.lvm import LvmStore"),
        ("receiving.receive", "from ..command import run"),
        ("activation.activate", "from anvil_dr import hypervisor"),
        ("stores.lvm", "from ..command import run"),
        ("stores.lvm", "from anvil_dr.receiving import receive"),
        ("stores.directory", "import os\nos.rename('a', 'b')"),
        ("stores.directory", "import os\nsync = os.fsync"),
        ("stores.directory", "from os import replace"),
        ("stores.directory", "from pathlib import Path\nPath('a').rename('b')"),
        ("records.state", "import anvil_dr.cli.target"),
        ("cli.send", "import libvirt"),
        ("demo.box", "import subprocess"),
        ("words", '"""Ages in words. Pure."""\nimport os\nos.stat("a")'),
        ("words", '"""Ages in words. Pure."""\nfrom os import stat'),
        ("words", '"""Ages in words. Pure."""\nimport os\nuse(os)'),
        ("words", '"""Ages in words. Pure."""\nfrom anvil_dr import durable'),
        ("status.status", "import anvil_dr.stores.lvm"),
    ],
)
def test_a_fault_is_noticed(name: str, source: str) -> None:
    assert faults(name, source) != []


@pytest.mark.parametrize(
    ("name", "source"),
    [
        ("naming", "import re\nfrom anvil_dr.errors import ImageNameError\nfrom anvil_dr.model import Owner"),
        ("command", "import os\nimport subprocess"),
        ("hypervisor", "import libvirt"),
        ("durable", "import os\nos.fsync(3)\nos.replace('a', 'b')"),
        (
            "receiving.receive",
            "from anvil_dr import durable\nfrom anvil_dr.cycling import rotation\nfrom anvil_dr.ports import Store",
        ),
        ("receiving.receive", "'a'.replace('b', 'c')\nstore.rename(image, 1)\nreplace(image, sequence=1)"),
        ("stores.lvm", "from . import volumes\nfrom anvil_dr.ports import CommandRunner"),
        ("cli.target", "from anvil_dr.stores.lvm import LvmStore\nfrom anvil_dr.command import run"),
        ("service", "from anvil_dr import hypervisor, receiving"),
        ("sending.source", "from anvil_dr.stores.open_image import FileImage"),
        ("words", '"""Ages in words."""\nimport os\nos.stat("a")'),
        ("words", '"""Ages in words. Pure."""\nimport os\nos.makedev(8, 1)'),
    ],
)
def test_what_is_allowed_is_not_a_fault(name: str, source: str) -> None:
    assert faults(name, source) == []

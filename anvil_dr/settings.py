"""YAML text -> typed values that know their key and line. For the configuration and for job files.

Pure. Reads nodes, never constructs objects; anchors and aliases are refused, so nothing can expand. What YAML would
quietly turn into something else (`on`, `010`, `1:30`) is refused or taken as written, never guessed.
"""

from __future__ import annotations

import difflib
import re
from typing import Dict, Optional, Tuple

import yaml

from anvil_dr.errors import ConfigError

MAX_BYTES = 256 * 1024
"""More than any real file by far; a bound on what a wrong path can make us read."""

_MAX_DEPTH = 16
_STR, _INT, _BOOL, _NULL = (f"tag:yaml.org,2002:{kind}" for kind in ("str", "int", "bool", "null"))
_DECIMAL = re.compile(r"[+-]?(0|[1-9][0-9]{0,18})")

_Nodes = Dict[str, Tuple[int, yaml.Node]]
"""Key -> its line and its value."""


class Section:
    """One mapping of the file. Each method takes one key's value, checked; ConfigError names the key and the line."""

    def __init__(self, path: str, prefix: str, nodes: _Nodes, line: Optional[int]) -> None:
        self._path, self._prefix, self._nodes, self._line = path, prefix, nodes, line

    @property
    def keys(self) -> Tuple[str, ...]:
        """In the order of the file."""
        return tuple(self._nodes)

    def __contains__(self, key: str) -> bool:
        return key in self._nodes

    def error(self, key: str, message: str) -> ConfigError:
        """An error about `key`, with its line; the caller raises it."""
        line = self._nodes[key][0] if key in self._nodes else self._line
        return ConfigError(message, path=self._path, key=(self._prefix + key).rstrip("."), line=line)

    def only(self, known: Tuple[str, ...]) -> None:
        """Refuse any key that is not known, with the one that was probably meant."""
        for key in self._nodes:
            if key not in known:
                near = difflib.get_close_matches(key.replace("-", "_").lower(), known, n=1, cutoff=0.6)
                meant = f"; did you mean {near[0]}?" if near else f"; known here: {', '.join(known)}"
                raise self.error(key, f"unknown key{meant}")

    def text(self, key: str, default: Optional[str] = None) -> str:
        """A string, not empty. Required if there is no default."""
        node = self._node(key, default is None)
        return str(default) if node is None else self._text(key, node)

    def boolean(self, key: str, default: bool) -> bool:
        """true or false (and YAML's other words for them)."""
        node = self._node(key, False)
        if node is None:
            return default
        words = yaml.SafeLoader.bool_values
        if node.tag != _BOOL or not isinstance(node, yaml.ScalarNode) or node.value.lower() not in words:
            raise self.error(key, f"must be true or false, not {_describe(node)}")
        return bool(words[node.value.lower()])

    def integer(self, key: str, default: int, *, least: int, most: int) -> int:
        """A whole decimal number within bounds."""
        node = self._node(key, False)
        if node is None:
            return default
        if node.tag != _INT or not isinstance(node, yaml.ScalarNode) or not _DECIMAL.fullmatch(node.value):
            raise self.error(key, f"must be a whole number, not {_describe(node)}")
        value = int(node.value)
        if not least <= value <= most:
            raise self.error(key, f"must be from {least} to {most}, not {value}")
        return value

    def scalar(self, key: str, default: str) -> str:
        """A string or a number, as written."""
        node = self._node(key, False)
        if node is None:
            return default
        if node.tag not in (_STR, _INT, "tag:yaml.org,2002:float") or not isinstance(node, yaml.ScalarNode):
            raise self.error(key, f"must be a number or text, not {_describe(node)}")
        return str(node.value)

    def texts(self, key: str, default: Tuple[str, ...] = ()) -> Tuple[str, ...]:
        """A string or a list of strings, none empty, none twice."""
        node = self._node(key, False)
        if node is None or node.tag == _NULL:
            return default
        items = node.value if isinstance(node, yaml.SequenceNode) else [node]
        values = tuple(self._text(key, item) for item in items)
        for position, value in enumerate(values):
            if value in values[:position]:
                raise self.error(key, f"{value!r} is there twice")
        return values

    def section(self, key: str) -> Section:
        """A mapping below this one; one that is missing, or has nothing in it, has no keys."""
        return self._section(key, self._node(key, False), f"{self._prefix}{key}.")

    def sections(self, key: str) -> Tuple[Section, ...]:
        """A list of mappings, at least one."""
        node = self._node(key, True)
        if not isinstance(node, yaml.SequenceNode):
            raise self.error(key, f"must be a list, not {_describe(node)}")
        if not node.value:
            raise self.error(key, "must have at least one entry, and the list is empty")
        return tuple(
            self._section(key, item, f"{self._prefix}{key}[{number}].") for number, item in enumerate(node.value, 1)
        )

    def _node(self, key: str, required: bool) -> Optional[yaml.Node]:
        if required and key not in self._nodes:
            raise self.error(key, "is missing")
        return self._nodes[key][1] if key in self._nodes else None

    def _text(self, key: str, node: yaml.Node) -> str:
        if node.tag != _STR or not isinstance(node, yaml.ScalarNode):
            quote = f"; write it in quotes: '{node.value}'" if isinstance(node, yaml.ScalarNode) and node.value else ""
            raise self.error(key, f"must be text, not {_describe(node)}{quote}")
        value = str(node.value)
        if not value.strip() or not value.isprintable():
            raise self.error(key, f"must not be empty or hold control characters: {value!r}")
        return value

    def _section(self, key: str, node: Optional[yaml.Node], prefix: str) -> Section:
        if node is None or node.tag == _NULL:
            return Section(self._path, prefix, {}, self._nodes[key][0] if key in self._nodes else self._line)
        if not isinstance(node, yaml.MappingNode):
            raise self.error(key, f"must be a group of 'key: value' lines, not {_describe(node)}")
        line = self._nodes[key][0] if self._node(key, True) is node else _line(node)
        return _mapping(self._path, prefix, node, line)


def read(text: str, path: str) -> Section:
    """The top of a YAML file; `path` is for error messages only. Raise ConfigError."""
    if len(text.encode("utf-8", "replace")) > MAX_BYTES:
        raise ConfigError(f"is larger than {MAX_BYTES} bytes; is it the right file?", path=path)
    try:
        loader = _Loader(text)
        try:
            root = loader.get_single_node()
        finally:
            loader.dispose()
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = None if mark is None else mark.line + 1
        raise ConfigError(f"not valid YAML: {error.problem or error.context}", path=path, line=line) from error
    except yaml.YAMLError as error:
        raise ConfigError(f"not valid YAML: {' '.join(str(error).split())}", path=path) from error
    if root is None:
        return Section(path, "", {}, None)
    if not isinstance(root, yaml.MappingNode):
        raise ConfigError(f"must hold 'key: value' lines, not {_describe(root)}", path=path, line=_line(root))
    return _mapping(path, "", root, None)


class _Loader(yaml.SafeLoader):
    """Composes plain nodes: no anchors, no aliases, no deep nesting."""

    _depth = 0

    def compose_node(self, parent: Optional[yaml.Node], index: object) -> Optional[yaml.Node]:
        event = self.peek_event()  # type: ignore[no-untyped-call]
        if getattr(event, "anchor", None) is not None:
            raise yaml.MarkedYAMLError(problem="anchors and aliases are not allowed", problem_mark=event.start_mark)
        if self._depth >= _MAX_DEPTH:
            raise yaml.MarkedYAMLError(problem="nested too deeply", problem_mark=event.start_mark)
        self._depth += 1
        try:
            return super().compose_node(parent, index)  # type: ignore[arg-type]
        finally:
            self._depth -= 1


def _mapping(path: str, prefix: str, node: yaml.MappingNode, line_of_section: Optional[int]) -> Section:
    nodes: _Nodes = {}
    for key, value in node.value:
        line = _line(key)
        if not isinstance(key, yaml.ScalarNode):
            raise ConfigError(f"a key must be text, not {_describe(key)}", path=path, key=prefix.rstrip("."), line=line)
        name = str(key.value)
        if key.tag != _STR:
            message = f"YAML reads this key as {_describe(key)}; write it in quotes: '{name}'"
            raise ConfigError(message, path=path, key=prefix + name, line=line)
        if name in nodes:
            message = f"is there twice, first in line {nodes[name][0]}"
            raise ConfigError(message, path=path, key=prefix + name, line=line)
        nodes[name] = (line, value)
    return Section(path, prefix, nodes, line_of_section)


def _line(node: yaml.Node) -> int:
    return int(node.start_mark.line) + 1


def _describe(node: Optional[yaml.Node]) -> str:
    if isinstance(node, yaml.MappingNode):
        return "a group of keys"
    if isinstance(node, yaml.SequenceNode):
        return "a list" if node.value else "an empty list"
    if node is None or node.tag == _NULL:
        return "nothing"
    kinds = {_STR: "text", _INT: "a number", _BOOL: "true or false"}
    return f"{kinds.get(node.tag, node.tag.rpartition(':')[2])} ({node.value!r:.60})"

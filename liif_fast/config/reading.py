"""Read YAML files as users of the original write them, and remember the line of each value."""

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import yaml

from liif_fast.files import reason

T = TypeVar("T")


MOST_VALUES = 100_000  # of a file, because nested aliases can expand without limit


class _Loader(yaml.SafeLoader):
    """Read 1e-4 as a number, although YAML 1.1 requires a dot; refuse repeated keys and whole numbers above 64 bits.

    Every error carries its line.
    """

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        node: yaml.MappingNode = super().compose_mapping_node(anchor)
        seen = set()
        for key, _ in node.value:
            if str(key.value) in seen:
                raise yaml.MarkedYAMLError(problem=f"the key {key.value!r} is repeated", problem_mark=key.start_mark)
            seen.add(str(key.value))
        return node

    def construct_yaml_int(self, node: yaml.ScalarNode) -> int:
        value: int = 2**63 if len(node.value) > 999 else super().construct_yaml_int(node)  # Python reads 4,300 digits
        if not -(2**63) <= value < 2**63:
            raise yaml.MarkedYAMLError(problem="the whole number has more than 64 bits", problem_mark=node.start_mark)
        return value

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        try:
            return super().construct_object(node, deep)
        except (ValueError, LookupError, AttributeError, OverflowError):  # of PyYAML, about `!!int x` or 2001-99-99
            problem = f"expected a value of the type {node.tag.rpartition(':')[2]}, got {str(node.value)[:40]!r}"
            raise yaml.MarkedYAMLError(problem=problem, problem_mark=node.start_mark) from None


_Loader.add_constructor("tag:yaml.org,2002:int", _Loader.construct_yaml_int)
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?\d+(\.\d*)?[eE][-+]?\d+$"), list("-+0123456789")
)


class Document:
    """A parsed YAML file; `content` is None if the file is empty, `lines` are by place. Errors call it `what`."""

    def __init__(self, path: str | Path, what: str = "config") -> None:
        self.path = Path(path).expanduser()
        if not self.path.is_file():
            raise FileNotFoundError(f"{what}: no file {self.path}")
        self.lines: dict[str, int] = {}
        try:
            loader = _Loader(self.path.read_text(encoding="utf-8"))
            node = loader.get_single_node()
            self._walk(node, "")
            self.content: Any = None if node is None else loader.construct_document(node)
        except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
            mark = getattr(error, "problem_mark", None) or getattr(error, "context_mark", None)
            where = f", line {mark.line + 1}, column {mark.column + 1}" if mark else ""
            deep = "it refers to itself or is nested too deep" if isinstance(error, RecursionError) else ""
            problem = deep or getattr(error, "problem", None) or reason(error)
            raise ValueError(f"{self.path}{where}: is not YAML: {problem}") from None

    def _walk(self, node: yaml.Node | None, place: str) -> None:
        """Record the line of every key and list item under its dotted place."""
        if len(self.lines) > MOST_VALUES:
            raise ValueError(f"{self.path} is too large: it has more than {MOST_VALUES} values")
        if isinstance(node, yaml.MappingNode):
            for key, value in node.value:
                below = f"{place}.{key.value}" if place else str(key.value)
                self.lines[below] = key.start_mark.line + 1
                self._walk(value, below)
        elif isinstance(node, yaml.SequenceNode):
            for number, item in enumerate(node.value):
                self.lines[f"{place}[{number}]"] = item.start_mark.line + 1
                self._walk(item, f"{place}[{number}]")

    def where(self, message: str) -> str:
        """Return the file and, if the message begins with a place ("model.args: ..."), the line of that place."""
        named = re.match(r"[\w.\[\]]*", message)[0]  # type: ignore[index]  # it may be empty, but it matches
        unknown = re.search(r"unknown key '([^']*)'", message)
        named = (f"{named}.{unknown[1]}" if unknown else named).removeprefix("config.")
        while named and named not in self.lines:
            named = re.sub(r"(\[\d+\]|\.?[^.\[]*)$", "", named)
        return f"{self.path}, line {self.lines[named]}" if named else str(self.path)


def load(path: str | Path, check: Callable[[Any, list[Path]], T]) -> T:
    """Read a YAML file and return `check(content, folders)`, where `folders` are searched for files that it names.

    Raises:
        FileNotFoundError: the file, or a file or folder that it names, is missing.
        ValueError: a key is unknown or missing, or a value is wrong; the message names the file, line and place.
    """
    document = Document(path)
    try:
        return check(document.content, [document.path.parent])
    except (ValueError, FileNotFoundError) as error:
        raise type(error)(f"{document.where(str(error))}: {error}") from error


@contextmanager
def placed(path: str | Path) -> Iterator[None]:
    """Name the file and the line in a ValueError that begins with a place in this YAML file ("model.args: ...").

    The file has been read before. Other errors, those of a subclass among them, are not about it and stay as they are.
    """
    try:
        yield
    except ValueError as error:
        document, place = Document(path), str(error).partition(": ")[0]
        if type(error) is not ValueError or place not in document.lines:
            raise
        raise ValueError(f"{document.where(place)}: {error}") from error

"""YAML files that people write: read with line numbers, every problem in one message.

file = YamlFile.load("my_mixture.yaml")                  # a syntax error ends here, with its line
problems = file.problems()                               # keys that are written twice are already in it
check_keys(problems, file, "sources", "a", known=("root", "weight"))
if file.root["sources"]["a"]["weight"] <= 0:
    problems.add("source 'a': weight must be above 0", file.line_of("sources", "a", "weight"))
problems.raise_if_any("my_mixture.yaml cannot be used")

InternVLAError: my_mixture.yaml cannot be used: 2 problems.
  line 4: source 'a': weight must be above 0
  line 5: sources.a: unknown key 'rot' (did you mean 'root'?)
"""

from collections.abc import Iterator, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import yaml

from lerobot_internvla.errors import InternVLAError

Step = str | int | float | bool | None
"""One step into a YAML file: a key of a mapping or an index of a list."""


class Problems:
    """What is wrong with a file, gathered while it is read and raised together, in the order of the lines."""

    def __init__(self) -> None:
        self._found: list[tuple[int | None, str]] = []

    def add(self, text: str, line: int | None = None) -> None:
        """Remember one problem: ``text`` names the value, what was expected, and ends without a full stop.

        Args:
            text: several lines are allowed; all but the first are indented in the message.
            line: 1-based; None for what belongs to the whole file (listed first).
        """
        if (line, text) not in self._found:
            self._found.append((line, text))

    def __len__(self) -> int:
        return len(self._found)

    def __iter__(self) -> Iterator[str]:
        """ "line 12: ..." each, sorted by line."""
        for line, text in sorted(self._found, key=lambda found: found[0] or 0):
            yield text if line is None else f"line {line}: {text}"

    def raise_if_any(self, headline: str) -> None:
        """Raise what was added, if anything was.

        Args:
            headline: what cannot be done, with the file's name and without a full stop.

        Raises:
            InternVLAError: the headline and one line per problem.
        """
        if self._found:
            listed = "".join("\n  " + problem.replace("\n", "\n    ") for problem in self)
            count = f"{len(self)} problem{'s' if len(self) > 1 else ''}"
            raise InternVLAError(f"{headline}: {count}.{listed}")


class YamlFile:
    """Plain data, and the line on which each piece of it stands.

    Attributes:
        path: as given.
        root: dictionaries, lists, strings, numbers, booleans and None; None for an empty file.
        duplicates: (line, text) of each key that is written twice in one mapping. YAML would keep the last without a
            word.
    """

    def __init__(
        self,
        path: Path,
        root: Any,
        lines: dict[tuple[Step, ...], int],
        duplicates: Sequence[tuple[int, str]] = (),
    ) -> None:
        self.path = path
        self.root = root
        self.duplicates = tuple(duplicates)
        self._lines = lines

    @classmethod
    def load(cls, path: str | Path) -> "YamlFile":
        """Read a file.

        Raises:
            InternVLAError: it does not exist, is not UTF-8, or is not YAML (with the line).
        """
        path = Path(path)
        if not path.is_file():
            raise InternVLAError(f"There is no file {str(path)!r}. Pass the path of a YAML file.")
        try:
            text = path.read_text(encoding="utf-8")
        except (UnicodeDecodeError, OSError) as error:
            raise InternVLAError(f"Cannot read {str(path)!r} as UTF-8 text: {error}.") from error
        loader = yaml.SafeLoader(text)
        try:
            node = loader.get_single_node()
            lines: dict[tuple[Step, ...], int] = {(): 1}
            duplicates: list[tuple[int, str]] = []
            if node is not None:
                _note_lines(loader, node, (), lines, duplicates, above=())
            root = None if node is None else loader.construct_document(node)
        except yaml.YAMLError as error:
            problems = Problems()
            mark = getattr(error, "problem_mark", None) or getattr(error, "context_mark", None)
            what = getattr(error, "problem", None) or str(error)
            problems.add(f"not valid YAML: {what}", None if mark is None else mark.line + 1)
            problems.raise_if_any(f"{path} cannot be read")
            raise  # not reached
        finally:
            loader.dispose()
        return cls(path, root, lines, duplicates)

    def line_of(self, *steps: Step) -> int:
        """The 1-based line of a key or list entry; of the nearest thing around it if it is not in the file."""
        return next(self._lines[steps[:n]] for n in range(len(steps), -1, -1) if steps[:n] in self._lines)

    def problems(self) -> Problems:
        """A new list of problems that begins with the file's duplicate keys."""
        problems = Problems()
        for line, text in self.duplicates:
            problems.add(text, line)
        return problems


def did_you_mean(name: str, known: Sequence[str]) -> str:
    """ " (did you mean 'root'?)" if ``name`` is close to a known one, else ""."""
    nearest = get_close_matches(name, known, n=1)
    return f" (did you mean {nearest[0]!r}?)" if nearest else ""


def check_keys(
    problems: Problems, file: YamlFile, *where: Step, known: Sequence[str], required: Sequence[str] = ()
) -> bool:
    """Report unknown and missing keys of the mapping at ``where``.

    Args:
        where: the steps from the root to the mapping, which must exist.
        known: keys that may be there.
        required: those of ``known`` that must be.

    Returns:
        Whether there is a mapping at ``where``, so that its values can be read.
    """
    mapping = file.root
    for step in where:
        mapping = mapping[step]
    name = ".".join(str(step) for step in where) or "the file"
    if not isinstance(mapping, dict):
        what = "nothing" if mapping is None else type(mapping).__name__
        problems.add(f"{name}: expected a mapping with the keys {', '.join(known)}; got {what}", file.line_of(*where))
        return False
    for key in mapping:
        if key not in known:
            hint = did_you_mean(str(key), known) or f"; known: {', '.join(known)}"
            problems.add(f"{name}: unknown key {key!r}{hint}", file.line_of(*where, key))
    for key in required:
        if key not in mapping:
            problems.add(f"{name}: {key!r} is missing", file.line_of(*where))
    return True


def _note_lines(
    loader: yaml.SafeLoader,
    node: yaml.Node,
    steps: tuple[Step, ...],
    lines: dict[tuple[Step, ...], int],
    duplicates: list[tuple[int, str]],
    above: tuple[yaml.Node, ...],
) -> None:
    """Walk the parsed file before YAML merges it into plain data, and loses lines and duplicates."""
    if any(node is ancestor for ancestor in above):  # an anchor that contains itself
        return
    above = (*above, node)
    if isinstance(node, yaml.MappingNode):
        seen: dict[Step, int] = {}
        for key_node, value_node in node.value:
            if not isinstance(key_node, yaml.ScalarNode) or key_node.tag == "tag:yaml.org,2002:merge":
                continue  # no value of its own: the constructor refuses the first and merges the second
            key: Step = loader.construct_object(key_node)
            line = key_node.start_mark.line + 1
            if key in seen:
                place = f"{'.'.join(map(str, steps))}: " if steps else ""
                duplicates.append((line, f"{place}the key {key!r} is already on line {seen[key]}"))
            seen.setdefault(key, line)
            lines[(*steps, key)] = line
            _note_lines(loader, value_node, (*steps, key), lines, duplicates, above)
    elif isinstance(node, yaml.SequenceNode):
        for index, item in enumerate(node.value):
            lines[(*steps, index)] = item.start_mark.line + 1
            _note_lines(loader, item, (*steps, index), lines, duplicates, above)

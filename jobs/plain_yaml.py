"""Restricted YAML for recipes and cluster profiles, without the usual pitfalls."""

import re
from pathlib import Path
from typing import Any

import yaml

MOST_CHARACTERS, MOST_DEPTH, MOST_ALIASES = 1_000_000, 20, 100
KEPT = ("tag:yaml.org,2002:null", "tag:yaml.org,2002:merge")
"""YAML tags that are resolved in addition to numbers and booleans."""
INT = re.compile(r"[-+]?(0|[1-9][0-9]*)$")
FLOAT = re.compile(r"[-+]?([0-9]+\.[0-9]*|\.[0-9]+|[0-9]+(?=[eE]))([eE][-+]?[0-9]+)?$")
BOOL = re.compile(r"(true|false)$")


class PlainLoader(yaml.SafeLoader):
    """YAML loader in which numbers are decimal and only `true` and `false` are booleans. Everything else is text,
    including 24:00, 010, on, yes and 2026-01-01. Duplicate keys are an error."""

    yaml_implicit_resolvers = {  # noqa: RUF012
        first: [(tag, pattern) for tag, pattern in resolvers if tag in KEPT]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """Return the mapping. Raises yaml.YAMLError if a key is duplicated."""
        names = [key.value for key, _ in node.value]
        for place, (key, _) in enumerate(node.value):
            if key.value in names[:place]:
                raise yaml.MarkedYAMLError(problem=f"the key {key.value!r} is duplicated", problem_mark=key.start_mark)
        return super().construct_mapping(node, deep)


PlainLoader.add_implicit_resolver("tag:yaml.org,2002:int", INT, [*"-+0123456789"])
PlainLoader.add_implicit_resolver("tag:yaml.org,2002:float", FLOAT, [*"-+.0123456789"])
PlainLoader.add_implicit_resolver("tag:yaml.org,2002:bool", BOOL, [*"tf"])


def read_yaml(text: str) -> Any:
    """Parse a YAML text. Raises ValueError, with the position, if the text is not valid YAML or exceeds what settings
    need: tags, duplicate keys, nested aliases, more than 20 levels, more than a million characters."""
    try:
        refuse_excess(text)
        return yaml.load(text, PlainLoader)
    except (yaml.YAMLError, ValueError) as error:
        told = " ".join(str(error).replace('in "<unicode string>", ', "at ").split())
        raise ValueError(f"cannot be read as YAML: {told}") from error


def read_yaml_file(path: Path) -> Any:
    """Parse a YAML file. Raises ValueError, naming the file, if it cannot be read or exceeds what settings need."""
    try:
        return read_yaml(path.read_text())
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} cannot be read as YAML: it is not UTF-8 text ({error.reason})") from error
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise ValueError(f"{path} {error}") from error


def refuse_excess(text: str) -> None:
    """Raise yaml.YAMLError for YAML features that settings never need, before the text is loaded."""
    if len(text) > MOST_CHARACTERS:
        raise yaml.YAMLError(f"it has {len(text):,} characters; the limit is {MOST_CHARACTERS:,}")
    anchored: list[bool] = []
    aliases = 0
    for event in yaml.parse(text, yaml.SafeLoader):
        aliases += isinstance(event, yaml.AliasEvent)
        if isinstance(event, yaml.CollectionStartEvent):
            anchored.append(bool(event.anchor))
        elif isinstance(event, yaml.CollectionEndEvent):
            anchored.pop()
        refuse_event(event, depth=len(anchored), grows=aliases > MOST_ALIASES or any(anchored))


def refuse_event(event: yaml.Event, *, depth: int, grows: bool) -> None:
    """Raise yaml.YAMLError for a node that is nested too deeply, has a tag, or is an alias that may expand repeatedly,
    because that can exhaust the memory."""
    if depth > MOST_DEPTH:
        raise yaml.MarkedYAMLError(problem=f"nested more than {MOST_DEPTH} levels deep", problem_mark=event.start_mark)
    if isinstance(event, yaml.AliasEvent) and grows:
        problem = f"an alias inside an anchored node, or more than {MOST_ALIASES} aliases; write it out"
        raise yaml.MarkedYAMLError(problem=problem, problem_mark=event.start_mark)
    if tag := getattr(event, "tag", None):
        raise yaml.MarkedYAMLError(
            problem=f"the tag {tag} is not supported; leave it out", problem_mark=event.start_mark
        )

"""YAML that users write, without its traps: the one reader of recipes and profiles of clusters."""

import re
from pathlib import Path
from typing import Any

import yaml

MOST_CHARACTERS, MOST_DEPTH, MOST_ALIASES = 1_000_000, 20, 100
KEPT = ("tag:yaml.org,2002:null", "tag:yaml.org,2002:merge")
"""What YAML reads into text beside numbers and truth values, and here too."""
INT = re.compile(r"[-+]?(0|[1-9][0-9]*)$")
FLOAT = re.compile(r"[-+]?([0-9]+\.[0-9]*|\.[0-9]+|[0-9]+(?=[eE]))([eE][-+]?[0-9]+)?$")
BOOL = re.compile(r"(true|false)$")


class PlainLoader(yaml.SafeLoader):
    """Numbers are decimal, `true` and `false` are the only truth values, and all else is text: 24:00, 010, on, yes and
    2026-01-01 too. No key may come twice."""

    yaml_implicit_resolvers = {  # noqa: RUF012
        first: [(tag, pattern) for tag, pattern in resolvers if tag in KEPT]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """The mapping. Raises yaml.YAMLError where a key comes twice."""
        names = [key.value for key, _ in node.value]
        for place, (key, _) in enumerate(node.value):
            if key.value in names[:place]:
                raise yaml.MarkedYAMLError(problem=f"{key.value!r} comes twice", problem_mark=key.start_mark)
        return super().construct_mapping(node, deep)


PlainLoader.add_implicit_resolver("tag:yaml.org,2002:int", INT, [*"-+0123456789"])
PlainLoader.add_implicit_resolver("tag:yaml.org,2002:float", FLOAT, [*"-+.0123456789"])
PlainLoader.add_implicit_resolver("tag:yaml.org,2002:bool", BOOL, [*"tf"])


def read_yaml(text: str) -> Any:
    """What a text says. Raises ValueError, saying where, for what is no YAML, or is more than settings need: tags, keys
    that come twice, aliases that grow, more than 20 levels, more than a million characters."""
    try:
        refuse_excess(text)
        return yaml.load(text, PlainLoader)
    except (yaml.YAMLError, ValueError) as error:
        told = " ".join(str(error).replace('in "<unicode string>", ', "at ").split())
        raise ValueError(f"cannot be read as YAML: {told}") from error


def read_yaml_file(path: Path) -> Any:
    """What a file says. Raises ValueError, naming it, where it cannot be read, or is more than settings need."""
    try:
        return read_yaml(path.read_text())
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} cannot be read as YAML: it is no text in UTF-8 ({error.reason})") from error
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise ValueError(f"{path} {error}") from error


def refuse_excess(text: str) -> None:
    """Raise yaml.YAMLError for what settings never need, before anything is made of it."""
    if len(text) > MOST_CHARACTERS:
        raise yaml.YAMLError(f"it has {len(text):,} characters; settings need less than {MOST_CHARACTERS:,}")
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
    """Raise yaml.YAMLError for a part that is too deep, has a tag, or repeats what may itself repeat others."""
    if depth > MOST_DEPTH:
        raise yaml.MarkedYAMLError(problem=f"more than {MOST_DEPTH} levels", problem_mark=event.start_mark)
    if isinstance(event, yaml.AliasEvent) and grows:
        problem = f"an alias within what has an anchor itself, or more than {MOST_ALIASES} of them; write it out"
        raise yaml.MarkedYAMLError(problem=problem, problem_mark=event.start_mark)
    if tag := getattr(event, "tag", None):
        raise yaml.MarkedYAMLError(problem=f"the tag {tag} is not read; leave it out", problem_mark=event.start_mark)

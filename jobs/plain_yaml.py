"""YAML that users write, without its traps: the one reader of recipes and profiles of clusters."""

import re
from typing import Any

import yaml

MOST_CHARACTERS, MOST_DEPTH = 1_000_000, 20
INT = re.compile(r"[-+]?(0|[1-9][0-9]*)$")
FLOAT = re.compile(r"[-+]?([0-9]+\.[0-9]*|\.[0-9]+|[0-9]+(?=[eE]))([eE][-+]?[0-9]+)?$")
BOOL = re.compile(r"(true|false)$")


class PlainLoader(yaml.SafeLoader):
    """Numbers are decimal, `true` and `false` are the only truth values, and all else is text: 24:00, 010, on, yes and
    2026-01-01 too. No key may come twice."""

    yaml_implicit_resolvers = {  # noqa: RUF012
        first: [(tag, pattern) for tag, pattern in resolvers if tag == "tag:yaml.org,2002:null"]
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
    """What a text says. Raises ValueError, saying where, for what is no YAML, or is more than settings need: aliases,
    tags, keys that come twice, more than 20 levels, more than a million characters."""
    try:
        refuse_excess(text)
        return yaml.load(text, PlainLoader)
    except (yaml.YAMLError, ValueError) as error:
        told = " ".join(str(error).replace('in "<unicode string>", ', "at ").split())
        raise ValueError(f"it cannot be read as YAML: {told}") from error


def refuse_excess(text: str) -> None:
    """Raise yaml.YAMLError for what settings never need, before anything is made of it."""
    if len(text) > MOST_CHARACTERS:
        raise yaml.YAMLError(f"it has {len(text):,} characters; settings need less than {MOST_CHARACTERS:,}")
    depth = 0
    for event in yaml.parse(text, yaml.SafeLoader):
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        mark = event.start_mark
        if depth > MOST_DEPTH:
            raise yaml.MarkedYAMLError(problem=f"more than {MOST_DEPTH} levels", problem_mark=mark)
        if isinstance(event, yaml.AliasEvent) or getattr(event, "anchor", None):
            raise yaml.MarkedYAMLError(
                problem="anchors and aliases (& and *) are not read; write it out", problem_mark=mark
            )
        if getattr(event, "tag", None):
            raise yaml.MarkedYAMLError(
                problem=f"tags such as {event.tag} are not read; leave it out", problem_mark=mark
            )

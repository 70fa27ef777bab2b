"""Models of users: `--model_name mymodule:MyNet`, without a change of this package.

The class gets `in_chans` (bands C) and `image_size` (pixels S), if its `__init__` has these parameters, and maps images
(B, C, S, S) to features (B, D). The head is made for it, as for all models.

A name in the folder of a run, or in a file of weights, is data, and data must not import code: a module is imported
only if the user of this process has named it, on the command line or in the environment variable DEEPLENSE_MODULES.
"""

import importlib
import inspect
import os
import re
import sys
from typing import Any

from torch import nn

from deeplense.models.zoo import OWN

VARIABLE = "DEEPLENSE_MODULES"
ALLOWED: set[str] = set()
"""The modules that the command line names."""


def is_own(name: str) -> bool:
    """Whether a name is that of a user's class, `module:Class`.

    Example:
        >>> is_own("mymodule:MyNet"), is_own("resnet18")
        (True, False)
    """
    return re.fullmatch(OWN, name) is not None


def allow(name: str) -> None:
    """Allow the import of the module of a model, also from the current folder: the user has named it."""
    ALLOWED.add(name.partition(":")[0])
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())


def make_own(name: str, *, image_size: int, in_chans: int) -> nn.Module:
    """Return a user's model.

    Args:
        name: `module:Class`.
        image_size: S, pixels per side of the images.
        in_chans: C, number of bands.

    Raises:
        ValueError: the user has not named the module, it cannot be imported, it has no such class, or the class needs
            other arguments.
    """
    make, offered = class_of(name), {"in_chans": in_chans, "image_size": image_size}
    parameters = inspect.signature(make).parameters
    takes_all = any(each.kind is inspect.Parameter.VAR_KEYWORD for each in parameters.values())
    lacking = [
        each.name
        for each in parameters.values()
        if each.default is inspect.Parameter.empty
        and each.kind not in (inspect.Parameter.VAR_KEYWORD, inspect.Parameter.VAR_POSITIONAL)
        and each.name not in offered
    ]
    if lacking:
        raise ValueError(
            f"{name} requires {', '.join(lacking)}, which deeplense does not pass; give each parameter a default."
        )
    return make(**{key: value for key, value in offered.items() if takes_all or key in parameters})


def class_of(name: str) -> Any:
    """Return the class of a user's model. Raises ValueError if it may not, or cannot, be imported."""
    module, _, wanted = name.partition(":")
    named = {each.strip() for each in os.environ.get(VARIABLE, "").split(",")}
    if module not in ALLOWED | named:
        raise ValueError(
            f"the network is {name}, user code, and the folder of a run must not import code by itself. If you "
            "trust the "
            f"module {module}, set {VARIABLE}={module} and run the command again."
        )
    if named and os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())
    try:
        found = getattr(importlib.import_module(module), wanted, None)
    except ImportError as error:
        raise ValueError(
            f"{name}: the module {module} cannot be imported ({error}); run the command in its folder, or add that "
            "folder to PYTHONPATH."
        ) from error
    if not (isinstance(found, type) and issubclass(found, nn.Module)):
        raise ValueError(f"{name}: {module} has no class {wanted} that is a torch.nn.Module; give MODULE:CLASS.")
    return found

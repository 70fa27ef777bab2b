"""List the architectures of the model zoo, or describe one of them or any timm model."""

from dataclasses import dataclass, field

from jobs.imports import import_without
from jobs.settings import require


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Settings of `deeplense models`."""

    name: str = field(default="", metadata={"help": "architecture to describe; by default all of the zoo are listed"})
    image_size: int = 64
    """side of the input images in pixels"""
    in_chans: int = 1
    """number of bands (channels) of the input images"""

    def __post_init__(self) -> None:
        for name in ("image_size", "in_chans"):
            require(getattr(self, name) > 0, f"{name}={getattr(self, name)} must be above 0.")


def require_model(name: str) -> None:
    """Raise ValueError, listing the closest names, if there is no model with this name."""
    from deeplense.models.zoo import ARCHITECTURES, require_known

    if name not in ARCHITECTURES:
        import_without("timm", "wandb")
    require_known(name)

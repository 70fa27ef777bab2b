"""List the architectures of the zoo, or tell all about one of them, or about any model of timm."""

from dataclasses import dataclass, field

from jobs.config import require


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What to tell."""

    name: str = field(default="", metadata={"help": "an architecture; all of the zoo, if left out"})
    image_size: int = 64
    """pixels a side of the images that one is made for"""
    in_chans: int = 1
    """their bands"""

    def __post_init__(self) -> None:
        for name in ("image_size", "in_chans"):
            require(getattr(self, name) > 0, f"{name}={getattr(self, name)} must be above 0.")


def require_model(name: str) -> None:
    """Raise ValueError, telling the nearest names, where there is no model of this name."""
    from deeplense.models.zoo import require_known

    require_known(name)


def run(settings: Settings) -> int:
    """Print a line for each name, or a paragraph for one."""
    if settings.name:
        from jobs.describe_model import describe

        return describe(settings)
    return list_all()


def list_all() -> int:
    """Print the zoo. Nothing is built, and torch is not needed."""
    from deeplense.models.zoo import ARCHITECTURES
    from jobs.progress import say

    say(f"{'name':<26}{'M parameters':>12}  {'32, 64, 150 pixels':<20}{'recipe':<13}{'source':<38}paper")
    for one in ARCHITECTURES.values():
        sizes = ", ".join(str(one.padded(size)) for size in (32, 64, 150))
        say(f"{one.name:<26}{one.millions:>12.2f}  {sizes:<20}{one.recipe:<13}{one.target:<38}{one.paper}")
    say(
        "\nParameters with one band, 64 pixels and three classes. Images of 32, 64 and 150 pixels are padded\n"
        "(mirrored border) to the sizes told; none is cropped or resized. Any other name of timm can be used, too.\n"
        "`deeplense models NAME` tells more."
    )
    return 0

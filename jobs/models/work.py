"""List the architectures, or describe one."""

from deeplense.models.zoo import ARCHITECTURES
from jobs.console import say
from jobs.models.settings import Settings


def run(settings: Settings) -> int:
    """List all architectures, one per line, or describe one."""
    if settings.name:
        from jobs.models.describe import describe

        return describe(settings)
    return list_all()


def list_all() -> int:
    """Print the model zoo. No model is built, and torch is not imported."""
    say(f"{'name':<26}{'M parameters':>12}  {'32, 64, 150 pixels':<20}{'recipe':<13}{'source':<38}paper")
    for one in ARCHITECTURES.values():
        sizes = ", ".join(str(one.padded(size)) for size in (32, 64, 150))
        say(f"{one.name:<26}{one.millions:>12.2f}  {sizes:<20}{one.recipe:<13}{one.target:<38}{one.paper}")
    say(
        "\nNumbers of parameters are for one band, 64 pixels and three classes. Images of 32, 64 and 150 pixels are\n"
        "padded by reflection to the listed sizes, not cropped or resized. Any other timm model can be used, too.\n"
        "`deeplense models NAME` describes a model in detail."
    )
    return 0

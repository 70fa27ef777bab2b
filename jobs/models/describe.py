"""Describe one architecture."""

import torch

from deeplense.models.flops import flops_of
from deeplense.models.registry import Network, build, depths_of
from deeplense.models.zoo import ARCHITECTURES
from jobs.console import say
from jobs.models.settings import Settings

NUM_OUTPUTS = 3


def describe(settings: Settings) -> int:
    """Build an architecture and print its properties and cost. Raises ValueError for an unknown name."""
    network = build(
        settings.name, image_size=settings.image_size, in_chans=settings.in_chans, num_outputs=NUM_OUTPUTS
    ).eval()
    image = torch.zeros(1, settings.in_chans, settings.image_size, settings.image_size)
    known = ARCHITECTURES.get(settings.name)
    backbone, head = (sum(p.numel() for p in part.parameters()) for part in (network.backbone, network.head))
    made = f"timm.{network.timm_name} with {dict(network.timm_options)}" if network.timm_name else settings.name
    facts = {
        "paper": known.paper if known else "see timm" if network.timm_name else "unknown (your own model)",
        "made of": f"deeplense.models.{known.target}" if known and not network.timm_name else made,
        "recipe": f"jobs/recipes/models/{known.recipe}.yaml" if known else "none",
        "images": f"{settings.in_chans} x {settings.image_size} x {settings.image_size} pixels, {fitted(network)}",
        "parameters": f"{backbone:,} in the backbone, {head:,} in the head",
        "operations": f"{flops_of(network, image) / 1e9:.3f} GFLOP per image",
        "layers": f"{max(depths_of(network.backbone).values()) + 2} layers for --layer_decay",
        "drop_path": "yes" if (known.drop_path if known else takes_drop_path(settings)) else "no",
    }
    say(settings.name)
    for name, value in facts.items():
        say(f"  {name:<12}{value}")
    return 0


def fitted(network: Network) -> str:
    """Describe how images are padded or resized before the backbone."""
    size = network.input_size
    return "not resized" if size.way == "native" else f"{size.verb} to {size.size}"


def takes_drop_path(settings: Settings) -> bool:
    """Whether a timm model supports drop path (stochastic depth)."""
    try:
        build(settings.name, image_size=settings.image_size, in_chans=settings.in_chans, num_outputs=1, drop_path=0.1)
    except ValueError:
        return False
    return True

"""What the tests of methods share: a small transformer, small methods, views, and updates."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, Protocol

import torch
from timm.models.vision_transformer import Block
from torch import Tensor, nn

from deeplense.ssl.dino import DINO
from deeplense.ssl.heads import DINOHead
from deeplense.ssl.ibot import IBOT
from deeplense.ssl.lejepa import LeJEPA
from deeplense.ssl.simmim import SimMIM
from deeplense.ssl.simsiam import SimSiam

SIZE, PATCH, TOKENS, DIM, NUM_STEPS = 16, 4, 16, 12, 20
Batch = tuple[list[Tensor], Tensor]
"""Views, and numbers between 0 and 1."""
Total = Callable[[Tensor], Tensor]


class Method(Protocol):
    """What jobs know of a method."""

    num_uniforms: int

    @property
    def encoder(self) -> nn.Module: ...
    def after_update(self, step: int, total: Total) -> None: ...


class Tiny(nn.Module):
    """A transformer with patches of 4 pixels, a class token, and one block."""

    def __init__(self, *, dropout: float = 0.0) -> None:
        super().__init__()
        self.embed = nn.Conv2d(1, DIM, PATCH, PATCH)
        self.class_token = nn.Parameter(torch.randn(1, 1, DIM))
        self.places = nn.Linear(2, DIM)
        self.block = Block(DIM, num_heads=2, mlp_ratio=2, proj_drop=dropout)
        self.norm = nn.LayerNorm(DIM)

    def grid(self, size: int) -> tuple[int, int]:
        return size // PATCH, size // PATCH

    def tokens(
        self, images: Tensor, masks: Tensor | None = None, mask_token: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        patches = self.embed(images).flatten(2).transpose(1, 2)
        if masks is not None and mask_token is not None:
            patches = torch.where(masks[..., None], mask_token.to(patches.dtype), patches)
        along = torch.linspace(-1, 1, images.shape[-1] // PATCH)
        patches = patches + self.places(torch.cartesian_prod(along, along))
        tokens = self.norm(self.block(torch.cat([self.class_token.expand(len(images), -1, -1), patches], dim=1)))
        return tokens[:, 0], tokens[:, 1:]

    def forward(self, images: Tensor) -> Tensor:
        return self.tokens(images)[0]


def hide(random: Tensor, grid: tuple[int, int], *, share: float = 0.4) -> Tensor:
    """Masks (N, T) of independent patches; every third image has none."""
    masks = random < share
    return masks & (random.sum(dim=1, keepdim=True).mul(1000).long() % 3 > 0)


def hide_by_number(random: Tensor, grid: tuple[int, int]) -> Tensor:
    """Masks of what is asked for: patches whose number is 0."""
    return random == 0


HEAD: dict[str, Any] = {"hidden_dim": 24, "out_dim": 32}
MASKS: dict[str, Any] = {"make_masks": hide, "mask_uniforms": TOKENS}
SETTINGS: dict[str, dict[str, Any]] = {
    "dino": HEAD | {"bottleneck_dim": 8},
    "ibot": HEAD | MASKS | {"bottleneck_dim": 8},
    "ibot, two heads, masked centre": HEAD
    | MASKS
    | {"bottleneck_dim": 8, "shared_head": False, "center_tokens": "masked"},
    "simsiam": HEAD | {"predictor_dim": 8},
    "simmim": MASKS | {"in_chans": 1, "patch_size": PATCH},
    "lejepa": HEAD | {"num_directions": 16},
}
CLASSES: dict[str, Callable[..., Any]] = {
    "dino": DINO,
    "ibot": IBOT,
    "simsiam": SimSiam,
    "simmim": SimMIM,
    "lejepa": LeJEPA,
}
WITH_TEACHER = ("dino", "ibot", "ibot, two heads, masked centre")


def make(name: str, *, seed: int = 0, dropout: float = 0.0, **settings: Any) -> Any:
    """A small method."""
    torch.manual_seed(seed)
    settings = {"num_features": DIM, "num_steps": NUM_STEPS} | SETTINGS[name] | settings
    return CLASSES[name.split(",")[0]](Tiny(dropout=dropout), **settings).train().apply(widen)


@torch.no_grad()
def widen(module: nn.Module) -> None:
    """Let a narrow head begin with numbers of the size that a wide one has."""
    for layer in module.mlp if isinstance(module, DINOHead) else ():
        if isinstance(layer, nn.Linear):
            layer.weight *= 50 / layer.in_features**0.5


def make_batch(method: Method, seed: int, *, batch: int = 6, small: int = 3) -> Batch:
    """Two large views and a few small ones of random images, and the numbers that the method wants."""
    generator = torch.Generator().manual_seed(seed)
    draw = partial(torch.randn, generator=generator)
    images = draw(1, batch, 1, SIZE, SIZE)
    views = [images + 0.5 * draw(2, batch, 1, SIZE, SIZE)]
    if small and not isinstance(method, SimMIM):
        views.append(images[..., 4:12, 4:12] + 0.5 * draw(small, batch, 1, 8, 8))
    return views, torch.rand(batch, method.num_uniforms, generator=generator)


def split(batch: Batch, parts: int) -> list[Batch]:
    """A batch in pieces of equal size."""
    views, random = batch
    chunks = [group.chunk(parts, dim=1) for group in views]
    return [([group[k] for group in chunks], piece) for k, piece in enumerate(random.tensor_split(parts))]


def sgd(method: nn.Module) -> torch.optim.Optimizer:
    """An optimizer whose updates are smooth in the gradients, unlike Adam's."""
    return torch.optim.SGD([p for p in method.parameters() if p.requires_grad], lr=0.02, momentum=0.9)


def adamw(method: nn.Module) -> torch.optim.Optimizer:
    """The usual optimizer."""
    return torch.optim.AdamW([p for p in method.parameters() if p.requires_grad], lr=3e-3, weight_decay=0.04)


def itself(tensor: Tensor) -> Tensor:
    """The sum over one rank."""
    return tensor


def update(
    method: Any, optimizer: torch.optim.Optimizer, step: int, pieces: Sequence[Batch], total: Total = itself
) -> dict[str, Tensor]:
    """Make the update after `step` updates. Returns the mean metrics of the pieces."""
    torch.manual_seed(step)
    optimizer.zero_grad()
    metrics = [method(views, random, step) for views, random in pieces]
    mean: Mapping[str, Tensor] = {k: torch.stack([m[k] for m in metrics]).mean() for k in metrics[0]}
    mean["loss"].backward()
    optimizer.step()
    method.after_update(step + 1, total)
    return {name: value.detach() for name, value in mean.items()}


def train(method: Any, optimizer: torch.optim.Optimizer, steps: range, *, parts: int = 1) -> list[dict[str, Tensor]]:
    """Make some updates, each batch in so many parts."""
    return [update(method, optimizer, step, split(make_batch(method, step), parts)) for step in steps]


def apart(first: nn.Module, second: nn.Module) -> float:
    """The largest difference of any number in the states of two modules."""
    one, two = first.state_dict(), second.state_dict()
    assert one.keys() == two.keys()
    return max((one[name].double() - two[name].double()).abs().max().item() for name in one)

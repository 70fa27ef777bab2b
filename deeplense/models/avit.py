"""A-ViT: a transformer in which each token stops at a layer of its own. Shapes: B batch, C bands, S pixels per side, L
layers, N tokens of which the first is the class token, D features."""

from dataclasses import dataclass

import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from deeplense.models.patches import patches_along

EPSILON = 0.01
"""A token stops when the sum of its scores is this close to 1."""
LEAST_SHARE = 1e-6
"""Lower limit of the fraction of the scores that a layer has, before the logarithm."""
HIDDEN = -1e4
"""Added to the logits of all queries with a masked key."""


@dataclass(frozen=True)
class Halting:
    """The halting of all tokens: whether a token took part in a layer, its score there, and the weight of that layer
    for it, each (B, L, N). The weights of a token sum to 1."""

    active: Tensor
    scores: Tensor
    weights: Tensor

    @property
    def depths(self) -> Tensor:
        """Return the number of layers in which each token took part, (B, N)."""
        return self.active.sum(dim=1)


class AViT(VisionTransformer):
    """Adaptive tokens (Yin et al. 2022, arXiv:2112.07658).

    The defaults are A-ViT-T, with patches of 8 pixels for small images where the paper has 16. The first feature of a
    token is its halting score; the output is the class token's mean over the layers, weighted by its scores. A token
    that stopped is hidden from the others but still computed: this shows what could be saved, but saves nothing.

    Maps images (B, C, S, S) to features (B, D); in training mode also to a penalty (B,) for halting late, and in layers
    far from `prior_depth`.
    """

    has_penalty = True
    num_features: int
    blocks: nn.Sequential

    def __init__(
        self,
        *,
        in_chans: int,
        image_size: int,
        drop_path: float = 0.0,
        patch_size: int = 8,
        embed_dim: int = 192,
        depth: int = 12,
        num_heads: int = 3,
        gate_scale: float = 5.0,
        gate_center: float = 10.0,
        ponder_weight: float = 5e-4,
        prior_weight: float = 0.1,
        prior_depth: float = 9.0,
    ) -> None:
        patches_along(image_size, patch_size)
        super().__init__(
            img_size=image_size,
            patch_size=patch_size,
            in_chans=in_chans,
            num_classes=0,
            embed_dim=embed_dim,
            depth=depth,
            num_heads=num_heads,
            drop_path_rate=drop_path,
        )
        self.gate_scale, self.gate_center = gate_scale, gate_center
        self.ponder_weight, self.prior_weight, self.prior_depth = ponder_weight, prior_weight, prior_depth

    def forward(self, images: Tensor) -> Tensor | tuple[Tensor, Tensor]:  # type: ignore[override]
        class_token, halting = self.run(images)
        features = self.norm(class_token)
        return (features, self.penalty(halting)) if self.training else features

    def run(self, images: Tensor) -> tuple[Tensor, Halting]:
        """Return the class token's mean (B, D), and the halting of all tokens."""
        tokens = self._pos_embed(self.patch_embed(images))
        total = tokens.new_zeros(tokens.shape[:2])
        class_token, layers = torch.zeros_like(tokens[:, 0]), []
        for number, block in enumerate(self.blocks, start=1):
            active = total < 1 - EPSILON
            tokens = block(tokens, attn_mask=(~active * HIDDEN)[:, None, None].to(tokens.dtype))
            score = (self.gate_scale * tokens[..., 0] - self.gate_center).sigmoid()
            counted = score if number < len(self.blocks) else torch.ones_like(score)
            stops = active & (total + counted >= 1 - EPSILON)
            weight = torch.where(stops, 1 - total, counted * active)
            class_token = class_token + weight[:, :1] * tokens[:, 0]
            layers.append((active, score * active, weight))
            total = total + counted
        return class_token, Halting(*(torch.stack(parts, dim=1) for parts in zip(*layers, strict=True)))

    def penalty(self, halting: Halting) -> Tensor:
        """Return the mean over tokens of the number of layers plus the remaining weight, and the divergence of their
        scores from a normal distribution over the layers, (B,)."""
        remainders = halting.weights.gather(1, halting.depths[:, None] - 1).squeeze(1)
        ponder = (halting.depths + remainders).mean(dim=1)
        layers = torch.arange(1, len(self.blocks) + 1, device=ponder.device)
        prior = (-(layers - self.prior_depth).square() / 2).log_softmax(dim=0)
        scores = halting.scores.mean(dim=2)
        least_sum = torch.finfo(scores.dtype).tiny
        shares = (scores / scores.sum(dim=1, keepdim=True).clamp(min=least_sum)).clamp(min=LEAST_SHARE)
        divergence = (shares * (shares.log() - prior)).sum(dim=1)
        return self.ponder_weight * ponder + self.prior_weight * divergence

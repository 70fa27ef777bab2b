"""Backbones for self-supervised learning: vision transformers for any image size, whose patches can be returned and
masked. Shapes: B batch, C bands, S pixels per side, P pixels per side of a patch, T patches, D features."""

import torch
from timm.models import VisionTransformer
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from deeplense.models.registry import Network


class TokenEncoder(nn.Module):
    """One of timm's vision transformers, for any size that is a multiple of P: position embeddings are resampled.

    Args:
        vit: vision transformer of timm, changed in place.
    """

    def __init__(self, vit: VisionTransformer) -> None:
        super().__init__()
        self.vit = vit
        self.vit.dynamic_img_size = True
        self.vit.patch_embed.strict_img_size = False

    @property
    def patch_size(self) -> int:
        """P."""
        return self.vit.patch_embed.patch_size[0]

    def grid(self, size: int) -> tuple[int, int]:
        """Return rows and columns of patches of images with `size` pixels per side. Raises ValueError if some would be
        cut off."""
        if size % self.patch_size:
            raise ValueError(
                f"images of {size} pixels cannot be divided into patches of {self.patch_size}; use a multiple."
            )
        return size // self.patch_size, size // self.patch_size

    def forward(self, images: Tensor) -> Tensor:
        """Return features (B, D) of images (B, C, S, S), as before the head of the network."""
        return self.tokens(images)[0]

    def tokens(
        self, images: Tensor, masks: Tensor | None = None, mask_token: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Return features (B, D) and patches (B, T, D).

        Args:
            images: (B, C, S, S); S is a multiple of P.
            masks: patches that are replaced before the position embedding, (B, T) bool; None for none.
            mask_token: vector that replaces them, (1, 1, D).

        Raises:
            ValueError: S is not a multiple of P.
        """
        rows, columns = self.grid(images.shape[-1])
        patches = self.vit.patch_embed.proj(images).flatten(2).transpose(1, 2)
        patches = self.vit.patch_embed.norm(patches)
        if masks is not None and mask_token is not None:
            patches = torch.where(masks[..., None], mask_token.to(patches.dtype), patches)
        tokens = self.vit._pos_embed(patches.unflatten(1, (rows, columns)))
        tokens = self.vit.norm_pre(self.vit.patch_drop(tokens))
        for block in self.vit.blocks.children():
            is_checkpointed = self.vit.grad_checkpointing and torch.is_grad_enabled()
            tokens = checkpoint(block, tokens, use_reentrant=False) if is_checkpointed else block(tokens)
        tokens = self.vit.norm(tokens)
        return self.vit.forward_head(tokens, pre_logits=True), tokens[:, self.vit.num_prefix_tokens :]


def write_out_attention(network: nn.Module) -> None:
    """Compute attention in plain steps. On a CPU in bfloat16 that takes half of the time of the fused kernel (PyTorch
    2.11, 5 to 257 tokens); in float32, and on GPUs, there is no gain."""
    for module in network.modules():
        if hasattr(module, "fused_attn"):
            module.fused_attn = False  # type: ignore[assignment]


def encoder_of(network: Network) -> nn.Module:
    """Return the backbone of a network for self-supervised learning: with tokens, if it is one of timm's vision
    transformers."""
    backbone = network.backbone
    return TokenEncoder(backbone) if type(backbone) is VisionTransformer else backbone

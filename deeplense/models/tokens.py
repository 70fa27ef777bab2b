"""Backbones for self-supervision: vision transformers at any size of image, with patches that can be seen and hidden. B
batch, C bands, S pixels a side, P pixels a side of a patch, T patches, D features."""

import torch
from timm.models import VisionTransformer
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from deeplense.models.registry import Network


class TokenEncoder(nn.Module):
    """One of timm's vision transformers, at any size that is a multiple of P: embeddings of positions are resampled."""

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
        """Rows and columns of patches of images of `size` pixels a side. Raises ValueError where some would be cut
        off."""
        if size % self.patch_size:
            raise ValueError(f"images of {size} pixels have no whole patches of {self.patch_size}; use a multiple.")
        return size // self.patch_size, size // self.patch_size

    def forward(self, images: Tensor) -> Tensor:
        """Features (B, D) of images (B, C, S, S), as the network has them before its last layers."""
        return self.tokens(images)[0]

    def tokens(
        self, images: Tensor, masks: Tensor | None = None, mask_token: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Features (B, D) and patches (B, T, D), those where `masks` (B, T) is true replaced by `mask_token` (1, 1, D)
        before they are told where they are."""
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
    2.11, 5 to 257 tokens); in float32, and on GPUs, it gains nothing."""
    for module in network.modules():
        if hasattr(module, "fused_attn"):
            module.fused_attn = False  # type: ignore[assignment]


def encoder_of(network: Network) -> nn.Module:
    """The backbone of a network as self-supervision takes it: with tokens, where it is one of timm's vision
    transformers."""
    backbone = network.backbone
    return TokenEncoder(backbone) if type(backbone) is VisionTransformer else backbone

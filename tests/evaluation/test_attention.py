"""Attention maps: the weights that the network used, at the places that they are of."""

from typing import Any

import pytest
import timm
import torch
from timm.layers.attention import Attention
from timm.models.swin_transformer import SwinTransformerBlock, window_partition
from timm.models.swin_transformer_v2 import SwinTransformerV2Block
from timm.models.twins import LocallyGroupedAttn
from timm.models.vision_transformer import VisionTransformer
from timm.utils.attention_extract import AttentionExtract
from torch import Tensor, nn
from torch.nn import functional

from deeplense.evaluation.attention import (
    attention_maps,
    attention_rollout,
    from_windows,
    record,
    unfused,
)


def noise(*shape: int) -> Tensor:
    """Images of noise."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1))


def tiny_vit(*, pool: str = "token", num_registers: int = 0, class_token: bool = True) -> VisionTransformer:
    """A ViT of three layers and 4 x 4 tokens, with weights that make it attend to some places more than to others."""
    torch.manual_seed(0)
    network = VisionTransformer(
        img_size=32,
        patch_size=8,
        in_chans=1,
        num_classes=3,
        embed_dim=24,
        depth=3,
        num_heads=3,
        global_pool=pool,  # type: ignore[arg-type]
        reg_tokens=num_registers,
        class_token=class_token,
    )
    embolden(network)
    return network


def embolden(network: nn.Module) -> None:
    """Larger weights than those a network starts with, so that no map is flat."""
    for module in network.modules():
        if isinstance(module, nn.Linear):
            nn.init.trunc_normal_(module.weight, std=module.in_features**-0.5)
        if isinstance(module, (nn.BatchNorm1d, nn.BatchNorm2d)):
            nn.init.ones_(module.weight)
            module.momentum = 1.0


SMALLER: dict[str, dict[str, Any]] = {
    "tnt_s_patch16_224": {"embed_dim": 96, "depth": 2},
    "swin_tiny_patch4_window7_224": {"embed_dim": 24, "num_heads": (1, 2, 4, 8), "depths": (2, 2, 2, 2)},
    "swinv2_tiny_window8_256": {"embed_dim": 24, "num_heads": (1, 2, 4, 8), "depths": (2, 2, 2, 2)},
    "cait_xxs24_224": {"embed_dim": 48, "depth": 2},
    "twins_svt_small": {"embed_dims": (16, 32, 64, 128), "num_heads": (1, 2, 4, 8), "depths": (2, 2, 2, 2)},
    "davit_tiny": {"embed_dims": (24, 48, 96, 192), "num_heads": (1, 2, 4, 8), "depths": (1, 1, 1, 1)},
    "hiera_tiny_224": {"embed_dim": 24, "stages": (1, 1, 1, 1)},
    "convit_tiny": {"embed_dim": 48, "depth": 3, "local_up_to_layer": 2},
    "vit_tiny_patch16_224": {"depth": 1},
    "coat_lite_tiny": {"serial_depths": (1, 1, 1, 1)},
    "pit_ti_224": {"depth": (1, 1, 1)},
    "xcit_nano_12_p16_224": {"depth": 2, "embed_dim": 256},  # as many channels a head as tokens at 128 pixels
}


def of_timm(name: str, size: int) -> nn.Module:
    """A model of timm for images of one band, smaller than its name says."""
    torch.manual_seed(0)
    any_size = name.startswith(("pvt", "twins", "resnet", "davit"))  # These take no word of the size.
    sizes: dict[str, Any] = SMALLER.get(name, {}) | ({} if any_size else {"img_size": size})
    return timm.create_model(name, in_chans=1, num_classes=3, **sizes)


def extracted(network: nn.Module, images: Tensor) -> list[Tensor]:
    """The weights (B, heads, T, T) of each layer, by timm."""
    with unfused(network), torch.no_grad():
        return list(AttentionExtract(network, method="hook")(images).values())


def test_the_weights_are_those_that_timm_extracts_and_their_rows_sum_to_one() -> None:
    network, images = tiny_vit(), noise(2, 1, 32, 32)
    calls, expected = record(network, images), extracted(network, images)
    assert [call.name for call in calls] == [f"blocks.{k}.attn" for k in range(3)]
    for call, weights in zip(calls, expected, strict=True):
        assert call.weights is not None
        torch.testing.assert_close(call.weights, weights, rtol=0, atol=0)
        torch.testing.assert_close(call.weights.sum(dim=-1), torch.ones(2, 3, 17))


def test_weights_are_taken_as_they_are_used_or_before_heads_are_mixed() -> None:
    """ConViT adds two kinds of attention; CaiT mixes heads after the softmax, so that rows no longer sum to one."""
    images = noise(2, 1, 64, 64)
    network = of_timm("convit_tiny", 64)
    for call, weights in zip(record(network, images), extracted(network, images), strict=True):
        torch.testing.assert_close(call.weights, weights)
    network = of_timm("cait_xxs24_224", 64)
    embolden(network)
    calls = record(network, images)
    assert (extracted(network, images)[0].sum(dim=-1) - 1).abs().max() > 0.1
    for call in calls:
        assert call.weights is not None
        torch.testing.assert_close(call.weights.sum(dim=-1), torch.ones(call.weights.shape[:-1]))


@pytest.mark.parametrize(("pool", "num_prefix"), [("token", 1), ("token", 5), ("avg", 1)])
def test_a_map_is_the_row_that_the_network_reads(pool: str, num_prefix: int) -> None:
    network, images = tiny_vit(pool=pool, num_registers=num_prefix - 1), noise(2, 1, 32, 32)
    for layer, weights in zip(attention_maps(network, images), extracted(network, images), strict=True):
        mean = weights.mean(dim=1)
        row = mean[:, 0] if pool == "token" else mean[:, 1:].mean(dim=1)
        torch.testing.assert_close(layer.values, row[:, num_prefix:].reshape(2, 4, 4))


def test_a_map_without_class_token_is_the_mean_over_queries() -> None:
    network, images = tiny_vit(class_token=False, pool="avg"), noise(2, 1, 32, 32)
    for layer, weights in zip(attention_maps(network, images), extracted(network, images), strict=True):
        torch.testing.assert_close(layer.values, weights.mean(dim=(1, 2)).reshape(2, 4, 4))
        torch.testing.assert_close(layer.values.sum(dim=(1, 2)), torch.ones(2))


def test_rollout_is_the_product_of_half_attention_and_half_identity() -> None:
    network, images = tiny_vit(), noise(2, 1, 32, 32)
    first, second, third = ((weights.mean(dim=1) + torch.eye(17)) / 2 for weights in extracted(network, images))
    expected = (third @ second @ first)[:, 0, 1:].reshape(2, 4, 4)
    rolled = attention_rollout(network, images)
    assert rolled is not None
    torch.testing.assert_close(rolled, expected)
    wrong = (first @ second @ third)[:, 0, 1:].reshape(2, 4, 4)
    assert (rolled - wrong).abs().max() > 1e-4


def test_rollout_lets_a_class_token_join_late() -> None:
    network, images = of_timm("cait_xxs24_224", 64), noise(1, 1, 64, 64)
    embolden(network)
    weights = [call.weights for call in record(network, images) if call.weights is not None]
    patches, classes = [w[0].mean(dim=0) for w in weights[:2]], [w[0].mean(dim=0)[0] for w in weights[2:]]
    among_patches = (patches[1] + torch.eye(16)) / 2 @ (patches[0] + torch.eye(16)) / 2
    expected, kept = torch.zeros(16), 1.0
    for row in reversed(classes):
        expected, kept = expected + kept * row[1:] / 2, kept * (1 + row[0]) / 2
    rolled = attention_rollout(network, images)
    assert rolled is not None
    torch.testing.assert_close(rolled[0].flatten(), expected @ among_patches)


class Guided(nn.Module):
    """Attention that mixes some tokens by what others are like."""

    def __init__(self) -> None:
        super().__init__()
        self.like = nn.Linear(8, 8)

    def forward(self, tokens: Tensor, values: Tensor) -> Tensor:
        return (self.like(tokens) @ tokens.mT)[:, None].softmax(dim=-1)[:, 0] @ values


class TwoStreams(nn.Module):
    """Tokens that are mixed by themselves, or by what others are like."""

    def __init__(self, *, by_others: bool) -> None:
        super().__init__()
        self.attention = Guided() if by_others else Attention(8, num_heads=2)

    def forward(self, images: Tensor) -> Tensor:
        tokens = images.flatten(2).mT
        return self.attention(tokens, tokens + 1) if isinstance(self.attention, Guided) else self.attention(tokens)


@pytest.mark.parametrize("by_others", [False, True])
def test_rollout_is_refused_where_other_tokens_are_mixed(by_others: bool) -> None:
    torch.manual_seed(0)
    network, images = TwoStreams(by_others=by_others), noise(2, 8, 4, 4)
    assert len(attention_maps(network, images)) == 1
    assert (attention_rollout(network, images) is None) == by_others


def test_rollout_is_refused_where_layers_have_other_tokens() -> None:
    network = timm.create_model("pvt_v2_b0", in_chans=1, num_classes=3)
    assert attention_maps(network, noise(1, 1, 64, 64))
    assert attention_rollout(network, noise(1, 1, 64, 64)) is None


class PlainAttention(nn.Module):
    """Tokens that attend to one another through a module of softmax, as many packages have it."""

    def __init__(self) -> None:
        super().__init__()
        self.project = nn.Linear(8, 16)
        self.softmax = nn.Softmax(dim=-1)

    def forward(self, tokens: Tensor) -> Tensor:
        queries, keys = self.project(tokens)[:, None].chunk(2, dim=-1)
        return (self.softmax(4 * queries @ keys.mT) @ tokens[:, None])[:, 0]


class Patches(nn.Conv2d):
    """Tokens (B, N, D) of images."""

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input).flatten(2).mT


def test_weights_out_of_a_module_of_softmax_are_found_too() -> None:
    torch.manual_seed(0)
    attention, images = PlainAttention(), noise(2, 1, 32, 32)
    found: list[Tensor] = []
    attention.softmax.register_forward_hook(lambda _, args, output: found.append(torch.as_tensor(output)))
    (layer,) = attention_maps(nn.Sequential(Patches(1, 8, 8, stride=8), attention), images)
    torch.testing.assert_close(layer.values, found[0].mean(dim=(1, 2)).reshape(2, 4, 4))


NUM_LAYERS = {
    "tnt_s_patch16_224": 2,
    "swin_tiny_patch4_window7_224": 8,
    "swinv2_tiny_window8_256": 8,
    "cait_xxs24_224": 4,
    "pvt_v2_b0": 8,
    "twins_svt_small": 8,
    "convit_tiny": 3,
    "levit_128s": 7,
    "pit_ti_224": 3,
    "botnet26t_256": 3,
    "efficientformerv2_s0": 3,
    "coatnet_nano_rw_224": 9,
    "coat_lite_tiny": 0,
    "resnet18": 0,
}


@pytest.mark.parametrize(("name", "num_layers"), NUM_LAYERS.items())
def test_each_kind_of_attention_of_timm_gives_maps_that_differ_from_place_to_place(name: str, num_layers: int) -> None:
    network = of_timm(name, 64)
    embolden(network)
    with torch.no_grad():
        network.train()(noise(4, 1, 64, 64))
    maps = attention_maps(network, noise(2, 1, 64, 64))
    assert len(maps) == num_layers
    for layer in maps:
        assert layer.values.isfinite().all()
        assert (layer.values >= 0).all()
        assert (layer.values.flatten(1).std(dim=1) > 1e-7).all(), layer.name


@pytest.mark.parametrize(
    ("name", "left"),
    [
        ("davit_tiny", []),
        ("hiera_tiny_224", []),
        ("xcit_nano_12_p16_224", ["cls_attn_blocks"]),
        ("maxvit_rmlp_pico_rw_256", ["stages.3"]),  # There one window is the whole map.
    ],
)
def test_attention_over_channels_or_in_an_order_that_is_not_known_is_left_out(name: str, left: list[str]) -> None:
    network = of_timm(name, 128)
    maps = attention_maps(network, noise(1, 1, 128, 128))
    assert len(maps) < len(record(network, noise(1, 1, 128, 128)))
    assert all(layer.name.startswith(tuple(left)) for layer in maps)
    assert bool(maps) == bool(left)


@pytest.mark.parametrize("block_of", [SwinTransformerBlock, SwinTransformerV2Block])
@pytest.mark.parametrize("shift", [0, 2])
def test_windows_are_put_back_where_swin_took_them_from(
    block_of: type[SwinTransformerBlock | SwinTransformerV2Block], shift: int
) -> None:
    torch.manual_seed(0)
    block = block_of(8, input_resolution=(10, 10), num_heads=2, window_size=4, shift_size=shift)
    tokens = noise(2, 10, 10, 8)
    (call, *_), (layer,) = record(block, tokens), attention_maps(block, tokens)
    assert call.weights is not None
    received = call.weights.mean(dim=(1, 2)).reshape(2, -1)
    places = functional.pad(torch.arange(100).reshape(1, 10, 10).roll((-shift, -shift), (1, 2)), (0, 2, 0, 2), value=-1)
    order = window_partition(places[..., None], (4, 4)).flatten()
    for k in range(2):
        expected = torch.zeros(100)
        expected[order[order >= 0]] = received[k][order >= 0]
        torch.testing.assert_close(layer.values[k].flatten(), expected)


def test_windows_are_put_back_where_twins_took_them_from() -> None:
    attention = LocallyGroupedAttn(8, num_heads=1, ws=4)
    seen: list[Tensor] = []
    attention.get_submodule("qkv").register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    tokens = noise(2, 100, 8)
    attention(tokens, (10, 10))
    back = from_windows(seen[0].reshape(-1, 16, 8)[..., 0], (4, 4), (10, 10))
    torch.testing.assert_close(back, tokens[..., 0].reshape(2, 10, 10))


class Exchange(nn.Module):
    """Four learnt tokens attend to a map, and to one another, as in Mobile-Former; a map of weights is no attention."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens = nn.Parameter(noise(1, 4, 8))
        self.from_map, self.among = CrossAttention(8), Attention(8, num_heads=2)
        self.mix = nn.Conv2d(8, 8, 1)

    def forward(self, images: Tensor) -> Tensor:
        maps = self.mix(images.softmax(dim=-1))
        tokens = self.from_map(maps, self.tokens.expand(len(images), -1, -1))
        return self.among(tokens)


class CrossAttention(nn.Module):
    """Tokens (B, N, D) attend to a map (B, D, S, S)."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.project = nn.Linear(dim, dim)

    def forward(self, maps: Tensor, tokens: Tensor) -> Tensor:
        places = maps.flatten(2).mT
        return self.project((tokens @ places.mT)[:, None].softmax(dim=-1)[:, 0] @ places)


def test_learnt_tokens_and_other_uses_of_softmax_are_not_taken_for_the_image() -> None:
    network, images = Exchange(), noise(2, 8, 6, 6)
    assert [call.name for call in record(network, images)] == ["from_map", "among"]
    maps = attention_maps(network, images)
    assert [(layer.name, layer.values.shape) for layer in maps] == [("from_map", (2, 6, 6))]
    assert attention_rollout(network, images) is None


class Masked(nn.Module):
    """Attention that is given which tokens count, as our A-ViT has it."""

    def __init__(self) -> None:
        super().__init__()
        self.like = nn.Linear(8, 8)
        self.attend = nn.Softmax(dim=-1)

    def forward(self, tokens: Tensor, mask: Tensor) -> Tensor:
        return (self.attend((self.like(tokens) @ tokens.mT)[:, None] + mask) @ tokens[:, None])[:, 0]


class Pairs(nn.Module):
    """Two layers of it over the places of an image (B, D, S, S)."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([Masked(), Masked()])

    def forward(self, images: Tensor) -> Tensor:
        tokens = images.flatten(2).mT
        for layer in self.layers:
            tokens = layer(tokens, torch.zeros(len(tokens), 1, 1, tokens.shape[1]))
        return tokens


def test_a_mask_of_tokens_is_not_taken_for_a_map() -> None:
    torch.manual_seed(0)
    network, images = Pairs(), noise(2, 8, 4, 4)
    found: list[Tensor] = []
    for layer in network.layers:
        softmax = layer.get_submodule("attend")
        softmax.register_forward_hook(lambda _, args, output: found.append(torch.as_tensor(output)))
    maps, rolled = attention_maps(network, images), attention_rollout(network, images)
    for layer, weights in zip(maps, found[:2], strict=True):
        torch.testing.assert_close(layer.values, weights.mean(dim=(1, 2)).reshape(2, 4, 4))
    first, second = (weights[:, 0] + torch.eye(16) for weights in found[:2])
    assert rolled is not None
    torch.testing.assert_close(rolled, (second @ first).mean(dim=1).reshape(2, 4, 4) / 4)


class Stripes(nn.Module):
    """Attention within stripes of a map (B, S, S, D), as our CSWin has it."""

    fused_attn: bool = True

    def __init__(self, stripe: tuple[int, int]) -> None:
        super().__init__()
        self.stripe = stripe
        self.keys = nn.Linear(1, 1)
        self.attn_drop = nn.Identity()

    def forward(self, maps: Tensor) -> Tensor:
        assert not self.fused_attn
        windows = window_partition(maps, self.stripe).flatten(1, 2)
        scores = windows.squeeze(-1)[:, None, None].expand(-1, 1, windows.shape[1], -1)
        self.attn_drop(scores.softmax(dim=-1))
        return maps


@pytest.mark.parametrize("stripe", [(8, 2), (2, 8), (8, 8)])
def test_attention_within_stripes_is_put_back(stripe: tuple[int, int]) -> None:
    maps = noise(2, 8, 8, 1)
    (layer,) = attention_maps(Stripes(stripe), maps)
    rows, columns = stripe
    shares = maps[..., 0].unflatten(1, (-1, rows)).unflatten(3, (-1, columns)).exp()
    shares = shares / shares.sum(dim=(2, 4), keepdim=True)
    torch.testing.assert_close(layer.values, shares.flatten(3, 4).flatten(1, 2))


def test_what_a_class_says_of_fused_attention_is_said_again() -> None:
    network = Stripes((8, 8))
    attention_maps(network, noise(1, 8, 8, 1))
    assert "fused_attn" not in vars(network)
    assert network.fused_attn


@pytest.mark.parametrize(
    "name", ["swin_tiny_patch4_window7_224", "twins_svt_small", "pvt_v2_b0", "vit_tiny_patch16_224"]
)
def test_a_map_is_not_mirrored_or_transposed(name: str) -> None:
    """Where one patch of a blank image changes, its weights in the first layer change most."""
    network = of_timm(name, 64)
    images = torch.zeros(1, 1, 64, 64)
    images[..., 16:32, 48:64] = 3 * noise(16, 16)
    flat = attention_maps(network, torch.zeros_like(images))[0].values
    changed = (attention_maps(network, images)[0].values - flat).abs()
    side = changed.shape[-1]
    row, column = divmod(int(changed.argmax()), side)
    assert row * 64 < 32 * side
    assert (row + 1) * 64 > 16 * side
    assert (column + 1) * 64 > 48 * side


def test_what_was_fused_in_training_or_frozen_is_so_again_after_success_and_failure() -> None:
    network = tiny_vit().train()
    attention = [module for module in network.modules() if isinstance(module, Attention)]
    attention[0].eval()
    attention[1].fused_attn = False  # type: ignore[misc]
    modes = [module.training for module in network.modules()]
    attention_maps(network, noise(1, 1, 32, 32))
    with pytest.raises(AssertionError, match="Input height"):
        attention_maps(network, noise(1, 1, 20, 20))
    assert [module.training for module in network.modules()] == modes
    assert [module.fused_attn for module in attention] == [True, False, True]
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in network.modules())


def test_weights_in_half_precision_give_nearly_the_same_maps() -> None:
    network, images = tiny_vit(), noise(2, 1, 32, 32)
    exact, rolled = attention_maps(network, images), attention_rollout(network, images)
    network.to(torch.bfloat16)
    rough, rolled_roughly = attention_maps(network, images), attention_rollout(network, images)
    assert rolled is not None
    assert rolled_roughly is not None
    for one, other in zip(exact, rough, strict=True):
        assert other.values.dtype == torch.float32
        # Half a per cent of what maps span, a few roundings of bfloat16.
        assert (one.values - other.values).abs().max() < 0.02 * (one.values.max() - one.values.min())
    assert (rolled - rolled_roughly).abs().max() < 0.02 * (rolled.max() - rolled.min())

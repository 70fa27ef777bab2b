"""A-ViT: tokens stop, nobody sees those that did, and what is counted of them is what the paper counts."""

from functools import partial

import pytest
import timm
import torch
from scipy import stats
from torch import Tensor, nn

from deeplense.models.avit import EPSILON, AViT
from tests.models import backbone_laws
from tests.models.backbone_laws import SHAPES, noise, seeded, seen_attention

IMAGES = noise(2, 1, 32, 32)


def small(
    *,
    image_size: int = 32,
    in_chans: int = 1,
    drop_path: float = 0.0,
    gate_scale: float = 5.0,
    gate_center: float = 10.0,
) -> AViT:
    """Four layers."""
    return AViT(
        in_chans=in_chans,
        image_size=image_size,
        drop_path=drop_path,
        embed_dim=24,
        depth=4,
        num_heads=3,
        gate_scale=gate_scale,
        gate_center=gate_center,
        prior_depth=3.0,
    )


def restless() -> AViT:
    """One whose tokens stop in different layers."""
    backbone = seeded(partial(small, gate_scale=10.0, gate_center=0.0))
    depths = backbone.run(IMAGES)[1].depths
    assert set(depths.flatten().tolist()) == {1, 2, 3, 4}
    return backbone


@pytest.mark.parametrize(("image_size", "in_chans"), SHAPES)
def test_it_keeps_the_laws_of_backbones(image_size: int, in_chans: int) -> None:
    backbone_laws.check_backbone(small, image_size=image_size, in_chans=in_chans)


def test_paths_are_dropped_in_training_alone() -> None:
    backbone_laws.check_drop_path(small)


def test_it_has_the_parameters_of_deit_tiny() -> None:
    backbone = AViT(in_chans=3, image_size=224, patch_size=16)
    assert backbone_laws.count_parameters(backbone) == 5_717_416
    backbone.load_state_dict(timm.create_model("deit_tiny_patch16_224", num_classes=0).state_dict())


@pytest.mark.parametrize("gate_center", [-100.0, -3.0, 0.0, 3.0, 100.0])
def test_the_weights_of_a_token_sum_to_one(gate_center: float) -> None:
    halting = seeded(partial(small, gate_scale=60.0, gate_center=gate_center)).run(IMAGES)[1]
    torch.testing.assert_close(halting.weights.sum(dim=1), torch.ones(2, 17))
    assert (halting.weights >= 0).all()
    assert (halting.weights[~halting.active] == 0).all()


@torch.no_grad()
def test_where_no_score_counts_it_is_a_transformer_of_fixed_depth() -> None:
    backbone = seeded(partial(small, gate_scale=0.0, gate_center=40.0))
    plain = timm.create_model(
        "deit_tiny_patch16_224",
        num_classes=0,
        in_chans=1,
        img_size=32,
        patch_size=8,
        embed_dim=24,
        depth=4,
        num_heads=3,
    ).eval()
    plain.load_state_dict(backbone.state_dict())
    torch.testing.assert_close(backbone(IMAGES), plain(IMAGES), rtol=1e-5, atol=1e-5)
    backbone.gate_center = 0.0
    assert (backbone(IMAGES) - plain(IMAGES)).abs().max() > 1e-3


@torch.no_grad()
def test_where_all_stop_at_once_the_first_layer_is_all() -> None:
    backbone = seeded(partial(small, gate_center=-100.0))
    first = next(backbone.blocks.children())(backbone._pos_embed(backbone.patch_embed(IMAGES)))
    torch.testing.assert_close(backbone(IMAGES), backbone.norm(first)[:, 0])
    assert backbone.run(IMAGES)[1].depths.eq(1).all()


def test_nobody_looks_at_a_token_that_stopped() -> None:
    backbone = restless()
    active = backbone.run(IMAGES)[1].active
    for layer, weights in enumerate(seen_attention(backbone, IMAGES)):
        seen = weights.amax(dim=(1, 2)) > 0
        assert seen.equal(active[:, layer])


def by_hand(scores: Tensor) -> tuple[int, float, list[float]]:
    """Layers, remainder and weights of one token by its scores (L,), as the paper's equations 4 to 6 have them."""
    *before_last, _ = scores.tolist()
    halting = [*before_last, 1.0]
    depth = next(n for n in range(1, len(halting) + 1) if sum(halting[:n]) >= 1 - EPSILON)
    remainder = 1 - sum(halting[: depth - 1])
    return depth, remainder, [*halting[: depth - 1], remainder] + [0.0] * (len(halting) - depth)


def test_layers_weights_and_penalty_are_those_of_the_paper() -> None:
    backbone = restless()
    halting = backbone.run(IMAGES)[1]
    for image, expected in enumerate(backbone.penalty(halting).tolist()):
        found = [by_hand(scores) for scores in halting.scores[image].T]
        assert [depth for depth, _, _ in found] == halting.depths[image].tolist()
        torch.testing.assert_close(halting.weights[image].T, torch.tensor([weights for _, _, weights in found]))
        ponder = sum(depth + remainder for depth, remainder, _ in found) / len(found)
        divergence = stats.entropy(halting.scores[image].mean(dim=1).detach(), stats.norm.pdf([1, 2, 3, 4], loc=3))
        assert expected == pytest.approx(5e-4 * ponder + 0.1 * divergence, rel=1e-4)


@pytest.mark.parametrize(("prior_weight", "all_stop_at_once"), [(0.1, False), (0.0, True)])
def test_where_the_penalty_alone_is_learnt_the_prior_keeps_tokens_from_stopping_at_once(
    prior_weight: float, all_stop_at_once: bool
) -> None:
    backbone = seeded(small)
    backbone.prior_weight = prior_weight
    assert backbone.run(IMAGES)[1].depths.eq(4).all()
    optimizer = torch.optim.Adam(backbone.parameters(), lr=5e-3)
    for _ in range(40):
        optimizer.zero_grad()
        backbone.train()(IMAGES)[1].mean().backward()
        optimizer.step()
    depths = backbone.run(IMAGES)[1].depths
    assert depths.eq(1).all() if all_stop_at_once else depths.gt(1).all()


@pytest.mark.parametrize("gate_center", [-1e4, 1e4])
def test_scores_of_zero_or_one_leave_finite_gradients(gate_center: float) -> None:
    backbone = seeded(partial(small, gate_center=gate_center)).train()
    features, penalty = backbone(IMAGES)
    (features.sum() + penalty.sum()).backward()
    gradients = [parameter.grad for parameter in backbone.parameters()]
    assert all(gradient is not None and gradient.isfinite().all() for gradient in gradients)


def test_it_learns_in_half_precision() -> None:
    backbone = restless().train()
    with torch.autocast("cpu", torch.bfloat16):
        features, penalty = backbone(IMAGES)
    (features.float().square().sum() + penalty.sum()).backward()
    assert penalty.dtype == torch.float32
    assert nn.utils.get_total_norm([parameter.grad for parameter in backbone.parameters()]).isfinite()  # type: ignore[misc]

"""iBOT against lightly's patch loss, and against the authors' definition, written out."""

from typing import Any

import pytest
import torch
from lightly.loss import IBOTPatchLoss
from tiny import PATCH, SIZE, TOKENS, Batch, hide_by_number, make, make_batch, sgd, update
from torch import Tensor

from deeplense.ssl.dino import compare_views
from deeplense.ssl.patches import token_weights

WARM: dict[str, Any] = {"warmup_teacher_patch_temp": 0.03, "teacher_patch_temp": 0.07, "warmup_share": 0.2}
ONE_HEAD, TWO_HEADS = "ibot", "ibot, two heads, masked centre"


def temperature(step: int) -> float:
    """The teacher's for patches with these settings: a line over 4 of 20 steps."""
    return 0.03 + 0.04 * min(step / 4, 1)


@torch.no_grad()
def cosines(method: Any, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
    """Masks (N, T) of the large views, and what teacher and student say of all patches (N, T, K)."""
    views, random = batch
    images, masks = views[0].flatten(0, 1), method.masks(views[0], random)
    teacher = method.teacher.patch_cosines(method.teacher.backbone.tokens(images)[1])
    student = method.student.patch_cosines(method.student.backbone.tokens(images, masks, method.mask_token)[1])
    return masks, teacher, student


@pytest.mark.parametrize(("name", "num_alike"), [(TWO_HEADS, 6), (ONE_HEAD, 1)])
def test_the_loss_of_patches_is_that_of_lightly_while_the_centres_agree(name: str, num_alike: int) -> None:
    method = make(name, **WARM)
    optimizer = sgd(method)
    oracle = IBOTPatchLoss(output_dim=32, center_momentum=0.9)
    gaps = []
    for step in range(6):
        batch = make_batch(method, step)
        masks, teacher, student = cosines(method, batch)
        assert 0 < (masks.sum(dim=1) == 0).sum() < len(masks)
        expected = oracle(teacher[masks], student[masks], masks.unflatten(1, (4, 4)), temperature(step))
        found = update(method, optimizer, step, [batch])
        gaps.append(abs(found["patch_loss"].item() - expected.item()))
        if name == TWO_HEADS:
            assert (method.patch_targets.center - oracle.center.value.flatten()).abs().max() < 1e-7
    assert max(gaps[:num_alike]) < 1e-5
    assert all(gap > 1e-4 for gap in gaps[num_alike:])


def test_the_loss_of_patches_is_that_of_the_authors_with_the_centre_of_all_patches() -> None:
    method = make(ONE_HEAD, **WARM)
    optimizer = sgd(method)
    center = torch.zeros(32)
    for step in range(6):
        batch = make_batch(method, step)
        masks, teacher, student = cosines(method, batch)
        losses = []
        for mask, targets, outputs in zip(masks, teacher, student, strict=True):
            terms = [
                -((target - center) / temperature(step)).softmax(0) @ (output / 0.1).log_softmax(0)
                for hidden, target, output in zip(mask, targets, outputs, strict=True)
                if hidden
            ]
            losses.append(sum(terms) / max(len(terms), 1))
        center = 0.9 * center + 0.1 * sum(target for image in teacher for target in image) / teacher[..., 0].numel()
        found = update(method, optimizer, step, [batch])
        assert found["patch_loss"].item() == pytest.approx(float(sum(losses)) / len(losses), abs=1e-5)
        assert torch.allclose(method.patch_targets.center, center, atol=1e-6)


def test_the_loss_is_that_of_views_and_that_of_patches() -> None:
    method = make(ONE_HEAD, view_weight=0.5, patch_weight=3.0)
    views, random = make_batch(method, 0)
    metrics = method(views, random, 0)
    teacher = method.teacher.head(method.teacher.backbone(views[0].flatten(0, 1))).unflatten(0, (2, 6))
    features, _ = method.student.backbone.tokens(
        views[0].flatten(0, 1), method.masks(views[0], random), method.mask_token
    )
    features = torch.cat([features, method.student.backbone(views[1].flatten(0, 1))])
    outputs = method.student.head(features).unflatten(0, (5, 6))
    expected = compare_views(outputs, method.targets(teacher, 0), temperature=0.1)
    assert metrics["view_loss"].item() == pytest.approx(expected["loss"].item(), abs=1e-6)
    assert metrics["kl"].item() == pytest.approx(expected["kl"].item(), abs=1e-6)
    whole = 0.5 * metrics["view_loss"] + 3 * metrics["patch_loss"]
    assert metrics["loss"].item() == pytest.approx(whole.item(), abs=1e-5)
    assert 0 < metrics["teacher_patch_entropy"] < metrics["patch_loss"]


def numbers(hidden: list[tuple[int, int, int]], *, batch: int = 4) -> Tensor:
    """Numbers that make `hide_by_number` hide these (view, sample, patch)."""
    random = torch.ones(batch, 2 * TOKENS)
    for view, sample, patch in hidden:
        random[sample, view * TOKENS + patch] = 0
    return random


def test_each_view_of_a_sample_has_its_own_mask() -> None:
    method = make(ONE_HEAD, make_masks=hide_by_number)
    views, _ = make_batch(method, 0, batch=4)
    masks = method.masks(views[0], numbers([(0, 1, 3), (1, 2, 5)]))
    assert masks.nonzero().tolist() == [[1, 3], [4 + 2, 5]]


def test_the_student_does_not_see_what_is_hidden_and_the_teacher_does() -> None:
    method = make(ONE_HEAD, make_masks=hide_by_number, view_weight=0.0)
    views, _ = make_batch(method, 0, batch=4)
    random = numbers([(0, 1, 6)])
    row, column = PATCH * (6 // (SIZE // PATCH)), PATCH * (6 % (SIZE // PATCH))
    masks = method.masks(views[0], random)
    hidden = masks.flatten().nonzero().squeeze(1)

    def says() -> tuple[Tensor, Tensor]:
        student = method.outputs(views, masks, hidden=hidden, frozen=False)[1]
        return student, method.teach(views[0], hidden, step=0)[1]

    student, teacher = says()
    views[0][0, 1, :, row : row + PATCH, column : column + PATCH] += 1
    assert torch.equal(says()[0], student)
    assert not torch.allclose(says()[1], teacher, atol=1e-3)
    views[0][0, 1, :, :PATCH, :PATCH] += 1
    assert not torch.allclose(says()[0], student, atol=1e-3)


@pytest.mark.parametrize("name", [ONE_HEAD, TWO_HEADS])
def test_where_nothing_is_hidden_all_stays_finite_and_has_a_gradient(name: str) -> None:
    method = make(name, make_masks=hide_by_number)
    optimizer = sgd(method)
    views, random = make_batch(method, 0, batch=4)
    update(method, optimizer, 0, [(views, numbers([(0, 0, 1), (1, 3, 2)]))])
    center = method.patch_targets.center.clone()
    metrics = update(method, optimizer, 1, [(views, 1 + random)])
    assert metrics["patch_loss"] == 0
    assert metrics["masked"] == 0
    assert torch.equal(method.mask_token.grad, torch.zeros(1, 1, 12))
    gradients = [p.grad for p in method.parameters() if p.requires_grad]
    assert all(gradient is not None and gradient.isfinite().all() for gradient in gradients)
    assert torch.equal(method.patch_targets.center, center) == (name == TWO_HEADS)
    assert method.patch_targets.center.isfinite().all()


def test_weights_give_each_image_its_mean() -> None:
    masks = torch.tensor([[True, True, False], [False, False, True], [False] * 3, [True] * 3])
    values = torch.rand(4, 3)
    expected = (values[0, :2].mean() + values[1, 2] + 0 + values[3].mean()) / 4
    assert (values * token_weights(masks)).sum().item() == pytest.approx(expected.item())


def test_heads_are_shared_or_not() -> None:
    one, two = make(ONE_HEAD), make(TWO_HEADS)
    assert {key.split(".")[1] for key in one.student.state_dict(prefix="_.")} == {"backbone", "head"}
    assert {key.split(".")[1] for key in two.student.state_dict(prefix="_.")} == {"backbone", "head", "patch_head"}
    features = torch.randn(5, 12)
    assert torch.equal(one.student.head(features), one.student.patch_cosines(features))
    assert not torch.equal(two.student.head(features), two.student.patch_cosines(features))


@pytest.mark.parametrize("name", [ONE_HEAD, TWO_HEADS])
def test_last_layers_are_frozen_first(name: str) -> None:
    method = make(name, freeze_share=0.05)
    optimizer = sgd(method)
    heads = [head for head in (method.student.head, method.student.patch_head) if head]
    for step, frozen in enumerate((True, False)):
        update(method, optimizer, step, [make_batch(method, step)])
        weights = [head.last.get_parameter("parametrizations.weight.original1") for head in heads]
        assert [weight.grad is None for weight in weights] == [frozen] * len(heads)


def test_another_number_of_large_views_is_refused() -> None:
    method = make(ONE_HEAD, num_large=3)
    with pytest.raises(ValueError, match=r"2 large views, but masks for 3"):
        method(*make_batch(method, 0), 0)

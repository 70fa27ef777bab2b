"""Networks that do not see turns and flips: the law, against explicit filters, and that they learn."""

import copy
import math
from collections.abc import Callable
from functools import cache, partial

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from deeplense.models.equivariant import MULTIPLE, Equivariant, Group, GroupConv
from tests.models import backbone_laws

GROUPS = [(4, False), (8, False), (4, True), (8, True)]
NARROW = (4, 4, 4, 6, 6, 8)
every_group = pytest.mark.parametrize(("num_rotations", "reflections"), GROUPS)


def network(num_rotations: int, reflections: bool) -> Equivariant:
    """A narrow network, its weights drawn from seed 0."""
    torch.manual_seed(0)
    return Equivariant(in_chans=1, image_size=64, num_rotations=num_rotations, reflections=reflections, widths=NARROW)


def noise(*shape: int, seed: int = 1) -> Tensor:
    """Images of noise."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def train(model: nn.Module, *, num_steps: int = 3) -> None:
    """A few steps at a high rate, so that the weights and the batch statistics are others."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for step in range(num_steps):
        optimizer.zero_grad()
        (1 - model.train()(noise(4, 1, 32, 32, seed=step) + 1)).square().mean().backward()
        optimizer.step()


@cache
def learnt(num_rotations: int, reflections: bool) -> Equivariant:
    """A network after a few steps, in evaluation mode."""
    model = network(num_rotations, reflections)
    train(model)
    return model.eval()


def blobs(*, angle: float, num_images: int = 4, size: int = 64) -> Tensor:
    """Smooth random images (num_images, 1, size, size), turned exactly by an angle in radian: their blobs move."""
    generator = torch.Generator().manual_seed(3)
    drawn = torch.rand(4, num_images, 12, 1, 1, generator=generator, dtype=torch.float64)
    away, width = drawn[0] * size / 4, 2 + 2 * drawn[1]
    where = 2 * math.pi * drawn[2] + angle
    axis = torch.arange(size, dtype=torch.float64) - (size - 1) / 2
    right, up = axis - away * torch.cos(where), -axis[:, None] - away * torch.sin(where)
    lights = (drawn[3] - 0.3) * torch.exp(-(right**2 + up**2) / (2 * width**2))
    return lights.sum(dim=1, keepdim=True).float()


@torch.no_grad()
def change(model: nn.Module, images: Tensor, others: Tensor) -> float:
    """The largest change of an output, in units of the largest output."""
    outputs = model(images)
    return float((model(others) - outputs).abs().max() / outputs.abs().max())


@pytest.mark.parametrize("size", [32, 64, 160])
@every_group
def test_quarter_turns_change_no_output_before_and_after_training(
    num_rotations: int, reflections: bool, size: int
) -> None:
    images = noise(1, 1, size, size)
    for model in (network(num_rotations, reflections).eval(), learnt(num_rotations, reflections)):
        for quarters in (1, 2, 3):
            assert change(model, images, images.rot90(quarters, (2, 3))) < 1e-5


@pytest.mark.parametrize("size", [32, 64, 160])
@every_group
def test_flips_change_no_output_where_reflections_are_in_the_group_and_only_there(
    num_rotations: int, reflections: bool, size: int
) -> None:
    images = noise(1, 1, size, size)
    for model in (network(num_rotations, reflections).eval(), learnt(num_rotations, reflections)):
        for flipped in (images.flip(2), images.flip(3), images.transpose(2, 3)):
            difference = change(model, images, flipped)
            assert difference < 1e-5 if reflections else difference > 1e-3


@pytest.mark.parametrize("num_rotations", [1, 2])
def test_a_network_without_quarter_turns_in_its_group_sees_them(num_rotations: int) -> None:
    images = noise(2, 1, 64, 64)
    model = learnt(num_rotations, False)
    assert change(model, images, images.rot90(1, (2, 3))) > 1e-2
    assert (change(model, images, images.rot90(2, (2, 3))) < 1e-5) == (num_rotations == 2)


def test_a_turn_of_a_whole_batch_changes_no_output_in_training_mode_either() -> None:
    images = noise(3, 1, 32, 32)
    model = network(8, True)
    outputs = model(images)
    torch.testing.assert_close(model(images.rot90(1, (2, 3)).flip(3)), outputs, rtol=1e-5, atol=1e-5)


def change_by_45_degrees(num_rotations: int, reflections: bool) -> float:
    """The mean relative change over networks as they are at the start, their batch statistics measured."""
    changes = []
    for seed in range(8):
        torch.manual_seed(seed)
        model = Equivariant(
            in_chans=1, image_size=64, num_rotations=num_rotations, reflections=reflections, widths=[8] * 6
        )
        with torch.no_grad():
            model(blobs(angle=1))
            outputs, turned = (model.eval()(blobs(angle=angle)) for angle in (0, math.pi / 4))
        changes.append(float((turned - outputs).norm() / outputs.norm()))
    return sum(changes) / len(changes)


def test_turns_by_45_degrees_change_the_outputs_of_eight_rotations_less_than_those_of_four() -> None:
    plain = change_by_45_degrees(1, False)
    for reflections in (False, True):
        four, eight = (change_by_45_degrees(num_rotations, reflections) for num_rotations in (4, 8))
        assert eight < 0.6 * four
        assert four < 0.7 * plain


@every_group
def test_the_fields_of_a_turned_image_are_the_turned_fields_with_their_elements_one_turn_on(
    num_rotations: int, reflections: bool
) -> None:
    images = noise(2, 1, 32, 32)
    layers = learnt(num_rotations, reflections).layers[:4]
    with torch.no_grad():
        fields, turned, flipped = (
            layers(way).unflatten(1, (-1, 1 + reflections, num_rotations))
            for way in (images, images.rot90(1, (2, 3)), images.flip(2))
        )
    expected = fields.rot90(1, (4, 5)).roll(num_rotations // 4, dims=3)
    torch.testing.assert_close(turned, expected, rtol=1e-5, atol=1e-5)
    assert not torch.allclose(turned, fields.rot90(1, (4, 5)), atol=1e-2)
    if reflections:
        mirrored = fields.flip(4).flip(2).flip(3).roll(1, dims=3)
        torch.testing.assert_close(flipped, mirrored, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("lifting", [True, False])
def test_a_convolution_on_four_rotations_is_that_of_filters_turned_by_rot90(lifting: bool) -> None:
    torch.manual_seed(0)
    conv = GroupConv(3, 2, group=Group(4, False), kernel_size=5, lifting=lifting)
    first = conv.filters().unflatten(0, (2, 4)).unflatten(2, (3, -1))[:, 0]
    turned = [first.roll(quarters, dims=2).rot90(quarters, (3, 4)) for quarters in range(4)]
    explicit = torch.stack(turned, dim=1).flatten(2, 3).flatten(0, 1)
    fields = noise(2, explicit.shape[1], 16, 16)
    torch.testing.assert_close(conv(fields), functional.conv2d(fields, explicit, padding=2), rtol=1e-5, atol=1e-5)


def test_relative_elements_are_those_of_the_matrices() -> None:
    group = Group(8, True)
    matrices = []
    for turns, sign in zip(*group.parts(), strict=True):
        cos, sin = torch.cos(turns * math.pi / 4), torch.sin(turns * math.pi / 4)
        turn = torch.stack([torch.stack([cos, -sin]), torch.stack([sin, cos])])
        matrices.append(turn @ torch.diag(torch.tensor([1.0, float(sign)])))
    elements = torch.stack(matrices)
    seen = torch.einsum("hba,gbc->hgac", elements, elements)
    torch.testing.assert_close(elements[group.relative()], seen, rtol=0, atol=1e-6)


@pytest.mark.parametrize("lifting", [True, False])
@every_group
def test_a_convolution_doubles_the_variance_of_noise_at_the_start_for_every_element(
    num_rotations: int, reflections: bool, lifting: bool
) -> None:
    torch.manual_seed(0)
    group = Group(num_rotations, reflections)
    conv = GroupConv(64, 16, group=group, kernel_size=5, lifting=lifting)
    with torch.no_grad():
        fields = conv(noise(1, conv.filter_shape[1], 32, 32)).unflatten(1, (16, len(group)))[..., 2:-2, 2:-2]
    torch.testing.assert_close(
        fields.square().mean(dim=(0, 1, 3, 4)), torch.full((len(group),), 2.0), rtol=0.05, atol=0
    )


@every_group
def test_no_layer_of_the_network_loses_or_swells_its_activations_at_the_start(
    num_rotations: int, reflections: bool
) -> None:
    torch.manual_seed(0)
    model = Equivariant(in_chans=1, image_size=64, num_rotations=num_rotations, reflections=reflections)
    gains: list[float] = []
    for module in model.modules():
        if isinstance(module, GroupConv):
            module.register_forward_hook(
                lambda _, fields, out: gains.append(float(out.detach().var() / fields[0].square().mean()))
            )
    with torch.no_grad():
        model(noise(4, 1, 32, 32))
    assert len(gains) == 6
    assert all(1 < gain < 5 for gain in gains), gains


@pytest.mark.parametrize(("num_rotations", "reflections"), [GROUPS[0], GROUPS[-1]])
def test_it_learns_32_images_by_heart(num_rotations: int, reflections: bool) -> None:
    torch.manual_seed(0)
    backbone = Equivariant(
        in_chans=1, image_size=16, num_rotations=num_rotations, reflections=reflections, widths=(8, 8, 8, 8, 16, 32)
    )
    model = nn.Sequential(backbone, nn.Linear(backbone.num_features, 2))
    images, labels = noise(32, 1, 16, 16), torch.arange(32) % 2
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for _ in range(40):
        optimizer.zero_grad()
        functional.cross_entropy(model(images), labels).backward()
        optimizer.step()
    assert (model.eval()(images).argmax(dim=1) == labels).all()


@pytest.mark.parametrize(("image_size", "in_chans"), [(32, 5), (64, 3), (160, 1)])
@every_group
def test_it_keeps_the_laws_of_backbones(num_rotations: int, reflections: bool, image_size: int, in_chans: int) -> None:
    make = partial(Equivariant, num_rotations=num_rotations, reflections=reflections, widths=NARROW)
    backbone_laws.check_backbone(make, image_size=image_size, in_chans=in_chans)


def load_others(model: nn.Module) -> None:
    """Load the weights of a network that has learnt."""
    model.load_state_dict(learnt(4, True).state_dict())


@torch.no_grad()
def average_in(model: nn.Module) -> None:
    """Change weights in a way that autograd does not count, as averages of weights do."""
    for weight in model.parameters():
        weight.data.mul_(0.9).add_(0.01)


def learn(model: nn.Module) -> None:
    """Some steps, and back to evaluation."""
    train(model)
    model.eval()


def learn_in_evaluation_mode(model: nn.Module) -> None:
    """A step with batch statistics that stand still."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    model(noise(2, 1, 32, 32)).sum().backward()
    optimizer.step()


@pytest.mark.parametrize("alter", [load_others, average_in, learn, learn_in_evaluation_mode])
def test_filters_that_are_kept_are_never_those_of_other_weights(alter: Callable[[nn.Module], None]) -> None:
    model = network(4, True).eval()
    images = noise(2, 1, 32, 32)
    with torch.no_grad():
        before = model(images)
    alter(model)
    fresh = network(4, True).eval()
    fresh.load_state_dict(model.state_dict())
    with torch.no_grad():
        after, expected = model(images), fresh(images)
    torch.testing.assert_close(after, expected, rtol=0, atol=0)
    assert not torch.allclose(after, before, atol=1e-3)


def test_filters_are_kept_while_the_weights_stand_still_and_follow_a_change_of_type() -> None:
    conv = GroupConv(1, 2, group=Group(4, False), kernel_size=5)
    with torch.no_grad():
        assert conv.filters() is conv.filters()
        assert conv.double().filters().dtype == torch.float64
        assert copy.deepcopy(conv).filters().equal(conv.filters())
    assert conv.filters().requires_grad


def test_gradients_of_the_image_can_be_had_from_filters_that_were_kept_in_inference_mode() -> None:
    model = network(4, False).eval().requires_grad_(False)
    images = noise(1, 1, 32, 32)
    with torch.inference_mode():
        model(images)
    model(images.requires_grad_()).sum().backward()
    assert images.grad is not None
    assert images.grad.any()


def test_half_precision_leaves_no_filters_of_half_precision_behind() -> None:
    model, images = network(8, False).eval(), noise(2, 1, 32, 32)
    with torch.no_grad():
        outputs = copy.deepcopy(model)(images)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            torch.testing.assert_close(model(images).float(), outputs, rtol=0.05, atol=0.05)
        torch.testing.assert_close(model(images), outputs, rtol=0, atol=0)


def test_groups_have_about_as_many_weights_as_each_other() -> None:
    counts = []
    for num_rotations, reflections in GROUPS:
        model = Equivariant(in_chans=1, image_size=64, num_rotations=num_rotations, reflections=reflections)
        counts.append(sum(weight.numel() for weight in model.parameters()))
    assert max(counts) < 1.1 * min(counts)


def test_what_cannot_be_is_refused() -> None:
    with pytest.raises(ValueError, match=rf"150.*multiple of {MULTIPLE}"):
        Equivariant(in_chans=1, image_size=150, num_rotations=4, reflections=False)
    with pytest.raises(ValueError, match="num_rotations=0"):
        Equivariant(in_chans=1, image_size=152, num_rotations=0, reflections=False)

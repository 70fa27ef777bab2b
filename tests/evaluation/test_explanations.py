"""Explanations: Grad-CAM as it is known in closed form, and maps that point at what decides."""

from collections.abc import Callable

import pytest
import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn
from torch.nn import functional

from deeplense.evaluation.explanations import explain, feature_maps, grad_cam
from deeplense.models.registry import InputSize, build


def noise(*shape: int) -> Tensor:
    """Images of noise."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1))


def small_cnn() -> nn.Sequential:
    """One convolution, the mean, and a linear layer: what class activation maps are known for."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 6, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 3))


def small_vit() -> VisionTransformer:
    """A ViT of two layers and 8 x 8 tokens."""
    torch.manual_seed(0)
    return VisionTransformer(
        img_size=32, patch_size=4, in_chans=1, num_classes=2, embed_dim=32, depth=2, num_heads=1, global_pool="token"
    )


def test_grad_cam_of_a_mean_and_a_linear_layer_is_the_class_activation_map() -> None:
    network, images = small_cnn(), noise(4, 1, 12, 12)
    classes = torch.tensor([0, 1, 2, 1])
    with torch.no_grad():
        features, weights = network[0](images), network.get_parameter("3.weight")[classes]
        expected = torch.einsum("bd,bdhw->bhw", weights, features).relu() / 100
    found = grad_cam(network, images, class_index=classes)
    assert found is not None
    assert found.shape == (4, 10, 10)
    torch.testing.assert_close(found, expected)
    other = grad_cam(network, images, class_index=classes.flip(0))
    assert other is not None
    assert not torch.allclose(found, other)


def test_the_map_of_an_image_does_not_depend_on_the_others() -> None:
    network, images, classes = small_vit(), noise(3, 1, 32, 32), torch.tensor([0, 1, 1])
    together = explain(network, images, class_index=classes)
    for k in range(3):
        alone = explain(network, images[k : k + 1], class_index=classes[k : k + 1])
        assert [m.name for m in alone] == [m.name for m in together]
        for one, all_of_them in zip(alone, together, strict=True):
            torch.testing.assert_close(one.values[0], all_of_them.values[k], rtol=1e-4, atol=1e-6)


def test_the_names_say_what_each_map_is() -> None:
    maps = explain(small_vit(), noise(2, 1, 32, 32), class_index=torch.zeros(2, dtype=torch.long))
    named = [(m.name, m.kind, m.side) for m in maps]
    assert named[:2] == [("attention rollout", "rollout", 8), ("Grad-CAM", "grad_cam", 8)]
    assert named[2:] == [("blocks.0.attn", "layer", 8), ("blocks.1.attn", "layer", 8)]
    assert all(m.values.shape == (2, 32, 32) for m in maps)


@pytest.mark.parametrize("way", ["native", "pad", "resize"])
def test_maps_are_of_the_pixels_that_were_given(way: str) -> None:
    """A network that only looks, by a mean of one feature: its Grad-CAM is the image as it reaches the network."""
    size = {"native": 20, "pad": 26, "resize": 40}[way]
    look = nn.Conv2d(1, 1, 1, bias=False)
    nn.init.ones_(look.weight)
    backbone = nn.Sequential(look, nn.AdaptiveAvgPool2d(1), nn.Flatten())
    head = nn.Linear(1, 2)
    nn.init.ones_(head.weight)
    network = build("simple_cnn", image_size=20, in_chans=1, num_outputs=2)
    network.backbone, network.head, network.input_size = backbone, nn.Sequential(head), InputSize(way, size)
    smooth = functional.interpolate(noise(1, 1, 4, 4).abs(), size=(20, 20), mode="bicubic").relu()
    (found,) = explain(network, smooth, class_index=torch.tensor([1]))
    torch.testing.assert_close(found.values * size**2, smooth[:, 0], rtol=0, atol=1e-5 if way != "resize" else 0.1)


@pytest.mark.parametrize(("name", "taken"), [("resnet50", "layer3"), ("efficientnet_b0", "blocks.4")])
def test_a_feature_map_of_one_branch_is_not_taken_where_the_whole_is_there(name: str, taken: str) -> None:
    network = build(name, image_size=64, in_chans=1, num_outputs=2).eval()
    outputs: dict[int, str] = {}
    for place, module in network.named_modules():
        module.register_forward_hook(lambda _, args, output, place=place: outputs.update({id(output): place}))
    features = feature_maps(network, noise(1, 1, 64, 64).requires_grad_())[1]
    assert outputs[id(features[0])] == f"backbone.{taken}"
    assert features[0].shape[-1] == 4


@pytest.mark.parametrize("name", ["simple_cnn", "resnet18", "vit_tiny_patch16_224", "coat_lite_tiny", "levit_128s"])
@pytest.mark.parametrize("tune", [False, True])
def test_a_network_is_left_as_it_was(name: str, tune: bool) -> None:
    torch.manual_seed(0)
    network = build(name, image_size=64, in_chans=1, num_outputs=3, tune=tune).train()
    before = {key: value.clone() for key, value in network.state_dict().items()}
    modes = [module.training for module in network.modules()]
    maps = explain(network, noise(2, 1, 64, 64), class_index=torch.tensor([0, 2]))
    assert any(m.kind == "grad_cam" for m in maps)
    assert all(m.values.isfinite().all() for m in maps)
    assert all(parameter.grad is None for parameter in network.parameters())
    assert [module.training for module in network.modules()] == modes
    assert all(torch.equal(value, before[key]) for key, value in network.state_dict().items())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in network.modules())


def test_a_network_in_half_precision_is_explained() -> None:
    network, classes = small_vit(), torch.tensor([0, 1])
    exact = explain(network, noise(2, 1, 32, 32), class_index=classes)
    rough = explain(network.to(torch.bfloat16), noise(2, 1, 32, 32), class_index=classes)
    for one, other in zip(exact, rough, strict=True):
        assert other.values.dtype == torch.float32
        assert (one.values - other.values).abs().mean() < 0.1 * one.values.abs().max()


def planted(count: int, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Noisy images (n, 1, 32, 32) with a blob at a random place (n, 2), row and column; its class is whether it is
    bright or dark at the core."""
    generator = torch.Generator().manual_seed(seed)
    places = torch.randint(5, 27, (count, 2), generator=generator)
    labels = torch.arange(count) % 2
    grid = torch.arange(32)
    distance = (grid[None, :, None] - places[:, :1, None]) ** 2 + (grid[None, None] - places[:, 1:, None]) ** 2
    blobs = (-distance / 8.0).exp() * (4.0 * labels - 2.0)[:, None, None]
    return (blobs + 0.5 * torch.randn(count, 32, 32, generator=generator))[:, None], labels, places


def train(network: nn.Module, num_steps: int) -> None:
    """Teach a network to tell bright blobs from dark ones."""
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-3)
    for step in range(num_steps):
        images, labels, _ = planted(16, step)
        optimizer.zero_grad()
        functional.cross_entropy(network(images), labels).backward()
        optimizer.step()


def share_near(values: Tensor, places: Tensor) -> float:
    """How often the maximum of a map is within 6 pixels of the blob; where it is anywhere, that is 1 in 6."""
    peaks = torch.stack([torch.tensor(divmod(int(each.argmax()), 32)) for each in values])
    return float(((peaks - places).abs().amax(dim=1) <= 6).float().mean())


def blob_cnn() -> nn.Module:
    """A CNN for the planted signal."""
    torch.manual_seed(0)
    layers: list[nn.Module] = [nn.Conv2d(1, 16, 5, stride=2, padding=2), nn.BatchNorm2d(16), nn.ReLU()]
    layers += [nn.Conv2d(16, 16, 3, stride=2, padding=1), nn.BatchNorm2d(16), nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 2))


@pytest.mark.parametrize(("make", "kind", "share"), [(blob_cnn, "grad_cam", 0.9), (small_vit, "rollout", 0.4)])
def test_a_trained_network_looks_at_what_decides_and_an_untrained_one_does_not(
    make: Callable[[], nn.Module], kind: str, share: float
) -> None:
    """A ViT may decide by one class of blobs, so half of its maps is what it must give. Grad-CAM of so small a ViT
    depends on how its training began (0.05 to 0.8 over five seeds)."""
    network = make()
    images, labels, places = planted(64, seed=10**6)

    def maps() -> Tensor:
        (values,) = (each.values for each in explain(network, images, class_index=labels) if each.kind == kind)
        return values

    untrained = maps()
    train(network, num_steps=120)
    with torch.no_grad():
        assert (network.eval()(images).argmax(dim=1) == labels).float().mean() > 0.9
    trained = maps()
    assert share_near(trained, places) > share
    assert share_near(trained, places.roll(1, dims=0)) < 0.35
    assert share_near(untrained, places) < 0.3

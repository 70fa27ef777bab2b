"""Models by name: any size of image, no pixel lost, and only what should learn learns."""

from collections.abc import Callable
from functools import lru_cache
from itertools import product
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import save_file
from scipy import stats
from timm.optim import create_optimizer_v2
from torch import Tensor, nn

from deeplense.models.registry import Network, build
from deeplense.models.sizes import InputSize

FIRST_LAYERS = {
    "resnet18": "conv1",
    "convit_tiny": "patch_embed.proj",
    "vit_tiny_r_s16_p8_224": "patch_embed.backbone.conv",
    "botnet26t_256": "stem.conv1.conv",
    "efficientnet_b0": "conv_stem",
}
MODELS = ["simple_cnn", *FIRST_LAYERS]
CASES = [(name, *kind) for name, kind in product(MODELS, product((64, 150), (1, 3)))]
CASES += [("simple_cnn", 32, 1), ("resnet18", 32, 3), ("vit_tiny_r_s16_p8_224", 32, 3)]


@lru_cache(maxsize=1)
def network(name: str, image_size: int, in_chans: int) -> Network:
    """A network in evaluation mode. timm lets residual branches begin at zero; here all take part."""
    torch.manual_seed(0)
    model = build(name, image_size=image_size, in_chans=in_chans, num_outputs=3, dropout=0.5)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.ones_(module.weight)
    return model.eval()


def small(**changes: bool | float) -> Network:
    """The simple CNN for images of 32 pixels."""
    torch.manual_seed(0)
    return build("simple_cnn", image_size=32, in_chans=1, num_outputs=2, **changes)  # type: ignore[arg-type]


def noise(*shape: int) -> Tensor:
    """Images of noise."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1))


def borders_that_count(forward: Callable[[Tensor], Tensor], image_size: int, in_chans: int) -> list[bool]:
    """Whether the output depends on the first and last row and the first and last column."""
    images = noise(2, in_chans, image_size, image_size).requires_grad_()
    forward(images).square().sum().backward()
    assert images.grad is not None
    depends = images.grad.abs().sum(dim=(0, 1)) > 0
    return [bool(border.any()) for border in (depends[0], depends[-1], depends[:, 0], depends[:, -1])]


@pytest.mark.parametrize(("name", "image_size", "in_chans"), CASES)
def test_a_network_takes_images_of_any_size_and_loses_none_of_their_borders(
    name: str, image_size: int, in_chans: int
) -> None:
    model = network(name, image_size, in_chans)
    images = noise(3, in_chans, image_size, image_size)
    with torch.no_grad():
        outputs = model(images)
        assert outputs.shape == (3, 3)
        assert outputs.isfinite().all()
        torch.testing.assert_close(model(images), outputs, rtol=0, atol=0)
        one_by_one = torch.cat([model(image[None]) for image in images])
        torch.testing.assert_close(one_by_one, outputs, rtol=1e-4, atol=1e-5)
    assert all(borders_that_count(model, image_size, in_chans))


def test_the_check_of_borders_finds_a_network_that_cuts_them_off() -> None:
    patches = nn.Sequential(nn.Conv2d(1, 2, 8, stride=8), nn.Flatten())
    assert borders_that_count(patches, 150, 1) == [True, False, True, False]
    assert all(borders_that_count(patches, 160, 1))


def test_padding_keeps_the_image_and_mirrors_its_border_and_resizing_keeps_its_level() -> None:
    image = noise(1, 2, 150, 150)
    padded = InputSize("pad", 161)(image)
    assert padded.shape == (1, 2, 161, 161)
    torch.testing.assert_close(padded[..., 5:155, 5:155], image, rtol=0, atol=0)
    torch.testing.assert_close(padded[..., 4, 5:155], image[..., 1, :], rtol=0, atol=0)
    torch.testing.assert_close(padded[..., 5:155, 155], image[..., :, -2], rtol=0, atol=0)
    assert InputSize("native", 150)(image) is image
    torch.testing.assert_close(
        InputSize("resize", 224)(torch.full((1, 1, 64, 64), 3.0)), torch.full((1, 1, 224, 224), 3.0)
    )


@pytest.mark.parametrize("tune", [False, True])
def test_without_tune_the_last_layers_alone_learn_and_batch_statistics_stand_still(tune: bool) -> None:
    model = small(tune=tune)
    model.train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    for _ in range(2):
        optimizer.zero_grad()
        model(noise(8, 1, 32, 32) + 2).square().sum().backward()
        optimizer.step()
    changed = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    head = {name for name in before if name.startswith("head.")}
    assert head
    assert changed == (before.keys() if tune else head)


def test_without_tune_batch_statistics_stand_still_from_the_first_batch_on() -> None:
    model = small(tune=False)
    before = {name: value.clone() for name, value in model.backbone.state_dict().items()}
    model(noise(8, 1, 32, 32) + 2)
    assert all(torch.equal(value, before[name]) for name, value in model.backbone.state_dict().items())


@pytest.mark.parametrize(("extra_layers", "widths"), [(False, [256]), (True, [256, 1024, 512, 128])])
def test_extra_layers_stand_between_features_and_outputs(extra_layers: bool, widths: list[int]) -> None:
    head = small(extra_layers=extra_layers).head
    layers = [module for module in head.modules() if isinstance(module, nn.Linear)]
    assert [layer.in_features for layer in layers] == widths
    assert [layer.out_features for layer in layers] == [*widths[1:], 2]


@pytest.mark.parametrize(
    ("name", "extra_layers"), [("simple_cnn", False), ("simple_cnn", True), ("resnet18", False), ("convit_tiny", False)]
)
def test_dropout_leaves_out_the_share_that_was_asked_for_before_the_last_layer(name: str, extra_layers: bool) -> None:
    weights = build(name, image_size=64, in_chans=1, num_outputs=2, extra_layers=extra_layers).state_dict()

    def before_the_last_layer(dropout: float) -> Tensor:
        model = build(name, image_size=64, in_chans=1, num_outputs=2, dropout=dropout, extra_layers=extra_layers)
        model.load_state_dict(weights)
        last = [module for module in model.head.modules() if isinstance(module, nn.Linear)][-1]
        seen: list[Tensor] = []
        last.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0].detach()))
        model.train()(noise(32, 1, 64, 64))
        return seen[0]

    torch.manual_seed(0)
    there = before_the_last_layer(0.0) != 0
    left_out = before_the_last_layer(0.3)[there] == 0
    assert stats.binomtest(int(left_out.sum()), left_out.numel(), 0.3).pvalue > 1e-3


def test_an_unknown_name_is_refused_with_the_nearest() -> None:
    with pytest.raises(ValueError, match=r"'resnet_18'.*resnet18"):
        build("resnet_18", image_size=32, in_chans=1, num_outputs=2)


@pytest.mark.parametrize("name", ["resnet18", "convit_tiny"])
def test_weights_that_cannot_be_fetched_are_an_error_that_says_where_they_are_and_what_to_give(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(ValueError, match="--pretrained_file FILE") as error:
        build(name, image_size=64, in_chans=1, num_outputs=3, pretrained=True)
    config = timm.get_pretrained_cfg(name)
    assert config is not None
    assert f"{config.hf_hub_id} " in str(error.value)


@pytest.mark.parametrize("name", FIRST_LAYERS)
def test_weights_of_a_file_are_taken_and_the_first_layer_is_summed_over_bands(name: str, tmp_path: Path) -> None:
    torch.manual_seed(2)
    published = timm.create_model(name).state_dict()
    save_file(published, tmp_path / "model.safetensors")
    first = f"{FIRST_LAYERS[name]}.weight"
    for in_chans in (3, 1):
        model = build(
            name,
            image_size=64,
            in_chans=in_chans,
            num_outputs=2,
            pretrained=True,
            pretrained_file=tmp_path / "model.safetensors",
        )
        taken = dict(model.backbone.named_parameters())
        bands = published[first] if in_chans == 3 else published[first].sum(dim=1, keepdim=True)
        torch.testing.assert_close(taken.pop(first), bands)
        same = [
            torch.equal(value, published[key]) for key, value in taken.items() if value.shape == published[key].shape
        ]
        assert all(same)
        assert len(same) >= len(taken) - 1  # position embeddings are resampled to the size of the images


def test_a_missing_file_of_weights_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no_such\.safetensors"):
        build(
            "resnet18",
            image_size=64,
            in_chans=1,
            num_outputs=2,
            pretrained=True,
            pretrained_file=tmp_path / "no_such.safetensors",
        )


def test_weights_that_do_not_name_the_parts_of_the_model_are_refused(tmp_path: Path) -> None:
    weights = timm.create_model("resnet18").state_dict()
    torch.save({f"backbone.{name}": value for name, value in weights.items()}, tmp_path / "weights.pth")
    with pytest.raises(ValueError, match="lack 20 parameters of resnet18"):
        build(
            "resnet18",
            image_size=32,
            in_chans=1,
            num_outputs=2,
            pretrained=True,
            pretrained_file=tmp_path / "weights.pth",
        )


def test_a_model_that_has_no_published_weights_does_not_claim_to_start_from_them() -> None:
    with pytest.raises(ValueError, match="simple_cnn"):
        small(pretrained=True)


def test_a_timm_model_that_would_cut_off_a_border_gets_padded_images() -> None:
    assert build("twins_svt_small", image_size=40, in_chans=1, num_outputs=2).input_size == InputSize("pad", 64)
    assert build("mixer_s16_224", image_size=40, in_chans=1, num_outputs=2).input_size == InputSize("pad", 64)


def test_the_last_layers_are_deepest_and_the_first_learn_slowest() -> None:
    network = build("vit_tiny", image_size=32, in_chans=1, num_outputs=2)
    optimizer = create_optimizer_v2(network, opt="adamw", lr=1e-3, weight_decay=0.05, layer_decay=0.5)
    found = {id(p): group for group in optimizer.param_groups for p in group["params"]}
    groups = {name: found[id(p)] for name, p in network.named_parameters()}
    scales = [groups[f"backbone.blocks.{k}.attn.qkv.weight"]["lr_scale"] for k in range(12)]
    assert scales == pytest.approx([0.5 ** (12 - k) for k in range(12)])
    assert groups["head.1.weight"]["lr_scale"] == 1
    assert groups["backbone.patch_embed.proj.weight"]["lr_scale"] == min(g["lr_scale"] for g in groups.values())
    assert groups["backbone.pos_embed"]["weight_decay"] == groups["head.1.bias"]["weight_decay"] == 0
    assert groups["head.1.weight"]["weight_decay"] == 0.05


@pytest.mark.parametrize(("name", "num_layers"), [("simple_cnn", 4 * 2 + 1), ("cvt_13", 22), ("pit_tiny", 19)])
def test_layers_without_a_table_of_timm_are_as_deep_as_they_stand(name: str, num_layers: int) -> None:
    network = build(name, image_size=32, in_chans=1, num_outputs=2)
    depth = network.group_matcher()
    depths = [depth(key) for key, _ in network.named_parameters()]
    assert depths == sorted(depths)
    assert len(set(depths)) == num_layers
    assert depth("head.1.weight") == max(depths) > depths[-3]


def exported(name: str, path: Path, *, in_chans: int) -> Network:
    """A network, and the file of it that `deeplense export` would write."""
    torch.manual_seed(2)
    network = build(name, image_size=32, in_chans=in_chans, num_outputs=5)
    save_file({key: value.contiguous() for key, value in network.state_dict().items()}, path)
    return network


def test_our_own_weights_are_taken_whatever_the_classes_and_summed_over_bands(tmp_path: Path) -> None:
    path = tmp_path / "own.safetensors"
    network = exported("simple_cnn", path, in_chans=3)
    for in_chans in (3, 1):
        other = build(
            "simple_cnn", image_size=32, in_chans=in_chans, num_outputs=2, pretrained=True, pretrained_file=path
        )
        given = dict(network.backbone.named_parameters())
        first = given["0.0.weight"]
        given["0.0.weight"] = nn.Parameter(first if in_chans == 3 else first.sum(dim=1, keepdim=True))
        for key, value in other.backbone.named_parameters():
            torch.testing.assert_close(value, given[key])


def test_our_own_weights_of_another_network_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "own.safetensors"
    exported("simple_cnn", path, in_chans=1)
    with pytest.raises(ValueError, match="does not contain the weights of cvt_13"):
        build("cvt_13", image_size=32, in_chans=1, num_outputs=2, pretrained=True, pretrained_file=path)
    path.write_bytes(b"no weights")
    with pytest.raises(ValueError, match="not a pure weight file"):
        build("simple_cnn", image_size=32, in_chans=1, num_outputs=2, pretrained=True, pretrained_file=path)


def test_attention_stands_between_a_map_and_its_outputs() -> None:
    torch.manual_seed(0)
    network = build("efficientnet_b2_attention", image_size=32, in_chans=1, num_outputs=3, dropout=0.1).eval()
    kinds = [type(layer).__name__ for layer in network.head]
    assert kinds == ["MapAttention", *["Linear", "PReLU", "BatchNorm1d", "Dropout"] * 3, "Linear"]
    with torch.no_grad():
        maps = network.backbone(noise(2, 1, 64, 64))
        mixed = network.head[0](maps)
        shuffled = network.head[0](maps.flatten(2)[..., torch.tensor([3, 1, 0, 2])].unflatten(2, (2, 2)))
    assert maps.shape == (2, 1408, 2, 2)
    torch.testing.assert_close(mixed, shuffled)
    with pytest.raises(ValueError, match="complex"):
        build("efficientnet_b2_attention", image_size=32, in_chans=1, num_outputs=3, extra_layers=True)

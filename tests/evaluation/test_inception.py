"""The network that FID is defined on: its structure against torch-fidelity's, and that no other file is taken."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from deeplense.evaluation import inception as module
from deeplense.evaluation.inception import NUM_FEATURES, inception, inception_features, load_inception, sha256, why_not


class Layers(nn.Module):
    """What the TorchScript file keeps its network in: 2048 means of the bands here, as (n, 2048, 1, 1)."""

    def forward(self, images: Tensor) -> Tensor:
        return images.mean(dim=(2, 3)).mean(dim=1).reshape(-1, 1, 1, 1).repeat(1, 2048, 1, 1)


class Script(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = Layers()

    def forward(self, images: Tensor) -> Tensor:
        return self.layers(images)


@pytest.fixture(scope="module")
def state() -> dict[str, Tensor]:
    """Random weights under the names of the published file, with features that neither vanish nor explode."""
    torch.manual_seed(0)
    from torchvision.models import inception_v3

    network = inception_v3(num_classes=1008, aux_logits=False, transform_input=False, init_weights=False)
    for part in network.modules():
        if isinstance(part, nn.Conv2d):
            nn.init.kaiming_normal_(part.weight)
        if isinstance(part, nn.BatchNorm2d):
            nn.init.uniform_(part.bias, -0.2, 0.2)
            part.running_mean = 0.1 * torch.randn_like(part.bias)
    return network.state_dict()


def test_features_are_those_of_torch_fidelity(state: dict[str, Tensor], tmp_path: Path) -> None:
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    torch.save(state, tmp_path / "weights.pth")
    weights = str(tmp_path / "weights.pth")
    theirs = FeatureExtractorInceptionV3("i", ["2048"], feature_extractor_weights_path=weights)
    images = torch.from_numpy(np.random.default_rng(0).integers(0, 256, size=(2, 3, 299, 299), dtype=np.uint8))
    with torch.no_grad():
        ours = inception(state)((images.float() - 128) / 128)
        expected = theirs(images)[0]
    assert ours.shape == (2, NUM_FEATURES)
    assert float(expected.std()) > 0.01
    torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-5)


def test_averages_leave_out_what_is_beyond_the_border_and_the_last_block_takes_the_maximum(
    state: dict[str, Tensor],
) -> None:
    network = inception(state)
    for name, bands in (("5b", 192), ("5d", 288), ("6b", 768), ("6e", 768), ("7b", 1280)):
        block = network.get_submodule(f"Mixed_{name}")
        pooled = block(torch.ones(1, bands, 7, 7))[:, -32:]
        torch.testing.assert_close(pooled, pooled[..., 3:4, 3:4].expand_as(pooled))
    last, images = network.get_submodule("Mixed_7c"), torch.rand(1, 2048, 8, 8)
    expected = last.get_submodule("branch_pool")(nn.MaxPool2d(3, stride=1, padding=1)(images))
    torch.testing.assert_close(last(images)[:, -192:], expected)


def test_torchvisions_own_pooling_would_give_other_features(state: dict[str, Tensor]) -> None:
    from torchvision.models import inception_v3

    plain = inception_v3(num_classes=1008, aux_logits=False, transform_input=False, init_weights=False).eval()
    plain.load_state_dict(state)
    plain.add_module("fc", nn.Identity())
    images = torch.randn(1, 3, 96, 96, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        ours, theirs = inception(state)(images), plain(images)
    assert float((ours - theirs).abs().mean()) > 0.05 * float(theirs.abs().mean())


def test_no_file_and_another_file_are_refused_by_name(tmp_path: Path) -> None:
    assert why_not(None) == "FID: not computed, because no weights were given (--fid_weights FILE)."
    missing = tmp_path / "none.pt"
    assert why_not(missing).startswith(f"FID: not computed, because {missing} does not exist.")
    other = tmp_path / "other.pt"
    other.write_bytes(b"something else")
    assert sha256(other)[:12] in why_not(other)
    assert "f58cb9b6ec32" in why_not(other)
    for path in (missing, other):
        with pytest.raises(ValueError, match="FID: not computed"):
            load_inception(path)


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
def test_both_kinds_of_files_are_loaded_once_they_are_known(
    state: dict[str, Tensor], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script, plain = tmp_path / "script.pt", tmp_path / "state.pth"
    torch.jit.script(Script()).save(script)
    torch.save(state, plain)
    monkeypatch.setattr(module, "SCRIPT", sha256(script))
    monkeypatch.setattr(module, "SOURCES", {sha256(script): "script", sha256(plain): "state"})
    images = np.full((3, 1, 20, 20), 0.75, dtype=np.float32)
    means = inception_features(load_inception(script), images, low=0.5, high=1.0, batch_size=2)
    np.testing.assert_allclose(means, (127.5 - 128) / 128, atol=1e-6)
    assert means.shape == (3, NUM_FEATURES)
    assert load_inception(plain)(torch.full((1, 3, 96, 96), 128.0)).shape == (1, NUM_FEATURES)


def test_what_is_shown_is_one_range_for_all_images_clipped_at_its_ends() -> None:
    levels = np.array([-9.0, 0.0, 1.0, 2.0, 9.0], dtype=np.float32)
    images = np.broadcast_to(levels[:, None, None, None], (5, 3, 8, 8))
    shown = inception_features(lambda images: images.mean(dim=(2, 3)), images, low=0.0, high=2.0)
    np.testing.assert_allclose(shown, np.broadcast_to([[0], [0], [127.5], [255], [255]], (5, 3)), atol=1e-3)
    steep = np.random.default_rng(0).normal(scale=5, size=(2, 1, 8, 8)).astype(np.float32)
    first, clipped = (
        inception_features(lambda x: x.flatten(1), each, low=0.0, high=2.0) for each in (steep, steep.clip(0, 2))
    )
    np.testing.assert_array_equal(first, clipped)
    assert (first.min(), first.max()) == (0, 255)


def test_two_bands_are_refused() -> None:
    with pytest.raises(ValueError, match="2 bands"):
        inception_features(lambda images: images, np.zeros((1, 2, 8, 8), dtype=np.float32), low=0.0, high=1.0)

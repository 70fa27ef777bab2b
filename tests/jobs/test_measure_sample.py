"""The measurement of sampling: the same network on both sides, and a word where the other side is missing."""

import pytest
import torch

from deeplense.diffusion.unet import SMALL, UNet
from jobs.benchmark import sample
from jobs.benchmark import settings as benchmark_settings

SETTINGS = benchmark_settings.Settings(
    what="sample", model_name="unet_small", image_size=16, num_steps=2, rounds=1, batch_size=2, device="cpu"
)


def test_both_sides_have_the_same_network() -> None:
    torch.manual_seed(0)
    network = UNet(1, shape=SMALL).eval()
    torch.nn.init.normal_(network.last.weight)
    peer = sample.make_peer(network, SMALL)
    images, times = torch.randn(2, 1, 16, 16), torch.tensor([3.0, 700.0])
    with torch.no_grad():
        torch.testing.assert_close(network(images, times), peer(images, times).sample, atol=1e-5, rtol=1e-5)


def test_each_sampler_has_a_line_and_without_the_other_side_a_word(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = sample.measure(SETTINGS)
    assert [row.what.split(", ")[1] for row in rows] == ["ddpm", "ddim", "dpm_solver"]
    for row in rows:
        assert row.ours
        assert row.other
        assert row.ratio
        assert row.extra["s a batch"] == pytest.approx(SETTINGS.batch_size / row.ours)
    monkeypatch.setattr(sample, "find_spec", lambda name: None)
    for row in sample.measure(SETTINGS):
        assert row.ours
        assert row.ratio is None
        assert "pip install" in row.note


def test_a_network_of_another_kind_is_refused() -> None:
    with pytest.raises(ValueError, match="resnet18 is not a diffusion network; choose from unet, "):
        sample.measure(benchmark_settings.Settings(what="sample", model_name="resnet18"))

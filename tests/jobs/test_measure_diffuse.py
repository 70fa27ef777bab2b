"""The measurement of diffusion training: both sides learn, and the operations are those of the network."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from deeplense.diffusion.unet import SMALL, UNet
from jobs.benchmark import diffuse
from jobs.benchmark import settings as benchmark_settings

SETTINGS = benchmark_settings.Settings(
    what="diffuse", model_name="unet_small", image_size=16, rounds=1, batch_size=2, device="cpu"
)


def test_both_sides_are_timed_and_held_against_products_of_matrices(monkeypatch: pytest.MonkeyPatch) -> None:
    (row,) = diffuse.measure(SETTINGS)
    assert row.ours
    assert row.other
    assert row.ratio
    assert 0 < row.extra["of matrix products"] < 1
    monkeypatch.setattr(diffuse, "find_spec", lambda name: None)
    (alone,) = diffuse.measure(SETTINGS)
    assert alone.ratio is None
    assert "pip install" in alone.note


def test_the_other_side_learns(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[torch.Tensor] = []
    updates = diffuse.updates_of_diffusers

    def watched(peer: torch.nn.Module, *given: object) -> object:
        for _ in updates(peer, *given):  # type: ignore[arg-type]
            seen.append(torch.cat([parameter.detach().flatten().clone() for parameter in peer.parameters()]))
            yield

    monkeypatch.setattr(diffuse, "updates_of_diffusers", watched)
    diffuse.measure(SETTINGS)
    assert len(seen) == 2
    assert not torch.equal(seen[0], seen[1])


def test_operations_grow_with_the_pixels_and_backward_takes_twice_as_many() -> None:
    network = UNet(1, shape=SMALL)
    sizes = (benchmark_settings.Settings(what="diffuse", image_size=size) for size in (16, 32))
    of = {each.image_size: diffuse.count_operations(network, each) for each in sizes}
    assert 3.9 < of[32] / of[16] < 4.3
    with FlopCounterMode(display=False) as counter:
        network(torch.zeros(1, 1, 32, 32), torch.zeros(1))
    assert 2.5 < of[32] / counter.get_total_flops() < 3.1


def test_a_network_of_another_kind_is_refused() -> None:
    with pytest.raises(ValueError, match="resnet18 is not a diffusion network; choose from unet, "):
        diffuse.measure(benchmark_settings.Settings(what="diffuse", model_name="resnet18"))

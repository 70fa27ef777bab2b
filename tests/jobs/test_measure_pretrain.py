"""`deeplense benchmark pretrain`: both sides learn the same from as many views."""

import contextlib

import pytest
import torch
from torch import Tensor, nn

from deeplense.models.registry import build
from deeplense.models.tokens import encoder_of
from deeplense.ssl.dino import DINO
from deeplense.ssl.views import LENSES
from jobs.benchmark import pretrain
from jobs.benchmark.pretrain import Lightly, Viewed, measure, repeated, updates_of_lightly
from jobs.benchmark.settings import Settings

SMALL = Settings(what="pretrain", model_name="test_vit", batch_size=4, rounds=1, device="cpu")


def peer() -> Lightly:
    """The other side."""
    torch.manual_seed(0)
    return Lightly(build("test_vit", image_size=32, in_chans=3, num_outputs=1))


def learning(module: nn.Module) -> int:
    """Numbers that are learnt."""
    return sum(parameter.numel() for parameter in module.parameters() if parameter.requires_grad)


def views() -> list[Tensor]:
    """Of two images by the other side."""
    torch.manual_seed(1)
    made = Viewed(torch.randn(2, 3, 32, 32))
    return [torch.stack(view) for view in zip(*(made[k] for k in range(2)), strict=True)]


def test_both_sides_have_as_many_parameters_and_views() -> None:
    network = build("test_vit", image_size=32, in_chans=3, num_outputs=1)
    ours = DINO(encoder_of(network), num_features=64, num_steps=1, out_dim=1024)
    assert learning(ours) == learning(peer())
    expected = [LENSES.global_size] * LENSES.num_global + [LENSES.local_size] * LENSES.num_local
    assert [view.shape[-1] for view in views()] == expected


def learnt(given: list[Tensor], *, grouped: bool) -> Tensor:
    """All numbers after one update of the other side."""
    model = peer()
    next(updates_of_lightly(model, repeated(given), precise=contextlib.nullcontext, grouped=grouped))
    return torch.cat([parameter.detach().flatten() for parameter in model.parameters()])


def test_the_other_side_learns_the_same_with_a_pass_for_each_view_or_for_each_size() -> None:
    each, sizes = (learnt(views(), grouped=grouped) for grouped in (False, True))
    turned = learnt([view.flip(0, -1) for view in views()], grouped=True)

    # The first update of Adam is the learning rate times the sign of a gradient, which may be nothing but rounding.
    def share_alike(other: Tensor) -> float:
        return ((each - other).abs() < 1e-5).float().mean().item()

    assert share_alike(sizes) > 0.999
    assert share_alike(turned) < 0.9, "the negative control"


def test_a_benchmark_has_a_row_for_all_and_for_the_parts() -> None:
    rows = measure(SMALL)
    assert [row.what.split(",")[0] for row in rows] == ["DINO", "update alone", "update alone", "views alone"]
    for row in rows:
        assert row.ratio is not None
        assert row.ratio > 0
        assert row.unit == "images/s"


def test_where_there_is_no_lightly_that_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pretrain, "find_spec", lambda name: None)
    (row,) = measure(SMALL)
    assert row.ours is None
    assert "pip install --no-deps lightly" in row.note

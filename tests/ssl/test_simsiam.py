"""SimSiam: its loss, its stop-gradient, and what becomes of it without."""

from contextlib import AbstractContextManager, nullcontext
from unittest.mock import patch

import pytest
import torch
from lightly.loss import NegativeCosineSimilarity
from tiny import make, make_batch
from torch import Tensor, nn

from deeplense.ssl.collapse import embedding_std


def without_stop_gradient() -> AbstractContextManager[object]:
    """Nothing is detached."""
    return patch.object(Tensor, "detach", lambda tensor: tensor)


def test_the_loss_is_that_of_lightly() -> None:
    method = make("simsiam")
    (large,), random = make_batch(method, 0, small=0)
    oracle = NegativeCosineSimilarity()
    z = [method.projector(method.backbone(view)) for view in large]
    p = [method.predictor(projection) for projection in z]
    expected = (oracle(p[0], z[1].detach()) + oracle(p[1], z[0].detach())) / 2
    metrics = method([large], random, 0)
    assert metrics["loss"].item() == pytest.approx(expected.item(), abs=1e-6)
    assert metrics["projection_std"].item() == pytest.approx(embedding_std(z[0].detach()).item(), abs=1e-6)
    expected_gradients = torch.autograd.grad(expected, list(method.parameters()))
    for found, wanted in zip(
        torch.autograd.grad(metrics["loss"], list(method.parameters())), expected_gradients, strict=True
    ):
        assert torch.allclose(found, wanted, atol=1e-6)


def test_small_views_predict_large_ones_and_are_not_predicted() -> None:
    method = make("simsiam")
    views, random = make_batch(method, 0, small=2)
    z = [method.projector(method.backbone(view)) for group in views for view in group]
    p = [method.predictor(projection) for projection in z]
    oracle = NegativeCosineSimilarity()
    terms = [oracle(p[s], z[t]) for t in range(2) for s in range(4) if s != t]
    assert method(views, random, 0)["loss"].item() == pytest.approx(torch.stack(terms).mean().item(), abs=1e-6)


def test_projections_are_aims_and_learn_nothing_by_it() -> None:
    """The gradient with respect to a projection goes through its own prediction alone."""
    method = make("simsiam")
    views, random = make_batch(method, 0, small=0)
    seen: list[Tensor] = []
    method.projector.register_forward_hook(lambda *call: call[2].retain_grad() or seen.append(call[2]))

    def gradients() -> list[Tensor | None]:
        seen.clear()
        method.zero_grad()
        method(views, random, 0)["loss"].backward()
        return [projection.grad for projection in seen]

    with patch.object(method.predictor, "forward", lambda projection: projection.detach().requires_grad_()):
        assert gradients() == [None, None]
        with without_stop_gradient():
            assert [gradient is None for gradient in gradients()] == [False, False]


def test_a_view_s_statistics_are_its_own() -> None:
    method, other = (make("simsiam") for _ in range(2))
    (large,), random = make_batch(method, 0, small=0)
    method([large], random, 0)
    other([torch.cat([large, 100 * large[:1]])], random, 0)
    assert method.projector[1].num_batches_tracked == 2
    assert other.projector[1].num_batches_tracked == 3
    moved = method.projector(method.backbone(large[0]))
    assert torch.allclose(moved, other.projector(other.backbone(large[0])), atol=1e-6)


@pytest.mark.parametrize(("context", "collapses"), [(nullcontext, False), (without_stop_gradient, True)])
def test_it_collapses_without_the_stop_gradient_alone(
    context: "type[AbstractContextManager[object]]", collapses: bool
) -> None:
    method = make("simsiam")
    # Otherwise the last batch norm blows up what little is left of the differences.
    method.projector[-1] = nn.Identity()
    optimizer = torch.optim.SGD(method.parameters(), lr=0.2, momentum=0.9)
    metrics: dict[str, Tensor] = {}
    for step in range(80):
        views, random = make_batch(method, step, batch=16, small=0)
        with context():
            metrics = method(views, random, step)
        optimizer.zero_grad()
        metrics["loss"].backward()
        optimizer.step()
    assert (metrics["projection_std"] < 0.1) == collapses
    assert (metrics["projection_std"] > 0.6) == (not collapses)
    assert (metrics["loss"] < -0.99) == collapses

"""What a network is asked for, how it learns, and how it is used."""

from dataclasses import replace
from typing import get_args

import pytest
import torch
from exact import noise_of, of_gaussian
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounter

from deeplense.diffusion.conditions import Conditions
from deeplense.diffusion.denoiser import (
    Denoiser,
    Loss,
    Target,
    add_noise,
    errors,
    guided,
    image_of,
    loss_weights,
    target_of,
    weights_at,
)
from deeplense.diffusion.samplers import ddim, dpm_solver, sample
from deeplense.diffusion.schedules import alpha_sigma, cosine
from deeplense.diffusion.unet import SMALL, Shape, UNet

COSINE = cosine()
TARGETS: tuple[Target, ...] = get_args(Target)
CONDITIONS = torch.tensor([[0.0, 1.2], [2.0, torch.nan], [torch.nan, 0.7], [torch.nan, torch.nan]])


class Exact(nn.Module):
    """A network that says what is best for Gaussian pixels, as any target."""

    def __init__(self, target: Target) -> None:
        super().__init__()
        self.target: Target = target
        self.denoise = of_gaussian(COSINE, mean=0.3, std=0.5)

    def forward(self, noisy: Tensor, times: Tensor, embedding: Tensor | None) -> Tensor:
        alpha, sigma = weights_at(COSINE, times, noisy)
        image = self.denoise(noisy, times)
        return target_of(image, (noisy - alpha * image) / sigma, alpha=alpha, sigma=sigma, target=self.target)


class Sees(nn.Module):
    """A network that keeps what it is shown, and says zero, or what it is told."""

    def __init__(self, answer: float = 0.0) -> None:
        super().__init__()
        self.answer = nn.Parameter(torch.tensor(answer))

    def forward(self, noisy: Tensor, times: Tensor, embedding: Tensor | None) -> Tensor:
        self.shown = noisy, times, torch.zeros(0) if embedding is None else embedding
        return 0 * noisy + self.answer


def conditions_of(dim: int = 8) -> Conditions:
    """Three classes and a radius."""
    torch.manual_seed(0)
    return Conditions(dim, num_classes=3, mean=[1.0], std=[0.3])


def small(*, conditions: Conditions | None = None, shape: Shape = SMALL, target: Target = "v") -> Denoiser:
    """A small U-Net with no zero in it."""
    torch.manual_seed(1)
    network = UNet(1, shape=shape)
    for parameter in network.parameters():
        if not parameter.any():
            nn.init.normal_(parameter, std=0.05)
    return Denoiser(network, COSINE, conditions=conditions, target=target).eval()


def uniforms_of(batch: int, seed: int = 0) -> Tensor:
    """Random numbers of a training."""
    return torch.rand(batch, Denoiser.columns.total, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("time", [0, 10, 500, 900, 999])
def test_an_image_in_noise_has_the_moments_of_its_time(time: int) -> None:
    noise = torch.randn(40, 1, 50, 50, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    noisy = add_noise(torch.full_like(noise, 0.7), noise, torch.full((40,), time), COSINE)
    level, count = alpha_sigma(COSINE)[0][time].item() ** 2, noise.numel()
    assert noisy.mean().item() == pytest.approx(0.7 * level**0.5, abs=4 * ((1 - level) / count) ** 0.5)
    assert noisy.var().item() == pytest.approx(1 - level, rel=4 * (2 / count) ** 0.5)


@pytest.mark.parametrize("target", TARGETS)
def test_targets_and_images_are_two_ways_to_say_the_same(target: Target) -> None:
    image, noise = torch.randn(2, 1000, 1, 2, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    alpha, sigma = weights_at(COSINE, torch.arange(1000), image)
    noisy = add_noise(image, noise, torch.arange(1000), COSINE)
    output = target_of(image, noise, alpha=alpha, sigma=sigma, target=target)
    found = image_of(output, noisy, alpha=alpha, sigma=sigma, target=target)
    assert (found - image).abs().max() < 1e-6
    assert ((noisy - alpha * found) / sigma - noise).abs().max() < 1e-6
    if target == "v":
        assert ((noisy - alpha * image) * alpha - sigma**2 * image - sigma * output).abs().max() < 1e-9


def test_any_target_gives_the_same_sample_with_the_best_denoiser() -> None:
    noise = noise_of(0, range(4), (1, 3, 3))
    best = of_gaussian(COSINE, mean=0.3, std=0.5)
    for plan in (ddim(COSINE, 50), dpm_solver(COSINE, 20)):
        images = [sample(Denoiser(Exact(target), COSINE, target=target).denoise, plan, noise) for target in TARGETS]
        for each in images:
            assert (each - sample(best, plan, noise)).abs().max() < 1e-6


def test_min_snr_weights_are_those_of_the_paper_for_each_target() -> None:
    snr = torch.tensor([1e-3, 0.5, 4.9, 5.0, 5.1, 1000.0], dtype=torch.float64)
    weights = {target: loss_weights(snr.log(), target=target, min_snr_gamma=5) for target in TARGETS}
    least = snr.clamp(max=5)
    assert torch.allclose(weights["x0"], least)
    assert torch.allclose(weights["eps"], least / snr)
    assert torch.allclose(weights["v"], least / (snr + 1))
    assert torch.equal(loss_weights(snr.log(), target="v", min_snr_gamma=None), torch.ones(6, dtype=torch.float64))


def test_with_min_snr_the_loss_of_one_denoiser_is_the_same_whatever_it_is_asked_for() -> None:
    image, noise = torch.randn(2, 5, 1, 4, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    times = torch.tensor([3, 200, 500, 800, 990])
    losses = [
        Denoiser(Exact(target), COSINE, target=target, min_snr_gamma=5).losses(image, noise, times)
        for target in TARGETS
    ]
    assert torch.allclose(losses[0], losses[1], rtol=1e-6)
    assert torch.allclose(losses[0], losses[2], rtol=1e-6)
    plain = [Denoiser(Exact(target), COSINE, target=target).losses(image, noise, times) for target in TARGETS]
    assert not torch.allclose(plain[0], plain[1], rtol=0.1), "without, it is not"


@pytest.mark.parametrize(("loss", "best"), [("l2", 0.2), ("l1", 0.0), ("huber", 1 / 9)])
def test_the_best_answer_is_the_mean_or_the_median_or_between(loss: Loss, best: float) -> None:
    # An arc of brightness 2 is in one of ten images. The slopes of Huber's loss are 9 a from the dark ones, 1 from it.
    pixels = torch.tensor([2.0] + [0.0] * 9, dtype=torch.float64)[:, None]
    answers = torch.linspace(-0.5, 1, 3001, dtype=torch.float64)
    losses = torch.stack([errors(answer.expand_as(pixels), pixels, loss).mean() for answer in answers])
    assert answers[losses.argmin()].item() == pytest.approx(best, abs=1e-3)


@pytest.mark.parametrize("loss", get_args(Loss))
def test_the_loss_is_that_of_the_target_at_the_time_drawn(loss: Loss) -> None:
    network = Sees(0.25)
    model = Denoiser(network, COSINE, target="v", loss=loss)
    images = torch.randn(6, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    uniforms = uniforms_of(6)
    value = model(images, uniforms)["loss"]
    noisy, times, _ = network.shown
    assert torch.equal(times, (uniforms[:, 0] * 1000).floor())
    alpha, sigma = weights_at(COSINE, times, images)
    noise = (noisy - alpha * images) / sigma
    difference = alpha * noise - sigma * images - 0.25
    expected = {"l2": difference**2, "l1": difference.abs()}
    expected["huber"] = torch.where(difference.abs() < 1, difference**2, 2 * difference.abs() - 1)
    assert value.item() == pytest.approx(expected[loss].mean().item(), rel=1e-4)
    assert noise.std().item() == pytest.approx(1, abs=0.15)


def test_a_training_draws_the_same_for_an_image_in_any_batch() -> None:
    network = Sees()
    model = Denoiser(network, COSINE, conditions=conditions_of(), drop_share=0.5)
    images = torch.randn(8, 2, 5, 5, generator=torch.Generator().manual_seed(0))
    uniforms, conditions = uniforms_of(8), torch.ones(8, 2)
    model(images, uniforms, conditions)
    together = network.shown
    for k in range(8):
        model(images[k : k + 1], uniforms[k : k + 1], conditions[k : k + 1])
        noisy, times, embedding = network.shown
        assert torch.equal(noisy[0], together[0][k])
        assert torch.equal(times[0], together[1][k])
        assert torch.allclose(embedding[0], together[2][k], atol=1e-6)
    for column in range(4):
        others = uniforms.clone()
        others[:, column] = torch.rand(8, generator=torch.Generator().manual_seed(9))
        model(images, others, conditions)
        changed = [not torch.equal(a, b) for a, b in zip(network.shown, together, strict=True)]
        assert changed == {0: [True, True, False], 1: [False, False, True]}.get(column, [True, False, False])


def test_each_time_is_drawn_as_often_and_none_is_outside() -> None:
    network = Sees()
    model = Denoiser(network, cosine(10))
    uniforms = uniforms_of(4000)
    uniforms[:2, 0] = torch.tensor([0.0, 1 - 2.0**-24])
    model(torch.zeros(4000, 1, 1, 1), uniforms)
    counts = torch.bincount(network.shown[1].long())
    assert len(counts) == 10
    assert (counts - 400).abs().max() < 80


def test_the_share_of_images_of_which_nothing_is_said_is_that_asked_for() -> None:
    network = Sees()
    model = Denoiser(network, COSINE, conditions=conditions_of(), drop_share=0.2)
    assert model.conditions is not None
    model(torch.zeros(2000, 1, 1, 1), uniforms_of(2000), torch.ones(2000, 2))
    null = model.conditions(torch.full((1, 2), torch.nan))
    dropped = (network.shown[2] - null).abs().amax(dim=1) < 1e-6
    assert torch.equal(dropped, uniforms_of(2000)[:, 1] < 0.2)
    assert dropped.float().mean().item() == pytest.approx(0.2, abs=0.04)


def test_what_is_not_said_changes_nothing_and_what_is_said_does() -> None:
    conditions = conditions_of()
    rows = conditions(CONDITIONS)
    assert rows.shape == (4, 8)
    assert rows.isfinite().all()
    said = torch.cartesian_prod(torch.tensor([0.0, 1, 2, torch.nan]), torch.tensor([0.7, 1.0, torch.nan]))
    assert len(torch.unique(conditions(said)[:, 0])) == 12
    assert torch.equal(conditions(CONDITIONS[[3]]), conditions(torch.full((1, 2), torch.nan)))
    at_mean, nothing = conditions(torch.tensor([[0.0, 1.0], [0.0, torch.nan]]))
    assert not torch.allclose(at_mean, nothing), "a radius at the mean is not one that is unknown"
    rows.sum().backward()
    assert all(parameter.grad is not None and parameter.grad.isfinite().all() for parameter in conditions.parameters())


def test_parameters_are_given_in_their_own_unit() -> None:
    conditions = conditions_of()
    other = Conditions(8, num_classes=3, mean=[1000.0], std=[300.0])
    other.load_state_dict(conditions.state_dict() | {"mean": other.mean, "std": other.std})
    assert torch.allclose(conditions(torch.tensor([[1.0, 1.3]])), other(torch.tensor([[1.0, 1300.0]])), atol=1e-6)
    assert {"mean", "std"} <= conditions.state_dict().keys(), "a sampler must not guess them"


def test_only_classes_or_only_parameters_can_be_said() -> None:
    assert Conditions(8, num_classes=3)(torch.tensor([[2.0], [torch.nan]])).shape == (2, 8)
    assert Conditions(8, mean=[0.0, 1.0], std=[1.0, 1.0])(torch.zeros(5, 2)).shape == (5, 8)


def test_conditions_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match=r"conditions have shape \(4, 3\); it must be \(batch, 2\)"):
        conditions_of()(torch.zeros(4, 3))
    with pytest.raises(ValueError, match="give num_classes, or mean and std"):
        Conditions(8)
    with pytest.raises(ValueError, match="must have the same length"):
        Conditions(8, mean=[1.0], std=[0.0])
    with pytest.raises(ValueError, match="model is unconditional; remove them"):
        small().denoise(torch.zeros(1, 1, 8, 8), torch.zeros(1), torch.zeros(1, 2))


def test_guidance_of_1_is_with_the_conditions_and_0_without() -> None:
    model = small(conditions=conditions_of(64))
    noisy, times = torch.randn(4, 1, 8, 8, generator=torch.Generator().manual_seed(0)), torch.tensor([0.0, 9, 500, 999])
    with torch.no_grad():
        along, without = model.denoise(noisy, times, CONDITIONS), model.denoise(noisy, times)
        assert torch.equal(guided(model.denoise, CONDITIONS)(noisy, times), along)
        assert torch.equal(guided(model.denoise, CONDITIONS, scale=0)(noisy, times), without)
        assert (along - without)[:3].abs().amax(dim=(1, 2, 3)).min() > 1e-6
        for scale in (0.5, 3.0):
            expected = without + scale * (along - without)
            assert torch.allclose(guided(model.denoise, CONDITIONS, scale=scale)(noisy, times), expected, atol=1e-4)


def test_guidance_moves_samples_towards_what_is_asked_for() -> None:
    def denoise(noisy: Tensor, times: Tensor, conditions: Tensor) -> Tensor:
        means = conditions.nan_to_num(0).view(-1, 1, 1, 1)
        return of_gaussian(COSINE, mean=0, std=0.5)(noisy, times) + means

    means = []
    for scale in (0.0, 1.0, 2.0):
        guide = guided(denoise, torch.full((500, 1), 0.7), scale=scale)
        means.append(sample(guide, ddim(COSINE, 20), noise_of(0, range(500))).mean().item())
    assert means[0] == pytest.approx(0, abs=0.1)
    assert means[2] - means[1] == pytest.approx(means[1] - means[0], rel=1e-6)
    assert means[1] > 0.5


def test_one_graph_does_all_times() -> None:
    model = small(conditions=conditions_of(64), shape=replace(SMALL, channels=(16, 64)), target="eps")
    noisy, counter = torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(0)), CompileCounter()
    torch._dynamo.reset()
    compiled = torch.compile(model.denoise, fullgraph=True, backend=counter)
    with torch.no_grad():
        for time in (999, 500, 3, 0):
            times = torch.tensor(float(time), dtype=torch.float64).expand(2)
            assert torch.allclose(compiled(noisy, times, CONDITIONS[:2]), model.denoise(noisy, times, CONDITIONS[:2]))
    assert counter.frame_count == 1
    learn = torch.compile(model, fullgraph=True, backend="eager")
    for seed in range(2):
        batch = noisy, uniforms_of(2, seed), CONDITIONS[:2]
        assert torch.allclose(learn(*batch)["loss"], model(*batch)["loss"])


def test_a_network_learns_where_the_gaussian_is() -> None:
    class Line(nn.Module):
        """The best denoiser of a Gaussian as x0 is a line in x, with a slope and a level for each time."""

        def __init__(self) -> None:
            super().__init__()
            self.table = nn.Parameter(torch.zeros(20, 2))

        def forward(self, noisy: Tensor, times: Tensor, embedding: Tensor | None) -> Tensor:
            slope, level = self.table[times.long()].T[..., None, None, None]
            return slope * noisy + level

    schedule = cosine(20)
    model = Denoiser(Line(), schedule, target="x0")
    optimizer = torch.optim.Adam(model.parameters(), lr=0.03)
    generator = torch.Generator().manual_seed(0)
    for _ in range(600):
        images = 0.3 + 0.5 * torch.randn(512, 1, 1, 1, generator=generator)
        loss = model(images, torch.rand(512, 4, generator=generator))["loss"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    best = of_gaussian(schedule, mean=0.3, std=0.5)
    points = torch.tensor([-0.5, 0.5]).view(2, 1, 1, 1)
    for time in range(20):
        times = torch.full((2,), time)
        assert (model.denoise(points, times) - best(points.double(), times)).abs().max() < 0.1


def test_steps_of_training_are_repeated_to_the_bit() -> None:
    images, uniforms = torch.randn(4, 1, 8, 8, generator=torch.Generator().manual_seed(0)), uniforms_of(4)
    runs = []
    for _ in range(2):
        model = small(conditions=conditions_of(64))
        torch.manual_seed(len(runs) + 77)
        model(images, uniforms, CONDITIONS)["loss"].backward()
        runs.append([parameter.grad for parameter in model.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*runs, strict=True))


def test_the_schedule_is_not_in_the_state_and_weights_go_round() -> None:
    model = small(conditions=conditions_of(64))
    other = small(conditions=Conditions(64, num_classes=3, mean=[0.0], std=[9.0]))
    assert "schedule" not in model.state_dict()
    other.load_state_dict(model.state_dict())
    noisy = torch.zeros(4, 1, 8, 8)
    with torch.no_grad():
        assert torch.equal(
            other.denoise(noisy, torch.ones(4), CONDITIONS), model.denoise(noisy, torch.ones(4), CONDITIONS)
        )

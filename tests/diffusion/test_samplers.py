"""From noise to images: with denoisers that are exact, what is wrong is the sampler."""

import math
from collections.abc import Callable
from functools import partial
from typing import Literal

import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler, DPMSolverMultistepScheduler
from exact import (
    moments,
    noise_of,
    of_field,
    of_gaussian,
    of_images,
    of_mixture,
    one_at_a_time,
)
from torch import Tensor, nn

from deeplense.diffusion.denoiser import Denoise, Denoiser, clipped
from deeplense.diffusion.samplers import (
    Plan,
    ddim,
    ddpm,
    dpm_solver,
    even_log_snr,
    even_times,
    heun,
    sample,
    walk,
)
from deeplense.diffusion.schedules import alpha_sigma, cosine, linear, log_snr_at
from deeplense.diffusion.unet import SMALL, UNet
from deeplense.diffusion.zoo import SAMPLERS, SCHEDULES
from deeplense.random.noise import image_keys, normals

COSINE = cosine()
MEAN, STD = 0.3, 0.5
GAUSSIAN = of_gaussian(COSINE, mean=MEAN, std=STD)


def sampled_moments(plan: Plan, schedule: Tensor = COSINE) -> tuple[float, float]:
    """Mean and standard deviation of what is sampled of the Gaussian, with no error of sampling."""
    denoise = of_gaussian(schedule, mean=MEAN, std=STD)
    return moments(sample(denoise, plan, one_at_a_time(len(plan) + 1)))


@pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES)
@pytest.mark.parametrize(
    ("plan", "tolerance"),
    [
        (partial(ddpm, num_steps=1000), 0.005),
        (partial(ddim, num_steps=1000), 0.005),
        (partial(ddim, num_steps=1000, eta=0.5), 0.005),
        (partial(dpm_solver, num_steps=100), 0.005),
        (partial(heun, num_steps=50), 0.005),
        (partial(dpm_solver, num_steps=20), 0.012),
        (partial(heun, num_steps=20), 0.006),
    ],
)
def test_a_gaussian_comes_out_with_its_mean_and_width(
    plan: Callable[[Tensor], Plan], tolerance: float, schedule: Callable[[int], Tensor]
) -> None:
    log_snr = schedule(1000)
    mean, std = sampled_moments(plan(log_snr), log_snr)
    assert mean == pytest.approx(MEAN, abs=tolerance)
    assert std == pytest.approx(STD, abs=tolerance)


def test_a_planted_fault_is_seen_in_the_moments() -> None:
    plan = ddpm(COSINE, 1000)
    loud = Plan(plan.times, plan.weights * torch.tensor([1, 1, 1, 1.05]))
    shifted = Plan((plan.times - 20).clamp(min=0), plan.weights)
    assert sampled_moments(loud)[1] > STD + 0.01
    assert abs(sampled_moments(shifted)[1] - STD) > 0.01


def test_the_moments_to_the_last_digit_are_those_of_many_samples() -> None:
    plan = ddpm(COSINE, 50)
    images = sample(GAUSSIAN, plan, noise_of(0, range(20000)))
    mean, std = sampled_moments(plan)
    assert images.mean().item() == pytest.approx(mean, abs=4 * std / 20000**0.5)
    assert images.std().item() == pytest.approx(std, abs=4 * std / 40000**0.5)
    assert std < STD - 0.01, "50 steps of ddpm are too smooth"


def test_ddim_with_all_its_noise_is_ddpm() -> None:
    for num_steps in (1, 2, 50, 1000):
        ours, other = ddpm(COSINE, num_steps), ddim(COSINE, num_steps, eta=1.0)
        assert torch.equal(ours.times, other.times)
        assert (ours.weights - other.weights).abs().max() < 1e-12
    noise = noise_of(0, range(8), (1, 4, 4))
    images = [sample(GAUSSIAN, plan(COSINE, 100), noise) for plan in (ddpm, partial(ddim, eta=1.0))]
    assert (images[0] - images[1]).abs().max() < 1e-12


@pytest.mark.parametrize(("schedule", "theirs"), [(cosine(), "squaredcos_cap_v2"), (linear(), "linear")])
@pytest.mark.parametrize("n", [0, 1, 300, 700, 990, 999])
def test_a_step_of_ddpm_is_that_of_diffusers(
    schedule: Tensor, theirs: Literal["linear", "squaredcos_cap_v2"], n: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    fresh, image, denoised = (torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(k)) for k in range(3))
    denoised = denoised.clamp(-1, 1)
    plan = ddpm(schedule, 1000)
    noises = {0: image, 1: fresh}
    ours = next(walk(lambda noisy, times: denoised, Plan(plan.times[n:], plan.weights[n:]), noises.__getitem__))
    oracle = DDPMScheduler(
        1000, beta_schedule=theirs, prediction_type="sample", variance_type="fixed_small", clip_sample=False
    )
    monkeypatch.setattr("diffusers.schedulers.scheduling_ddpm.randn_tensor", lambda *args, **settings: fresh)
    step = oracle.step(denoised, int(plan.times[n]), image)
    assert (ours - step[0]).abs().max() < 5e-4, "their schedule is float32"


@pytest.mark.parametrize("eta", [0.0, 0.7])
@pytest.mark.parametrize("time", [999, 600, 20, 10])
def test_a_step_of_ddim_is_that_of_diffusers(eta: float, time: int) -> None:
    oracle = DDIMScheduler(
        1000,
        beta_schedule="squaredcos_cap_v2",
        prediction_type="sample",
        clip_sample=False,
        timestep_spacing="trailing",
        set_alpha_to_one=False,
    )
    oracle.set_timesteps(100)
    fresh, image, denoised = (torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(k)) for k in range(3))
    step = oracle.step(denoised, time, image, eta=eta, variance_noise=fresh if eta else None)
    schedule = COSINE[[0, max(time - 10, 0), time]]
    plan = ddim(schedule, 3, eta=eta)
    noises = {0: image, 1: fresh}
    ours = next(walk(lambda noisy, times: denoised, plan, noises.__getitem__))
    assert (ours - step[0]).abs().max() < 5e-4


def test_steps_of_dpm_solver_are_those_of_diffusers() -> None:
    oracle = DPMSolverMultistepScheduler(
        1000, beta_schedule="linear", prediction_type="sample", final_sigmas_type="zero", use_lu_lambdas=True
    )
    oracle.set_timesteps(12)
    sigmas = oracle.sigmas[:-1].double()
    # Their times are rounded; their signal-to-noise ratios are not.
    schedule = torch.log(1 / sigmas.flip(0) ** 2)
    alpha, _ = alpha_sigma(schedule.flip(0))
    image, *denoised = torch.randn(13, 1, 1, 4, 4, generator=torch.Generator().manual_seed(0)).double()
    theirs = image
    for time, each in zip(oracle.timesteps, denoised, strict=True):
        theirs = oracle.step(each, time, theirs)[0]
    answers = iter(denoised)
    plan = dpm_solver(schedule, 12)
    assert torch.allclose(alpha_sigma(log_snr_at(schedule, plan.times))[0], alpha, atol=1e-3)
    ours = sample(lambda noisy, times: next(answers), plan, lambda step: image)
    assert (ours - theirs).abs().max() < 1e-3 * theirs.abs().max()


def flow_error(plan: Callable[[Tensor, int], Plan], num_steps: int, denoise: Denoise, best: Tensor) -> float:
    """How far samples are from where the flow leads."""
    noise = noise_of(3, range(200))
    return (sample(denoise, plan(FINE, num_steps), noise) - best).abs().mean().item()


FINE = cosine(20000)


@pytest.mark.parametrize(("plan", "order"), [(ddim, 1), (dpm_solver, 2), (heun, 2)], ids=["ddim", "dpm_solver", "heun"])
def test_solvers_converge_as_fast_as_their_order_says(plan: Callable[[Tensor, int], Plan], order: int) -> None:
    denoise = of_mixture(FINE, means=[-1.0, 0.2, 1.0], stds=[0.3, 0.2, 0.4])
    best = sample(denoise, plan(FINE, 2561), noise_of(3, range(200)))
    coarse, fine = (flow_error(plan, num_steps, denoise, best) for num_steps in (81, 161))
    assert math.log2(coarse / fine) == pytest.approx(order, abs=0.2)


def test_solvers_without_noise_lead_to_the_same_images() -> None:
    denoise = of_mixture(FINE, means=[-1.0, 0.2, 1.0], stds=[0.3, 0.2, 0.4])
    first, second = (sample(denoise, plan(FINE, 2561), noise_of(3, range(200))) for plan in (dpm_solver, heun))
    assert (first - second).abs().mean() < 1e-4
    third = sample(denoise, ddim(FINE, 2561), noise_of(3, range(200)))
    assert (first - third).abs().mean() < 0.01, "it begins where the others do not"


@pytest.mark.parametrize("plan", [ddpm(COSINE, 1000), dpm_solver(COSINE, 60), heun(COSINE, 30)])
def test_a_gaussian_random_field_comes_out_with_its_power(plan: Plan) -> None:
    size, count = 16, 200
    waves = torch.fft.fftfreq(size, dtype=torch.float64) * size
    k = torch.hypot(waves[:, None], waves)
    power = 4 / (1 + k) ** 2
    images = sample(of_field(COSINE, power), plan, noise_of(1, range(count), (1, size, size)))
    measured = torch.fft.fft2(images).abs().square().mean(dim=(0, 1)) / size**2
    for low, high in ((0, 1), (1, 2.5), (2.5, 4.5), (4.5, 6.5), (6.5, 8.5), (8.5, 12)):
        inside = (k >= low) & (k < high)
        ratio = (measured[inside] / power[inside]).mean().item()
        assert ratio == pytest.approx(1, abs=0.02 + 4 / (count * inside.sum().item()) ** 0.5), f"waves from {low} on"
    flat = (measured / power.mean())[k > 6].mean().item()
    assert flat < 0.5, "white noise of the same variance would be seen"


def training_images() -> Tensor:
    """Five images that are remembered."""
    return torch.randn(5, 1, 6, 6, generator=torch.Generator().manual_seed(5), dtype=torch.float64)


@pytest.mark.parametrize("name", SAMPLERS)
def test_the_best_denoiser_of_a_few_images_gives_these_back(name: str) -> None:
    images = training_images()
    plan = SAMPLERS[name](COSINE, 100 if name == "ddpm" else 30)
    samples = sample(of_images(COSINE, images), plan, noise_of(0, range(40), (1, 6, 6)))
    distances = (samples[:, None] - images).abs().amax(dim=(2, 3, 4))
    assert distances.amin(dim=1).max() < 1e-3
    assert len(distances.argmin(dim=1).unique()) == 5, "all of them"


@pytest.mark.parametrize("name", SAMPLERS)
def test_an_image_alone_is_to_the_bit_what_it_is_in_a_batch(name: str) -> None:
    plan = SAMPLERS[name](COSINE, 12)

    def denoise(noisy: Tensor, times: Tensor) -> Tensor:
        return torch.tanh(3 * GAUSSIAN(noisy, times))

    together = sample(denoise, plan, noise_of(2, range(13), (2, 5, 7)))
    for k in (0, 6, 12):
        assert torch.equal(sample(denoise, plan, noise_of(2, range(k, k + 1), (2, 5, 7)))[0], together[k])
    parts = [sample(denoise, plan, noise_of(2, each, (2, 5, 7))) for each in (range(9), range(9, 13))]
    assert torch.equal(torch.cat(parts), together)
    assert not torch.equal(sample(denoise, plan, noise_of(3, range(13), (2, 5, 7))), together)


def test_with_a_network_an_image_is_the_same_in_any_batch_of_one_size() -> None:
    torch.manual_seed(0)
    network = UNet(1, shape=SMALL).eval()
    nn.init.normal_(network.last.weight, std=0.05)
    model, plan = Denoiser(network, COSINE), dpm_solver(COSINE, 3)

    def images_of(*numbers: int) -> Tensor:
        keys = image_keys(0, torch.tensor(numbers))
        return sample(model.denoise, plan, lambda step: normals(keys, (1, 18, 18), step))

    together = images_of(0, 1, 2, 3)
    assert torch.equal(images_of(7, 2, 9, 0)[1], together[2])
    assert torch.equal(images_of(7, 2, 9, 0)[3], together[0])
    # Other sizes of the batch add in another order.
    assert (images_of(2)[0] - together[2]).abs().max() < 1e-5


@pytest.mark.parametrize("name", SAMPLERS)
@pytest.mark.parametrize("num_steps", [1, 2, 3, 10, 11, 20, 21, 50])
def test_few_steps_of_the_cosine_schedule_are_possible(name: str, num_steps: int) -> None:
    plan = SAMPLERS[name](COSINE, num_steps)
    assert plan.weights[-1].tolist() == [0, 1, 0, 0], "at the end stands what the denoiser says"
    assert len(plan) == (2 * num_steps - 1 if name == "heun" else num_steps)
    assert plan.times[-1] == 0 or num_steps == 1
    noise = noise_of(0, range(20))
    images = sample(GAUSSIAN, plan, noise)
    assert (images - MEAN).abs().max() < 4 * STD
    single = sample(lambda noisy, times: GAUSSIAN(noisy, times).float(), plan, lambda step: noise(step).float())
    assert (images - single).abs().max() < 1e-4, "float32 is enough"


def test_diffusers_cannot_do_some_of_these() -> None:
    oracle = DPMSolverMultistepScheduler(1000, beta_schedule="squaredcos_cap_v2", use_karras_sigmas=True)
    oracle.set_timesteps(11)
    image = torch.zeros(1, 1, 2, 2)
    *but_last, last = oracle.timesteps
    for time in but_last:
        oracle.step(image, time, image)
    with pytest.raises(IndexError):
        oracle.step(image, last, image)


def test_times_reach_both_ends() -> None:
    assert even_times(COSINE, 4).tolist() == [999, 666, 333, 0]
    assert even_times(COSINE, 1000).tolist() == list(range(999, -1, -1))
    steps = log_snr_at(COSINE, even_log_snr(COSINE, 20)).diff()
    assert torch.allclose(steps, steps[0])


@pytest.mark.parametrize("num_steps", [0, 1001])
@pytest.mark.parametrize("name", SAMPLERS)
def test_steps_that_cannot_be_made_are_refused(name: str, num_steps: int) -> None:
    with pytest.raises(ValueError, match=f"num_steps={num_steps} must be from 1 to 1000"):
        SAMPLERS[name](COSINE, num_steps)


@pytest.mark.parametrize("eta", [-0.1, 1.1])
def test_more_noise_than_there_is_is_refused(eta: float) -> None:
    with pytest.raises(ValueError, match="must be between 0"):
        ddim(COSINE, 10, eta=eta)


def test_clipping_keeps_what_is_denoised_within_bounds() -> None:
    seen: list[Tensor] = []

    def wild(noisy: Tensor, times: Tensor) -> Tensor:
        seen.append(noisy)
        return 100 * noisy

    images = sample(clipped(wild, -1, 2), ddim(COSINE, 10), noise_of(0, range(50)))
    assert (images.min().item(), images.max().item()) == (-1, 2)
    assert max(each.abs().max().item() for each in seen) < 10

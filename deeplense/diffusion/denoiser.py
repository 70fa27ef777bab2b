"""A network that takes the noise out of images: what it is asked for, how it learns, how it is used. B batch, C
channels, H W pixels, T times, K conditions.

A noisy image is x = alpha x0 + sigma noise, with the weights of its time (schedules.py).
"""

from collections.abc import Callable
from typing import Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional

from deeplense.choices import require_choice
from deeplense.diffusion.conditions import Conditions, unsaid
from deeplense.diffusion.noise import normals, training_keys
from deeplense.diffusion.schedules import alpha_sigma, log_snr_at

Target = Literal["eps", "v", "x0"]
"""What the network is asked for: the noise, the image, or v = alpha noise - sigma x0 (Salimans & Ho 2022,
arXiv:2202.00512, section 4), which is well-posed at both ends."""
Loss = Literal["l2", "huber", "l1"]
Denoise = Callable[[Tensor, Tensor], Tensor]
"""From noisy images (B, C, H, W) at times (B,) to what is expected of the images without noise."""
DRAWS = ("time", "drop", "key", "second_key")
"""What each random number of an image decides in training."""


def weights_at(schedule: Tensor, times: Tensor, images: Tensor) -> tuple[Tensor, Tensor]:
    """alpha and sigma of times (B,), in the type of images (B, ...) and to be multiplied with them."""
    shape = (-1, *[1] * (images.ndim - 1))
    alpha, sigma = alpha_sigma(log_snr_at(schedule, times))
    return alpha.to(images.dtype).view(shape), sigma.to(images.dtype).view(shape)


def add_noise(images: Tensor, noise: Tensor, times: Tensor, schedule: Tensor) -> Tensor:
    """Images (B, ...) as they are at times (B,): x."""
    alpha, sigma = weights_at(schedule, times, images)
    return alpha * images + sigma * noise


def target_of(images: Tensor, noise: Tensor, *, alpha: Tensor, sigma: Tensor, target: Target) -> Tensor:
    """What the network should say of alpha * images + sigma * noise."""
    require_choice("target", target, get_args(Target))
    if target == "eps":
        return noise
    return images if target == "x0" else alpha * noise - sigma * images


def image_of(output: Tensor, noisy: Tensor, *, alpha: Tensor, sigma: Tensor, target: Target) -> Tensor:
    """x0 from what the network says of x. With eps an error of the network is divided by alpha, which at the last
    times of the cosine schedule is 5e-5: sample such a network with `clipped`."""
    require_choice("target", target, get_args(Target))
    if target == "eps":
        return (noisy - sigma * output) / alpha
    return output if target == "x0" else alpha * noisy - sigma * output


def loss_weights(log_snr: Tensor, *, target: Target, min_snr_gamma: float | None) -> Tensor:
    """Weights of the squared errors of a target at signal-to-noise ratios s, in the shape of these.

    None: 1 for each target. With gamma, min(s, gamma) for errors of x0 (Hang et al. 2023, arXiv:2303.09556, section
    3.4), which for those of eps is min(s, gamma) / s, as these are s times as large, and for v min(s, gamma) / (s + 1).
    """
    require_choice("target", target, get_args(Target))
    if min_snr_gamma is None:
        return torch.ones_like(log_snr)
    snr = log_snr.exp()
    least = snr.clamp(max=min_snr_gamma)
    return {"x0": least, "eps": least / snr, "v": least / (snr + 1)}[target]


def errors(output: Tensor, target: Tensor, loss: Loss) -> Tensor:
    """The error of each image (B,), the mean over its pixels.

    What minimises `l2` is the mean of all images that could be below the noise, and that is what a sampler needs.
    `l1`, which the earlier model had, gives their median instead: a pixel that an arc reaches in one of ten images is
    dark in nine, and the median is dark. In a toy with exact denoisers and 1000 steps of the cosine schedule, pixels
    that are bright with probability 0.100 come out bright with 0.052 (l2: 0.096), those of 0.300 with 0.214 (0.300):
    faint arcs are lost. `huber` squares errors below 1 and is linear above; it lies between them. Errors are in the
    unit of the target, which is about 1.
    """
    require_choice("loss", loss, get_args(Loss))
    if loss == "l1":
        each = (output - target).abs()
    elif loss == "l2":
        each = (output - target).square()
    else:
        each = 2 * functional.huber_loss(output, target, reduction="none")
    return each.flatten(1).mean(dim=1)


class Denoiser(nn.Module):
    """A network with the schedule and the target that it learns.

    Args:
        network: from noisy images (B, C, H, W), times (B,) in [0, T - 1], and an embedding of conditions (B, E) or
            None, to the target, (B, C, H, W).
        schedule: (T,), of schedules.py. It is not in the state.
        target: what the network is asked for.
        loss: how it is held against that.
        min_snr_gamma: see `loss_weights`; 5 is usual, None weighs all times alike.
        conditions: makes the embedding; None where nothing is said of images.
        drop_share: of the images of a training, whose conditions are not said, for guidance (Ho & Salimans 2022,
            arXiv:2207.12598, algorithm 1).
    """

    schedule: Tensor
    num_uniforms: int = len(DRAWS)

    def __init__(
        self,
        network: nn.Module,
        schedule: Tensor,
        *,
        target: Target = "v",
        loss: Loss = "l2",
        min_snr_gamma: float | None = None,
        conditions: Conditions | None = None,
        drop_share: float = 0.1,
    ) -> None:
        super().__init__()
        self.network, self.conditions = network, conditions
        self.register_buffer("schedule", schedule, persistent=False)
        require_choice("target", target, get_args(Target))
        require_choice("loss", loss, get_args(Loss))
        self.target: Target = target
        self.loss: Loss = loss
        self.min_snr_gamma, self.drop_share = min_snr_gamma, drop_share

    def forward(self, images: Tensor, uniforms: Tensor, conditions: Tensor | None = None) -> dict[str, Tensor]:
        """The metrics of a batch, each a mean over images: `loss`, weighted.

        Time, noise and whether conditions are said are a function of the random numbers of each image.

        Args:
            images: (B, C, H, W), of a variance of about 1.
            uniforms: (B, num_uniforms) in [0, 1[.
            conditions: (B, K), NaN where not said.
        """
        times = (uniforms[:, 0] * len(self.schedule)).floor()
        noise = normals(training_keys(uniforms[:, 2:]), images.shape[1:]).to(images.dtype)
        if conditions is not None:
            conditions = unsaid(conditions, uniforms[:, 1] < self.drop_share)
        return {"loss": self.losses(images, noise, times, conditions).mean()}

    def losses(self, images: Tensor, noise: Tensor, times: Tensor, conditions: Tensor | None = None) -> Tensor:
        """The weighted loss of each image (B,) with this noise at times (B,)."""
        alpha, sigma = weights_at(self.schedule, times, images)
        output = self.output(alpha * images + sigma * noise, times, conditions)
        wanted = target_of(images, noise, alpha=alpha, sigma=sigma, target=self.target)
        log_snr = log_snr_at(self.schedule, times)
        weights = loss_weights(log_snr, target=self.target, min_snr_gamma=self.min_snr_gamma)
        return weights.to(images.dtype) * errors(output, wanted, self.loss)

    def output(self, noisy: Tensor, times: Tensor, conditions: Tensor | None) -> Tensor:
        """What the network says, in the type of the images."""
        if conditions is not None and self.conditions is None:
            raise ValueError("conditions are given, but this model was made without; leave them out.")
        if conditions is None and self.conditions is not None:
            conditions = noisy.new_full((len(noisy), self.conditions.num_conditions), torch.nan)
        embedding = None if conditions is None or self.conditions is None else self.conditions(conditions)
        return self.network(noisy, times, embedding).to(noisy.dtype)

    def denoise(self, noisy: Tensor, times: Tensor, conditions: Tensor | None = None) -> Tensor:
        """What is expected of the images below the noise, (B, C, H, W).

        Args:
            noisy: (B, C, H, W).
            times: (B,) in [0, T - 1].
            conditions: (B, K), NaN where not said; None says nothing.
        """
        alpha, sigma = weights_at(self.schedule, times, noisy)
        output = self.output(noisy, times, conditions)
        return image_of(output, noisy, alpha=alpha, sigma=sigma, target=self.target)


def guided(denoise: Callable[[Tensor, Tensor, Tensor], Tensor], conditions: Tensor, *, scale: float = 1.0) -> Denoise:
    """Denoise towards conditions (B, K), with classifier-free guidance (Ho & Salimans 2022, arXiv:2207.12598, equation
    6, whose weight is scale - 1).

    `scale` 0 is without the conditions, 1 with them, and above, what they change is exaggerated: images are surer of
    their class and less unlike each other, so do not measure populations with it. 0 and 1 ask the network once, others
    twice, in one batch of double size.
    """
    if scale in (0, 1):
        said = conditions if scale else unsaid(conditions)
        return lambda noisy, times: denoise(noisy, times, said)
    both = torch.cat([unsaid(conditions), conditions])

    def exaggerated(noisy: Tensor, times: Tensor) -> Tensor:
        without, along = denoise(torch.cat([noisy, noisy]), torch.cat([times, times]), both).chunk(2)
        return torch.lerp(without, along, scale)

    return exaggerated


def clipped(denoise: Denoise, low: float, high: float) -> Denoise:
    """Denoise to images within these bounds. It keeps an eps network on the way where it is unsure; bounds below the
    brightest pixels of the data make samples too faint."""
    return lambda noisy, times: denoise(noisy, times).clamp(low, high)

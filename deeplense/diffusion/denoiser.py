"""The denoiser: a network with its target, its training loss and its use. Shapes: B batch, C channels, H x W pixels, T
times, K conditions.

A noisy image is x = alpha x0 + sigma noise, with the weights of its time (schedules.py).
"""

from collections.abc import Callable
from typing import Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional

from deeplense.choices import require_choice
from deeplense.diffusion.conditions import Conditions, unsaid
from deeplense.diffusion.schedules import alpha_sigma, log_snr_at
from deeplense.random.columns import Columns
from deeplense.random.noise import normals, training_keys

Target = Literal["eps", "v", "x0"]
"""What the network predicts: the noise, the image, or v = alpha noise - sigma x0 (Salimans & Ho 2022, arXiv:2202.00512,
section 4), which is well-posed at both ends."""
Loss = Literal["l2", "huber", "l1"]
Denoise = Callable[[Tensor, Tensor], Tensor]
"""From noisy images (B, C, H, W) at times (B,) to the expected images without noise."""
COLUMNS = Columns({"time": 1, "drop": 1, "noise": 2})
"""The random numbers of an image in training: its time, whether its conditions are dropped, the key of its noise."""


def weights_at(schedule: Tensor, times: Tensor, images: Tensor) -> tuple[Tensor, Tensor]:
    """Return alpha and sigma at given times, (B, 1, ...), in the type of the images.

    Args:
        schedule: log signal-to-noise ratios (T,) of schedules.py.
        times: (B,) in [0, T - 1].
        images: (B, ...); only the type and the number of dimensions matter.
    """
    shape = (-1, *[1] * (images.ndim - 1))
    alpha, sigma = alpha_sigma(log_snr_at(schedule, times))
    return alpha.to(images.dtype).view(shape), sigma.to(images.dtype).view(shape)


def add_noise(images: Tensor, noise: Tensor, times: Tensor, schedule: Tensor) -> Tensor:
    """Return noisy images (B, ...): alpha * images + sigma * noise.

    Args:
        images: (B, ...), with a variance of about 1.
        noise: white noise of the same shape, with a variance of 1.
        times: (B,) in [0, T - 1].
        schedule: log signal-to-noise ratios (T,).

    Example:
        >>> from deeplense.diffusion.schedules import cosine
        >>> images, noise = torch.ones(2, 1, 4, 4), torch.zeros(2, 1, 4, 4)
        >>> noisy = add_noise(images, noise, torch.tensor([0, 999]), cosine(1000))
        >>> [round(float(image.mean()), 3) for image in noisy]
        [1.0, 0.0]
    """
    alpha, sigma = weights_at(schedule, times, images)
    return alpha * images + sigma * noise


def target_of(images: Tensor, noise: Tensor, *, alpha: Tensor, sigma: Tensor, target: Target) -> Tensor:
    """Return the target of the network for the noisy image alpha * images + sigma * noise.

    Args:
        images: (B, ...).
        noise: white noise of the same shape.
        alpha: weight of the image; broadcasts with it.
        sigma: weight of the noise.
        target: `eps` (the noise), `x0` (the image) or `v`.

    Raises:
        ValueError: unknown target.
    """
    require_choice("target", target, get_args(Target))
    if target == "eps":
        return noise
    return images if target == "x0" else alpha * noise - sigma * images


def image_of(output: Tensor, noisy: Tensor, *, alpha: Tensor, sigma: Tensor, target: Target) -> Tensor:
    """Return x0 from the output of the network for the noisy image x.

    With `eps`, an error of the network is divided by alpha, which at the last times of the cosine schedule is 5e-5: use
    `clipped` to sample from such a network.

    Args:
        output: prediction of the network, (B, ...).
        noisy: x, of the same shape.
        alpha: weight of the image in x; broadcasts with it.
        sigma: weight of the noise in x.
        target: what the network predicts: `eps`, `x0` or `v`.

    Raises:
        ValueError: unknown target.
    """
    require_choice("target", target, get_args(Target))
    if target == "eps":
        return (noisy - sigma * output) / alpha
    return output if target == "x0" else alpha * noisy - sigma * output


def loss_weights(log_snr: Tensor, *, target: Target, min_snr_gamma: float | None) -> Tensor:
    """Return the weights of the squared errors at signal-to-noise ratios s, in the shape of `log_snr`.

    None gives 1 for each target. With gamma, errors of x0 have the weight min(s, gamma) (Hang et al. 2023,
    arXiv:2303.09556, section 3.4); this is min(s, gamma) / s for errors of eps, which are s times as large, and min(s,
    gamma) / (s + 1) for v.

    Args:
        log_snr: natural logarithm of s, any shape.
        target: `eps`, `x0` or `v`.
        min_snr_gamma: gamma, above 0 (5 is usual), or None.

    Raises:
        ValueError: unknown target.

    Example:
        >>> loss_weights(torch.tensor([0.0]), target="v", min_snr_gamma=5.0)
        tensor([0.5000])
    """
    require_choice("target", target, get_args(Target))
    if min_snr_gamma is None:
        return torch.ones_like(log_snr)
    snr = log_snr.exp()
    least = snr.clamp(max=min_snr_gamma)
    return {"x0": least, "eps": least / snr, "v": least / (snr + 1)}[target]


def errors(output: Tensor, target: Tensor, loss: Loss) -> Tensor:
    """Return the error of each image (B,), the mean over its pixels.

    `l2` is minimised by the mean of all images that are compatible with the noisy one, which a sampler needs. `l1`,
    which the earlier model had, is minimised by their median: a pixel that an arc reaches in one of ten images is dark
    in nine, and the median is dark. In a toy model with exact denoisers and 1000 steps of the cosine schedule, pixels
    that are bright with probability 0.100 come out bright with 0.052 (l2: 0.096), those of 0.300 with 0.214 (0.300):
    faint arcs are lost. `huber` squares errors below 1 and is linear above; it lies between them. Errors are in the
    unit of the target, which is about 1.

    Args:
        output: prediction of the network, (B, ...).
        target: its target, of the same shape.
        loss: `l2`, `huber` or `l1`.

    Raises:
        ValueError: unknown loss.

    Example:
        >>> errors(torch.tensor([[2.0, 0.0]]), torch.zeros(1, 2), "l2")
        tensor([2.])
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
    """A network with the noise schedule and the target it is trained with.

    Args:
        network: maps noisy images (B, C, H, W), times (B,) in [0, T - 1], and an embedding of the conditions (B, E) or
            None, to the target, (B, C, H, W).
        schedule: log signal-to-noise ratios (T,), of schedules.py. It is not part of the state.
        target: what the network predicts: `eps`, `x0` or `v`.
        loss: `l2`, `huber` or `l1`, see `errors`.
        min_snr_gamma: see `loss_weights`; 5 is usual, None gives all times the same weight.
        conditions: module that embeds the conditions; None for an unconditional model.
        drop_share: fraction of the training images whose conditions are dropped, 0 to 1, for classifier-free guidance
            (Ho & Salimans 2022, arXiv:2207.12598, algorithm 1).

    Raises:
        ValueError: unknown target or loss.
    """

    schedule: Tensor
    columns = COLUMNS
    """The random numbers per image."""

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
        """Return the metrics of a batch, each a mean over images: `loss`, weighted.

        Times, noise and whether conditions are dropped are a function of the random numbers of each image.

        Args:
            images: (B, C, H, W), with a variance of about 1.
            uniforms: (B, columns.total) in [0, 1[.
            conditions: (B, K), NaN if unknown; None for an unconditional model.
        """
        times = (COLUMNS.of(uniforms, "time")[:, 0] * len(self.schedule)).floor()
        noise = normals(training_keys(COLUMNS.of(uniforms, "noise")), images.shape[1:]).to(images.dtype)
        if conditions is not None:
            conditions = unsaid(conditions, COLUMNS.of(uniforms, "drop")[:, 0] < self.drop_share)
        return {"loss": self.losses(images, noise, times, conditions).mean()}

    def losses(self, images: Tensor, noise: Tensor, times: Tensor, conditions: Tensor | None = None) -> Tensor:
        """Return the weighted loss of each image, (B,).

        Args:
            images: (B, C, H, W), with a variance of about 1.
            noise: white noise of the same shape.
            times: (B,) in [0, T - 1].
            conditions: (B, K), NaN if unknown; None for all unknown.
        """
        alpha, sigma = weights_at(self.schedule, times, images)
        output = self.output(alpha * images + sigma * noise, times, conditions)
        wanted = target_of(images, noise, alpha=alpha, sigma=sigma, target=self.target)
        log_snr = log_snr_at(self.schedule, times)
        weights = loss_weights(log_snr, target=self.target, min_snr_gamma=self.min_snr_gamma)
        return weights.to(images.dtype) * errors(output, wanted, self.loss)

    def output(self, noisy: Tensor, times: Tensor, conditions: Tensor | None) -> Tensor:
        """Return the prediction of the network, (B, C, H, W), in the type of the images.

        Args:
            noisy: (B, C, H, W).
            times: (B,) in [0, T - 1].
            conditions: (B, K), NaN if unknown; None for all unknown.

        Raises:
            ValueError: there are conditions, but the model is unconditional.
        """
        if conditions is not None and self.conditions is None:
            raise ValueError("conditions are given, but this model is unconditional; remove them.")
        if conditions is None and self.conditions is not None:
            conditions = noisy.new_full((len(noisy), self.conditions.num_conditions), torch.nan)
        embedding = None if conditions is None or self.conditions is None else self.conditions(conditions)
        return self.network(noisy, times, embedding).to(noisy.dtype)

    def denoise(self, noisy: Tensor, times: Tensor, conditions: Tensor | None = None) -> Tensor:
        """Return the expected images without noise, (B, C, H, W).

        Args:
            noisy: (B, C, H, W).
            times: (B,) in [0, T - 1].
            conditions: (B, K), NaN if unknown; None for all unknown.

        Raises:
            ValueError: there are conditions, but the model is unconditional.
        """
        alpha, sigma = weights_at(self.schedule, times, noisy)
        output = self.output(noisy, times, conditions)
        return image_of(output, noisy, alpha=alpha, sigma=sigma, target=self.target)


def guided(denoise: Callable[[Tensor, Tensor, Tensor], Tensor], conditions: Tensor, *, scale: float = 1.0) -> Denoise:
    """Return a denoiser with classifier-free guidance (Ho & Salimans 2022, arXiv:2207.12598, equation 6, with the
    weight scale - 1).

    The scales 0 and 1 evaluate the network once, others twice, in one batch of double size. Above 1, images are surer
    of their class and less diverse: do not measure populations with such samples.

    Args:
        denoise: maps noisy images (B, C, H, W), times (B,) and conditions (B, K) to images, such as `Denoiser.denoise`.
        conditions: conditions of the samples, (B, K), NaN if unknown.
        scale: classifier-free guidance scale: 0 ignores the conditions, 1 is the trained model, above 1 overemphasises
            them.

    Example:
        >>> def denoise(noisy, times, conditions):
        ...     return torch.where(conditions.isnan(), 0.0, conditions)[..., None, None].expand_as(noisy)
        >>> strong = guided(denoise, torch.tensor([[1.0]]), scale=3.0)
        >>> strong(torch.zeros(1, 1, 1, 1), torch.zeros(1)).item()
        3.0
    """
    if scale in (0, 1):
        said = conditions if scale else unsaid(conditions)
        return lambda noisy, times: denoise(noisy, times, said)
    both = torch.cat([unsaid(conditions), conditions])

    def exaggerated(noisy: Tensor, times: Tensor) -> Tensor:
        """Extrapolate from the unconditional to the conditional images."""
        without, along = denoise(torch.cat([noisy, noisy]), torch.cat([times, times]), both).chunk(2)
        return torch.lerp(without, along, scale)

    return exaggerated


def clipped(denoise: Denoise, low: float, high: float) -> Denoise:
    """Return a denoiser whose images are clipped to these bounds.

    This stabilises an eps network at times where it is unsure. An upper bound below the brightest pixels of the data
    makes samples too faint.

    Args:
        denoise: denoiser of noisy images (B, C, H, W) at times (B,).
        low: smallest pixel value, in the scaled unit of the network.
        high: largest pixel value.

    Example:
        >>> clipped(lambda noisy, times: noisy, -1.0, 1.0)(torch.tensor([3.0]), torch.tensor([0.0]))
        tensor([1.])
    """
    return lambda noisy, times: denoise(noisy, times).clamp(low, high)

"""Gaussian noise as a pure function of a key for each image: no state, nothing to save, the same for an image whatever
batch, rank or attempt it is in, drawn where it is used.

A word is a counter scrambled, combined with a scrambled key, and scrambled again, in integer arithmetic, which is the
same everywhere. The normals are made of it in float64 and rounded to float32 at the end, so what the logarithms of two
kinds of devices differ in (the last of 53 bits) hardly ever survives in the 24. numpy's Philox would be as good in the
first, but draws one image after the other on the host: on a fast GPU that is longer than a step of a sampler, and it
cannot be part of a CUDA graph.

B batch.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

GOLDEN = 0x9E3779B97F4A7C15 - 2**64
"""Of splitmix64, as int64."""
TRAINING, SAMPLING = 1, 2


def mix(values: Tensor) -> Tensor:
    """The finaliser of splitmix64 (Steele et al. 2014): scrambles int64 words, one to one; what overflows is lost, as
    it should."""
    values = (values ^ shifted(values, 30)) * (0xBF58476D1CE4E5B9 - 2**64)
    values = (values ^ shifted(values, 27)) * (0x94D049BB133111EB - 2**64)
    return values ^ shifted(values, 31)


def shifted(values: Tensor, bits: int) -> Tensor:
    """Words shifted to the right, with zeros coming in."""
    return (values >> bits) & (2 ** (64 - bits) - 1)


def chained(keys: Tensor, number: int | Tensor) -> Tensor:
    """Keys of something numbered that belongs to what has these keys."""
    return mix((keys + GOLDEN) ^ number)


def image_keys(seed: int, indices: Tensor) -> Tensor:
    """Keys (B,) of images that are sampled, from their numbers (B,): a function of (seed, index)."""
    start = torch.zeros_like(indices, dtype=torch.int64)
    return chained(chained(chained(start, seed), SAMPLING), indices)


def training_keys(uniforms: Tensor) -> Tensor:
    """Keys (B,) from two random numbers in [0, 1[ for each image, (B, 2), of which 24 bits each are used."""
    first, second = (uniforms.double() * 2**24).long().unbind(dim=1)
    return chained(chained(torch.zeros_like(first), TRAINING), (first << 24) + second)


def normals(keys: Tensor, shape: Sequence[int], number: int | Tensor = 0) -> Tensor:
    """White noise of this shape for each image, (B, *shape), float32, of mean 0 and variance 1 (Box & Muller 1958).

    Args:
        keys: (B,) int64.
        shape: of one image.
        number: which of the noises of an image; a tensor without dimensions where a recorded CUDA graph counts.
    """
    count = math.prod(shape)
    counters = mix(torch.arange(1, (count + 1) // 2 + 1, device=keys.device) * GOLDEN)
    words = mix(counters ^ chained(keys, number)[:, None])
    radius = ((shifted(words, 32).double() + 0.5) * 2.0**-32).log_().mul_(-2).sqrt_()
    angle = (words & (2**32 - 1)).double() * (2 * math.pi * 2.0**-32)
    pairs = torch.stack([radius * torch.cos(angle), radius * torch.sin(angle)], dim=1)
    return pairs.flatten(1)[:, :count].float().unflatten(1, tuple(shape))

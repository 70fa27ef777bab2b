"""Gaussian noise as a pure function of a key per image: there is no state to save, and an image gets the same noise in
every batch, rank and attempt. It is made on the device where it is used.

A word is a counter scrambled, combined with a scrambled key, and scrambled again, in integer arithmetic, which is the
same everywhere. The normal numbers are computed from it in float64 and rounded to float32 at the end, so a difference
of the logarithms of two kinds of devices (in the last of 53 bits) hardly ever survives in the 24 bits. numpy's Philox
would be as good in the first respect, but makes one image after the other on the host: on a fast GPU that takes longer
than a step of a sampler, and it cannot be part of a CUDA graph.

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
    """Scramble int64 words, one to one: the finaliser of splitmix64 (Steele et al. 2014). Overflow is intended."""
    values = (values ^ shifted(values, 30)) * (0xBF58476D1CE4E5B9 - 2**64)
    values = (values ^ shifted(values, 27)) * (0x94D049BB133111EB - 2**64)
    return values ^ shifted(values, 31)


def shifted(values: Tensor, bits: int) -> Tensor:
    """Shift words to the right, with zeros coming in (a logical shift).

    Args:
        values: int64, any shape.
        bits: number of bits, 1 to 63.
    """
    return (values >> bits) & (2 ** (64 - bits) - 1)


def chained(keys: Tensor, number: int | Tensor) -> Tensor:
    """Return keys of numbered items that belong to owners with these keys.

    Args:
        keys: int64 keys of the owners, (B,).
        number: number of the item, or a tensor of them that broadcasts with `keys`.
    """
    return mix((keys + GOLDEN) ^ number)


def image_keys(seed: int, indices: Tensor) -> Tensor:
    """Return the keys (B,) of images that are generated: a function of (seed, index).

    Args:
        seed: random seed of the samples.
        indices: number of each image, (B,), integers.

    Example:
        >>> image_keys(0, torch.arange(3)).shape
        torch.Size([3])
    """
    start = torch.zeros_like(indices, dtype=torch.int64)
    return chained(chained(chained(start, seed), SAMPLING), indices)


def training_keys(uniforms: Tensor) -> Tensor:
    """Return keys (B,) from two random numbers in [0, 1[ per image, (B, 2), of which 24 bits each are used."""
    first, second = (uniforms.double() * 2**24).long().unbind(dim=1)
    return chained(chained(torch.zeros_like(first), TRAINING), (first << 24) + second)


def normals(keys: Tensor, shape: Sequence[int], number: int | Tensor = 0) -> Tensor:
    """Return white noise for each image, (B, *shape), float32, with mean 0 and variance 1 (Box & Muller 1958).

    Args:
        keys: (B,) int64.
        shape: shape of one image, such as (C, H, W).
        number: which of the noises of an image; a tensor without dimensions if a recorded CUDA graph counts.

    Example:
        >>> noise = normals(image_keys(0, torch.arange(2)), (1, 64, 64))
        >>> noise.shape, bool(abs(noise.std() - 1) < 0.05)
        (torch.Size([2, 1, 64, 64]), True)
    """
    count = math.prod(shape)
    counters = mix(torch.arange(1, (count + 1) // 2 + 1, device=keys.device) * GOLDEN)
    words = mix(counters ^ chained(keys, number)[:, None])
    radius = ((shifted(words, 32).double() + 0.5) * 2.0**-32).log_().mul_(-2).sqrt_()
    angle = (words & (2**32 - 1)).double() * (2 * math.pi * 2.0**-32)
    pairs = torch.stack([radius * torch.cos(angle), radius * torch.sin(angle)], dim=1)
    return pairs.flatten(1)[:, :count].float().unflatten(1, tuple(shape))


# What is drawn in each step for every pixel of every view has 32 bits, which takes half the time.


def fast_words(keys: tuple[Tensor, Tensor], count: int, *, first: int = 0) -> Tensor:
    """Return random int32 words (..., count).

    The scrambled counter goes through a function that the two keys choose, and is scrambled again.

    Args:
        keys: two tensors (...) in [0, 1[, of which 24 bits each are used.
        count: number of words per pair of keys.
        first: first counter.
    """
    factor, summand = ((each * 2**24).int()[..., None] for each in keys)
    counters = torch.arange(first, first + count, dtype=torch.int32, device=factor.device)
    return scrambled(scrambled(counters) * (2 * factor + 1) + summand)


def scrambled(values: Tensor) -> Tensor:
    """Scramble int32 words, one to one: lowbias32 (Wellons 2018). Overflow is intended."""
    values = (values ^ (values >> 16).bitwise_and_(0xFFFF)).mul_(0x7FEB352D)
    values ^= (values >> 15).bitwise_and_(0x1FFFF)
    values *= 0x846CA68B - 2**32
    values ^= (values >> 16).bitwise_and_(0xFFFF)
    return values


def fast_uniforms(keys: tuple[Tensor, Tensor], count: int, *, first: int = 0) -> Tensor:
    """Return random numbers above 0 and up to 1, (..., count), from the upper 24 bits of `fast_words`.

    Args:
        keys: two tensors (...) in [0, 1[.
        count: numbers per pair of keys.
        first: first counter.
    """
    return (fast_words(keys, count, first=first) >> 8).bitwise_and_(0xFFFFFF).float().add_(0.5).mul_(2.0**-24)


def fast_normals(keys: tuple[Tensor, Tensor], shape: Sequence[int]) -> Tensor:
    """Return white noise (*keys.shape, *shape), float32, with mean 0 and variance 1 (Box & Muller 1958).

    Args:
        keys: two tensors (...) in [0, 1[, one pair per image.
        shape: shape of one image.

    Example:
        >>> fast_normals((torch.tensor([0.1, 0.2]), torch.tensor([0.3, 0.4])), (1, 8, 8)).shape
        torch.Size([2, 1, 8, 8])
    """
    count = math.prod(shape)
    pairs = -(-count // 2)
    numbers = fast_uniforms(keys, 2 * pairs).unflatten(-1, (2, pairs))
    radius, angle = numbers[..., 0, :].log().mul_(-2).sqrt_(), numbers[..., 1, :] * (2 * math.pi)
    both = torch.empty_like(numbers)
    torch.cos(angle, out=both[..., 0, :])
    torch.sin(angle, out=both[..., 1, :])
    return both.mul_(radius[..., None, :]).flatten(-2)[..., :count].reshape(*keys[0].shape, *shape)

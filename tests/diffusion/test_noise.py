"""Noise that is a function of keys."""

import numpy as np
import pytest
import torch
from scipy import stats

from deeplense.random import draws
from deeplense.random.noise import image_keys, mix, normals, training_keys

KEYS = image_keys(0, torch.arange(40))


def test_words_are_those_of_splitmix64() -> None:
    words = np.random.default_rng(0).integers(0, 2**64, 1000, dtype=np.uint64)
    assert torch.equal(mix(torch.from_numpy(words.view(np.int64))), torch.from_numpy(draws.mix(words).view(np.int64)))
    # The first outputs of the seed 1234567 in the reference implementation (Vigna, splitmix64.c).
    state = torch.tensor([1234567]) + torch.arange(1, 3) * (0x9E3779B97F4A7C15 - 2**64)
    assert [word % 2**64 for word in mix(state).tolist()] == [6457827717110365317, 3203168211198807973]


def test_the_noise_of_an_image_is_the_same_in_any_batch() -> None:
    for shape in ((1, 15, 15), (3, 7, 5), (1,)):
        together = normals(KEYS, shape, 3)
        assert together.shape == (40, *shape)
        assert together.dtype == torch.float32
        for k in (0, 17, 39):
            assert torch.equal(normals(KEYS[k : k + 1], shape, 3)[0], together[k])
        assert torch.equal(normals(KEYS[5:22], shape, torch.tensor(3)), together[5:22])


def test_noise_is_gaussian_and_white() -> None:
    noise = normals(KEYS, (1, 160, 160)).double()
    assert stats.kstest(noise.flatten().numpy(), "norm").pvalue > 0.01
    assert stats.kstest(noise.flatten().numpy() * 1.01, "norm").pvalue < 0.01, "the test would see 1 %"
    moments = [(noise**power).mean().item() for power in (1, 2, 3, 4)]
    assert moments == pytest.approx([0, 1, 0, 3], abs=0.05)
    assert 4.5 < noise.abs().max() < 6.8
    for step in (1, 2, 80 * 160):
        pairs = noise.flatten(1)
        assert (pairs[:, step:] * pairs[:, :-step]).mean().abs() < 5 / noise.numel() ** 0.5, "pixels are independent"


def test_keys_steps_and_uses_have_noise_of_their_own() -> None:
    keys = torch.cat([image_keys(seed, torch.arange(20)) for seed in range(3)])
    noises = [normals(keys, (1, 16, 16), step) for step in range(3)]
    noises.append(normals(training_keys(torch.rand(20, 2, generator=torch.Generator().manual_seed(0))), (1, 16, 16)))
    rows = torch.cat(noises).flatten(1).double()
    correlations = torch.corrcoef(rows) - torch.eye(len(rows))
    assert correlations.abs().max() < 6 / 16
    assert len(torch.unique(rows[:, 0])) == len(rows)


def test_a_seed_and_an_index_are_not_added() -> None:
    assert image_keys(0, torch.tensor([1])) != image_keys(1, torch.tensor([0]))


def test_each_of_48_bits_changes_the_noise_of_a_training() -> None:
    start = torch.tensor([[0.5, 0.25]])
    keys = [training_keys(start)]
    for bit in range(1, 25):
        keys += [training_keys(start + torch.tensor([[2.0**-bit, 0]])), training_keys(start + 2.0**-bit * (1 - start))]
    assert len(torch.unique(torch.cat(keys))) == len(keys)
    ends = torch.tensor([0, 2.0**-24, 0.5, 1 - 2.0**-24])
    assert len(torch.unique(training_keys(torch.cartesian_prod(ends, ends)))) == 16

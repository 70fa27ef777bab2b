"""Masks: as many patches as asked for, in one piece, of every place."""

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage
from torch import Tensor

from deeplense.ssl.masks import NUM_COUNT_UNIFORMS, NUM_UNIFORMS, block_masks, draw_counts, lowest


def uniforms(count: int, width: int = NUM_UNIFORMS, seed: int = 0) -> Tensor:
    return torch.from_numpy(np.random.default_rng(seed).uniform(size=(count, width))).float()


def num_pieces(masks: Tensor, grid: tuple[int, int]) -> list[int]:
    found: list[Any] = [ndimage.label(mask.reshape(grid).numpy()) for mask in masks]
    return [number for _, number in found]


def border(masks: Tensor, grid: tuple[int, int]) -> float:
    """Mean number of neighbours of which one is hidden."""
    shaped = masks.reshape(-1, *grid)
    return float(((shaped[:, 1:] != shaped[:, :-1]).sum() + (shaped[..., 1:] != shaped[..., :-1]).sum()) / len(masks))


@settings(derandomize=True, max_examples=60, deadline=None)
@given(height=st.integers(1, 14), width=st.integers(1, 14), seed=st.integers(0, 1000))
def test_each_block_is_in_one_piece_and_has_its_number_of_patches(height: int, width: int, seed: int) -> None:
    counts = torch.from_numpy(np.random.default_rng(seed).integers(0, height * width + 1, size=20))
    masks = block_masks(uniforms(20, seed=seed), grid=(height, width), count=counts)
    assert masks.shape == (20, height * width)
    assert torch.equal(masks.sum(1), counts)
    assert num_pieces(masks, (height, width)) == (counts > 0).int().tolist()


@pytest.mark.parametrize("numbers", [0.0, 0.5, 1 - 2**-24])
def test_blocks_at_borders_corners_and_between_patches_are_in_one_piece(numbers: float) -> None:
    corners = torch.cartesian_prod(*[torch.tensor([0.0, 0.25, numbers, 1 - 2**-24])] * NUM_UNIFORMS)
    for count in range(1, 17):
        masks = block_masks(corners, grid=(4, 4), count=torch.full((len(corners),), count))
        assert set(num_pieces(masks, (4, 4))) == {1}


def test_patches_anywhere_are_not_in_one_piece() -> None:
    grid = (4, 4)
    anywhere = lowest(uniforms(500, 16), 0.3)
    blocks = block_masks(uniforms(500), grid=grid, count=0.3)
    assert np.mean([pieces == 1 for pieces in num_pieces(anywhere, grid)]) < 0.2
    assert border(blocks, grid) < 0.75 * border(anywhere, grid)


@pytest.mark.parametrize(("share", "expected"), [(0.3, 5), (0.1, 2), (0.01, 1), (0.0, 0), (1.0, 16), (0.5, 8)])
def test_a_share_hides_the_nearest_number_of_patches_but_never_none(share: float, expected: int) -> None:
    assert (block_masks(uniforms(50), grid=(4, 4), count=share).sum(1) == expected).all()
    assert (lowest(uniforms(50, 16), share).sum(1) == expected).all()


def test_a_grid_of_one_patch_is_enough() -> None:
    assert block_masks(uniforms(5), grid=(1, 1), count=0.3).tolist() == [[True]] * 5
    counts = draw_counts(uniforms(5, NUM_COUNT_UNIFORMS), 1, share=0.3, spread=0.2, probability=1)
    assert counts.tolist() == [1] * 5


def test_every_patch_is_hidden_about_as_often() -> None:
    shares = block_masks(uniforms(4000), grid=(4, 4), count=0.3).float().mean(0)
    assert ((shares > 0.18) & (shares < 0.48)).all()
    anywhere = lowest(uniforms(4000, 16), 0.75).float().mean(0)
    assert (anywhere - 0.75).abs().max() < 5 * np.sqrt(0.75 * 0.25 / 4000)


def test_blocks_are_wide_and_high_alike_and_as_long_as_in_ibot() -> None:
    masks = block_masks(uniforms(3000), grid=(14, 14), count=0.1).reshape(-1, 14, 14)
    free = masks[~(masks[:, [0, -1]].any((1, 2)) | masks[:, :, [0, -1]].any((1, 2)))]
    ratio = torch.log(free.any(2).sum(1) / free.any(1).sum(1))
    assert float(ratio.mean()) == pytest.approx(0, abs=0.06)
    # Evenly between -log(1 / 0.3) and log(1 / 0.3).
    assert float(ratio.std()) == pytest.approx(2 * np.log(1 / 0.3) / np.sqrt(12), rel=0.15)
    assert len(free) > 500


def test_a_mask_does_not_depend_on_the_batch() -> None:
    numbers, counts = uniforms(20), torch.arange(20) % 8
    together = block_masks(numbers, grid=(4, 4), count=counts)
    assert torch.equal(block_masks(numbers[7:9], grid=(4, 4), count=counts[7:9]), together[7:9])
    assert len(torch.unique(block_masks(numbers, grid=(4, 4), count=0.3), dim=0)) > 10


def test_counts_are_drawn_as_in_ibot() -> None:
    counts = draw_counts(uniforms(5000, 2), 196, share=0.3, spread=0.2, probability=0.5)
    hidden = counts[counts > 0]
    assert len(hidden) / 5000 == pytest.approx(0.5, abs=0.03)
    assert (int(hidden.min()), int(hidden.max())) == (20, 98)
    assert float(hidden.float().mean()) / 196 == pytest.approx(0.3, abs=0.01)
    assert float(hidden.float().std()) / 196 == pytest.approx(0.4 / np.sqrt(12), rel=0.05)
    assert (draw_counts(uniforms(50, 2), 196, share=0.3, spread=0.0, probability=1.0) == 59).all()


@pytest.mark.parametrize("num_patches", [1, 4, 16])
def test_no_mask_is_empty_where_something_is_to_be_hidden(num_patches: int) -> None:
    numbers = torch.cat([uniforms(2000, 2), torch.zeros(1, 2)])
    counts = draw_counts(numbers, num_patches, share=0.1, spread=0.1, probability=1.0)
    assert (counts >= 1).all()
    assert (draw_counts(numbers, num_patches, share=0.0, spread=0.0, probability=1.0) == 0).all()
    assert (draw_counts(numbers, num_patches, share=0.5, spread=0.0, probability=0.0) == 0).all()


@pytest.mark.parametrize(
    ("share", "spread", "probability"), [(0.1, 0.2, 1.0), (0.9, 0.2, 1.0), (0.3, -0.1, 1.0), (0.3, 0.2, 1.5)]
)
def test_shares_that_cannot_be_are_refused(share: float, spread: float, probability: float) -> None:
    with pytest.raises(ValueError, match="must"):
        draw_counts(uniforms(5, 2), 16, share=share, spread=spread, probability=probability)


def test_counts_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match=r"count=1\.5 must be a fraction"):
        block_masks(uniforms(5), grid=(4, 4), count=1.5)
    with pytest.raises(ValueError, match="count has shape"):
        block_masks(uniforms(5), grid=(4, 4), count=torch.ones(4))

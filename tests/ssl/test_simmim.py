"""SimMIM against the authors' definition, written out."""

import pytest
import torch
from tiny import PATCH, SIZE, TOKENS, hide_by_number, make, make_batch, sgd, update
from torch import Tensor
from torch.nn import functional

from deeplense.ssl.simmim import patches_of


def test_the_loss_is_that_of_the_authors_where_each_image_has_as_many_hidden_patches() -> None:
    """Their decoder is a 1 x 1 convolution and a pixel shuffle, their mean one over the hidden pixels."""
    method = make("simmim", make_masks=hide_by_number)
    optimizer = sgd(method)
    for step in range(4):
        (large,), random = make_batch(method, step, batch=4)
        random = random.unflatten(1, (2, TOKENS)).argsort(dim=2).sub(4).clamp(min=0).flatten(1).float()
        images, masks = large.flatten(0, 1), hide_by_number(random.unflatten(1, (2, -1)).transpose(0, 1), (4, 4))
        masks = masks.flatten(0, 1)
        _, patches = method.backbone.tokens(images, masks, method.mask_token)
        painted = functional.pixel_shuffle(
            functional.conv2d(
                patches.transpose(1, 2).unflatten(2, (4, 4)),
                method.decoder.weight[..., None, None],
                method.decoder.bias,
            ),
            PATCH,
        )
        mask = masks.unflatten(1, (4, 4)).repeat_interleave(PATCH, 1).repeat_interleave(PATCH, 2)[:, None]
        assert (masks.sum(dim=1) == 5).all()
        expected = ((images - painted).abs() * mask).sum() / mask.sum()
        found = update(method, optimizer, step, [([large], random)])
        assert found["loss"].item() == pytest.approx(expected.item(), abs=1e-6)
        assert found["masked"].item() == pytest.approx(5 / 16)


def test_patches_are_those_of_the_grid() -> None:
    images = torch.randn(2, 3, 8, 12)
    patches = patches_of(images, 4)
    assert patches.shape == (2, 6, 48)
    assert torch.equal(patches[1, 4], images[1, :, 4:8, 4:8].flatten())
    assert torch.equal(patches[0, 2], images[0, :, :4, 8:].flatten())


def test_normalised_targets_do_not_know_brightness_and_contrast() -> None:
    method = make("simmim", normalise=True)
    images = torch.randn(4, 1, SIZE, SIZE)
    targets = method.targets(images)
    assert torch.allclose(targets.mean(dim=-1), torch.zeros(4, TOKENS), atol=1e-6)
    assert torch.allclose(targets.std(dim=-1), torch.ones(4, TOKENS), atol=1e-4)
    assert torch.allclose(method.targets(5 * images + 3), targets, atol=1e-4)
    assert method.targets(torch.ones(1, 1, SIZE, SIZE)).abs().max() == 0
    plain = make("simmim")
    assert torch.equal(plain.targets(5 * images), 5 * plain.targets(images))


def test_it_learns_to_paint_what_can_be_known() -> None:
    """All patches of an image are equal, so that what is hidden can be seen elsewhere."""
    method = make("simmim")
    optimizer = torch.optim.AdamW(method.parameters(), lr=1e-2)

    def loss(step: int) -> Tensor:
        views, random = make_batch(method, step, batch=16)
        tiles = torch.randn(2, 16, 1, 1, 1, generator=torch.Generator().manual_seed(step)).expand_as(views[0])
        return method([tiles], random, step)["loss"]

    start = loss(1000).item()
    for step in range(100):
        optimizer.zero_grad()
        loss(step).backward()
        optimizer.step()
    assert loss(1000).item() < 0.5 * start


def test_small_views_are_refused() -> None:
    method = make("simmim")
    views, random = make_batch(method, 0)
    with pytest.raises(ValueError, match="views have 2 sizes"):
        method([views[0], views[0]], random, 0)
    with pytest.raises(ValueError, match="1 large views, but masks for 2"):
        method([views[0][:1]], random, 0)

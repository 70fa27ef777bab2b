"""Predictions: every sample once, in the order asked for, whatever ranks saw them."""

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from deeplense.data.dataset import Batch
from deeplense.evaluation.predict import Predictions, join, predict

INDICES = np.array([8, 3, 11, 0, 5, 2, 9])


def batch_of(indices: np.ndarray) -> Batch:
    """Samples whose every number says which one they are."""
    numbers = torch.from_numpy(indices)
    images = numbers.float()[:, None, None, None].expand(-1, 1, 2, 2)
    return Batch(
        images=images, labels=numbers % 3, target=numbers / 2, indices=numbers, uniforms=torch.zeros(len(indices), 6)
    )


def forward(batch: Batch) -> Tensor:
    """Two outputs that are told from the image."""
    level = batch.images.mean(dim=(1, 2, 3))
    return torch.stack([level, -level], dim=1)


def of_ranks(num_ranks: int) -> list[Predictions]:
    """What ranks that take turns at the samples say of them, two at a time."""
    cpu = torch.device("cpu")
    mine = [INDICES[rank::num_ranks] for rank in range(num_ranks)]
    batches = [[batch_of(part[k : k + 2]) for k in range(0, len(part), 2)] for part in mine]
    return [part for rank in reversed(batches) for part in predict(forward, rank, device=cpu)]


@pytest.mark.parametrize("num_ranks", [1, 2, 3])
def test_predictions_of_ranks_come_in_the_order_asked_for(num_ranks: int) -> None:
    joined = join(of_ranks(num_ranks), INDICES)
    np.testing.assert_array_equal(joined.indices, INDICES)
    np.testing.assert_array_equal(joined.outputs, np.stack([INDICES, -INDICES], axis=1))
    np.testing.assert_array_equal(joined.labels, INDICES % 3)
    np.testing.assert_array_equal(joined.target, INDICES / 2)


def test_a_missing_a_doubled_and_a_foreign_sample_are_refused() -> None:
    parts = of_ranks(2)
    wrong = [
        parts[1:],
        [*parts, parts[0]],
        [parts[0], *parts[:-1]],
        [*parts, *predict(forward, [batch_of(np.array([7]))], device=torch.device("cpu"))],
    ]
    for found in wrong:
        with pytest.raises(RuntimeError, match=r"do not cover each of the \d+ samples once"):
            join(found, INDICES)


def test_outputs_in_half_precision_are_given_as_float32_without_a_gradient() -> None:
    layer = nn.Linear(4, 2).to(torch.bfloat16)
    (part,) = predict(
        lambda batch: layer(batch.images.flatten(1).bfloat16()), [batch_of(INDICES)], device=torch.device("cpu")
    )
    assert part.outputs.dtype == np.float32
    assert part.outputs.shape == (len(INDICES), 2)

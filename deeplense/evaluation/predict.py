"""Predict the outputs of a model for samples, each exactly once. N samples, K outputs."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Protocol, Self, TypeVar

import numpy as np
import torch
from torch import Tensor


class Labelled(Protocol):
    """Interface of a batch of samples: labels, targets and indices (b,)."""

    @property
    def labels(self) -> Tensor: ...

    @property
    def target(self) -> Tensor: ...

    @property
    def indices(self) -> Tensor: ...

    def to(self, device: torch.device) -> Self: ...


BatchT = TypeVar("BatchT", bound=Labelled)


@dataclass(frozen=True)
class Predictions:
    """Outputs (N, K), labels (N,), targets (N,), and the index of each sample in its split (N,)."""

    outputs: np.ndarray
    labels: np.ndarray
    target: np.ndarray
    indices: np.ndarray


@torch.no_grad()
def predict(
    forward: Callable[[BatchT], Tensor], batches: Iterable[BatchT], *, device: torch.device
) -> list[Predictions]:
    """Return the outputs for each batch of a model that is in evaluation mode."""
    parts = []
    for batch in batches:
        moved = batch.to(device)
        outputs = forward(moved).float().cpu().numpy()
        parts.append(Predictions(outputs, batch.labels.numpy(), batch.target.numpy(), batch.indices.numpy()))
    return parts


def join(parts: Iterable[Predictions], indices: np.ndarray) -> Predictions:
    """Join the predictions of all ranks in the order of `indices`. Raises RuntimeError unless each sample occurs
    exactly once."""
    whole = list(parts)
    columns = {
        name: np.concatenate([getattr(part, name) for part in whole]) for name in Predictions.__dataclass_fields__
    }
    order = np.argsort(columns["indices"], kind="stable")
    if not np.array_equal(columns["indices"][order], np.sort(indices)):
        raise RuntimeError(
            f"{len(order)} predictions do not cover each of the {len(indices)} samples once; this is a bug, report it."
        )
    place = order[np.searchsorted(columns["indices"][order], indices)]
    return Predictions(**{name: column[place] for name, column in columns.items()})

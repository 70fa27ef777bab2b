"""Conditions of an image: its class, and parameters such as the mass of the axion or the Einstein radius. Shapes: B
batch, K conditions of an image, E embedding."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn


class Conditions(nn.Module):
    """The embedding of the conditions, which a network adds to that of the time.

    Conditions are (B, K): the number of the class first, if there are classes, then the parameters. NaN means unknown.
    So images without a label, or lenses without axions, can be trained on, and the embedding of all NaN is the null
    embedding of classifier-free guidance.

    Args:
        embedding_dim: E.
        num_classes: number of classes; 0 for none.
        mean: mean of each parameter over the training images.
        std: standard deviation of each parameter, above 0; the network gets (value - mean) / std.

    Raises:
        ValueError: there is neither a class nor a parameter, or `mean` and `std` do not fit.

    Example:
        >>> conditions = Conditions(8, num_classes=3, mean=[1.0], std=[0.5])
        >>> conditions(torch.tensor([[2.0, 1.2], [torch.nan, torch.nan]])).shape
        torch.Size([2, 8])
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self, embedding_dim: int, *, num_classes: int = 0, mean: Sequence[float] = (), std: Sequence[float] = ()
    ) -> None:
        super().__init__()
        if not num_classes and not mean:
            raise ValueError("conditions have neither classes nor parameters; give num_classes, or mean and std.")
        if len(mean) != len(std) or not all(each > 0 for each in std):
            raise ValueError(f"mean={mean} and std={std} must have the same length, and every std must be above 0.")
        self.num_classes = num_classes
        self.classes = nn.Embedding(num_classes + 1, embedding_dim) if num_classes else None
        self.parameters_mlp = parameters_mlp(len(mean), embedding_dim) if mean else None
        self.register_buffer("mean", torch.tensor(mean, dtype=torch.float32))
        self.register_buffer("std", torch.tensor(std, dtype=torch.float32))

    @property
    def num_conditions(self) -> int:
        """K, the number of conditions of an image."""
        return bool(self.num_classes) + len(self.mean)

    def forward(self, conditions: Tensor) -> Tensor:
        """Return embeddings (B, E) of conditions (B, K). Raises ValueError for another K."""
        if conditions.shape[1] != self.num_conditions:
            raise ValueError(
                f"conditions have shape {tuple(conditions.shape)}; it must be (batch, {self.num_conditions})."
            )
        embedding = conditions.new_zeros(())
        if self.classes is not None:
            embedding = self.classes((conditions[:, 0].nan_to_num(-1) + 1).long())
        if self.parameters_mlp is not None:
            values = (conditions[:, -len(self.mean) :] - self.mean) / self.std
            embedding = embedding + self.parameters_mlp(torch.cat([values.nan_to_num(0), 1.0 * ~values.isnan()], dim=1))
        return embedding


def parameters_mlp(num_parameters: int, embedding_dim: int) -> nn.Sequential:
    """Return the MLP from parameters, and flags of which are known, to an embedding.

    Args:
        num_parameters: number of parameters; the input has twice as many columns, values (0 if unknown) and flags.
        embedding_dim: E.
    """
    return nn.Sequential(
        nn.Linear(2 * num_parameters, embedding_dim), nn.SiLU(), nn.Linear(embedding_dim, embedding_dim)
    )


def unsaid(conditions: Tensor, where: Tensor | None = None) -> Tensor:
    """Return conditions with all values set to NaN (unknown).

    Args:
        conditions: (B, K).
        where: images whose conditions are removed, (B,) bool; None for all.

    Example:
        >>> unsaid(torch.tensor([[1.0], [2.0]]), torch.tensor([False, True]))
        tensor([[1.],
                [nan]])
    """
    nothing = torch.full_like(conditions, torch.nan)
    return nothing if where is None else torch.where(where[:, None], nothing, conditions)

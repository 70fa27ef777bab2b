"""What an image is to be: its class, and numbers such as the mass of the axion or the Einstein radius. B batch, K what
can be said of an image, E numbers of an embedding."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn


class Conditions(nn.Module):
    """The embedding of what is said of images, as a network takes it beside the time.

    Conditions are (B, K): the number of the class first, if there are classes, and then the parameters. NaN is what is
    not said. So an image with no label, or a lens without axions, can be learnt from, and the embedding of all NaN is
    the null one of classifier-free guidance.

    Args:
        embedding_dim: E.
        num_classes: 0 for none.
        mean: of each parameter over the images that are learnt from.
        std: of each parameter; it is given to the network in this unit.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self, embedding_dim: int, *, num_classes: int = 0, mean: Sequence[float] = (), std: Sequence[float] = ()
    ) -> None:
        super().__init__()
        if not num_classes and not mean:
            raise ValueError("conditions are of no class and no parameter; give num_classes, or mean and std.")
        if len(mean) != len(std) or not all(each > 0 for each in std):
            raise ValueError(f"mean={mean} and std={std} must be as many numbers, and those of std above 0.")
        self.num_classes = num_classes
        self.classes = nn.Embedding(num_classes + 1, embedding_dim) if num_classes else None
        self.parameters_mlp = parameters_mlp(len(mean), embedding_dim) if mean else None
        self.register_buffer("mean", torch.tensor(mean, dtype=torch.float32))
        self.register_buffer("std", torch.tensor(std, dtype=torch.float32))

    @property
    def num_conditions(self) -> int:
        """K."""
        return bool(self.num_classes) + len(self.mean)

    def forward(self, conditions: Tensor) -> Tensor:
        """Embeddings (B, E) of conditions (B, K)."""
        if conditions.shape[1] != self.num_conditions:
            raise ValueError(f"conditions are {tuple(conditions.shape)}; these take (batch, {self.num_conditions}).")
        embedding = conditions.new_zeros(())
        if self.classes is not None:
            embedding = self.classes((conditions[:, 0].nan_to_num(-1) + 1).long())
        if self.parameters_mlp is not None:
            values = (conditions[:, -len(self.mean) :] - self.mean) / self.std
            embedding = embedding + self.parameters_mlp(torch.cat([values.nan_to_num(0), 1.0 * ~values.isnan()], dim=1))
        return embedding


def parameters_mlp(num_parameters: int, embedding_dim: int) -> nn.Sequential:
    """From parameters, 0 where they are not said, and whether they are said, to an embedding."""
    return nn.Sequential(
        nn.Linear(2 * num_parameters, embedding_dim), nn.SiLU(), nn.Linear(embedding_dim, embedding_dim)
    )


def unsaid(conditions: Tensor, where: Tensor | None = None) -> Tensor:
    """Conditions (B, K) with nothing said, of all images or of those where (B,) is true."""
    nothing = torch.full_like(conditions, torch.nan)
    return nothing if where is None else torch.where(where[:, None], nothing, conditions)

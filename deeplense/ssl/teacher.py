"""A teacher that follows its student, and what it teaches. K prototypes."""

import copy
from collections.abc import Callable
from typing import Generic, Self, TypeVar

import torch
from torch import Tensor, nn

NetworkT = TypeVar("NetworkT", bound=nn.Module)


def make_teacher(student: NetworkT) -> NetworkT:
    """A copy that shares nothing with the student and learns nothing by itself, in evaluation mode."""
    return copy.deepcopy(student).requires_grad_(False).eval()


@torch.no_grad()
def follow(teacher: nn.Module, student: nn.Module, *, momentum: float) -> None:
    """Make the teacher's weights momentum * its own + (1 - momentum) * the student's, the running statistics of batch
    norm too; what is no real number is copied."""
    torch._foreach_lerp_(list(teacher.parameters()), list(student.parameters()), 1 - momentum)
    for own, new in zip(teacher.buffers(), student.buffers(), strict=True):
        own.lerp_(new, 1 - momentum) if own.is_floating_point() else own.copy_(new)


class Distillation(nn.Module, Generic[NetworkT]):
    """A method in which a student learns what its teacher, a network with a backbone, says."""

    teacher: NetworkT

    @property
    def encoder(self) -> nn.Module:
        """The teacher's backbone."""
        return self.teacher.backbone  # type: ignore[return-value]

    def train(self, mode: bool = True) -> Self:
        """Set the mode of all but the teacher, whose outputs have no noise."""
        super().train(mode)
        self.teacher.eval()
        return self


class Targets(nn.Module):
    """What a teacher's outputs teach: their running mean, the centre, is taken from them, so that no prototype is
    best for all images, and they are divided by a temperature."""

    center: Tensor

    def __init__(self, out_dim: int, *, momentum: float, temperature: Callable[[int], float]) -> None:
        """
        Args:
            out_dim: K.
            momentum: share of the centre that stays in each update.
            temperature: after so many updates.
        """
        super().__init__()
        self.momentum, self.temperature = momentum, temperature
        self.register_buffer("center", torch.zeros(out_dim))
        # Not a buffer: before each forward pass DDP gives all ranks those of the first.
        self.gathered: list[Tensor] = []

    def forward(self, logits: Tensor, step: int) -> Tensor:
        """The distributions (..., K) over prototypes that outputs (..., K) are after `step` updates, in float32."""
        return ((logits - self.center) / self.temperature(step)).softmax(dim=-1)

    def gather(self, logits: Tensor) -> None:
        """Keep the sum of outputs (..., K) and their number for the next update, in training mode."""
        if self.training:
            rows = logits.detach().reshape(-1, logits.shape[-1])
            self.gathered.append(torch.cat([rows.sum(dim=0), rows.new_full((1,), len(rows))]))

    @torch.no_grad()
    def update(self, total: Callable[[Tensor], Tensor]) -> None:
        """Move the centre towards the mean of all outputs that were gathered, on all ranks. Of none, it stays.

        Args:
            total: the sum of a tensor over ranks.
        """
        everything = total(torch.stack(self.gathered).sum(dim=0))
        self.gathered.clear()
        count = everything[-1]
        self.center.lerp_(everything[:-1] / count.clamp(min=1), (1 - self.momentum) * (count > 0))


def entropy(probabilities: Tensor) -> Tensor:
    """The entropy of distributions (..., K), (...), in nats."""
    return torch.special.entr(probabilities).sum(dim=-1)

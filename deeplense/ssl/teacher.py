"""A teacher that follows its student, and its targets. Shapes: K prototypes."""

import copy
from collections.abc import Callable
from typing import Generic, Self, TypeVar

import torch
from torch import Tensor, nn

NetworkT = TypeVar("NetworkT", bound=nn.Module)


def make_teacher(student: NetworkT) -> NetworkT:
    """Return a copy of the student that shares no memory with it and gets no gradient, in evaluation mode."""
    return copy.deepcopy(student).requires_grad_(False).eval()


@torch.no_grad()
def follow(teacher: nn.Module, student: nn.Module, *, momentum: float) -> None:
    """Move the teacher: momentum * teacher + (1 - momentum) * student, for weights and running statistics of batch
    norm.

    Buffers that are not real numbers are copied.

    Args:
        teacher: network that is changed in place.
        student: network of the same shape.
        momentum: fraction of the teacher that stays, 0 to 1.

    Example:
        >>> teacher, student = nn.Linear(1, 1, bias=False), nn.Linear(1, 1, bias=False)
        >>> _ = teacher.weight.data.fill_(1.0), student.weight.data.fill_(0.0)
        >>> follow(teacher, student, momentum=0.75)
        >>> teacher.weight.item()
        0.75
    """
    torch._foreach_lerp_(list(teacher.parameters()), list(student.parameters()), 1 - momentum)
    for own, new in zip(teacher.buffers(), student.buffers(), strict=True):
        own.lerp_(new, 1 - momentum) if own.is_floating_point() else own.copy_(new)


class Distillation(nn.Module, Generic[NetworkT]):
    """A method in which a student is trained on the outputs of its teacher, a network with a backbone."""

    teacher: NetworkT

    @property
    def encoder(self) -> nn.Module:
        """The teacher's backbone."""
        return self.teacher.backbone  # type: ignore[return-value]

    def train(self, mode: bool = True) -> Self:
        """Set the mode of everything except the teacher, which stays in evaluation mode."""
        super().train(mode)
        self.teacher.eval()
        return self


class Targets(nn.Module):
    """The targets from a teacher's outputs: the centre, their running mean, is subtracted, so that no prototype is best
    for all images, and the rest is divided by a temperature."""

    center: Tensor

    def __init__(self, out_dim: int, *, momentum: float, temperature: Callable[[int], float]) -> None:
        """Set the centre to zero.

        Args:
            out_dim: K.
            momentum: fraction of the centre that stays in each update, 0 to 1.
            temperature: returns the temperature after a number of updates.
        """
        super().__init__()
        self.momentum, self.temperature = momentum, temperature
        self.register_buffer("center", torch.zeros(out_dim))
        # Not a buffer: before each forward pass DDP gives all ranks those of the first.
        self.gathered: list[Tensor] = []

    def forward(self, logits: Tensor, step: int) -> Tensor:
        """Return distributions (..., K) over prototypes, in float32.

        Args:
            logits: outputs of the teacher, (..., K).
            step: number of updates made so far.
        """
        return ((logits - self.center) / self.temperature(step)).softmax(dim=-1)

    def gather(self, logits: Tensor, counted: Tensor | None = None) -> None:
        """Keep the sum and the number of outputs for the next update of the centre, in training mode.

        Args:
            logits: outputs of the teacher, (..., K).
            counted: which outputs count, (...) bool; None for all.
        """
        if self.training:
            rows = logits.detach().reshape(-1, logits.shape[-1])
            number = rows.new_full((1,), len(rows))
            if counted is not None:
                rows, number = rows * counted.reshape(-1, 1), counted.sum().to(rows.dtype)[None]
            self.gathered.append(torch.cat([rows.sum(dim=0), number]))

    @torch.no_grad()
    def update(self, total: Callable[[Tensor], Tensor]) -> None:
        """Move the centre towards the mean of all outputs gathered on all ranks. If none was gathered, it stays.

        Args:
            total: returns the sum of a tensor over ranks.
        """
        everything = total(torch.stack(self.gathered).sum(dim=0))
        self.gathered.clear()
        count = everything[-1]
        self.center.lerp_(everything[:-1] / count.clamp(min=1), (1 - self.momentum) * (count > 0))


def entropy(probabilities: Tensor) -> Tensor:
    """Return the entropy of distributions (..., K) in nats, (...).

    Example:
        >>> entropy(torch.tensor([[0.5, 0.5], [1.0, 0.0]]))
        tensor([0.6931, 0.0000])
    """
    return torch.special.entr(probabilities).sum(dim=-1)

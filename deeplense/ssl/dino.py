"""DINO: a student predicts the output of its own running mean, the teacher, for other views. Shapes: V views, of which
the first T are large, B batch, C bands, S pixels per side, D features, K prototypes."""

from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor, nn

from deeplense.schedules import cosine, ramp
from deeplense.ssl.heads import DINOHead
from deeplense.ssl.pairs import mean_product
from deeplense.ssl.teacher import Distillation, Targets, entropy, follow, make_teacher


class Network(nn.Module):
    """A backbone with a DINO head."""

    def __init__(self, backbone: nn.Module, head: DINOHead) -> None:
        super().__init__()
        self.backbone, self.head = backbone, head

    def forward(self, views: Sequence[Tensor], *, frozen: bool = False) -> Tensor:
        """Return cosines (V, B, K), with one forward pass per resolution.

        Args:
            views: views of each resolution, (V', B, C, S, S) each.
            frozen: whether the last layer of the head gets no gradient.
        """
        features = [self.backbone(group.flatten(0, 1)).unflatten(0, group.shape[:2]) for group in views]
        return self.head(torch.cat(features), frozen=frozen)


class DINO(Distillation[Network]):
    """Self-distillation without labels (Caron et al. 2021, arXiv:2104.14294).

    The defaults are for data sets of fewer than 20,000 images. The paper has out_dim 65536, momentum 0.996, and a
    teacher temperature of 0.04 that rises to 0.07 in the first 30 epochs of 100 or more.

    Args:
        backbone: maps images (B, C, S, S) to features (B, D) at the sizes of all views.
        num_features: D.
        num_steps: number of updates of the whole pretraining.
        out_dim: K.
        hidden_dim: width of the head.
        bottleneck_dim: dimension of the vectors whose cosines are taken.
        momentum: fraction of the teacher that stays in the first update, 0 to 1; it rises to 1 on a cosine.
        center_momentum: fraction of the centre that stays in each update.
        student_temp: temperature of the student, which divides its cosines.
        teacher_temp: temperature of the teacher after the warm-up.
        warmup_teacher_temp: temperature of the teacher at the start.
        warmup_share: fraction of the updates in which the teacher's temperature changes.
        freeze_share: fraction of the updates, at the start, in which the last layer of the head is frozen.
    """

    num_uniforms: int = 0

    def __init__(
        self,
        backbone: nn.Module,
        *,
        num_features: int,
        num_steps: int,
        out_dim: int = 1024,
        hidden_dim: int = 2048,
        bottleneck_dim: int = 256,
        momentum: float = 0.99,
        center_momentum: float = 0.9,
        student_temp: float = 0.1,
        teacher_temp: float = 0.02,
        warmup_teacher_temp: float = 0.02,
        warmup_share: float = 0.3,
        freeze_share: float = 0.01,
    ) -> None:
        super().__init__()
        head = DINOHead(num_features, out_dim=out_dim, hidden_dim=hidden_dim, bottleneck_dim=bottleneck_dim)
        self.student = Network(backbone, head)
        self.teacher = make_teacher(self.student)
        warmup_steps = round(warmup_share * num_steps)
        temperature = partial(ramp, num_steps=warmup_steps, start=warmup_teacher_temp, end=teacher_temp)
        self.targets = Targets(out_dim, momentum=center_momentum, temperature=temperature)
        self.num_steps, self.freeze_steps = num_steps, round(freeze_share * num_steps)
        self.momentum, self.student_temp = momentum, student_temp

    def forward(self, views: Sequence[Tensor], random: Tensor, step: int) -> dict[str, Tensor]:
        """Return the metrics of a batch, each a mean over samples.

        `loss` is the cross-entropy between the teacher's distribution for each large view and the student's for each
        other view; it is the sum of `teacher_entropy` and `kl`, the divergence of the student from the teacher.

        Args:
            views: views of each resolution, (V', B, C, S, S) each, the large ones first.
            random: not used; (B, 0).
            step: number of updates made so far.
        """
        with torch.no_grad():
            logits = self.teacher(views[:1])
        self.targets.gather(logits)
        outputs = self.student(views, frozen=step < self.freeze_steps)
        return compare_views(outputs, self.targets(logits, step), temperature=self.student_temp)

    @torch.no_grad()
    def prototypes(self, images: Tensor, step: int) -> Tensor:
        """Return the teacher's distributions over prototypes, (B, K).

        Args:
            images: (B, C, S, S).
            step: number of updates made so far.
        """
        return self.targets(self.teacher([images[None]])[0], step)

    def after_update(self, step: int, total: Callable[[Tensor], Tensor]) -> None:
        """Move the teacher and the centre, on all ranks.

        Args:
            step: number of this update, from 1.
            total: returns the sum of a tensor over ranks.
        """
        follow(self.teacher, self.student, momentum=cosine(step - 1, self.num_steps, start=self.momentum, end=1))
        self.targets.update(total)


def compare_views(outputs: Tensor, targets: Tensor, *, temperature: float) -> dict[str, Tensor]:
    """Return the cross-entropy of student and teacher over all pairs of different views, and its two parts.

    Args:
        outputs: cosines of the student, (V, B, K).
        targets: distributions of the teacher for the first T views, (T, B, K).
        temperature: temperature of the student, above 0.

    Returns:
        `loss`, `teacher_entropy` and `kl`, scalars in nats.
    """
    loss = -mean_product((outputs / temperature).log_softmax(dim=-1), targets)
    teacher_entropy = entropy(targets).mean()
    return {"loss": loss, "teacher_entropy": teacher_entropy, "kl": loss.detach() - teacher_entropy}

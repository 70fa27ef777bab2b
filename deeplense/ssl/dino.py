"""DINO: a student learns what its own running mean says of other views. V views, of which the first T are large, B
batch, C bands, S pixels a side, D features, K prototypes."""

from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor, nn

from deeplense.ssl.heads import DINOHead
from deeplense.ssl.pairs import mean_product
from deeplense.ssl.schedules import cosine, ramp
from deeplense.ssl.teacher import Distillation, Targets, entropy, follow, make_teacher


class Network(nn.Module):
    """A backbone, and a head on its features."""

    def __init__(self, backbone: nn.Module, head: DINOHead) -> None:
        super().__init__()
        self.backbone, self.head = backbone, head

    def forward(self, views: Sequence[Tensor], *, frozen: bool = False) -> Tensor:
        """Cosines (V, B, K) of views, each (V', B, C, S, S): one pass for each resolution."""
        features = [self.backbone(group.flatten(0, 1)).unflatten(0, group.shape[:2]) for group in views]
        return self.head(torch.cat(features), frozen=frozen)


class DINO(Distillation[Network]):
    """Self-distillation with no labels (Caron et al. 2021, arXiv:2104.14294).

    The defaults are for data sets of less than 20,000 images. The paper has out_dim 65536, momentum 0.996, and a
    teacher's temperature of 0.04 that rises to 0.07 in the first 30 epochs of 100 or more.

    Args:
        backbone: maps images (B, C, S, S) to features (B, D) at the sizes of all views.
        num_features: D.
        num_steps: updates of the whole pretraining.
        out_dim: K.
        hidden_dim: width of the head.
        bottleneck_dim: numbers of which the cosines are taken.
        momentum: share of the teacher that stays in the first update; it rises to 1 as a cosine.
        center_momentum: share of the centre that stays in each update.
        student_temp: the cosines of the student are divided by it.
        teacher_temp: those of the teacher, after the warm-up.
        warmup_teacher_temp: those of the teacher, at the start.
        warmup_share: of the updates, in which the teacher's temperature changes.
        freeze_share: of the updates, the first ones, in which the head's last layer learns nothing.
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
        """The metrics of a batch after `step` updates, each a mean over samples.

        `loss` is the cross-entropy of what the teacher says of each large view and the student of each other view; it
        is the sum of `teacher_entropy` and `kl`, the divergence of the student from the teacher.
        """
        with torch.no_grad():
            logits = self.teacher(views[:1])
        self.targets.gather(logits)
        outputs = self.student(views, frozen=step < self.freeze_steps)
        return compare_views(outputs, self.targets(logits, step), temperature=self.student_temp)

    @torch.no_grad()
    def prototypes(self, images: Tensor, step: int) -> Tensor:
        """What the teacher says of images (B, C, S, S) after `step` updates: distributions (B, K)."""
        return self.targets(self.teacher([images[None]])[0], step)

    def after_update(self, step: int, total: Callable[[Tensor], Tensor]) -> None:
        """Move the teacher and the centre, on all ranks after update number `step`, counted from 1; `total` is the sum
        of a tensor over ranks."""
        follow(self.teacher, self.student, momentum=cosine(step - 1, self.num_steps, start=self.momentum, end=1))
        self.targets.update(total)


def compare_views(outputs: Tensor, targets: Tensor, *, temperature: float) -> dict[str, Tensor]:
    """The cross-entropy of distributions (T, B, K) and cosines (V, B, K) of other views, and its two parts."""
    loss = -mean_product((outputs / temperature).log_softmax(dim=-1), targets)
    teacher_entropy = entropy(targets).mean()
    return {"loss": loss, "teacher_entropy": teacher_entropy, "kl": loss.detach() - teacher_entropy}

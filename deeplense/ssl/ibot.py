"""iBOT: DINO, and the student says of hidden patches what the teacher says who sees them. V views, of which the first T
are large, B batch, C bands, S pixels a side, N patches, M of them hidden, D features, K prototypes."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from deeplense.choices import require_choice
from deeplense.ssl.dino import compare_views
from deeplense.ssl.heads import DINOHead
from deeplense.ssl.masked import MakeMasks, check_views, draw_masks, token_weights, with_tokens
from deeplense.ssl.schedules import cosine, ramp
from deeplense.ssl.teacher import Distillation, Targets, entropy, follow, make_teacher

CenterTokens = Literal["all", "masked"]


class Network(nn.Module):
    """A backbone, a head on its features, and one on its patches, which may be the same."""

    def __init__(self, backbone: nn.Module, head: DINOHead, patch_head: DINOHead | None) -> None:
        super().__init__()
        self.backbone, self.head, self.patch_head = backbone, head, patch_head

    def patch_cosines(self, patches: Tensor, *, frozen: bool = False) -> Tensor:
        """Cosines (..., K) of patches (..., D)."""
        head = self.head if self.patch_head is None else self.patch_head
        return head(patches, frozen=frozen)


class IBOT(Distillation[Network]):
    """Image BERT pre-training with an online tokenizer (Zhou et al. 2022, arXiv:2111.07832).

    The defaults are for data sets of less than 20,000 images. The paper has out_dim 8192, momentum 0.996 and
    temperatures of 0.04, for patches rising to 0.07, in the first 30 epochs of 100 or more.

    Args:
        backbone: with tokens.
        num_features: D.
        num_steps: updates of the whole pretraining.
        make_masks: makes the masks of large views.
        mask_uniforms: numbers that it wants for an image.
        num_large: T.
        out_dim: K, of views and of patches.
        hidden_dim: width of the heads.
        bottleneck_dim: numbers of which the cosines are taken.
        shared_head: whether views and patches have one head.
        momentum: share of the teacher that stays in the first update; it rises to 1 as a cosine.
        center_momentum: share of the centres that stays in each update.
        center_tokens: the patches whose mean the centre follows: all as in the authors' code, or the masked ones as
            in DINOv2, which spares the teacher's head the others.
        student_temp: the cosines of the student are divided by it.
        teacher_temp: those of the teacher, after the warm-up.
        warmup_teacher_temp: those of the teacher, at the start.
        teacher_patch_temp: those of the teacher for patches, after the warm-up.
        warmup_teacher_patch_temp: those of the teacher for patches, at the start.
        warmup_share: of the updates, in which the teacher's temperatures change.
        freeze_share: of the updates, the first ones, in which the last layers of the heads learn nothing.
        view_weight: of the loss of views.
        patch_weight: of the loss of patches.
    """

    def __init__(
        self,
        backbone: nn.Module,
        *,
        num_features: int,
        num_steps: int,
        make_masks: MakeMasks,
        mask_uniforms: int,
        num_large: int = 2,
        out_dim: int = 1024,
        hidden_dim: int = 2048,
        bottleneck_dim: int = 256,
        shared_head: bool = True,
        momentum: float = 0.99,
        center_momentum: float = 0.9,
        center_tokens: CenterTokens = "all",
        student_temp: float = 0.1,
        teacher_temp: float = 0.02,
        warmup_teacher_temp: float = 0.02,
        teacher_patch_temp: float = 0.07,
        warmup_teacher_patch_temp: float = 0.04,
        warmup_share: float = 0.3,
        freeze_share: float = 0.01,
        view_weight: float = 1.0,
        patch_weight: float = 1.0,
    ) -> None:
        super().__init__()
        self.make_masks, self.num_large, self.num_uniforms = make_masks, num_large, num_large * mask_uniforms
        make_head = partial(
            DINOHead, num_features, out_dim=out_dim, hidden_dim=hidden_dim, bottleneck_dim=bottleneck_dim
        )
        self.student = Network(backbone, make_head(), None if shared_head else make_head())
        self.mask_token = nn.Parameter(torch.zeros(1, 1, num_features))
        self.teacher = make_teacher(self.student)
        rise = partial(ramp, num_steps=round(warmup_share * num_steps))
        self.targets, self.patch_targets = (
            Targets(out_dim, momentum=center_momentum, temperature=temperature)
            for temperature in (
                partial(rise, start=warmup_teacher_temp, end=teacher_temp),
                partial(rise, start=warmup_teacher_patch_temp, end=teacher_patch_temp),
            )
        )
        require_choice("center_tokens", center_tokens, get_args(CenterTokens))
        self.center_tokens: CenterTokens = center_tokens
        self.num_steps, self.freeze_steps = num_steps, round(freeze_share * num_steps)
        self.momentum, self.student_temp = momentum, student_temp
        self.view_weight, self.patch_weight = view_weight, patch_weight

    def forward(self, views: Sequence[Tensor], random: Tensor, step: int) -> dict[str, Tensor]:
        """The metrics of a batch after `step` updates, each a mean over samples.

        `loss` is the weighted sum of `view_loss`, which is DINO's, and `patch_loss`: the cross-entropy of what the
        teacher and the student say of hidden patches, a mean over those of an image. An image where nothing is hidden
        counts as 0, in `teacher_patch_entropy` too. `masked` is the share of patches that are hidden.
        """
        masks = self.masks(views[0], random)
        hidden = masks.flatten().nonzero().squeeze(1)
        weights = token_weights(masks).flatten()[hidden]
        targets, patch_targets = self.teach(views[0], hidden, step=step)
        outputs, patch_outputs = self.outputs(views, masks, hidden=hidden, frozen=step < self.freeze_steps)
        metrics = compare_views(outputs, targets, temperature=self.student_temp)
        log_probabilities = (patch_outputs / self.student_temp).log_softmax(dim=-1)
        patch_loss = -((patch_targets * log_probabilities).sum(dim=-1) * weights).sum()
        return metrics | {
            "loss": self.view_weight * metrics["loss"] + self.patch_weight * patch_loss,
            "view_loss": metrics["loss"].detach(),
            "patch_loss": patch_loss.detach(),
            "teacher_patch_entropy": (entropy(patch_targets) * weights).sum(),
            "masked": masks.float().mean(),
        }

    def masks(self, large: Tensor, random: Tensor) -> Tensor:
        """The masks (T * B, N) of large views (T, B, C, S, S)."""
        check_views(large, self.num_large)
        grid = with_tokens(self.student.backbone).grid(large.shape[-1])
        return draw_masks(self.make_masks, random, num_views=self.num_large, grid=grid)

    @torch.no_grad()
    def teach(self, large: Tensor, hidden: Tensor, *, step: int) -> tuple[Tensor, Tensor]:
        """What the teacher, who sees everything, says of large views (T, B, C, S, S) and of the hidden patches:
        distributions (T, B, K) and (M, K). In training mode its outputs are gathered for the centres."""
        features, patches = with_tokens(self.teacher.backbone).tokens(large.flatten(0, 1))
        logits = self.teacher.head(features).unflatten(0, large.shape[:2])
        patches = patches.flatten(0, 1)
        if self.center_tokens == "all":
            gathered = self.teacher.patch_cosines(patches)
            patch_logits = gathered[hidden]
        else:
            gathered = patch_logits = self.teacher.patch_cosines(patches[hidden])
        self.targets.gather(logits)
        self.patch_targets.gather(gathered)
        return self.targets(logits, step), self.patch_targets(patch_logits, step)

    def outputs(self, views: Sequence[Tensor], masks: Tensor, *, hidden: Tensor, frozen: bool) -> tuple[Tensor, Tensor]:
        """Cosines of the student for all views (V, B, K), the large ones seen through masks, and for the hidden patches
        (M, K)."""
        large, *small = (group.flatten(0, 1) for group in views)
        features, patches = with_tokens(self.student.backbone).tokens(large, masks, self.mask_token)
        features = torch.cat([features, *(self.student.backbone(group) for group in small)])
        outputs = self.student.head(features, frozen=frozen).unflatten(0, (-1, views[0].shape[1]))
        return outputs, self.student.patch_cosines(patches.flatten(0, 1)[hidden], frozen=frozen)

    @torch.no_grad()
    def prototypes(self, images: Tensor, step: int) -> Tensor:
        """What the teacher says of images (B, C, S, S) after `step` updates: distributions (B, K)."""
        return self.targets(self.teacher.head(self.teacher.backbone(images)), step)

    def after_update(self, step: int, total: Callable[[Tensor], Tensor]) -> None:
        """Move the teacher and the centres, on all ranks after update number `step`, counted from 1; `total` is the sum
        of a tensor over ranks."""
        follow(self.teacher, self.student, momentum=cosine(step - 1, self.num_steps, start=self.momentum, end=1))
        self.targets.update(total)
        self.patch_targets.update(total)

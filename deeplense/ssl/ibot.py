"""iBOT: DINO with masked patches; the student predicts the teacher's output for patches that it does not see. Shapes: V
views, of which the first T are large, B batch, C bands, S pixels per side, N patches, M patches evaluated, D features,
K prototypes."""

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from deeplense.choices import require_choice
from deeplense.schedules import cosine, ramp
from deeplense.ssl.dino import compare_views
from deeplense.ssl.heads import DINOHead
from deeplense.ssl.patches import MakeMasks, check_views, draw_masks, token_weights, with_tokens
from deeplense.ssl.teacher import Distillation, Targets, entropy, follow, make_teacher

CenterTokens = Literal["all", "masked"]


class Network(nn.Module):
    """A backbone, a head on its features, and one on its patches, which may be the same."""

    def __init__(self, backbone: nn.Module, head: DINOHead, patch_head: DINOHead | None) -> None:
        super().__init__()
        self.backbone, self.head, self.patch_head = backbone, head, patch_head

    def patch_cosines(self, patches: Tensor, *, frozen: bool = False) -> Tensor:
        """Return cosines (..., K) of patches.

        Args:
            patches: (..., D).
            frozen: whether the last layer of the head gets no gradient.
        """
        head = self.head if self.patch_head is None else self.patch_head
        return head(patches, frozen=frozen)


class IBOT(Distillation[Network]):
    """Image BERT pre-training with an online tokenizer (Zhou et al. 2022, arXiv:2111.07832).

    The defaults are for data sets of fewer than 20,000 images. The paper has out_dim 8192, momentum 0.996 and
    temperatures of 0.04, for patches rising to 0.07, in the first 30 epochs of 100 or more.

    Args:
        backbone: backbone with tokens (`TokenBackbone`).
        num_features: D.
        num_steps: number of updates of the whole pretraining.
        make_masks: makes the masks of large views from random numbers.
        mask_uniforms: number of random numbers that it takes per image.
        most_hidden: largest fraction of the patches of an image that it masks; the heads see this number of patches of
            each image.
        num_large: T.
        out_dim: K, of views and of patches.
        hidden_dim: width of the heads.
        bottleneck_dim: dimension of the vectors whose cosines are taken.
        shared_head: whether views and patches share one head.
        momentum: fraction of the teacher that stays in the first update, 0 to 1; it rises to 1 on a cosine.
        center_momentum: fraction of the centres that stays in each update.
        center_tokens: patches whose mean the centre follows: `all` as in the authors' code, or `masked` as in DINOv2,
            which saves the teacher's head the others.
        student_temp: temperature of the student, which divides its cosines.
        teacher_temp: temperature of the teacher after the warm-up.
        warmup_teacher_temp: temperature of the teacher at the start.
        teacher_patch_temp: temperature of the teacher for patches after the warm-up.
        warmup_teacher_patch_temp: temperature of the teacher for patches at the start.
        warmup_share: fraction of the updates in which the teacher's temperatures change.
        freeze_share: fraction of the updates, at the start, in which the last layers of the heads are frozen.
        view_weight: weight of the loss of views.
        patch_weight: weight of the loss of patches.

    Raises:
        ValueError: unknown `center_tokens`.
    """

    def __init__(
        self,
        backbone: nn.Module,
        *,
        num_features: int,
        num_steps: int,
        make_masks: MakeMasks,
        mask_uniforms: int,
        most_hidden: float = 1.0,
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
        self.most_hidden = most_hidden
        require_choice("center_tokens", center_tokens, get_args(CenterTokens))
        self.center_tokens: CenterTokens = center_tokens
        self.num_steps, self.freeze_steps = num_steps, round(freeze_share * num_steps)
        self.momentum, self.student_temp = momentum, student_temp
        self.view_weight, self.patch_weight = view_weight, patch_weight

    def forward(self, views: Sequence[Tensor], random: Tensor, step: int) -> dict[str, Tensor]:
        """Return the metrics of a batch, each a mean over samples.

        `loss` is the weighted sum of `view_loss`, which is DINO's, and `patch_loss`: the cross-entropy of teacher and
        student for masked patches, a mean over those of an image. An image without masked patches counts as 0, also in
        `teacher_patch_entropy`. `masked` is the fraction of masked patches.

        Args:
            views: views of each resolution, (V', B, C, S, S) each, the large ones first.
            random: random numbers of the masks, (B, num_uniforms) in [0, 1[.
            step: number of updates made so far.
        """
        masks = self.masks(views[0], random)
        hidden = self.hidden(masks)
        weights, counted = (each.flatten()[hidden] for each in (token_weights(masks), masks))
        targets, patch_targets = self.teach(views[0], hidden, counted=counted, step=step)
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
        """Return the masks (T * B, N) of large views, true for masked patches.

        Args:
            large: large views, (T, B, C, S, S).
            random: (B, num_uniforms) in [0, 1[.
        """
        check_views(large, self.num_large)
        grid = with_tokens(self.student.backbone).grid(large.shape[-1])
        return draw_masks(self.make_masks, random, num_views=self.num_large, grid=grid)

    def hidden(self, masks: Tensor) -> Tensor:
        """Return the numbers (M,) of the masked patches of masks (T * B, N), counted over all images, and of enough
        other patches that M does not depend on the masks (otherwise the host would wait for the GPU)."""
        most = min(math.ceil(self.most_hidden * masks.shape[1]), masks.shape[1])
        first = masks.byte().argsort(dim=1, descending=True, stable=True)[:, :most]
        return (first + torch.arange(len(masks), device=masks.device)[:, None] * masks.shape[1]).flatten()

    @torch.no_grad()
    def teach(
        self, large: Tensor, hidden: Tensor, *, counted: Tensor | None = None, step: int
    ) -> tuple[Tensor, Tensor]:
        """Return the teacher's distributions for large views (T, B, K) and for the patches with these numbers (M, K).

        The teacher sees all patches. In training mode its outputs are gathered for the centres.

        Args:
            large: large views, (T, B, C, S, S).
            hidden: numbers of patches, (M,), counted over all images.
            counted: which of them count for the centre, (M,) bool; None for all.
            step: number of updates made so far.
        """
        features, patches = with_tokens(self.teacher.backbone).tokens(large.flatten(0, 1))
        logits = self.teacher.head(features).unflatten(0, large.shape[:2])
        patches = patches.flatten(0, 1)
        if self.center_tokens == "all":
            gathered = self.teacher.patch_cosines(patches)
            patch_logits, counted = gathered[hidden], None
        else:
            gathered = patch_logits = self.teacher.patch_cosines(patches[hidden])
        self.targets.gather(logits)
        self.patch_targets.gather(gathered, counted)
        return self.targets(logits, step), self.patch_targets(patch_logits, step)

    def outputs(self, views: Sequence[Tensor], masks: Tensor, *, hidden: Tensor, frozen: bool) -> tuple[Tensor, Tensor]:
        """Return the student's cosines for all views (V, B, K), the large ones masked, and for the patches with these
        numbers (M, K).

        Args:
            views: views of each resolution, (V', B, C, S, S) each, the large ones first.
            masks: masks of the large views, (T * B, N).
            hidden: numbers of patches, (M,), counted over all images.
            frozen: whether the last layers of the heads get no gradient.
        """
        large, *small = (group.flatten(0, 1) for group in views)
        features, patches = with_tokens(self.student.backbone).tokens(large, masks, self.mask_token)
        features = torch.cat([features, *(self.student.backbone(group) for group in small)])
        outputs = self.student.head(features, frozen=frozen).unflatten(0, (-1, views[0].shape[1]))
        return outputs, self.student.patch_cosines(patches.flatten(0, 1).index_select(0, hidden), frozen=frozen)

    @torch.no_grad()
    def prototypes(self, images: Tensor, step: int) -> Tensor:
        """Return the teacher's distributions over prototypes, (B, K).

        Args:
            images: (B, C, S, S).
            step: number of updates made so far.
        """
        return self.targets(self.teacher.head(self.teacher.backbone(images)), step)

    def after_update(self, step: int, total: Callable[[Tensor], Tensor]) -> None:
        """Move the teacher and the centres, on all ranks.

        Args:
            step: number of this update, from 1.
            total: returns the sum of a tensor over ranks.
        """
        follow(self.teacher, self.student, momentum=cosine(step - 1, self.num_steps, start=self.momentum, end=1))
        self.targets.update(total)
        self.patch_targets.update(total)

"""SimSiam: two views of an image predict each other, without a teacher or negative pairs. Shapes: V views, of which the
first T are large, B batch, C bands, S pixels per side, D features, P dimensions of a projection."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from deeplense.ssl.collapse import embedding_std
from deeplense.ssl.heads import simsiam_predictor, simsiam_projector
from deeplense.ssl.pairs import mean_product


class SimSiam(nn.Module):
    """Simple siamese representations (Chen and He 2021, arXiv:2011.10566), with the paper's sizes.

    The learning rate of `predictor` should stay constant in a pretraining, as the paper says. A batch norm sees one
    view of one piece of a batch; with more than one rank all should be `SyncBatchNorm`.

    Args:
        backbone: maps images (B, C, S, S) to features (B, D) at the sizes of all views.
        num_features: D.
        num_steps: not used.
        out_dim: P.
        hidden_dim: width of the projector.
        predictor_dim: width of the predictor.
    """

    num_uniforms: int = 0

    def __init__(
        self,
        backbone: nn.Module,
        *,
        num_features: int,
        num_steps: int,
        out_dim: int = 2048,
        hidden_dim: int = 2048,
        predictor_dim: int = 512,
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.projector = simsiam_projector(num_features, hidden_dim=hidden_dim, out_dim=out_dim)
        self.predictor = simsiam_predictor(out_dim, hidden_dim=predictor_dim)

    @property
    def encoder(self) -> nn.Module:
        """The backbone."""
        return self.backbone

    def forward(self, views: Sequence[Tensor], random: Tensor, step: int) -> dict[str, Tensor]:
        """Return the metrics of a batch: `loss`, from -1 to 1, and `projection_std`, 1 for random projections and 0 for
        equal ones.

        `loss` is minus the mean cosine of each view's prediction with the projections of the other large views, which
        get no gradient. Each view is a forward pass of its own, so that its batch norms see that view alone.

        Args:
            views: views of each resolution, (V', B, C, S, S) each, the large ones first.
            random: not used; (B, 0).
            step: not used.
        """
        projections = [self.projector(self.backbone(view)) for group in views for view in group]
        predictions = [self.predictor(projection) for projection in projections]
        aims = torch.stack(projections[: len(views[0])]).detach().float()
        loss = -mean_product(
            functional.normalize(torch.stack(predictions).float(), dim=-1), functional.normalize(aims, dim=-1)
        )
        return {"loss": loss, "projection_std": embedding_std(aims[0])}

    def after_update(self, step: int, total: Callable[[Tensor], Tensor]) -> None:
        """Do nothing: there is no state beside the weights.

        Args:
            step: not used.
            total: not used.
        """

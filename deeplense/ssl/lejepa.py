"""LeJEPA: views predict their mean, and all embeddings together follow a normal distribution. Shapes: V views, of which
the first T are large, B batch, C bands, S pixels per side, D features, P dimensions of an embedding, M directions."""

from collections.abc import Callable, Sequence

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.nn.functional import all_reduce
from torch.nn import functional

from deeplense.constants import sent
from deeplense.ssl.heads import lejepa_projector


class LeJEPA(nn.Module):
    """Latent prediction without a teacher (Balestriero and LeCun 2025, arXiv:2511.08544). The authors' small example
    has 256 directions, too; the paper has 1024.

    The normality test sees the embeddings of one forward pass of all ranks, as in the paper: if the same batch is
    divided into more pieces, the test has fewer samples and is less strict. With more than one rank, the batch norms of
    the projector should be `SyncBatchNorm`.

    Args:
        backbone: maps images (B, C, S, S) to features (B, D) at the sizes of all views.
        num_features: D.
        num_steps: not used.
        out_dim: P.
        hidden_dim: width of the projector.
        num_directions: M, along which the distribution is tested; others in each update.
        sigreg_weight: weight of the normality test, 0 to 1; the prediction has 1 minus this.
    """

    num_uniforms: int = 0

    def __init__(
        self,
        backbone: nn.Module,
        *,
        num_features: int,
        num_steps: int,
        out_dim: int = 64,
        hidden_dim: int = 2048,
        num_directions: int = 256,
        sigreg_weight: float = 0.05,
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.projector = lejepa_projector(num_features, hidden_dim=hidden_dim, out_dim=out_dim)
        self.out_dim, self.num_directions, self.sigreg_weight = out_dim, num_directions, sigreg_weight

    @property
    def encoder(self) -> nn.Module:
        """The backbone."""
        return self.backbone

    def forward(self, views: Sequence[Tensor], random: Tensor, step: int) -> dict[str, Tensor]:
        """Return the metrics of a batch: `loss`, the weighted sum of `prediction`, the mean squared distance of the
        views from the mean of the large ones, and `sigreg`, the normality test.

        Args:
            views: views of each resolution, (V', B, C, S, S) each, the large ones first.
            random: not used; (B, 0).
            step: number of updates made so far, which decides the directions.
        """
        features = [self.backbone(group.flatten(0, 1)) for group in views]
        embeddings = self.projector(torch.cat(features)).float().unflatten(0, (-1, views[0].shape[1]))
        prediction = (embeddings - embeddings[: len(views[0])].mean(dim=0)).square().mean()
        with torch.autocast(embeddings.device.type, enabled=False):
            gap = sigreg(embeddings, sent(self.directions(step), embeddings.device))
        loss = self.sigreg_weight * gap + (1 - self.sigreg_weight) * prediction
        return {"loss": loss, "prediction": prediction.detach(), "sigreg": gap.detach()}

    def directions(self, step: int) -> Tensor:
        """Return random unit vectors (P, M) for an update, the same on all ranks."""
        generator = torch.Generator().manual_seed(step)
        return functional.normalize(torch.randn(self.out_dim, self.num_directions, generator=generator), dim=0)

    def after_update(self, step: int, total: Callable[[Tensor], Tensor]) -> None:
        """Do nothing: there is no state beside the weights.

        Args:
            step: not used.
            total: not used.
        """


def sigreg(embeddings: Tensor, directions: Tensor, *, highest: float = 3.0, num_points: int = 17) -> Tensor:
    """Return how far embeddings are from a normal distribution of mean 0 and variance 1, along some directions.

    If there are other ranks, all must call this, and B counts the embeddings of all of them.

    For each view and direction, this is the statistic of Epps and Pulley (1983): B times the squared distance of the
    empirical characteristic function from exp(-t^2 / 2), integrated with this weight over t from -highest to highest by
    the trapezoidal rule. The integrand is even in t, so `num_points` from 0 to `highest` suffice. For normal embeddings
    its mean does not depend on B.

    Args:
        embeddings: (V, B, P).
        directions: unit vectors, (P, M).
        highest: upper limit of t, dimensionless.
        num_points: number of points of the integral.

    Returns:
        The mean over views and directions, a scalar of 0 or more.

    Example:
        >>> directions = torch.eye(2)
        >>> normal = torch.randn(1, 500, 2, generator=torch.Generator().manual_seed(0))
        >>> bool(sigreg(normal, directions) < sigreg(0 * normal, directions))
        True
    """
    t = torch.linspace(0, highest, num_points, device=embeddings.device)
    normal = (-t.square() / 2).exp()
    angles = (embeddings @ directions)[..., None] * t
    cosines, sines, number = means_over_ranks(angles.cos().mean(dim=-3), angles.sin().mean(dim=-3), angles.shape[-3])
    gaps = (cosines - normal).square() + sines.square()
    return 2 * number * torch.trapezoid(gaps * normal, t, dim=-1).mean()


def means_over_ranks(cosines: Tensor, sines: Tensor, number: int) -> tuple[Tensor, Tensor, Tensor | int]:
    """Return two means over the embeddings of all ranks, and the number of embeddings. Gradients pass through.

    Args:
        cosines: mean over the embeddings of this rank, (V, M, T).
        sines: another mean, of the same shape.
        number: number of embeddings of this rank, which may differ between ranks.
    """
    if not (dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1):
        return cosines, sines, number
    own = torch.stack([cosines, sines]).flatten() * number
    sums = all_reduce(torch.cat([own, own.new_full((1,), number)]))
    cosines, sines = (sums[:-1] / sums[-1]).view(2, *cosines.shape)
    return cosines, sines, sums[-1]

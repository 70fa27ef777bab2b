"""Has a pretraining collapsed? Numbers that say so, and words. N images, D features, K prototypes.

The limits were tried on survey stamps of 32 pixels. An untrained ViT-S/8 has an embedding std of 0.7 and a RankMe of 56
to 94; a small ViT after 100 updates of DINO has 0.7 and 7, with 5 prototypes in use; without a centre 1.9 are, and at a
teacher's temperature of 0.3 the share of entropy is 1.00.
"""

import math
from collections.abc import Callable, Mapping

import torch
from torch import Tensor
from torch.nn import functional

from deeplense.ssl.teacher import entropy

POINT_STD = 0.05
"""Embeddings of a smaller std are a point: they lie within 0.05 (3 degrees) of their common direction."""
FEWEST_DIMENSIONS = 3.0
"""A smaller RankMe is a point, a line or a plane, whatever the number of features; good encoders have tens."""
FEWEST_PROTOTYPES = 2.0
"""Prototypes in use, by the entropy of the mean distribution: with fewer, nearly all images get the same one."""
UNIFORM_SHARE = 0.99
"""Of the entropy of a uniform distribution. At the start, when cosines are random, a teacher at the temperature 0.07
has 0.94 with 1024 prototypes and 0.96 with 65536."""
RANK_EPSILON = 1e-7
"""Added to the shares of singular values, as in RankMe's definition, and the least sum that they are shares of."""


def embedding_std(features: Tensor) -> Tensor:
    """The standard deviation of features (N, D) divided by their norms, a mean over D, times sqrt(D): 1 for random
    ones, 0 where all have collapsed to one (Chen and He 2021, arXiv:2011.10566)."""
    directions = functional.normalize(features.float(), dim=1)
    return directions.std(dim=0).mean() * math.sqrt(features.shape[1])


def rankme(features: Tensor) -> Tensor:
    """The number of dimensions that features (N, D) fill: the exponential of the entropy of their singular values,
    divided by the sum of these (Garrido et al. 2023, arXiv:2210.02885)."""
    values = torch.linalg.svdvals(features.float())
    shares = values / values.sum().clamp(min=RANK_EPSILON) + RANK_EPSILON
    return entropy(shares).exp()


def collapse_panel(
    features: Tensor, *, probabilities: Tensor | None = None, center: Tensor | None = None
) -> dict[str, float]:
    """What tells whether a pretraining has collapsed.

    Args:
        features: of images, (N, D).
        probabilities: what a teacher says of images, distributions (N, K).
        center: the teacher's centre, (K,).

    Returns:
        `embedding_std` and `rankme`, see there. With probabilities: `teacher_entropy`, the mean over images, from 0
        (one prototype for each) to log K (each says all prototypes), and `teacher_entropy_share`, of log K;
        `kl_uniform`, the divergence of the mean distribution from the uniform one, from 0 (all prototypes are used
        evenly) to log K (all images get the same one); `prototypes_effective`, K / exp(kl_uniform); `prototypes_used`,
        the share of prototypes that are the first choice of an image, of the min(N, K) that can be. With a centre:
        `center_norm`. What cannot be computed, as numbers are not finite, is nan.
    """
    panel = {"embedding_std": embedding_std(features), "rankme": finite(features, rankme)}
    if probabilities is not None:
        panel |= prototype_panel(probabilities.float())
    if center is not None:
        panel["center_norm"] = center.float().norm()
    return {name: float(value) for name, value in panel.items()}


def finite(features: Tensor, measure: Callable[[Tensor], Tensor]) -> Tensor:
    """A measure of features, nan where they are not finite, which an SVD raises an error for."""
    return measure(features) if features.isfinite().all() else features.new_tensor(math.nan)


def prototype_panel(probabilities: Tensor) -> dict[str, Tensor]:
    """What `collapse_panel` says of distributions (N, K)."""
    num_images, num_prototypes = probabilities.shape
    mean_entropy = entropy(probabilities).mean()
    kl_uniform = math.log(num_prototypes) - entropy(probabilities.mean(dim=0))
    chosen = probabilities.argmax(dim=1).unique()
    return {
        "teacher_entropy": mean_entropy,
        "teacher_entropy_share": mean_entropy / math.log(num_prototypes),
        "kl_uniform": kl_uniform,
        "prototypes_effective": num_prototypes * (-kl_uniform).exp(),
        "prototypes_used": chosen.new_tensor(len(chosen)) / min(num_images, num_prototypes),
    }


def verdict(panel: Mapping[str, float]) -> str:
    """In words how it has collapsed, by what `collapse_panel` returns; empty where it has not."""
    if not all(map(math.isfinite, panel.values())):
        return f"Not all is finite: {', '.join(name for name, value in panel.items() if not math.isfinite(value))}."
    return " ".join(filter(None, (verdict_on_features(panel), verdict_on_prototypes(panel))))


def verdict_on_features(panel: Mapping[str, float]) -> str:
    """Whether embeddings have become a point or a line."""
    std, rank = panel["embedding_std"], panel["rankme"]
    if std < POINT_STD:
        return f"The embeddings have collapsed to a point: their std is {std:.3g} of that of random ones."
    if rank < FEWEST_DIMENSIONS:
        return f"The embeddings have collapsed to few dimensions: {rank:.3g} by RankMe."
    return ""


def verdict_on_prototypes(panel: Mapping[str, float]) -> str:
    """Whether the teacher says the same of all images."""
    share, count = panel.get("teacher_entropy_share", 0), panel.get("prototypes_effective", math.inf)
    if count < FEWEST_PROTOTYPES:
        return f"The teacher has collapsed to one prototype: {count:.3g} are in use."
    if share > UNIFORM_SHARE:
        return f"The teacher has collapsed to a uniform distribution: it has {share:.1%} of the entropy of one."
    return ""

"""Diagnostics of collapse in pretraining, as numbers and as text. Shapes: N images, D features, K prototypes.

The limits were tested on survey stamps of 32 pixels. An untrained ViT-S/8 has an embedding std of 0.7 and a RankMe of
56 to 94; a small ViT after 100 updates of DINO has 0.7 and 7, with 5 prototypes in use; without a centre 1.9 are in
use, and at a teacher temperature of 0.3 the entropy share is 1.00.
"""

import math
from collections.abc import Callable, Mapping

import torch
from torch import Tensor
from torch.nn import functional

from deeplense.ssl.teacher import entropy

POINT_STD = 0.05
"""Embeddings with a smaller std have collapsed to a point: they lie within 0.05 (3 degrees) of their
common direction."""
FEWEST_DIMENSIONS = 3.0
"""A smaller RankMe means a point, a line or a plane, whatever the number of features; good encoders have tens."""
FEWEST_PROTOTYPES = 2.0
"""Effective number of prototypes, by the entropy of the mean distribution; with fewer, nearly all images get the same
one."""
UNIFORM_SHARE = 0.99
"""Largest normal ratio of the teacher's entropy to that of a uniform distribution. At the start, when cosines are
random, a teacher at the temperature 0.07 has 0.94 with 1024 prototypes and 0.96 with 65536."""
RANK_EPSILON = 1e-7
"""Added to the normalised singular values, as in RankMe's definition, and the lower limit of the sum they are divided
by."""


def embedding_std(features: Tensor) -> Tensor:
    """Return the standard deviation of normalised features (N, D), averaged over D, times sqrt(D): 1 for random
    features, 0 if all have collapsed to one (Chen and He 2021, arXiv:2011.10566).

    Example:
        >>> float(embedding_std(torch.ones(4, 8)))
        0.0
    """
    directions = functional.normalize(features.float(), dim=1)
    return directions.std(dim=0).mean() * math.sqrt(features.shape[1])


def rankme(features: Tensor) -> Tensor:
    """Return the effective number of dimensions of features (N, D): the exponential of the entropy of their normalised
    singular values (Garrido et al. 2023, arXiv:2210.02885).

    Example:
        >>> round(float(rankme(torch.eye(4))), 2)
        4.0
    """
    values = torch.linalg.svdvals(features.float())
    shares = values / values.sum().clamp(min=RANK_EPSILON) + RANK_EPSILON
    return entropy(shares).exp()


def collapse_panel(
    features: Tensor, *, probabilities: Tensor | None = None, center: Tensor | None = None
) -> dict[str, float]:
    """Return the diagnostics of collapse.

    Args:
        features: features of images, (N, D).
        probabilities: the teacher's distributions over prototypes for images, (N, K); None for methods without a
            teacher.
        center: the teacher's centre, (K,).

    Returns:
        `embedding_std` and `rankme`, see there. With probabilities: `teacher_entropy`, the mean over images, from 0
        (one prototype each) to log K (uniform); `teacher_entropy_share`, its ratio to log K; `kl_uniform`, the
        divergence of the mean distribution from the uniform one, from 0 (all prototypes are used evenly) to log K (all
        images get the same one); `prototypes_effective`, K / exp(kl_uniform); `prototypes_used`, the fraction of
        prototypes that are the first choice of an image, relative to min(N, K). With a centre: `center_norm`. Values
        that cannot be computed, as numbers are not finite, are nan.

    Example:
        >>> panel = collapse_panel(torch.eye(4), probabilities=torch.eye(4))
        >>> round(panel["rankme"], 2), panel["prototypes_used"]
        (4.0, 1.0)
    """
    panel = {"embedding_std": embedding_std(features), "rankme": finite(features, rankme)}
    if probabilities is not None:
        panel |= prototype_panel(probabilities.float())
    if center is not None:
        panel["center_norm"] = center.float().norm()
    return {name: float(value) for name, value in panel.items()}


def finite(features: Tensor, measure: Callable[[Tensor], Tensor]) -> Tensor:
    """Return a measure of features, nan if they are not finite (an SVD would raise an error).

    Args:
        features: (N, D).
        measure: maps features to a scalar.
    """
    return measure(features) if features.isfinite().all() else features.new_tensor(math.nan)


def prototype_panel(probabilities: Tensor) -> dict[str, Tensor]:
    """Return the diagnostics of distributions (N, K), see `collapse_panel`."""
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
    """Describe in words how a pretraining has collapsed; empty if it has not.

    Args:
        panel: result of `collapse_panel`.

    Example:
        >>> verdict({"embedding_std": 0.8, "rankme": 30.0})
        ''
        >>> verdict({"embedding_std": 0.01, "rankme": 30.0})
        'The embeddings have collapsed to a point: their std is 0.01 of that of random embeddings.'
    """
    if not all(map(math.isfinite, panel.values())):
        bad = ", ".join(name for name, value in panel.items() if not math.isfinite(value))
        return f"Not all metrics are finite: {bad}."
    return " ".join(filter(None, (verdict_on_features(panel), verdict_on_prototypes(panel))))


def verdict_on_features(panel: Mapping[str, float]) -> str:
    """Describe a collapse of the embeddings to a point or to few dimensions; empty without one."""
    std, rank = panel["embedding_std"], panel["rankme"]
    if std < POINT_STD:
        return f"The embeddings have collapsed to a point: their std is {std:.3g} of that of random embeddings."
    if rank < FEWEST_DIMENSIONS:
        return f"The embeddings have collapsed to few dimensions: RankMe is {rank:.3g}."
    return ""


def verdict_on_prototypes(panel: Mapping[str, float]) -> str:
    """Describe a collapse of the teacher to one prototype or to a uniform distribution; empty without one."""
    share, count = panel.get("teacher_entropy_share", 0), panel.get("prototypes_effective", math.inf)
    if count < FEWEST_PROTOTYPES:
        return f"The teacher has collapsed to few prototypes: the effective number is {count:.3g}."
    if share > UNIFORM_SHARE:
        return f"The teacher has collapsed to a uniform distribution: its entropy is {share:.1%} of the maximum."
    return ""

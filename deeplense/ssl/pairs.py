"""Comparison of views with views. Shapes: S views of which the first T are the large ones, B batch, K numbers each."""

from torch import Tensor


def mean_product(first: Tensor, second: Tensor) -> Tensor:
    """Return the inner products of different views, averaged over samples and all pairs of views.

    Args:
        first: vectors of all views, (S, B, K).
        second: vectors of the first T views, (T, B, K).

    Returns:
        A scalar, in float32 if the inputs are.

    Raises:
        ValueError: there are fewer than two views.

    Example:
        >>> import torch
        >>> mean_product(torch.ones(3, 2, 4), torch.ones(2, 2, 4))
        tensor(4.)
    """
    num_pairs = len(second) * (len(first) - 1)
    if not num_pairs:
        raise ValueError("views are compared in pairs, but only 1 was given; use at least two views per image.")
    products = (first.sum(dim=0) * second.sum(dim=0)).sum(dim=-1)
    of_the_same = (first[: len(second)] * second).sum(dim=(0, -1))
    return (products - of_the_same).mean() / num_pairs

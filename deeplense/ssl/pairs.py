"""Views compared with views. S views of which the first T are the large ones, B batch, K numbers of each."""

from torch import Tensor


def mean_product(first: Tensor, second: Tensor) -> Tensor:
    """The mean over samples, and over all pairs of different views, of the inner products of `first` (S, B, K) and
    `second` (T, B, K), in float32 if they are.

    Raises ValueError where there are no two views.
    """
    num_pairs = len(second) * (len(first) - 1)
    if not num_pairs:
        raise ValueError("views are compared with others, and 1 was given; make at least two views of an image.")
    products = (first.sum(dim=0) * second.sum(dim=0)).sum(dim=-1)
    of_the_same = (first[: len(second)] * second).sum(dim=(0, -1))
    return (products - of_the_same).mean() / num_pairs

"""The simple CNN that the benchmarks of this field start from."""

from itertools import pairwise

from torch import nn


class SimpleCNN(nn.Sequential):
    """Four stages of convolution, batch normalisation, ReLU and halving, then a mean over the image. Takes any size
    from 16 pixels on.

    Maps images (B, C, H, W) to (B, num_classes), or to features (B, 256) where num_classes is 0.
    """

    num_features = 256

    def __init__(self, *, in_chans: int, num_classes: int, dropout: float) -> None:
        widths = (in_chans, 32, 64, 128, self.num_features)
        stages = [stage(before, after) for before, after in pairwise(widths)]
        head = nn.Linear(self.num_features, num_classes) if num_classes else nn.Identity()
        super().__init__(*stages, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(dropout), head)


def stage(before: int, after: int) -> nn.Sequential:
    """Convolution 3 x 3, batch normalisation, ReLU, halving."""
    return nn.Sequential(
        nn.Conv2d(before, after, 3, padding=1, bias=False),
        nn.BatchNorm2d(after),
        nn.ReLU(inplace=True),
        nn.MaxPool2d(2),
    )

"""The simple CNN that benchmarks of this field start from."""

from itertools import pairwise

from torch import nn


class SimpleCNN(nn.Sequential):
    """Four stages of convolution, batch normalisation, ReLU and max pooling, then the mean over the image.

    Maps images (B, C, H, W) of any size from 16 pixels on to features (B, 256).

    Args:
        in_chans: C.
    """

    num_features = 256

    def __init__(self, *, in_chans: int) -> None:
        widths = (in_chans, 32, 64, 128, self.num_features)
        stages = [stage(before, after) for before, after in pairwise(widths)]
        super().__init__(*stages, nn.AdaptiveAvgPool2d(1), nn.Flatten())


def stage(before: int, after: int) -> nn.Sequential:
    """Return a 3 x 3 convolution, batch normalisation, ReLU and 2 x 2 max pooling.

    Args:
        before: number of input channels.
        after: number of output channels.
    """
    return nn.Sequential(
        nn.Conv2d(before, after, 3, padding=1, bias=False),
        nn.BatchNorm2d(after),
        nn.ReLU(inplace=True),
        nn.MaxPool2d(2),
    )

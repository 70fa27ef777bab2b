"""Networks that are equivariant to rotations and flips. Shapes: B batch, C fields, G elements of the group, U elements
of the group below, J basis functions, K pixels per side of a filter, S of an image, D features."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional

MULTIPLE = 8
KERNEL_SIZES = (7, 5, 5, 5, 5, 5)
HALVED = (True, True, False, True, False, False)
"""Whether the image is halved after each layer."""
RING_WIDTH = 0.6
"""Standard deviation of a ring of a filter in pixels."""
HIGHEST_FREQUENCY = 3


@dataclass(frozen=True)
class Group:
    """Rotations by 360 / num_rotations degrees; with reflections, also each of them after a flip of the rows. Element
    s * num_rotations + r flips s times, then turns r times counter-clockwise."""

    num_rotations: int
    reflections: bool

    def __len__(self) -> int:
        return self.num_rotations * (1 + self.reflections)

    def parts(self) -> tuple[Tensor, Tensor]:
        """Return for each element the number of its turns (G,), and 1 without or -1 with a flip (G,)."""
        elements = torch.arange(len(self))
        return elements % self.num_rotations, 1 - 2 * (elements // self.num_rotations)

    def relative(self) -> Tensor:
        """Return element g as seen from h, inverse(h) g, at row h and column g (G, G)."""
        turns, signs = self.parts()
        turned = signs[:, None] * (turns - turns[:, None]) % self.num_rotations
        return turned + self.num_rotations * (signs != signs[:, None])


def ring_frequencies(kernel_size: int) -> list[tuple[int, int]]:
    """Return the radii of the rings of a filter in pixels, each with the angular frequencies that pixels can resolve;
    on the last ring, which the border cuts, up to one wave."""
    last = kernel_size // 2
    highest = [min(2 * ring, HIGHEST_FREQUENCY if ring < last else 1) for ring in range(last + 1)]
    return [(ring, frequency) for ring in range(last + 1) for frequency in range(highest[ring] + 1)]


def steerable_basis(group: Group, kernel_size: int) -> Tensor:
    """Return Gaussian rings times circular harmonics, transformed by each element of the group, (J, G, K * K).

    An element mixes only the cosine and the sine of one ring and frequency, by a phase and a sign, so that filters made
    of them rotate by any angle (Weiler and Cesa 2019). Waves have a sum of squares of 1, up to pixelisation. A ring
    without waves has a sum of 1: with more, each layer amplifies the lag of the running means behind those of the
    batches, and outputs in evaluation mode are far off during training.

    Args:
        group: the group.
        kernel_size: K, odd.

    Example:
        >>> steerable_basis(Group(4, reflections=False), 3).shape[1:]
        torch.Size([4, 9])
    """
    axis = torch.arange(kernel_size, dtype=torch.float64) - kernel_size // 2
    up, right = -axis.repeat_interleave(kernel_size), axis.repeat(kernel_size)
    radius = torch.hypot(up, right)
    turns, signs = group.parts()
    angle = signs[:, None] * (torch.atan2(up, right) - turns[:, None] * 2 * math.pi / group.num_rotations)
    functions = []
    for ring, frequency in ring_frequencies(kernel_size):
        profile = torch.exp(-(((radius - ring) / RING_WIDTH) ** 2) / 2) * (radius <= kernel_size / 2)
        if frequency:
            profile[radius == 0] = 0  # A wave has no value at the centre that all elements agree on.
        profile /= profile.norm() if frequency else profile.sum()
        waves = [torch.cos(frequency * angle), torch.sin(frequency * angle)] if frequency else [torch.ones_like(angle)]
        functions += [profile * wave * math.sqrt(len(waves)) for wave in waves]
    return torch.stack(functions).float()


class GroupConv(nn.Module):
    """A group convolution of fields: each element of the group has the same filter, transformed by the element, as are
    the elements of the group below (Cohen and Welling 2016, arXiv:1602.07576). With `lifting`, the input is plain
    images and U is 1.

    Maps (B, before * U, S, S) to (B, after * G, S, S).

    Args:
        before: number of input fields.
        after: number of output fields.
        group: the group.
        kernel_size: K, odd.
        lifting: whether the input is plain images.
    """

    basis: Tensor
    places: Tensor

    def __init__(self, before: int, after: int, *, group: Group, kernel_size: int, lifting: bool = False) -> None:
        super().__init__()
        basis = steerable_basis(group, kernel_size)
        relative = torch.zeros(len(group), 1, dtype=torch.long) if lifting else group.relative()
        places = relative * len(group) + torch.arange(len(group))[:, None]
        self.register_buffer("basis", basis, persistent=False)
        self.register_buffer("places", places.flatten(), persistent=False)
        self.weight = nn.Parameter(torch.empty(after, before, relative.shape[1], len(basis)))
        power = float(basis[:, 0].square().sum()) * self.weight[0, :, :, 0].numel()
        nn.init.normal_(self.weight, std=math.sqrt(2 / power))
        self.filter_shape = (after * len(group), before * relative.shape[1], kernel_size, kernel_size)
        self.kept: tuple[Tensor, Tensor] | None = None

    def forward(self, fields: Tensor) -> Tensor:
        return functional.conv2d(fields, self.filters(), padding=self.filter_shape[-1] // 2)

    def filters(self) -> Tensor:
        """Return the filters of all elements, (C * G, before * U, K, K). If they need no gradient they are cached, with
        the weights that they were made from, and rebuilt when these change."""
        if torch.is_grad_enabled() and self.weight.requires_grad:
            return self.make_filters()
        with torch.inference_mode(False), torch.no_grad():
            if self.kept is None or not same(self.kept[0], self.weight):
                self.kept = self.weight.clone(), self.make_filters()
        return self.kept[1]

    def make_filters(self) -> Tensor:
        """Return the filters of all elements, in the precision of the weights."""
        with torch.autocast(self.weight.device.type, enabled=False):
            moved = torch.einsum("oiuj,jhp->oiuhp", self.weight, self.basis).flatten(2, 3)
        arranged = moved.index_select(2, self.places).unflatten(2, (self.basis.shape[1], -1))
        return arranged.transpose(1, 2).reshape(self.filter_shape)


def same(one: Tensor, other: Tensor) -> bool:
    """Whether two tensors agree in device, type and every value.

    Args:
        one: a tensor.
        other: a tensor.
    """
    return one.device == other.device and one.dtype == other.dtype and torch.equal(one, other)


class FieldNorm(nn.BatchNorm3d):
    """Batch normalisation of fields (B, C * G, S, S); the elements of a field share their statistics, so that rotating
    an image still only permutes them."""

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input.unflatten(1, (self.num_features, -1))).flatten(1, 2)


class Equivariant(nn.Module):
    """Convolutions on the group of `num_rotations` rotations (C4, C8), with `reflections` also flips (D4, D8), then the
    maximum over the group and the mean over the image (Weiler and Cesa 2019, arXiv:1911.08251; Apoorva Singh's networks
    for DeepLense).

    Features (B, D) of images (B, C, S, S) are invariant to quarter turns and, with reflections, flips; to the turns by
    45 degrees of C8 and D8 up to pixelisation. There are six layers as published, but narrower, and halved earlier.

    Args:
        in_chans: C.
        image_size: S, a multiple of 8.
        num_rotations: number of rotations, 4 or 8.
        reflections: whether the group has flips.
        widths: number of fields per layer for a group of four; a larger group has fewer by the square root of its size,
            so that the number of weights is about the same.

    Raises:
        ValueError: the image cannot be halved three times.
    """

    num_features: int

    def __init__(
        self,
        *,
        in_chans: int,
        image_size: int,
        num_rotations: int,
        reflections: bool,
        widths: Sequence[int] = (8, 16, 16, 32, 32, 64),
    ) -> None:
        super().__init__()
        if image_size % MULTIPLE:
            raise ValueError(f"image_size={image_size} cannot be halved three times; pad to a multiple of {MULTIPLE}.")
        if num_rotations < 1:
            raise ValueError(f"num_rotations={num_rotations}; give 4 or 8 (1 for none).")
        group = Group(num_rotations, reflections)
        fields = [max(1, round(width * math.sqrt(4 / len(group)))) for width in widths]
        self.num_features = fields[-1]
        layers: list[nn.Module] = []
        for number, (before, after) in enumerate(pairwise((in_chans, *fields))):
            conv = GroupConv(before, after, group=group, kernel_size=KERNEL_SIZES[number], lifting=number == 0)
            layers += [nn.Sequential(conv, FieldNorm(after), nn.ReLU(inplace=True))]
            # Windows of 4 with a step of 2 lie symmetrically on an even number of pixels, and blur as they halve.
            layers += [nn.AvgPool2d(4, stride=2, padding=1)] if HALVED[number] else []
        self.layers = nn.Sequential(*layers)

    def forward(self, images: Tensor) -> Tensor:
        fields = self.layers(images).unflatten(1, (self.num_features, -1))
        return fields.amax(dim=2).mean(dim=(-2, -1))

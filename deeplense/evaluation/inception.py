"""Features of the Inception network that defines FID, from a file of its weights. n images, S x S pixels.

There is one such network (Szegedy et al. 2016, arXiv:1512.00567, trained in 2015) in two published files, which give
the same features. The torchvision weights of the same name are a different network. Nothing is downloaded, and there is
no fallback for a missing file.
"""

import hashlib
import io
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional
from torchvision.models import inception_v3

SCRIPT = "f58cb9b6ec323ed63459aa4fb441fe750cfe39fafad6da5cb504a16f19e958f4"
STATE = "6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2"
SOURCES = {
    SCRIPT: "inception-2015-12-05.pt of NVIDIA (stylegan2-ada-pytorch, clean-fid)",
    STATE: "pt_inception-2015-12-05-6726825d.pth of pytorch-fid, or the same of torch-fidelity",
}
INPUT_PIXELS, NUM_FEATURES = 299, 2048
RULE = "bicubic with antialiasing to 299 x 299, not rounded to 8 bits, single bands repeated three times"


def why_not(weights: Path | None) -> str:
    """Say why FID is not computed with this file; empty if it is."""
    if weights is None:
        return "FID: not computed, because no weights were given (--fid_weights FILE)."
    if not weights.is_file():
        return f"FID: not computed, because {weights} does not exist. Give {' or '.join(SOURCES.values())}."
    if (found := sha256(weights)) not in SOURCES:
        known = "; ".join(f"{digest[:12]}... ({source})" for digest, source in SOURCES.items())
        return f"FID: not computed, because {weights} has the wrong sha256 {found[:12]}...; FID needs {known}."
    return ""


def sha256(path: Path) -> str:
    """Return the SHA-256 hash of a file, in hexadecimal."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def load_inception(weights: Path) -> Callable[[Tensor], Tensor]:
    """Load the network as a function from images (n, 3, 299, 299), values 0 to 255, to features (n, 2048). Raises
    ValueError if the file is missing or is not one of the known files."""
    if reason := why_not(weights):
        raise ValueError(reason)
    content = weights.read_bytes()
    digest = hashlib.sha256(content).hexdigest()
    # A TorchScript file executes code, so only the known one is loaded.
    if digest == SCRIPT:
        network = torch.jit.load(io.BytesIO(content), map_location="cpu").eval().layers
    elif digest in SOURCES:
        network = inception(torch.load(io.BytesIO(content), map_location="cpu", weights_only=True))
    else:
        raise ValueError(f"{weights} was changed while it was read; run the command again.")

    def features(images: Tensor) -> Tensor:
        return network((images - 128) / 128).flatten(1)

    return features


def inception(state: dict[str, Tensor]) -> nn.Module:
    """Build the network of 2015 with these weights. It differs from torchvision's in that average pooling over 3 x 3
    pixels excludes the padding, and the last block uses max pooling."""
    network = inception_v3(num_classes=1008, aux_logits=False, transform_input=False, init_weights=False)
    network.load_state_dict(state)
    average = partial(functional.avg_pool2d, kernel_size=3, stride=1, padding=1, count_include_pad=False)
    for name in ("5b", "5c", "5d", "6b", "6c", "6d", "6e", "7b"):
        pool_by(network.get_submodule(f"Mixed_{name}"), average)
    pool_by(network.Mixed_7c, partial(functional.max_pool2d, kernel_size=3, stride=1, padding=1))
    network.add_module("fc", nn.Identity())
    return network.eval()


def pool_by(block: nn.Module, pool: Callable[[Tensor], Tensor]) -> None:
    """Replace the pooling of the pooling branch of a block, which gives the last channels of its output."""
    branch = block.get_submodule("branch_pool")

    def replaced(module: nn.Module, inputs: tuple[Tensor], output: Tensor) -> Tensor:
        pooled = branch(pool(inputs[0]))
        return torch.cat([output[:, : -pooled.shape[1]], pooled], dim=1)

    block.register_forward_hook(replaced)


@torch.no_grad()
def inception_features(
    network: Callable[[Tensor], Tensor],
    images: NDArray[np.floating],
    *,
    low: float,
    high: float,
    batch_size: int = 32,
) -> NDArray[np.floating]:
    """Compute features (n, 2048) of images (n, C, S, S), C = 1 or 3. Values from `low` to `high` are mapped to 0 to
    255, with one range for all images, from the training split. Raises ValueError for other numbers of bands."""
    if images.shape[1] not in (1, 3):
        raise ValueError(f"Inception cannot take images with {images.shape[1]} bands; use 1 or 3 bands.")
    parts = []
    for start in range(0, len(images), batch_size):
        shown = (images[start : start + batch_size].astype(np.float32) - low) * (255 / (high - low))
        part = torch.from_numpy(shown).clamp(0, 255).expand(-1, 3, -1, -1)
        resized = functional.interpolate(part, size=(INPUT_PIXELS, INPUT_PIXELS), mode="bicubic", antialias=True)
        parts.append(network(resized.clamp(0, 255)).numpy())
    return np.concatenate(parts)

"""The architectures of this field's published and proposed benchmarks by name, as plain data: torch is not imported."""

import difflib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

LARGEST_SMALL = 96
"""Images of up to so many pixels a side are cut into patches of 8 pixels, not 16, which leaves enough of them."""
Options = Mapping[str, int | bool | str]


def patch_size(image_size: int) -> int:
    """Pixels a side of the patches that images of this size are cut into."""
    return 8 if image_size <= LARGEST_SMALL else 16


def any_size(size: int) -> Options:
    """For what takes images of any size."""
    return {}


def sized(size: int) -> Options:
    """For what must know the size."""
    return {"img_size": size}


def patched(size: int) -> Options:
    """For what must know the size, and can cut smaller patches."""
    return {"img_size": size, "patch_size": patch_size(size)}


def overlapping(size: int) -> Options:
    """For what cuts patches that overlap by half."""
    return {**patched(size), "stride": patch_size(size) // 2}


def own_sized(size: int) -> Options:
    """For ours that must know the size."""
    return {"image_size": size}


def own_patched(size: int) -> Options:
    """For ours that can cut smaller patches."""
    return {"image_size": size, "patch_size": patch_size(size)}


@dataclass(frozen=True)
class Architecture:
    """One name.

    Args:
        name: what users call it.
        paper: where it is from.
        millions: of parameters, with one band, 64 pixels and three outputs.
        target: `timm.NAME`, or `file.Class` of this package.
        recipe: the settings that it learns well with, by the name of a file in jobs/recipes/models.
        multiple: images are padded (mirrored border) until their size is a multiple of it, so that no pixel is cut
            off; 0 for the size of a patch.
        options: what it is made with, by the padded size.
        drop_path: whether residual branches can be left out at random.
    """

    name: str
    paper: str
    millions: float
    target: str
    recipe: str
    multiple: int = 1
    options: Callable[[int], Options] = any_size
    drop_path: bool = True

    @property
    def source(self) -> str:
        """Whose code it is: timm or deeplense."""
        return "timm" if self.target.startswith("timm.") else "deeplense"

    def padded(self, image_size: int) -> int:
        """Pixels a side to which images of this size are padded."""
        step = self.multiple or patch_size(image_size)
        return -(-image_size // step) * step


CNNS = (
    Architecture(
        "simple_cnn",
        "four stages of convolutions, the baseline of the field",
        0.39,
        "cnn.SimpleCNN",
        "cnn",
        drop_path=False,
    ),
    Architecture("resnet18", "He 2016, arXiv:1512.03385", 11.17, "timm.resnet18", "cnn"),
    Architecture("resnet50", "He 2016, arXiv:1512.03385", 23.51, "timm.resnet50", "cnn"),
    Architecture("efficientnet_b2", "Tan & Le 2019, arXiv:1905.11946", 7.70, "timm.efficientnet_b2", "cnn"),
    Architecture(
        "efficientnet_b2_attention",
        "Tan & Le 2019, arXiv:1905.11946, and a layer of self-attention",
        16.53,
        "timm.efficientnet_b2",
        "cnn",
    ),
)
TRANSFORMERS = (
    Architecture(
        "vit_tiny", "Dosovitskiy 2021, arXiv:2010.11929", 5.36, "timm.vit_tiny_patch16_224", "transformer", 0, patched
    ),
    Architecture(
        "vit_small",
        "Dosovitskiy 2021, arXiv:2010.11929",
        21.35,
        "timm.vit_small_patch16_224",
        "transformer",
        0,
        patched,
    ),
    Architecture("tnt_small", "Han 2021, arXiv:2103.00112", 21.89, "timm.tnt_s_patch16_224", "transformer", 0, patched),
    Architecture(
        "swin_tiny", "Liu 2021, arXiv:2103.14030", 27.50, "timm.swin_tiny_patch4_window7_224", "transformer", 32, sized
    ),
    Architecture("pvt_v2_b0", "Wang 2022, arXiv:2106.13797", 3.41, "timm.pvt_v2_b0", "transformer"),
    Architecture(
        "cait_xxs24", "Touvron 2021, arXiv:2103.17239", 11.60, "timm.cait_xxs24_224", "transformer", 0, patched
    ),
    Architecture("twins_svt_small", "Chu 2021, arXiv:2104.13840", 23.55, "timm.twins_svt_small", "transformer", 32),
    Architecture("convit_tiny", "d'Ascoli 2021, arXiv:2103.10697", 5.36, "timm.convit_tiny", "transformer", 0, patched),
    Architecture(
        "convit_small", "d'Ascoli 2021, arXiv:2103.10697", 26.98, "timm.convit_small", "transformer", 0, patched
    ),
    Architecture("pit_tiny", "Heo 2021, arXiv:2103.16302", 4.51, "timm.pit_ti_224", "transformer", 8, overlapping),
)
HYBRIDS = (
    Architecture("levit_128s", "Graham 2021, arXiv:2104.01136", 7.00, "timm.levit_128s", "hybrid", 32, sized),
    Architecture("botnet26", "Srinivas 2021, arXiv:2101.11605", 10.43, "timm.botnet26t_256", "hybrid", 32, sized),
    Architecture(
        "efficientformer_s0", "Li 2022, arXiv:2212.08059", 3.24, "timm.efficientformerv2_s0", "hybrid", 1, sized
    ),
    Architecture("coat_tiny", "Xu 2021, arXiv:2104.06399", 5.34, "timm.coat_tiny", "hybrid", 32, sized),
    Architecture("coatnet_nano", "Dai 2021, arXiv:2106.04803", 14.59, "timm.coatnet_nano_rw_224", "hybrid", 32, sized),
    Architecture(
        "vit_resnet_tiny", "Steiner 2021, arXiv:2106.10270", 6.13, "timm.vit_tiny_r_s16_p8_224", "hybrid", 32, sized
    ),
    Architecture(
        "vit_resnet_small", "Steiner 2021, arXiv:2106.10270", 36.02, "timm.vit_small_r26_s32_224", "hybrid", 32, sized
    ),
)
ARCHITECTURES: Mapping[str, Architecture] = MappingProxyType(
    {one.name: one for one in (*CNNS, *TRANSFORMERS, *HYBRIDS)}
)


def nearest(name: str, others: Iterable[str] = ()) -> str:
    """The names nearest to a wrong one, with commas between, for an error."""
    return ", ".join(difflib.get_close_matches(name, {*ARCHITECTURES, *others}, n=3)) or "none"

"""`deeplense benchmark views`: both sides make as many views of the same kinds."""

import torch
from torchvision.transforms import v2

from deeplense.ssl.views import LENSES, PRESETS, PUBLISHED, ViewSettings, make_views, num_uniforms
from jobs.benchmark.settings import Settings
from jobs.benchmark.views import measure, transforms_of


def shapes_of(settings: ViewSettings) -> list[list[tuple[int, ...]]]:
    """Of the views that torchvision makes of one image."""
    image = torch.randn(3, 32, 32)
    return [[tuple(transform(image).shape) for transform in views] for views in transforms_of(settings)]


def test_torchvision_makes_as_many_views_of_the_same_sizes() -> None:
    for settings in PRESETS.values():
        uniforms = torch.rand(1, num_uniforms(settings))
        ours = make_views(torch.randn(1, 3, 32, 32), uniforms, settings, sky=torch.ones(3))
        assert shapes_of(settings) == [[tuple(view[0].shape) for view in views] for views in ours]


def test_torchvision_does_what_the_preset_does() -> None:
    def kinds(settings: ViewSettings) -> set[str]:
        transform = transforms_of(settings)[1][0]
        assert isinstance(transform, v2.Compose)
        return {type(step).__name__ for step in transform.transforms}

    always = {"RandomResizedCrop", "RandomHorizontalFlip", "RandomVerticalFlip", "RandomApply"}
    assert kinds(LENSES) == always | {"RandomRotation", "GaussianNoise"}
    assert kinds(PUBLISHED) == always


def test_a_benchmark_of_views_has_a_row_for_each_preset() -> None:
    rows = measure(Settings(what="views", batch_size=2, rounds=1))
    assert [row.what.rpartition(" ")[2] for row in rows] == list(PRESETS)
    for row in rows:
        assert row.ratio is not None
        assert row.ratio > 0
        assert row.unit == "images/s"

"""The way to the source plane: what it conserves, where a point goes, its gradients, and images of a simulated lens."""

import pytest
import torch
from conftest import population
from torch import Tensor
from torch.nn import functional

from deeplense.models.source_plane import Positions, pixel_grid, sis_deflection, source_image, splat, trace_back
from deeplense.simulation import images as rendering
from deeplense.simulation.lenses import sie_deflection
from deeplense.simulation.populations import System

SIZE = 8


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def sample(images: Tensor, positions: Positions) -> Tensor:
    """Brightness (B, C, H, W) of images (B, C, S, S) at positions (B, H, W), bilinear, zero outside.

    At the positions of the rays in the source plane, an image of the source becomes its lensed image.
    """
    grid = torch.stack(positions, dim=-1) * (2 / (images.shape[-1] - 1))
    dtype = torch.promote_types(images.dtype, grid.dtype)
    return functional.grid_sample(images.to(dtype), grid.to(dtype), align_corners=True)


def wavy(size: int = SIZE, batch: int = 2) -> tuple[Tensor, Tensor]:
    """A deflection of a pixel or two, nowhere a whole number."""
    alpha = 1.3 * noise(2, batch, size, size, seed=1)
    return alpha[0], alpha[1]


def sis(size: int, theta_E: float, batch: int = 1) -> tuple[Tensor, Tensor]:
    x, y = pixel_grid(noise(size, size))
    return sis_deflection(x, y, theta_E=torch.full((batch, 1, 1), theta_E, dtype=torch.float64))


def test_the_grid_is_about_the_middle_and_never_coarser_than_float32() -> None:
    x, y = pixel_grid(torch.zeros(3, 1, 4, 4, dtype=torch.bfloat16))
    assert x.dtype == torch.float32
    assert x.tolist() == [[-1.5, -0.5, 0.5, 1.5]]
    torch.testing.assert_close(y, x.T, rtol=0, atol=0)


@pytest.mark.parametrize("size", [7, 8])
def test_the_sphere_is_the_ellipsoid_without_ellipticity_and_safe_in_the_middle(size: int) -> None:
    x, y = pixel_grid(noise(size, size))
    theta_E, none = torch.tensor(2.5, dtype=torch.float64), torch.tensor(0.0, dtype=torch.float64)
    sphere = torch.stack(sis_deflection(x, y, theta_E=theta_E))
    ellipsoid = torch.stack(sie_deflection(x, y, theta_E=theta_E, e1=none, e2=none))
    torch.testing.assert_close(sphere, ellipsoid, rtol=0, atol=1e-6)
    modulus = sphere.norm(dim=0)
    assert ((modulus - 2.5).abs() < 1e-12).sum() == size * size - size % 2
    if size % 2:
        assert modulus[size // 2, size // 2] == 0


def test_without_deflection_the_source_is_the_image() -> None:
    images = noise(2, 3, SIZE, SIZE)
    nothing = torch.zeros(2, SIZE, SIZE, dtype=torch.float64)
    rays = trace_back((nothing, nothing))
    torch.testing.assert_close(source_image(images, rays), images, rtol=1e-12, atol=0)
    torch.testing.assert_close(sample(images, rays), images, rtol=0, atol=1e-12)


@pytest.mark.parametrize(("dx", "dy"), [(2, 0), (0, -3), (-1, 1)])
def test_a_constant_deflection_of_whole_pixels_moves_the_image_and_loses_what_leaves_it(dx: int, dy: int) -> None:
    images = noise(1, 1, SIZE, SIZE)
    rays = trace_back((torch.full((1, SIZE, SIZE), float(dx)), torch.full((1, SIZE, SIZE), float(dy))))
    moved = torch.zeros_like(images)
    rows, columns = range(max(dy, 0), SIZE + min(dy, 0)), range(max(dx, 0), SIZE + min(dx, 0))
    for row in rows:
        for column in columns:
            moved[..., row - dy, column - dx] = images[..., row, column]
    torch.testing.assert_close(source_image(images, rays), moved, rtol=0, atol=1e-6)


def test_brightness_and_rays_are_conserved_as_long_as_they_stay_inside() -> None:
    images = noise(2, 3, SIZE, SIZE)
    inside = tuple(beta.clamp(-(SIZE - 1) / 2, (SIZE - 1) / 2) for beta in trace_back(wavy()))
    sums, weights = splat(images, (inside[0], inside[1]))
    torch.testing.assert_close(sums.sum((2, 3)), images.sum((2, 3)), rtol=1e-12, atol=1e-12)
    assert weights.sum().item() == pytest.approx(2 * SIZE * SIZE, rel=1e-12)
    assert splat(images, trace_back(wavy()))[1].sum() < 2 * SIZE * SIZE - 1


def test_the_mean_position_of_the_rays_is_kept() -> None:
    images = noise(2, 1, SIZE, SIZE).abs()
    beta_x, beta_y = (0.4 * beta for beta in trace_back(wavy()))
    assert max(beta_x.abs().max(), beta_y.abs().max()) < (SIZE - 1) / 2
    sums, _ = splat(images, (beta_x, beta_y))
    x, y = pixel_grid(images)
    torch.testing.assert_close((sums[:, 0] * x).sum((1, 2)), (images[:, 0] * beta_x).sum((1, 2)))
    torch.testing.assert_close((sums[:, 0] * y).sum((1, 2)), (images[:, 0] * beta_y).sum((1, 2)))


def test_a_bright_ring_at_the_einstein_radius_is_a_point_in_the_middle_of_the_source_plane() -> None:
    size, theta_E = 33, 9.0
    x, y = pixel_grid(noise(size, size))
    ring = (torch.hypot(x, y) - theta_E).abs().lt(0.5).double()[None, None]
    sums, _ = splat(ring, trace_back(sis(size, theta_E)))
    middle = size // 2
    assert sums[..., middle - 1 : middle + 2, middle - 1 : middle + 2].sum() == pytest.approx(ring.sum().item())
    wrong, _ = splat(ring, trace_back(sis(size, theta_E - 3)))
    assert wrong[..., middle - 1 : middle + 2, middle - 1 : middle + 2].sum() < 0.1


def test_the_two_images_of_a_point_lie_where_the_lens_equation_has_its_solutions() -> None:
    """Behind a sphere, a source at beta < theta_E is seen at beta + theta_E and, across, at theta_E - beta."""
    size, theta_E, beta = 33, 8.0, 3
    middle = size // 2
    point = torch.zeros(1, 1, size, size, dtype=torch.float64)
    point[..., middle, middle + beta] = 1
    lensed = sample(point, trace_back(sis(size, theta_E)))[0, 0, middle]
    assert lensed.nonzero().flatten().tolist() == [middle - 5, middle + 11]
    assert lensed[[middle - 5, middle + 11]].tolist() == pytest.approx([1, 1])


def test_a_source_that_is_lensed_and_traced_back_is_itself_again_but_not_by_another_deflection() -> None:
    size, centre = 48, slice(12, -12)
    x, y = pixel_grid(noise(size, size))
    source = torch.exp(-((x - 2) ** 2 + (y + 1) ** 2) / 200)[None, None]
    rays = trace_back(sis(size, 9.0))
    lensed = sample(source, rays)
    again, wrong = (source_image(lensed, way)[..., centre, centre] for way in (rays, trace_back(sis(size, 6.0))))
    torch.testing.assert_close(again, source[..., centre, centre], rtol=0, atol=0.01)
    assert (wrong - source[..., centre, centre]).abs().max() > 0.1


def test_gradients_are_those_of_finite_differences() -> None:
    images, alpha = noise(1, 2, 5, 5).requires_grad_(), torch.stack(wavy(5, 1)).requires_grad_()
    theta_E = torch.tensor([[[1.7]]], dtype=torch.float64, requires_grad=True)

    def by_deflection(images: Tensor, alpha: Tensor) -> Tensor:
        return source_image(images, trace_back((alpha[0], alpha[1])))

    def by_radius(theta_E: Tensor) -> Tensor:
        return source_image(images.detach(), trace_back(sis_deflection(*pixel_grid(images), theta_E=theta_E)))

    assert torch.autograd.gradcheck(by_deflection, (images, alpha))
    assert torch.autograd.gradcheck(by_radius, (theta_E,))


def test_each_image_has_its_own_rays() -> None:
    images, (alpha_x, alpha_y) = noise(2, 1, SIZE, SIZE), wavy()
    alone = [source_image(images[k : k + 1], trace_back((alpha_x[k : k + 1], alpha_y[k : k + 1]))) for k in range(2)]
    together = source_image(images, trace_back((alpha_x, alpha_y)))
    torch.testing.assert_close(torch.cat(alone), together, rtol=0, atol=0)


@pytest.mark.parametrize("far", [1e30, float("inf"), float("nan")])
def test_deflections_beyond_all_bounds_are_no_crash(far: float) -> None:
    images = noise(1, 1, SIZE, SIZE)
    alpha = torch.zeros(1, SIZE, SIZE)
    alpha[0, 0, 0] = far
    source = source_image(images, trace_back((alpha, torch.zeros_like(alpha))))
    assert source[..., 1:, 1:].isfinite().all()
    assert bool(source.isnan().any()) == (far != far)


def disagreement(images: Tensor, theta_E_pixels: float) -> float:
    """Variance of brightness among rays that meet in a pixel of the source plane, summed over the plane."""
    moments = torch.cat([images, images.square()], dim=1)
    mean, square = source_image(moments, trace_back(sis(images.shape[-1], theta_E_pixels)))[0]
    return (square - mean.square()).sum().item()


@pytest.mark.parametrize("source", [(0.1, -0.05), (0.25, 0.2), (-0.3, 0.0)])
def test_images_of_a_simulated_source_agree_best_under_the_true_einstein_radius(
    source: tuple[float, float], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rendering, "HOST_ELLIPTICITY", (0.0, 0.0))
    system = System(0, source_x=source[0], source_y=source[1], theta_E=0.8, gamma1=0.0, exposure_s=1.0)
    image = rendering.render([system], population=population(), dtype=torch.float64)[:, None]
    truth = 0.8 / population().survey.pixel_scale_arcsec
    tried = {factor: disagreement(image, factor * truth) for factor in (0.8, 0.9, 0.95, 1.0, 1.05, 1.1, 1.2)}
    assert min(tried, key=tried.__getitem__) == 1.0
    assert tried[1.0] < 0.5 * min(tried[0.9], tried[1.1])

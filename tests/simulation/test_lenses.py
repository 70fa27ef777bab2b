"""Deflections: the laws they obey, and lenstronomy."""

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from deeplense.simulation.lenses import (
    Deflection,
    axis_ratio_and_angle,
    line_deflection,
    point_masses_deflection,
    shear_deflection,
    sie_deflection,
)

Deflect = Callable[[Tensor, Tensor], Deflection]
ELLIPTICITIES = [(0.0, 0.0), (1e-5, 0.0), (0.1, 0.0), (-0.1, 0.1), (0.05, -0.3), (0.0, 0.6), (-0.7, 0.0)]


def number(value: float, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.tensor(value, dtype=dtype)


def sie(theta_E: float = 1.2, e1: float = 0.1, e2: float = -0.2, dtype: torch.dtype = torch.float64) -> Deflect:
    theta, first, second = (number(value, dtype) for value in (theta_E, e1, e2))
    return lambda x, y: sie_deflection(x, y, theta_E=theta, e1=first, e2=second, center_x=0.05, center_y=-0.1)


def shear(dtype: torch.dtype = torch.float64) -> Deflect:
    return lambda x, y: shear_deflection(x, y, gamma1=number(0.05, dtype), gamma2=number(-0.02, dtype))


def points(dtype: torch.dtype = torch.float64) -> Deflect:
    theta_E, x_k, y_k = (
        torch.tensor(row, dtype=dtype) for row in ([0.1, 0.03, 0.2], [0.5, -1.1, 0.2], [0.3, 0.7, -1.4])
    )
    return lambda x, y: point_masses_deflection(x, y, theta_E=theta_E, center_x=x_k, center_y=y_k)


def line(
    half_length: float = 0.8, theta_E: float = 0.2, angle: float = 0.7, dtype: torch.dtype = torch.float64
) -> Deflect:
    parameters = {"theta_E": theta_E, "half_length": half_length, "angle": angle}
    tensors = {name: number(value, dtype) for name, value in parameters.items()}
    return lambda x, y: line_deflection(x, y, **tensors)


ALL = {"sie": sie, "circular": lambda: sie(e1=0.0, e2=0.0), "shear": shear, "points": points, "line": line}
WITHOUT_MASS_HERE = {"shear": shear, "points": points, "line": line}


def positions(count: int = 200, seed: int = 0, width: float = 3.0) -> tuple[Tensor, Tensor]:
    drawn = np.random.default_rng(seed).uniform(-width, width, size=(2, count))
    return torch.from_numpy(drawn[0]), torch.from_numpy(drawn[1])


def jacobian(deflect: Deflect) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The derivatives xx, xy, yx, yy of a deflection at some positions; `xy` is of alpha_x along y."""
    x, y = (each.requires_grad_() for each in positions())
    (xx, xy), (yx, yy) = (torch.autograd.grad(alpha.sum(), (x, y), retain_graph=True) for alpha in deflect(x, y))
    return xx, xy, yx, yy


def enclosed(deflect: Deflect, radius: float, num_points: int = 20000) -> float:
    """The mass inside a circle about the origin, in units of theta_E^2, by Gauss's law."""
    angle = (torch.arange(num_points, dtype=torch.float64) + 0.5) * 2 * math.pi / num_points
    alpha_x, alpha_y = deflect(radius * angle.cos(), radius * angle.sin())
    return float(radius * (alpha_x * angle.cos() + alpha_y * angle.sin()).mean())


@pytest.mark.parametrize("name", ALL)
def test_deflections_are_free_of_curl(name: str) -> None:
    _, xy, yx, _ = jacobian(ALL[name]())
    torch.testing.assert_close(xy, yx, rtol=1e-9, atol=1e-12)


def test_a_field_with_curl_is_told_from_one_without() -> None:
    _, xy, yx, _ = jacobian(lambda x, y: (0 * x - y, x + 0 * y))
    assert (xy - yx).abs().min() > 1


@pytest.mark.parametrize("name", WITHOUT_MASS_HERE)
def test_deflections_do_not_diverge_away_from_mass(name: str) -> None:
    xx, _, _, yy = jacobian(WITHOUT_MASS_HERE[name]())
    assert (xx + yy).abs().max() < 1e-9 * max(1.0, float(xx.abs().max()))


@pytest.mark.parametrize(("e1", "e2"), ELLIPTICITIES)
def test_the_divergence_of_an_ellipsoid_is_twice_its_convergence(e1: float, e2: float) -> None:
    xx, _, _, yy = jacobian(sie(1.3, e1, e2))
    q, phi = axis_ratio_and_angle(number(e1), number(e2))
    x, y = positions()
    along = phi.cos() * (x - 0.05) + phi.sin() * (y + 0.1)
    across = phi.cos() * (y + 0.1) - phi.sin() * (x - 0.05)
    convergence = 1.3 * q.sqrt() / (2 * torch.sqrt((q * along) ** 2 + across**2))
    torch.testing.assert_close(xx + yy, 2 * convergence, rtol=1e-6, atol=1e-9)


def test_the_flux_through_a_circle_is_the_mass_inside() -> None:
    assert enclosed(points(), 3.0) == pytest.approx(0.1**2 + 0.03**2 + 0.2**2, rel=1e-9)
    assert enclosed(points(), 1.0) == pytest.approx(0.1**2, rel=1e-6)
    assert enclosed(line(), 0.9) == pytest.approx(0.2**2, rel=1e-9)
    assert enclosed(line(), 0.4) == pytest.approx(0.2**2 / 2, rel=1e-3)
    assert enclosed(shear(), 2.0) == pytest.approx(0.0, abs=1e-12)


@pytest.mark.parametrize(("e1", "e2"), ELLIPTICITIES)
def test_the_ellipsoid_is_that_of_lenstronomy(e1: float, e2: float) -> None:
    from lenstronomy.LensModel.lens_model import LensModel

    x, y = positions()
    theirs = LensModel(["SIE"]).alpha(
        x.numpy(), y.numpy(), [{"theta_E": 1.3, "e1": e1, "e2": e2, "center_x": 0.05, "center_y": -0.1}]
    )
    agree(sie(1.3, e1, e2)(x, y), theirs)


def test_shear_and_point_masses_are_those_of_lenstronomy() -> None:
    from lenstronomy.LensModel.lens_model import LensModel

    x, y = positions()
    sheared = LensModel(["SHEAR"]).alpha(x.numpy(), y.numpy(), [{"gamma1": 0.05, "gamma2": -0.02}])
    agree(shear()(x, y), sheared)
    masses = [
        {"theta_E": theta_E, "center_x": x_k, "center_y": y_k}
        for theta_E, x_k, y_k in [(0.1, 0.5, 0.3), (0.03, -1.1, 0.7), (0.2, 0.2, -1.4)]
    ]
    agree(points()(x, y), LensModel(["POINT_MASS"] * 3).alpha(x.numpy(), y.numpy(), masses))


def agree(ours: Deflection, theirs: tuple[np.ndarray, np.ndarray]) -> None:
    peak = max(float(np.abs(each).max()) for each in theirs)
    for first, second in zip(ours, theirs, strict=True):
        assert np.abs(first.numpy() - second).max() < 1e-6 * peak


@settings(deadline=None, max_examples=25, derandomize=True)
@given(
    modulus=st.floats(0.0, 0.8),
    phi=st.floats(0.0, math.pi),
    turn=st.floats(-math.pi, math.pi),
    scale=st.floats(0.1, 10),
)
def test_an_ellipsoid_turned_and_enlarged_deflects_alike(modulus: float, phi: float, turn: float, scale: float) -> None:
    def alpha(x: Tensor, y: Tensor, angle: float) -> Tensor:
        e1, e2 = number(modulus * math.cos(2 * angle)), number(modulus * math.sin(2 * angle))
        return torch.complex(*sie_deflection(x, y, theta_E=number(1.0), e1=e1, e2=e2))

    theta = torch.complex(*positions(20))
    rotation = torch.polar(number(1.0), number(turn))
    turned = scale * rotation * theta
    torch.testing.assert_close(
        alpha(turned.real, turned.imag, phi + turn), rotation * alpha(theta.real, theta.imag, phi), rtol=0, atol=1e-6
    )


@settings(deadline=None, max_examples=15, derandomize=True)
@given(half_length=st.floats(0.03, 3.0), angle=st.floats(0, 2 * math.pi))
def test_the_deflection_of_a_line_is_that_of_many_points(half_length: float, angle: float) -> None:
    num_points = 4000
    along = half_length * (2 * (torch.arange(num_points, dtype=torch.float64) + 0.5) / num_points - 1)
    x, y = positions(100)
    distance = (math.cos(angle) * y - math.sin(angle) * x).abs()
    x, y = x[distance > 0.1], y[distance > 0.1]
    many = point_masses_deflection(
        x,
        y,
        theta_E=torch.full((num_points,), 0.2 / num_points**0.5, dtype=torch.float64),
        center_x=along * math.cos(angle),
        center_y=along * math.sin(angle),
    )
    for ours, theirs in zip(line(half_length, 0.2, angle)(x, y), many, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-6)


def test_a_line_far_away_is_a_point() -> None:
    x, y = (1e3 * each for each in positions())
    at_origin = number(0.0)[None]
    point = point_masses_deflection(x, y, theta_E=number(0.2)[None], center_x=at_origin, center_y=at_origin)
    difference = torch.complex(*line()(x, y)) - torch.complex(*point)
    assert (difference.abs() * torch.hypot(x, y)).max() < 1e-4 * 0.2**2


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_both_ends_of_a_line_deflect_alike(dtype: torch.dtype) -> None:
    offset = torch.tensor([1e-4, 3e-4, 1e-3, 1e-2, 0.1], dtype=dtype)
    deflect = line(half_length=3.0, angle=0.0, dtype=dtype)
    right = deflect(3.0 + offset, torch.zeros_like(offset))
    left = deflect(-3.0 - offset, torch.zeros_like(offset))
    torch.testing.assert_close(right[0], -left[0], rtol=1e-3, atol=0)


def test_a_mass_deflects_nothing_at_its_very_place() -> None:
    for dtype in (torch.float32, torch.float64):
        for theta_E in (0.01, 1.0, 2.5):
            here = number(0.25, dtype)
            alpha = point_masses_deflection(
                here, here, theta_E=number(theta_E, dtype)[None], center_x=here[None], center_y=here[None]
            )
            assert [float(each) for each in alpha] == [0.0, 0.0], (dtype, theta_E)


def test_a_mass_of_zero_adds_exactly_nothing() -> None:
    x, y = positions()
    masses = torch.tensor([[0.1, 0.5, 0.3], [0.0, 1e3, 1e3], [0.0, 0.5, 0.3]], dtype=torch.float64).T
    alone = point_masses_deflection(x, y, theta_E=masses[0, :1], center_x=masses[1, :1], center_y=masses[2, :1])
    padded = point_masses_deflection(x, y, theta_E=masses[0], center_x=masses[1], center_y=masses[2])
    assert all(torch.equal(first, second) for first, second in zip(alone, padded, strict=True))


def test_parameters_broadcast_over_an_open_grid() -> None:
    x, y = positions(6)
    first, second = torch.tensor([[0.5, 0.7, 0.9], [0.1, 0.2, 0.3]], dtype=torch.float64)

    def deflections(x: Tensor, y: Tensor, a: Tensor, b: Tensor) -> list[Deflection]:
        return [
            sie_deflection(x, y, theta_E=a, e1=b, e2=b),
            line_deflection(x, y, theta_E=a, half_length=a, angle=b),
            shear_deflection(x, y, gamma1=a, gamma2=b),
            point_masses_deflection(
                x,
                y,
                theta_E=torch.stack([a, b], -1),
                center_x=torch.stack([b, a], -1),
                center_y=torch.stack([a, a], -1),
            ),
        ]

    together = deflections(x[None, :], y[:5, None], first[:, None, None], second[:, None, None])
    for b in range(3):
        for many, one in zip(together, deflections(x[4], y[2], first[b], second[b]), strict=True):
            for component in (0, 1):
                assert many[component].shape == (3, 5, 6)
                torch.testing.assert_close(many[component][b, 2, 4], one[component])


@pytest.mark.parametrize("deflect", [sie, shear, points, line])
def test_single_precision_agrees_with_double(deflect: Callable[..., Deflect]) -> None:
    x, y = positions(2000)
    double = deflect()(x, y)
    single = deflect(dtype=torch.float32)(x.float(), y.float())
    for first, second in zip(single, double, strict=True):
        assert first.dtype == torch.float32
        torch.testing.assert_close(first.double(), second, rtol=2e-5, atol=2e-6)


def test_derivatives_by_the_parameters_are_those_of_finite_differences() -> None:
    x, y = positions(5)

    def free(*values: float) -> list[Tensor]:
        return [number(value).requires_grad_() for value in values]

    def masses(theta_E: Tensor, x_k: Tensor, y_k: Tensor) -> Deflection:
        return point_masses_deflection(x, y, theta_E=theta_E[None], center_x=x_k[None], center_y=y_k[None])

    check = torch.autograd.gradcheck
    assert check(
        lambda t, a, b, c, d: sie_deflection(x, y, theta_E=t, e1=a, e2=b, center_x=c, center_y=d),
        free(1.0, 0.1, -0.2, 0.03, 0.04),
    )
    assert check(lambda a, b: shear_deflection(x, y, gamma1=a, gamma2=b), free(0.05, 0.01))
    assert check(masses, free(0.3, 0.5, -0.2))
    assert check(lambda t, h, a: line_deflection(x, y, theta_E=t, half_length=h, angle=a), free(0.3, 0.9, 0.4))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_round_lens_has_the_right_derivatives_by_its_ellipticity(dtype: torch.dtype) -> None:
    def alpha(e1: Tensor, e2: Tensor) -> Tensor:
        x, y = (each.to(e1.dtype) for each in positions(5))
        return sie_deflection(x, y, theta_E=number(1.0, e1.dtype), e1=e1, e2=e2)[0].sum()

    zero, small = number(0.0), number(1e-3)
    expected = [
        (alpha(small, zero) - alpha(-small, zero)) / 2e-3,
        (alpha(zero, small) - alpha(zero, -small)) / 2e-3,
    ]
    e1, e2 = number(0.0, dtype).requires_grad_(), number(0.0, dtype).requires_grad_()
    found = torch.autograd.grad(alpha(e1, e2), (e1, e2))
    torch.testing.assert_close(torch.stack(found).double(), torch.stack(expected), rtol=1e-2, atol=1e-2)


def test_the_centre_of_a_lens_has_finite_derivatives() -> None:
    centre = number(0.0)
    theta_E = number(1.0).requires_grad_()
    e1 = number(0.1).requires_grad_()
    alpha_x, alpha_y = sie_deflection(centre, centre, theta_E=theta_E, e1=e1, e2=number(0.0))
    assert all(torch.isfinite(each) for each in torch.autograd.grad(alpha_x + alpha_y, (theta_E, e1)))

"""Deflection angles of lens models in PyTorch: batched, differentiable, float32 or float64.

Shapes: positions `x`, `y` and every parameter broadcast against each other, so an open grid (1, W), (H, 1) and
parameters of shape (B, 1, 1) give (B, H, W). K is the number of masses of one lens. Angles on the sky are in arcsec.
Ellipticities are (e1, e2) = (1 - q) / (1 + q) * (cos 2 phi, sin 2 phi), with the axis ratio q and the position angle
phi of the major axis.
"""

import torch
from torch import Tensor

Deflection = tuple[Tensor, Tensor]


def axis_ratio_and_angle(e1: Tensor, e2: Tensor) -> tuple[Tensor, Tensor]:
    """Return the axis ratio q in ]0, 1] and the position angle phi (radian) of an ellipticity.

    Args:
        e1: first component; |e| must be below 1.
        e2: second component, of the same shape.

    Example:
        >>> q, phi = axis_ratio_and_angle(torch.tensor(0.0), torch.tensor(0.5))
        >>> round(float(q), 4), round(float(phi), 4)
        (0.3333, 0.7854)
    """
    modulus = torch.sqrt(e1 * e1 + e2 * e2)
    return (1 - modulus) / (1 + modulus), torch.atan2(e2, e1) / 2


def sie_deflection(
    x: Tensor,
    y: Tensor,
    *,
    theta_E: Tensor,
    e1: Tensor,
    e2: Tensor,
    center_x: float | Tensor = 0.0,
    center_y: float | Tensor = 0.0,
) -> Deflection:
    """Return the deflection of a singular isothermal ellipsoid (Kormann et al. 1994; Keeton 2002, equations 34 and 35).

    The circular lens is the limit e -> 0.

    Args:
        x: positions in arcsec.
        y: positions in arcsec; all arguments broadcast.
        theta_E: Einstein radius in arcsec, the square root of the product of the axes, as in lenstronomy: the radius of
            the circle that encloses the same area as the critical curve.
        e1: first component of the ellipticity; |e| below 1.
        e2: second component of the ellipticity.
        center_x: position of the lens in arcsec.
        center_y: position of the lens in arcsec.

    Returns:
        The deflection along x and along y in arcsec, in the broadcast shape.

    Example:
        >>> zero = torch.tensor(0.0, dtype=torch.float64)
        >>> x, y = torch.tensor([2.0, 0.5], dtype=torch.float64), zero
        >>> alpha_x, alpha_y = sie_deflection(x, y, theta_E=zero + 1.2, e1=zero, e2=zero)
        >>> [round(value, 4) for value in alpha_x.tolist()]
        [1.2, 1.2]
    """
    smallest = 1e-4 if x.dtype == torch.float32 else 1e-8
    e1 = torch.where(e1 * e1 + e2 * e2 < smallest**2, e1 + smallest, e1)
    q, phi = axis_ratio_and_angle(e1, e2)
    f = torch.sqrt(1 - q * q)
    cos, sin = torch.cos(phi), torch.sin(phi)
    dx, dy = x - center_x, y - center_y
    along, across = cos * dx + sin * dy, cos * dy - sin * dx
    psi = torch.sqrt((q * q * along * along + across * across).clamp(min=torch.finfo(x.dtype).tiny))
    strength = theta_E * torch.sqrt(q) / f
    alpha_along = strength * torch.atan(f * along / psi)
    alpha_across = strength * torch.atanh(f * across / psi)
    return cos * alpha_along - sin * alpha_across, sin * alpha_along + cos * alpha_across


def shear_deflection(x: Tensor, y: Tensor, *, gamma1: Tensor, gamma2: Tensor) -> Deflection:
    """Return the deflection of a constant external shear about the origin, along x and along y, in arcsec.

    Args:
        x: positions in arcsec.
        y: positions in arcsec.
        gamma1: shear along the axes, dimensionless.
        gamma2: shear along the diagonals, dimensionless.

    Example:
        >>> one = torch.tensor(1.0)
        >>> alpha_x, alpha_y = shear_deflection(one, 2 * one, gamma1=0.5 * one, gamma2=0 * one)
        >>> float(alpha_x), float(alpha_y)
        (0.5, -1.0)
    """
    return gamma1 * x + gamma2 * y, gamma2 * x - gamma1 * y


def point_masses_deflection(x: Tensor, y: Tensor, *, theta_E: Tensor, center_x: Tensor, center_y: Tensor) -> Deflection:
    """Return the summed deflection of K point masses: theta_E^2 (theta - theta_k) / |theta - theta_k|^2 each.

    Exactly at a mass, its own deflection is zero, not infinite. A mass with theta_E = 0 adds exactly nothing.

    Args:
        x: positions in arcsec.
        y: positions in arcsec.
        theta_E: Einstein radii in arcsec, (..., K): the dimensions before K broadcast with `x` and `y`.
        center_x: positions of the masses in arcsec, (..., K).
        center_y: positions of the masses in arcsec, (..., K).

    Returns:
        The deflection along x and along y in arcsec, in the broadcast shape without K.

    Example:
        >>> x, y = torch.tensor([2.0]), torch.tensor([0.0])
        >>> centres = torch.zeros(1, 2)
        >>> alpha_x, _ = point_masses_deflection(x, y, theta_E=torch.ones(1, 2), center_x=centres, center_y=centres)
        >>> alpha_x
        tensor([1.])
    """
    shape = torch.broadcast_shapes(x.shape, y.shape, theta_E.shape[:-1])
    alpha_x, alpha_y = x.new_zeros(shape), x.new_zeros(shape)
    tiny = torch.finfo(x.dtype).tiny ** 0.5
    for strength, x_k, y_k in zip((theta_E**2).unbind(-1), center_x.unbind(-1), center_y.unbind(-1), strict=True):
        dx, dy = x - x_k, y - y_k
        pull = strength / (dx * dx + dy * dy).clamp(min=tiny)
        alpha_x = torch.addcmul(alpha_x, pull, dx)
        alpha_y = torch.addcmul(alpha_y, pull, dy)
    return alpha_x, alpha_y


def line_deflection(x: Tensor, y: Tensor, *, theta_E: Tensor, half_length: Tensor, angle: Tensor) -> Deflection:
    """Return the deflection of a mass spread evenly over the segment |t| <= half_length through the origin.

    With the position w in the frame of the segment and its half length L, the conjugate of the complex deflection is
    the integral of theta_E^2 / (2 L (w - t)) over t, that is theta_E^2 / (2 L) * ln((w + L) / (w - L)). It is finite
    except at the ends.

    Args:
        x: positions in arcsec.
        y: positions in arcsec.
        theta_E: Einstein radius in arcsec that the whole mass would have as a point.
        half_length: half the length of the segment in arcsec, above 0.
        angle: position angle of the segment in radian.

    Returns:
        The deflection along x and along y in arcsec, in the broadcast shape.
    """
    cos, sin = torch.cos(angle), torch.sin(angle)
    u, v = cos * x + sin * y, cos * y - sin * x
    length = half_length
    to_nearer_end = (u.abs() - length) ** 2 + v * v
    floor = torch.finfo(x.dtype).tiny ** 0.5
    log_ratio = torch.sign(u) * torch.log1p(4 * u.abs() * length / to_nearer_end.clamp(min=floor)) / 2
    turn = torch.atan2(-2 * length * v, u * u + v * v - length * length)
    strength = theta_E**2 / (2 * length)
    alpha_u, alpha_v = strength * log_ratio, -strength * turn
    return cos * alpha_u - sin * alpha_v, sin * alpha_u + cos * alpha_v

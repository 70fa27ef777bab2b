"""Images in square patches."""


def patches_along(image_size: int, patch_size: int) -> int:
    """Patches along a side of the image. Raises ValueError where they would not cover it: timm cuts off the rest."""
    if image_size % patch_size:
        raise ValueError(
            f"patches of {patch_size} pixels do not cover an image of {image_size}; give images of "
            f"{-(-image_size // patch_size) * patch_size} pixels, or patches of a size that divides {image_size}."
        )
    return image_size // patch_size

"""Division of images into square patches."""


def patches_along(image_size: int, patch_size: int) -> int:
    """Return the number of patches along a side of the image.

    Args:
        image_size: pixels per side of the image.
        patch_size: pixels per side of a patch.

    Raises:
        ValueError: the patches do not cover the image; timm would cut off the rest.

    Example:
        >>> patches_along(32, 8)
        4
    """
    if image_size % patch_size:
        raise ValueError(
            f"patches of {patch_size} pixels do not cover an image of {image_size}; give images of "
            f"{-(-image_size // patch_size) * patch_size} pixels, or patches of a size that divides {image_size}."
        )
    return image_size // patch_size

"""Generate a data set of images with a trained diffusion model."""

from jobs.sample.settings import Settings


def run(settings: Settings) -> int:
    """Write the split. A second call with the same settings resumes it, or finds it complete."""
    from jobs.sample.generator import sample

    return sample(settings)

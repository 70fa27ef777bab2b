"""Samplers and noise schedules by name, as plain data: torch is not imported. To add one, write a function in a module
and add a line here."""

from deeplense.choices import Lazy

SAMPLERS = Lazy(
    "sampler",
    {
        "ddpm": "deeplense.diffusion.samplers:ddpm",
        "ddim": "deeplense.diffusion.samplers:ddim",
        "dpm_solver": "deeplense.diffusion.samplers:dpm_solver",
        "heun": "deeplense.diffusion.samplers:heun",
    },
)
"""From a schedule (T,) and a number of steps to a plan of the steps (`samplers.Plan`)."""
SCHEDULES = Lazy(
    "noise_schedule",
    {
        "linear": "deeplense.diffusion.schedules:linear",
        "cosine": "deeplense.diffusion.schedules:cosine",
        "sigmoid": "deeplense.diffusion.schedules:sigmoid",
    },
)
"""From a number of times T to the log signal-to-noise ratio at each (T,)."""

"""Environment variables that would make libraries compute something else than the settings say."""

import os
import sys

import torch

OBEYED_BY_OTHERS = ("ACCELERATE_", "FSDP_", "PARALLELISM_CONFIG_", "MEGATRON_LM_")
"""Prefixes of all variables that `accelerate launch` sets: gradient accumulation, precision, devices, sharding."""
OF_PRECISION = (
    "NVIDIA_TF32_OVERRIDE",
    "TORCH_ALLOW_TF32_CUBLAS_OVERRIDE",
    "USE_TORCH_XLA",
    "XLA_DOWNCAST_BF16",
    "XLA_USE_BF16",
)


def ignore_surroundings() -> list[str]:
    """Remove such variables, also for the processes that this one starts; returns their names, which are printed on
    stderr."""
    names = sorted(name for name in os.environ if name.startswith(OBEYED_BY_OTHERS) or name in OF_PRECISION)
    for name in names:
        del os.environ[name]
    if "TORCH_ALLOW_TF32_CUBLAS_OVERRIDE" in names:
        # torch obeyed it when it was loaded.
        torch.set_float32_matmul_precision("highest")
    if names and os.environ.get("RANK", "0") == "0":
        told = "changes results and is" if len(names) == 1 else "change results and are"
        sys.stderr.write(f"deeplense: in the environment, {', '.join(names)} {told} ignored; use settings instead\n")
    return names

"""What agreeing on a stop costs in each step, among the ranks of a job: a rank of `tests.cluster.measure`."""

import os
import time

from deeplense.training.loop import Request, agree, make_accelerator
from launch.task import become_rank

WARM, STEPS = 100, 2000


def main() -> None:
    """Measure, and tell on the first rank."""
    become_rank(os.environ)
    accelerator = make_accelerator(device="cpu", precision="fp32")
    for _ in range(WARM):
        agree(accelerator, Request(0))
    begun = time.perf_counter()
    for _ in range(STEPS):
        agree(accelerator, Request(0))
    milliseconds = 1e3 * (time.perf_counter() - begun) / STEPS
    if accelerator.is_main_process:
        print(f"agreement: {milliseconds:.3f} ms a step, {accelerator.num_processes} ranks", flush=True)
    accelerator.wait_for_everyone()
    os._exit(0)


if __name__ == "__main__":
    main()

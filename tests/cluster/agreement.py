"""What it costs the step of a training that its ranks agree on stopping and saving: a rank of `tests.cluster.measure`.

In turns, in blocks of updates of a small network: as it is done, beside the step, and not each time where steps are
short; the same each time; as it was done, by a sum that each step waits for; not at all; and as it is done with a wait
of 0.2 ms more, which must be seen. For each the median and the mean of what the call takes in a step, and the mean of
the whole step.
"""

import os
import statistics
import time
from collections.abc import Callable

import torch
import torch.distributed as dist
from torch import nn

from deeplense.training.agreement import Agreement, Request
from deeplense.training.loop import make_accelerator, prepare
from launch.task import become_rank

ROUNDS, STEPS = 12, 50
MORE = 2e-4


def as_before(requests: Request) -> Request:
    """What any rank requests at this step, which waits for all of them."""
    flags = torch.tensor([request in requests for request in Request], dtype=torch.int32)
    dist.all_reduce(flags)
    return Request(sum(request for request, count in zip(Request, flags.tolist(), strict=True) if count))


def main() -> None:
    """Measure, and tell on the first rank."""
    if "SLURM_STEP_NUM_TASKS" in os.environ:
        become_rank(os.environ)
    torch.set_num_threads(1)
    accelerator = make_accelerator(device="cpu", precision="fp32")
    beside, each_step = Agreement(accelerator), Agreement(accelerator, seconds=0)

    def slowed(requests: Request) -> Request:
        time.sleep(MORE)
        return beside.exchange(requests)

    ways = {
        "beside the step": beside.exchange,
        "beside each step": each_step.exchange,
        "as before": as_before,
        "not at all": Request,
        "0.2 ms more": slowed,
    }
    network = nn.Sequential(nn.Linear(256, 256), nn.ReLU(), nn.Linear(256, 256))
    model, optimizer = prepare(accelerator, network, torch.optim.SGD(network.parameters(), lr=1e-3))
    images = torch.randn(64, 256)

    def step(agree: Callable[[Request], Request]) -> tuple[float, float]:
        begun = time.perf_counter()
        model(images).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
        before = time.perf_counter()
        agree(Request(0))
        return time.perf_counter() - before, time.perf_counter() - begun

    found: dict[str, list[tuple[float, float]]] = {name: [] for name in ways}
    for _ in range(ROUNDS + 1):
        for name, agree in ways.items():
            found[name] += [step(agree) for _ in range(STEPS)]
    if accelerator.is_main_process:
        for name, rows in found.items():
            calls, steps = zip(*rows[STEPS:], strict=True)
            found_here = (statistics.median(calls), statistics.mean(calls), statistics.mean(steps))
            median, mean, whole = (1e3 * each for each in found_here)
            print(
                f"agreement {name}: median {median:.3f} ms, mean {mean:.3f} ms a step; the whole step {whole:.2f} ms; "
                f"{accelerator.num_processes} ranks",
                flush=True,
            )
    beside.finish()
    each_step.finish()
    accelerator.wait_for_everyone()
    os._exit(0)


if __name__ == "__main__":
    main()

"""Processes that form a group, for tests of what they do together."""

import os
from collections.abc import Callable

import torch
import torch.distributed as dist
from conftest import CONTEXT, rank_variables, start_fork_server


def run_rank(work: Callable[[int, int], None], variables: dict[str, str]) -> None:
    """Do something as a rank."""
    os.environ.update(variables)
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    work(dist.get_rank(), dist.get_world_size())
    dist.barrier()
    os._exit(0)


def on_ranks(num_ranks: int, work: Callable[..., None]) -> None:
    """Do something on so many ranks."""
    start_fork_server()
    ranks = [CONTEXT.Process(target=run_rank, args=(work, variables)) for variables in rank_variables(num_ranks)]
    for rank in ranks:
        rank.start()
    for rank in ranks:
        rank.join(120)
        rank.kill()
    assert [rank.exitcode for rank in ranks] == [0] * num_ranks

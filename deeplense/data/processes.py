"""Processes that work for another one: they leave its signals to it, and end when it ends."""

import os
import select
import signal
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import forkserver, get_context, resource_tracker
from threading import Thread
from typing import TypeVar

STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2)
Item = TypeVar("Item")


def done_by(do: Callable[[Item], None], items: Sequence[Item], *, num_workers: int, preload: str) -> Iterator[Item]:
    """Call a function for each item, and yield the item when it is done; in several processes in no particular order.

    Args:
        do: must be picklable if several processes work.
        items: its arguments, one call each.
        num_workers: number of processes; with 1, or for one item, this process does the work.
        preload: module that is imported once, before the processes are forked: on a shared file system many imports at
            a time are slow.
    """
    if num_workers == 1 or len(items) < 2:
        for item in items:
            do(item)
            yield item
        return
    context = get_context("forkserver")
    context.set_forkserver_preload(["torch", preload])
    count = min(num_workers, len(items))
    with ProcessPoolExecutor(count, mp_context=context, initializer=end_with, initargs=(os.getpid(),)) as pool:
        jobs = {pool.submit(do, item): item for item in items}
        try:
            for job in as_completed(jobs):
                job.result()
                yield jobs[job]
        finally:
            pool.shutdown(cancel_futures=True)


def start_fork_server() -> None:
    """Start the parent of the loader's processes with those signals blocked that a scheduler sends to every process of
    a job: it must survive until the main process has saved."""
    # First: starting it lets SIGTERM and SIGINT through again.
    resource_tracker.ensure_running()
    before = signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
    try:
        forkserver.ensure_running()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def live_as_long_as(main_process: int, worker: int) -> None:
    """Initialise a worker process of the loader: leave signals to the main process, and end when that ends.

    Args:
        main_process: number of the main process.
        worker: number of the worker; not used.
    """
    for number in STOP_SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    end_with(main_process)


def end_with(main_process: int) -> None:
    """End this process when another one ends, in whatever way (Linux).

    The fork server does not do that: it waits for its children, and they for work.
    """
    if hasattr(os, "pidfd_open"):
        watcher = os.pidfd_open(main_process)
        Thread(target=wait_and_leave, args=(watcher,), daemon=True).start()


def wait_and_leave(watcher: int) -> None:
    """End this process when the other one has ended."""
    select.select([watcher], [], [])
    os._exit(1)

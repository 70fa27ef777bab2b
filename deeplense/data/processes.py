"""Processes that work for another one: they leave its signals to it, and end when it ends."""

import os
import select
import signal
from multiprocessing import forkserver, resource_tracker
from threading import Thread

STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2)


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

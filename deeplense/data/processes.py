"""Processes that work for another one."""

import os
import select
from threading import Thread


def end_with(main_process: int) -> None:
    """From now on, end this process when the other one ends, however it does (Linux).

    The fork server does not see to it: it waits for its children, and they for work.
    """
    if hasattr(os, "pidfd_open"):
        watcher = os.pidfd_open(main_process)
        Thread(target=wait_and_leave, args=(watcher,), daemon=True).start()


def wait_and_leave(watcher: int) -> None:
    """End this process when the other one has ended."""
    select.select([watcher], [], [])
    os._exit(1)

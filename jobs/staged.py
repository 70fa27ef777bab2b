"""Where the images of a run are read: in place, or from a copy on each node that the ranks of the node share."""

import os
import threading
import time
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import ExitStack
from pathlib import Path

from accelerate import Accelerator

from deeplense.data.dataset import Split
from deeplense.data.staging import Unfit, held, staged
from deeplense.training.loop import gather_lists
from deeplense.training.stopping import StopFlag
from jobs.config import require
from jobs.progress import Reporter
from jobs.ranks import announce, on_all
from jobs.watchdog import Watchdog

MEMORY, NODE_LOCAL = Path("/dev/shm"), "DEEPLENSE_NODE_LOCAL"
SECONDS_OF_A_ROUND = 0.5


class ToldToStop(InterruptedError):
    """A signal came while a copy was made."""


class Copies:
    """Context manager of the copies that this rank reads; the last to leave one removes it.

    One rank of each node makes them, in a thread. All ranks wait in rounds of half a second, in which they tell each
    other how far they are: no wait comes near a time-out of the group, the watchdog sees whether a copy grows, and a
    signal to any rank ends it.
    """

    def __init__(self, stop: StopFlag, watchdog: Watchdog) -> None:
        self.stop, self.watchdog = stop, watchdog
        self.leaving, self.stopping = ExitStack(), threading.Event()
        self.counting, self.num_blocks, self.num_bytes = threading.Lock(), 0, 0

    def __enter__(self) -> "Copies":
        return self

    def __exit__(self, *error: object) -> None:
        self.leaving.close()

    def stage(self, splits: Sequence[Split], way: str, accelerator: Accelerator) -> str:
        """Have the images of these splits read as the setting `stage` says; returns where that is, in words.

        What goes wrong on a node is an error on all ranks; with auto, a place that does not do is none. A signal to any
        of them raises ToldToStop on all.
        """
        place = place_of(way)
        if place is None:
            return "in place"
        different = list(dict.fromkeys(splits))
        try:
            copies = self.copy_on_all_nodes(different, place, accelerator)
        except ToldToStop:
            self.leaving.close()
            leave_together(accelerator)
            raise
        except (Unfit, OSError) as problem:
            self.leaving.close()
            if way != "auto":
                raise
            announce(accelerator, f"no copy is made: {problem}")
            return "in place"
        for split, folders in zip(different, copies, strict=True):
            split.read_from(folders)
        return "a copy in memory" if place == MEMORY else f"a copy in {place}"

    def copy_on_all_nodes(self, splits: Sequence[Split], place: Path, accelerator: Accelerator) -> list[list[Path]]:
        """The copies on this node, when those on all nodes are whole."""
        begun, num_bytes = (
            time.monotonic(),
            sum(shard["bytes"] for split in splits for m in split.manifests for shard in m.shards),
        )
        with ThreadPoolExecutor(1) as pool:
            work = pool.submit(self.make, splits, place) if accelerator.is_local_main_process else None
            try:
                self.wait_in_rounds(work, accelerator, num_bytes)
            except BaseException:
                self.stopping.set()
                raise
        on_all(accelerator, work.result if work else lambda: None)
        copies = on_all(accelerator, lambda: self.join(splits, place))
        names, seconds = " and ".join(split.name for split in splits), time.monotonic() - begun
        announce(accelerator, f"a copy of {names}, {num_bytes / 1e9:.3f} GB, is in {place} after {seconds:.1f} s")
        return copies

    def make(self, splits: Sequence[Split], place: Path) -> None:
        """Make the copies of this node."""
        manifests = [manifest for split in splits for manifest in split.manifests]
        self.leaving.enter_context(staged(manifests, place, after_block=self.count))

    def join(self, splits: Sequence[Split], place: Path) -> list[list[Path]]:
        """Hold the copies of this node, each rank for itself: the rank that made them may be the first to end."""
        return [[self.leaving.enter_context(held(m, place)) for m in split.manifests] for split in splits]

    def count(self, num_bytes: int) -> None:
        """Note a block, in the threads that copy and verify; raise where they are to stop."""
        with self.counting:
            self.num_blocks += 1
            self.num_bytes += num_bytes
        if self.stopping.is_set():
            raise ToldToStop("told to stop")

    def wait_in_rounds(self, work: Future[None] | None, accelerator: Accelerator, num_bytes: int) -> None:
        """Wait until no rank copies any more."""
        before: list[tuple[bool, int, bool]] = []
        total = int(num_bytes / 1e6) + 1
        with Reporter(total=total, unit="MB", enabled=accelerator.is_main_process) as reporter:
            while not before or any(busy for busy, _, _ in before):
                wait([work] if work else [], timeout=SECONDS_OF_A_ROUND)
                busy = work is not None and not work.done()
                states = gather_lists(accelerator, [(busy, self.num_blocks, bool(self.stop.signal_name))])
                if any(told for _, _, told in states):
                    self.stopping.set()
                if states != before:
                    self.watchdog.beat()
                # The end is told by a line of its own.
                reporter.update(min(int(self.num_bytes / 1e6), total - 1))
                before = states


def leave_together(accelerator: Accelerator) -> None:
    """Say that the attempt ends before its first step; no rank leaves while another still reads the last message."""
    announce(accelerator, "told to stop while the images were copied. The same command continues.")
    accelerator.wait_for_everyone()
    accelerator.end_training()


def place_of(way: str) -> Path | None:
    """The folder of each node in which the copies go; None where none are made.

    Raises ValueError where node_local is asked for and the cluster has none.
    """
    local = os.environ.get(NODE_LOCAL)
    require(
        way != "node_local" or bool(local),
        f"stage=node_local, but {NODE_LOCAL} is not set: the profile of the cluster names no node_local folder. Name "
        "one there, or give --stage memory or none.",
    )
    if way == "memory":
        return MEMORY
    return Path(local) if local and way in ("auto", "node_local") else None

"""Where the images of a run are read from: in place, or from a copy on each node that its ranks share."""

import os
import threading
import time
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import ExitStack
from functools import partial
from pathlib import Path

import numpy as np
from accelerate import Accelerator

from deeplense.data.dataset import Split
from deeplense.data.staging import Unfit, held, staged
from deeplense.training.loop import gather_lists
from deeplense.training.stopping import StopFlag
from jobs.console import Reporter
from jobs.data.part import Part
from jobs.frame.watchdog import Watchdog
from jobs.ranks import announce, on_all
from jobs.settings import require

MEMORY, NODE_LOCAL = Path("/dev/shm"), "DEEPLENSE_NODE_LOCAL"
SECONDS_OF_A_ROUND = 0.5


class ToldToStop(InterruptedError):
    """A signal arrived while the images were copied."""


class Copies:
    """Context manager of the copies that this rank reads. The last rank to leave removes a copy.

    One rank per node makes the copy in a thread. All ranks wait in rounds of half a second and exchange their progress.
    So no wait reaches a time-out of the process group, the watchdog sees whether the copy grows, and a signal to any
    rank ends it.
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
        """Read the images of these splits as the setting `stage` demands. Returns a description of the place.

        An error on one node is raised on all ranks; with auto, the images are then read in place. A signal to any rank
        raises ToldToStop on all.
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
            announce(accelerator, f"images are read in place, not copied: {problem}")
            return "in place"
        for split, folders in zip(different, copies, strict=True):
            split.read_from(folders)
        return "a copy in memory" if place == MEMORY else f"a copy in {place}"

    def copy_on_all_nodes(self, splits: Sequence[Split], place: Path, accelerator: Accelerator) -> list[list[Path]]:
        """Return the copies on this node once those on all nodes are complete."""
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
        announce(accelerator, f"copied {names} ({num_bytes / 1e9:.3f} GB) to {place} in {seconds:.1f} s")
        return copies

    def make(self, splits: Sequence[Split], place: Path) -> None:
        """Make the copies of this node."""
        manifests = [manifest for split in splits for manifest in split.manifests]
        self.leaving.enter_context(staged(manifests, place, after_block=self.count))

    def join(self, splits: Sequence[Split], place: Path) -> list[list[Path]]:
        """Hold the copies of this node, separately for each rank, because the rank that made them may end first."""
        return [[self.leaving.enter_context(held(m, place)) for m in split.manifests] for split in splits]

    def count(self, num_bytes: int) -> None:
        """Count a block, called from the threads that copy and verify. Raises ToldToStop if they must stop."""
        with self.counting:
            self.num_blocks += 1
            self.num_bytes += num_bytes
        if self.stopping.is_set():
            raise ToldToStop("stopped by a signal")

    def wait_in_rounds(self, work: Future[None] | None, accelerator: Accelerator, num_bytes: int) -> None:
        """Wait until no rank is copying."""
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
                # A separate line reports the end.
                reporter.update(min(int(self.num_bytes / 1e6), total - 1))
                before = states


def leave_together(accelerator: Accelerator) -> None:
    """Report that the attempt ends before its first step. All ranks leave together, after the last message is read."""
    announce(accelerator, "stopped by a signal while the images were copied. Run the same command again to resume.")
    accelerator.wait_for_everyone()
    accelerator.end_training()


def place_of(way: str) -> Path | None:
    """Return the folder for the copies on each node, or None if none are made.

    Raises ValueError if node_local is requested and the cluster has none.
    """
    local = os.environ.get(NODE_LOCAL)
    require(
        way != "node_local" or bool(local),
        f"stage=node_local, but {NODE_LOCAL} is not set: the cluster profile has no node_local folder. Add one to the "
        "profile, or give --stage memory or none.",
    )
    if way == "memory":
        return MEMORY
    return Path(local) if local and way in ("auto", "node_local") else None


def prepare_reading(parts: Sequence[Part], way: str, accelerator: Accelerator, copies: Copies) -> str:
    """Make the images available as the setting `stage` demands. Returns a description of the place."""
    if way != "device":
        where = copies.stage([part.split for part in parts], way, accelerator)
        for part in parts:
            part.split.pin(accelerator.device.type == "cuda")
        return where
    for split in {id(part.split): part.split for part in parts}.values():
        needed = [part.indices for part in parts if part.split is split]
        on_all(accelerator, partial(split.keep_on, accelerator.device, np.concatenate(needed)))
    return f"held on {accelerator.device}"

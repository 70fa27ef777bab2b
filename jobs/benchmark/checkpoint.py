"""`deeplense benchmark checkpoint`: the cost of saving a checkpoint during training, compared with other ways to save
and read the same state."""

import os
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import timm
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from safetensors.torch import save_file
from torch import Tensor

from deeplense.files import BLOCK, sync_tree
from deeplense.training import checkpoint
from deeplense.training.checkpoint import State, step_folder
from deeplense.training.saving import Saver
from jobs.benchmark.settings import Settings
from jobs.benchmark.timing import Row
from jobs.console import say

Seconds = dict[str, float]
MODEL = "vit_base_patch16_224"
COPY, WRITE, READ, SCAN = "one copy into warm memory", "write() and fsync", "read() of the files", "read() in blocks"
REFERENCES = {
    COPY: COPY,
    "our save: stall, the first": COPY,
    "our save: stall, the first if prepared": COPY,
    "our save: stall, later ones": COPY,
    "torch async_save: stall": COPY,
    WRITE: WRITE,
    "our save: in the background, until it is safe": WRITE,
    "safetensors save_file and fsync": WRITE,
    "torch.save and fsync": WRITE,
    "torch async_save: in the background": WRITE,
    READ: READ,
    "our load, verified": READ,
    "torch.load": READ,
    SCAN: SCAN,
    "our damage()": SCAN,
}
"""The reference that each operation is compared with, in the same round."""


def measure(settings: Settings, *, model_name: str = MODEL) -> list[Row]:
    """Measure the seconds of each way to save and read the state of a model with AdamW and an EMA, from the page cache:
    medians over rounds in which each is timed once; ratios are taken to the reference of the same round."""
    states = states_of(model_name)
    num_bytes = sum(tensor.nbytes for tensor in tensors_of(states).values())
    say(f"{model_name} with AdamW and EMA: {num_bytes / 1e9:.2f} GB; load average {os.getloadavg()[0]:.1f}")
    rounds = []
    with tempfile.TemporaryDirectory(dir=settings.folder, prefix="benchmark-") as folder:
        warm = {name: tensor.clone() for name, tensor in tensors_of(states).items()}
        for _ in range(settings.rounds):
            rounds.append(one_round(states, warm, Path(folder)))
    say(f"load average {os.getloadavg()[0]:.1f} at the end")
    return [row_of(what, rounds, num_bytes) for what in REFERENCES]


def row_of(what: str, rounds: list[Seconds], num_bytes: int) -> Row:
    """Return the row of one operation, over all rounds."""
    reference = REFERENCES[what]
    if what not in rounds[0]:
        return Row(what=what, note="failed; see the error above")
    ratios = [seconds[what] / seconds[reference] for seconds in rounds]
    ours, other = (statistics.median(seconds[name] for seconds in rounds) for name in (what, reference))
    return Row(
        what=what,
        unit="s",
        ours=ours,
        other_name=reference,
        other=other,
        ratio=statistics.median(ratios),
        ratio_min=min(ratios),
        ratio_max=max(ratios),
        extra={"GB/s": num_bytes / ours / 1e9},
    )


def states_of(model_name: str) -> dict[str, State]:
    """Return the state of a training: weights, the two moments of AdamW, and the EMA of the weights."""
    model = timm.create_model(model_name)
    optimizer = torch.optim.AdamW(model.parameters())
    for parameter in model.parameters():
        moments = {name: parameter.detach().clone() for name in ("exp_avg", "exp_avg_sq")}
        optimizer.state[parameter] = {"step": torch.tensor(1.0), **moments}
    mean = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    return {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "ema": mean}


def tensors_of(states: Mapping[str, State]) -> dict[str, Tensor]:
    """Return all tensors by their path."""
    tensors: dict[str, Tensor] = {}
    checkpoint.flatten(states, tensors)
    return tensors


def one_round(states: Mapping[str, State], warm: dict[str, Tensor], folder: Path) -> Seconds:
    """Time each operation once."""
    tensors = tensors_of(states)
    room = sum(tensor.nbytes for tensor in tensors.values())
    seconds = our_saves(states, folder, lambda: [warm[name].copy_(tensor) for name, tensor in tensors.items()], room)
    others: dict[str, Callable[[Path], object]] = {
        WRITE: partial(write_plainly, tensors),
        "safetensors save_file and fsync": partial(save_file, tensors),
        "torch.save and fsync": partial(torch.save, states),
    }
    for what, write in others.items():
        seconds[what] = timed(
            lambda write=write, what=what: (write(folder / what), sync_tree(folder / what)), room=room
        )
    seconds |= torch_async_save(states, folder / "dcp", room) | reads(folder, room)
    for path in folder.iterdir():
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    return seconds


def timed(action: Callable[[], object], *, room: int = 0) -> float:
    """Time a call in seconds, after allocating and freeing `room` bytes. On a virtual machine, memory that was unused
    for a while is slow to allocate, which would be counted for the operation that comes first."""
    torch.empty(room, dtype=torch.uint8).fill_(0)
    begun = time.perf_counter()
    action()
    return time.perf_counter() - begun


def our_saves(states: Mapping[str, State], folder: Path, copy: Callable[[], object], room: int) -> Seconds:
    """Time three saves by `Saver`: a first one, a first one with preallocated memory, and a later one, after a copy."""
    seconds = {}
    for prepared in (False, True):
        saver = Saver()
        if prepared:
            saver.prepare(states)
            saver.wait()
        begin = partial(saver.begin, states, lambda taken: checkpoint.write(step_folder(folder, 1), taken))
        seconds["our save: stall, the first" + " if prepared" * prepared] = timed(begin, room=room)
        saver.wait()
    seconds[COPY] = timed(copy, room=room)
    seconds["our save: stall, later ones"] = timed(begin, room=room)
    seconds["our save: in the background, until it is safe"] = timed(saver.wait)
    return seconds


def write_plainly(tensors: Mapping[str, Tensor], path: Path) -> None:
    """Write only the bytes of tensors, one after another."""
    with path.open("wb", buffering=0) as file:
        for tensor in tensors.values():
            file.write(tensor.reshape(-1).view(torch.uint8).numpy().data)


def torch_async_save(states: Mapping[str, State], folder: Path, room: int) -> Seconds:
    """Time PyTorch's asynchronous saving; print a line and return nothing if it fails."""
    try:
        store = dist.FileStore(str(folder.with_name("store")), 1)
        dist.init_process_group("gloo", store=store, rank=0, world_size=1, timeout=timedelta(minutes=2))
        futures: list[Any] = []
        stall = timed(lambda: futures.append(dcp.async_save(dict(states), checkpoint_id=folder)), room=room)
        background = timed(futures[0].result)
    except Exception as error:
        say(f"torch async_save failed and is omitted: {error!r}")
        return {}
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()
    return {"torch async_save: stall": stall, "torch async_save: in the background": background}


def reads(folder: Path, room: int) -> Seconds:
    """Time the ways to read what was written."""
    saved = step_folder(folder, 1)
    files = list(saved.iterdir())
    ways: dict[str, Callable[[], object]] = {
        READ: lambda: [path.read_bytes() for path in files],
        "our load, verified": lambda: checkpoint.load(saved),
        "torch.load": lambda: torch.load(folder / "torch.save and fsync", weights_only=True),
        SCAN: lambda: [scan(path) for path in files],
        "our damage()": lambda: checkpoint.damage(saved),
    }
    return {what: timed(way, room=room) for what, way in ways.items()}


def scan(path: Path) -> None:
    """Read a file and discard its content."""
    block = bytearray(BLOCK)
    with path.open("rb", buffering=0) as file:
        while file.readinto(block):
            pass

"""What every job that learns is told beside what it learns: on which samples, how long, how it saves; and the frame in
which it runs."""

import importlib
import math
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from jobs.attempts import EXIT_STOPPED
from jobs.config import FREE, require
from jobs.counting import counts_with

if TYPE_CHECKING:
    from jobs.learner import Learner

ABOVE_ZERO = ("batch_size", "epochs", "lr", "period_epochs", "evaluate_epochs", "gradient_accumulation")
ABOVE_ZERO += ("log_interval", "shuffle_block", "shuffle_window")
ZERO_OR_MORE = ("lr_min", "weight_decay", "warmup_epochs", "num_workers", "read_ahead")
ZERO_OR_MORE += ("checkpoint_minutes", "hang_minutes", "seed")
ABOVE_ZERO_OR_NONE = ("keep_every_hours", "clip_grad")
BELOW_ONE = ("val_fraction",)
OF_COSINES = counts_with(schedule=("cosine", "restarts"), decay_lr=1)


@dataclass(frozen=True, kw_only=True)
class LearningSettings:
    """On what to learn, how long, and how to save."""

    run: Path
    """folder of the run; one that exists is continued"""
    dataset: str
    """folder of a data set, or its name below data_root (Model_I, Model_II, Model_III); several, with commas between,
    are learnt from together"""
    data_root: Path = field(default=Path("datasets"), metadata=FREE)
    """folder of data sets"""
    mix: str = ""
    """weights of several data sets, such as 2,1; by default each sample counts alike"""
    balance: Literal["none", "class", "survey"] = "none"
    """class: all classes equally often; survey: all data sets equally often; by default each sample once an epoch"""
    shuffle_block: int = 1
    """samples that lie side by side and are read together; 1 mixes all, 64 suits data on slow disks"""
    shuffle_window: int = 256
    """blocks whose samples are mixed"""
    batch_size: int = 64
    """samples of one update, over all processes"""
    lr: float = 3e-4
    """highest learning rate"""
    lr_min: float = field(default=0.0, metadata=OF_COSINES)
    """lowest learning rate of the cosines"""
    optimizer: Literal["adamw", "sgd", "adam", "lamb"] = "adamw"
    """timm's"""
    weight_decay: float = 0.01
    """not on biases and norms"""
    momentum: float = field(default=0.9, metadata=counts_with(optimizer="sgd"))
    """of sgd, which is Nesterov's"""
    schedule: Literal["constant", "cosine", "restarts", "step"] = "constant"
    """of the learning rate, after the warm-up"""
    decay_lr: Literal[0, 1] = 0
    """1: cosine with warm restarts, the same as --schedule restarts"""
    period_epochs: float = field(default=15.0, metadata=counts_with(schedule=("restarts", "step"), decay_lr=1))
    """length of a cosine of restarts, or of a step"""
    gamma: float = field(default=0.5, metadata=counts_with(schedule="step"))
    """factor of each step of the schedule step"""
    warmup_epochs: float = 0.0
    """in which the learning rate rises to lr"""
    epochs: float = 25.0
    """passes over the training samples"""
    stretch: Literal["linear", "asinh", "standard_asinh"] = "linear"
    """of the pixel values, in units of their standard deviation; asinh for images with bright cores, standard_asinh
    also about their mean"""
    val_fraction: float = 0.1
    """part of each class of the split train that chooses the best weights, where there is no split val"""
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    """of the forward and backward pass"""
    gradient_accumulation: int = 1
    """pieces that the batch of a process is worked through in"""
    clip_grad: float | None = None
    """largest norm of the gradient"""
    seed: int = 0
    """of weights, order, augmentation and dropout"""
    evaluate_epochs: float = 1.0
    """epochs between evaluations on the validation samples"""
    checkpoint_minutes: float = field(default=5.0, metadata=FREE)
    """between checkpoints; one is also written at the end and when told to stop"""
    keep_checkpoints: int = field(default=2, metadata=FREE)
    """how many of the newest are kept, beside the best weights; at least 2, for the newest may be damaged"""
    keep_every_hours: float | None = field(default=None, metadata=FREE)
    """if given, checkpoints so far apart are kept for good"""
    hang_minutes: float = field(default=30.0, metadata=FREE)
    """without a step for so long the attempt ends, telling what each process was doing; 0 for never"""
    log_interval: int = field(default=10, metadata=FREE)
    """steps between lines in metrics.jsonl"""
    num_workers: int = field(default=0, metadata=FREE)
    """processes that read ahead, for compressed data; 0 for none"""
    read_ahead: int = field(default=1, metadata=FREE | counts_with(num_workers=0))
    """threads that read ahead where there are no such processes; 0 for none"""
    stage: Literal["auto", "none", "memory", "node_local", "device"] = field(default="auto", metadata=FREE)
    """read from a copy that the processes of a node share: memory (/dev/shm), node_local (the cluster's node_local),
    device (held on the GPU by each process), none; auto: node_local where there is one with room, else none"""
    fsdp: Literal[0, 1] = field(default=0, metadata=FREE)
    """1: each process holds only its part of the weights, gradients and optimizer states (fully sharded data parallel),
    for networks that do not fit; checkpoints are those of 0"""
    device: Literal["auto", "cuda", "mps", "cpu"] = field(default="auto", metadata=FREE)
    """where to compute"""
    take_over: Literal[0, 1] = field(default=0, metadata=FREE)
    """1: train though another process that lives is training this run; what that one does after its last checkpoint is
    lost"""
    wandb: Literal["off", "offline", "online"] = field(default="off", metadata=FREE)
    """Weights & Biases; offline needs no login and no network"""
    wandb_project: str = field(default="deeplense", metadata=FREE | counts_with(wandb=("offline", "online")))
    """project at W&B"""

    def __post_init__(self) -> None:
        refuse_outside(self, ABOVE_ZERO, lambda value: value > 0, "above 0")
        refuse_outside(self, ZERO_OR_MORE, lambda value: value >= 0, "0 or more")
        refuse_outside(self, BELOW_ONE, lambda value: 0 <= value < 1, "at least 0 and below 1")
        refuse_outside(self, ABOVE_ZERO_OR_NONE, lambda value: value is None or value > 0, "above 0")
        require_weights(self.mix, balance=self.balance)
        require(
            self.keep_checkpoints >= 2,
            f"keep_checkpoints={self.keep_checkpoints} must be at least 2: where the newest is damaged, the one before "
            "is all there is.",
        )
        require(
            self.stage != "device" or self.num_workers == 0,
            "stage=device holds the images in this process; leave out --num_workers.",
        )
        require(
            not self.fsdp or self.precision != "fp16",
            "fsdp=1 goes with precision=bf16 or fp32; fp16 scales its loss in each process alone.",
        )
        require(
            not self.decay_lr or self.schedule in ("constant", "restarts"),
            f"decay_lr=1 means schedule=restarts; schedule={self.schedule} says otherwise. Give one of them.",
        )


def refuse_outside(settings: object, names: tuple[str, ...], right: Callable[[float], bool], words: str) -> None:
    """Raise ValueError, naming the first, where one of these settings is not right."""
    for name in names:
        value = getattr(settings, name)
        finite = not isinstance(value, float) or math.isfinite(value)
        require(finite and right(value), f"{name}={value} must be {words}.")


def require_weights(mix: str, *, balance: str) -> None:
    """Raise ValueError unless this is a list of weights, or empty."""
    weights = [weight.strip() for weight in mix.split(",")] if mix else []
    good = all(weight.replace(".", "", 1).isdigit() and float(weight) > 0 for weight in weights)
    require(good, f"mix={mix!r} must be numbers above 0 with commas between, one for each data set.")
    require(not weights or balance != "survey", "balance=survey means equal weights; leave --mix out, or balance.")


def learn(settings: LearningSettings, make_learner: Callable[[], "Learner"]) -> int:
    """Learn until done or told to stop; returns 0, or 85 when stopped with the state saved (or none made)."""
    import_without("timm", "wandb")
    from deeplense.training.stopping import StopFlag
    from jobs.claim import Claim
    from jobs.staged import Copies, ToldToStop
    from jobs.training_run import train_to_the_end
    from jobs.training_start import begin
    from jobs.watchdog import Watchdog

    with (
        StopFlag() as stop,
        Watchdog(settings.run, minutes=settings.hang_minutes) as watchdog,
        Copies(stop, watchdog) as copies,
        Claim(settings, take_over=bool(settings.take_over)) as claim,
    ):
        try:
            training = begin(settings, make_learner, watchdog, copies, claim)
        except ToldToStop:
            return EXIT_STOPPED
        if training is None:
            return 0
        return train_to_the_end(training, stop)


def import_without(name: str, other: str) -> None:
    """Import a package as if another were not installed, one that it can do without: each rank of each attempt would
    wait a third of a second for the Weights & Biases of timm, which nobody uses here."""
    if other in sys.modules:
        return
    sys.modules[other] = None  # type: ignore[assignment]  # Python's way to say that there is none
    try:
        importlib.import_module(name)
    finally:
        del sys.modules[other]

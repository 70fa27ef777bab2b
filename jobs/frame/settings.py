"""Settings shared by all training jobs: data, duration, optimiser and checkpoints."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from jobs.conditions import counts_with
from jobs.settings import FREE, refuse_outside, require

ABOVE_ZERO = ("batch_size", "epochs", "lr", "period_epochs", "evaluate_epochs", "gradient_accumulation")
ABOVE_ZERO += ("log_interval", "shuffle_block", "shuffle_window")
ZERO_OR_MORE = ("lr_min", "weight_decay", "warmup_epochs", "num_workers", "read_ahead")
ZERO_OR_MORE += ("checkpoint_minutes", "hang_minutes", "seed")
ABOVE_ZERO_OR_NONE = ("keep_every_hours", "clip_grad")
BELOW_ONE = ("val_fraction",)
OF_COSINES = counts_with(schedule=("cosine", "restarts"), decay_lr=1)


@dataclass(frozen=True, kw_only=True)
class LearningSettings:
    """What to train on, how long, and how to save."""

    run: Path
    """run folder; an existing run is resumed"""
    lengthen: Path | None = None
    """finished run whose complete state starts this one, a new run with more epochs; the other settings must be equal:
    give its recipe with --config RUN/config.yaml"""
    dataset: str
    """data set folder, or its name below data_root (Model_I, Model_II, Model_III); a comma-separated list trains on all
    of them jointly"""
    data_root: Path = field(default=Path("datasets"), metadata=FREE)
    """folder that contains the data sets"""
    mix: str = ""
    """sampling weights of several data sets, such as 2,1; by default every sample has the same weight"""
    balance: Literal["none", "class", "survey"] = "none"
    """class: sample all classes equally often; survey: sample all data sets equally often; none: use each sample once
    per epoch"""
    shuffle_block: int = 1
    """number of consecutive samples that are read together; 1 shuffles all samples, 64 suits slow disks"""
    shuffle_window: int = 256
    """number of blocks that are shuffled together"""
    batch_size: int = 64
    """samples per update, over all processes"""
    lr: float = 3e-4
    """peak learning rate"""
    lr_min: float = field(default=0.0, metadata=OF_COSINES)
    """minimum learning rate of the cosine schedules"""
    optimizer: Literal["adamw", "sgd", "adam", "lamb"] = "adamw"
    """optimizer, as implemented in timm"""
    weight_decay: float = 0.01
    """weight decay; not applied to biases and normalisation layers"""
    momentum: float = field(default=0.9, metadata=counts_with(optimizer="sgd"))
    """Nesterov momentum of sgd"""
    schedule: Literal["constant", "cosine", "restarts", "step"] = "constant"
    """learning rate schedule after the warm-up"""
    decay_lr: Literal[0, 1] = 0
    """1: cosine with warm restarts, the same as --schedule restarts"""
    period_epochs: float = field(default=15.0, metadata=counts_with(schedule=("restarts", "step"), decay_lr=1))
    """epochs per cycle of the schedule restarts, or per step of the schedule step"""
    gamma: float = field(default=0.5, metadata=counts_with(schedule="step"))
    """factor by which the schedule step reduces the learning rate at each step"""
    warmup_epochs: float = 0.0
    """epochs of linear warm-up of the learning rate to lr"""
    epochs: float = 25.0
    """passes over the training samples; with mix or balance, as many samples as one pass has"""
    stretch: Literal["linear", "asinh", "standard_asinh"] = "linear"
    """transform of the pixel values, in units of their standard deviation; asinh suits images with bright cores,
    standard_asinh also subtracts the mean"""
    val_fraction: float = 0.1
    """fraction of the images of each class of the split train that is used for validation if there is no split val"""
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    """floating-point precision of the forward and backward pass"""
    gradient_accumulation: int = 1
    """number of micro-batches into which each process splits its batch"""
    clip_grad: float | None = None
    """maximum norm of the gradient; not clipped by default"""
    seed: int = 0
    """random seed of initial weights, sample order, augmentation and dropout"""
    evaluate_epochs: float = 1.0
    """epochs between evaluations on the validation samples"""
    checkpoint_minutes: float = field(default=5.0, metadata=FREE)
    """minutes between checkpoints; one is also saved at the end and when the job is stopped by a signal"""
    keep_checkpoints: int = field(default=2, metadata=FREE)
    """number of most recent checkpoints to keep in addition to the best weights; at least 2, because the newest may be
    damaged"""
    keep_every_hours: float | None = field(default=None, metadata=FREE)
    """interval in hours at which a checkpoint is kept permanently; none by default"""
    hang_minutes: float = field(default=30.0, metadata=FREE)
    """minutes without a step after which the attempt ends and prints the stack traces of every process; 0 disables this
    """
    log_interval: int = field(default=10, metadata=FREE)
    """steps between lines in metrics.jsonl"""
    num_workers: int = field(default=0, metadata=FREE)
    """number of data loader processes, for compressed data; 0 for none"""
    read_ahead: int = field(default=1, metadata=FREE | counts_with(num_workers=0))
    """number of threads that prefetch batches if num_workers is 0; 0 for none"""
    stage: Literal["auto", "none", "memory", "node_local", "device"] = field(default="auto", metadata=FREE)
    """where to copy the images before training, one copy per node: memory (/dev/shm), node_local (the node_local folder
    of the cluster profile), device (held on the GPU by each process), none (read in place); auto: node_local if it
    exists and has room, else none"""
    fsdp: Literal[0, 1] = field(default=0, metadata=FREE)
    """1: each process holds only its shard of the weights, gradients and optimizer states (fully sharded data
    parallel), for networks that exceed the GPU memory; checkpoints are the same as with 0"""
    device: Literal["auto", "cuda", "mps", "cpu"] = field(default="auto", metadata=FREE)
    """device to compute on"""
    take_over: Literal[0, 1] = field(default=0, metadata=FREE)
    """1: train even if another live process is training this run; the work of that process since its last checkpoint is
    lost"""
    wandb: Literal["off", "offline", "online"] = field(default="off", metadata=FREE)
    """Weights & Biases logging; offline needs no login and no network"""
    wandb_project: str = field(default="deeplense", metadata=FREE | counts_with(wandb=("offline", "online")))
    """project name in Weights & Biases"""

    @property
    def least_samples(self) -> int:
        """Fewest samples with which a process can compute its part of a loss."""
        return 1

    def __post_init__(self) -> None:
        refuse_outside(self, ABOVE_ZERO, lambda value: value > 0, "above 0")
        refuse_outside(self, ZERO_OR_MORE, lambda value: value >= 0, "0 or more")
        refuse_outside(self, BELOW_ONE, lambda value: 0 <= value < 1, "at least 0 and below 1")
        refuse_outside(self, ABOVE_ZERO_OR_NONE, lambda value: value is None or value > 0, "above 0")
        require_weights(self.mix, balance=self.balance)
        require(
            self.keep_checkpoints >= 2,
            f"keep_checkpoints={self.keep_checkpoints} must be at least 2: if the newest checkpoint is damaged, "
            "the run resumes from the one before.",
        )
        require(
            self.stage != "device" or self.num_workers == 0,
            "stage=device keeps the images on the GPU of this process; leave out --num_workers.",
        )
        require(
            not self.fsdp or self.precision != "fp16",
            "fsdp=1 needs precision=bf16 or fp32; with fp16 each process would scale its loss separately.",
        )
        require(
            not self.decay_lr or self.schedule in ("constant", "restarts"),
            f"decay_lr=1 means schedule=restarts, which contradicts schedule={self.schedule}; give only one of them.",
        )


def refuse_small_batch(batch_size: int, pieces: int, num_processes: int, *, least: int) -> None:
    """Raise ValueError if a process would have fewer than `least` samples in one of its micro-batches.

    Args:
        batch_size: samples of the batch of a step, divided among the processes as evenly as possible.
        pieces: number of micro-batches of each process.
        num_processes: number of processes.
        least: fewest samples of a micro-batch.
    """
    needed, most = num_processes * pieces * least, batch_size // (pieces * least)
    among = in_ranks(num_processes) + (f" with gradient_accumulation={pieces}" if pieces > 1 else "")
    each = f"at least {least} samples" if least > 1 else "at least one sample"
    fewer = f", or at most {in_ranks(most)}" if 0 < most < num_processes else ""
    told = f"batch_size={batch_size} is too small for {among}, as each part needs {each}"
    require(batch_size >= needed, f"{told}; use {needed} or more{fewer}.")


def in_ranks(number: int) -> str:
    """Return a number of processes as text."""
    return f"{number} rank" + ("" if number == 1 else "s")


def require_weights(mix: str, *, balance: str) -> None:
    """Raise ValueError unless this is a comma-separated list of positive weights, or empty."""
    weights = [weight.strip() for weight in mix.split(",")] if mix else []
    good = all(weight.replace(".", "", 1).isdigit() and float(weight) > 0 for weight in weights)
    require(good, f"mix={mix!r} must be a comma-separated list of numbers above 0, one per data set.")
    require(not weights or balance != "survey", "balance=survey means equal weights; leave out --mix or --balance.")

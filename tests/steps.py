"""A step of each job, by each method, with each architecture of the zoo."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from accelerate import Accelerator
from timm.utils import ModelEmaV3
from torch import nn
from torch.optim import Optimizer

from deeplense.data.dataset import Batch
from deeplense.models.zoo import ARCHITECTURES
from deeplense.training.loop import Update, fit
from jobs.command_line import parse
from jobs.diffuse.learner import Diffusion
from jobs.frame.learner import Learner, Trainee
from jobs.pretrain.learner import Pretraining
from jobs.train.learner import Supervised

LEARNERS: dict[str, Callable[[Any], Learner]] = {
    "train": Supervised.of,
    "pretrain": Pretraining.of,
    "diffuse": Diffusion.of,
}
STATISTICS = {"mean": [0.1], "std": [0.5], "stretched_mean": [0.1], "stretched_std": [0.5]}
PRETRAIN = "--batch_size=8 --num_local=2 --hidden_dim=16 --out_dim=32 --model_name=test_vit"
PAIRS = "--batch_size=8 --hidden_dim=16 --out_dim=32 --model_name=test_resnet"
JOBS = {
    "regression": "train --model_name=simple_cnn --target=column --optimizer=sgd --clip_grad=1",
    "augmented": "train --model_name=simple_cnn --random_zoom=1.3 --random_rotation=40 --stretch=asinh",
    "averaged, in pieces": "train --model_name=simple_cnn --ema_decay=0.9 --gradient_accumulation=2 --optimizer=lamb",
    "last layers": "train --model_name=simple_cnn --tune=0 --complex=1 --dropout=0.2",
    "layer decay": "train --model_name=resnet18 --layer_decay=0.7 --drop_path=0.1 --optimizer=adam",
    "DINO": f"pretrain --method=dino {PRETRAIN} --weight_decay_end=0.4 --drop_path=0.1",
    "DINO, published views": f"pretrain --method=dino --views=published {PRETRAIN}",
    "DINO, blocks twice": f"pretrain --method=dino --checkpoint_blocks=1 {PRETRAIN}",
    "iBOT": f"pretrain --method=ibot {PRETRAIN}",
    "SimSiam": f"pretrain --method=simsiam {PAIRS}",
    "SimMIM": "pretrain --method=simmim --batch_size=8 --model_name=test_vit",
    "LeJEPA": f"pretrain --method=lejepa {PRETRAIN}",
    "diffusion": "diffuse --model_name=unet_small --conditions=class,column --flips=1",
    "diffusion of noise": "diffuse --model_name=unet_small --predict=eps --loss=l1 --ema_decay=0",
    "diffusion as before": "diffuse --model_name=unet_earlier --noise_schedule=linear --predict=x0 --loss=huber",
}
"""Settings that change what a step does. (`finetune` makes the steps of `train`.)"""
STEPS = (*JOBS, *ARCHITECTURES)


class Step(NamedTuple):
    """What a step is made with, on the host."""

    settings: Any
    learner: Learner
    network: nn.Module
    batch: Batch

    def trainee(self, network: nn.Module) -> Trainee:
        """A network, which is this one or a copy of it, ready to be trained."""
        return self.learner.make_trainee(network, STATISTICS)


def make_step(name: str, dataset: Path, run: Path, *, device: str = "cpu") -> Step:
    """A learner, its network and a batch."""
    job, *words = JOBS.get(name, f"train --model_name={name} --optimizer=sgd").split()
    common = [f"--dataset={dataset}", f"--run={run}", f"--device={device}", "--epochs=2", "--batch_size=4"]
    settings: Any = parse(job, [word for word in common if not any(word[:8] == other[:8] for other in words)] + words)
    learner = LEARNERS[job](settings)
    network = learner.make_network(load_pretrained=False)
    rows = learner.train.indices[: settings.batch_size]
    random = np.random.default_rng(0).uniform(size=(len(rows), learner.make_trainee(network, STATISTICS).columns.total))
    return Step(settings, learner, network, learner.train.split.batch(rows, target=learner.train.target, random=random))


def updates(
    step: Step,
    trainee: Trainee,
    network: nn.Module,
    batches: Iterator[Batch],
    *,
    accelerator: Accelerator,
    optimizer: Optimizer,
    ema: ModelEmaV3 | None,
    num_steps: int,
) -> Iterator[Update]:
    """The updates of a training, with all that follows them."""
    settings, learner = step.settings, step.learner
    for update in fit(
        lambda piece: trainee.step(network, piece, 1),
        batches,
        accelerator=accelerator,
        model=network,
        optimizer=optimizer,
        learning_rate=lambda number: 1e-3,
        weight_decay=lambda number: learner.weight_decay(number, 100),
        first_step=0,
        num_steps=num_steps,
        step_seed=lambda number: number,
        accumulate=settings.gradient_accumulation,
        clip_grad=settings.clip_grad,
        ema=ema,
    ):
        trainee.after_update(update.step, accelerator)
        yield update

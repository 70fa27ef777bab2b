"""Everything that updates change on this rank: a network, its optimizer and its moving average."""

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from accelerate import Accelerator
from timm.optim import create_optimizer_v2
from timm.utils import ModelEmaV3
from torch import nn
from torch.optim import Optimizer

from deeplense.training import fsdp
from deeplense.training.finite import is_finite, tensors_in
from jobs.frame.learner import Learner
from jobs.frame.plan import Progress
from jobs.frame.settings import LearningSettings

States = dict[str, dict[str, Any]]


@dataclass(frozen=True)
class Weights:
    """A network with its optimizer and moving average. `model` is the module that updates call: the network in its
    distributed wrapper."""

    accelerator: Accelerator
    network: nn.Module
    model: nn.Module
    optimizer: Optimizer
    ema: ModelEmaV3 | None
    unsharded: nn.Module | None = None
    """with fsdp, a copy of the network from before it was sharded"""

    @property
    def counted(self) -> nn.Module:
        """The network that is evaluated and kept: the moving average, if there is one."""
        return self.ema.module if self.ema is not None else self.network

    def evaluated(self) -> nn.Module:
        """Return the network to evaluate, complete on each process. All ranks must call it."""
        if self.unsharded is None:
            return self.counted
        return fsdp.whole_copy(self.counted, self.unsharded, self.accelerator.device)

    @property
    def not_finite(self) -> list[str]:
        """Names of the states on this rank that contain values that are not finite."""
        parts: dict[str, Any] = {"the weights": self.network, "the states of the optimizer": self.optimizer}
        if self.ema is not None:
            parts["the running mean of the weights"] = self.ema.module
        return [name for name, part in parts.items() if not is_finite(tensors_in(part.state_dict()))]

    def states(self, progress: Progress) -> States:
        """Return all states to save, on the main process. All ranks must call it."""
        parts: dict[str, Any] = {"model": self.network, "optimizer": self.optimizer, "progress": progress}
        if self.ema is not None:
            parts["ema"] = self.ema.module
        if self.accelerator.scaler is not None:
            parts["scaler"] = self.accelerator.scaler
        return self.whole({name: part.state_dict() for name, part in parts.items()})

    def best_states(self, progress: Progress) -> States:
        """Return the weights that were evaluated, on the main process. All ranks must call it."""
        return self.whole({"model": self.counted.state_dict()}) | {"progress": progress.state_dict()}

    @property
    def best_names(self) -> dict[str, str]:
        """Names of the entries of `best_states`, with their names in `states`."""
        return {"model": "model" if self.ema is None else "ema", "progress": "progress", "record": "record"}

    def whole(self, states: States) -> States:
        """Return the complete states on the main process, gathered if they are sharded."""
        return states if self.unsharded is None else fsdp.gathered(states, keep=self.accelerator.is_main_process)


def spread(network: nn.Module, accelerator: Accelerator) -> nn.Module:
    """Shard the weights of a network over the processes. Returns a copy from before, in host memory."""
    unsharded = copy.deepcopy(network).to("cpu")
    fsdp.shard(network, accelerator.device)
    return unsharded


def optimizer_for(network: nn.Module, settings: LearningSettings, learner: Learner) -> Optimizer:
    """Return the optimizer for the network of a learner."""
    optimizer = make_optimizer(settings, network, layer_decay=learner.layer_decay)
    fix_rate(optimizer, [p for name, p in network.named_parameters() if name.startswith(learner.fixed_rate)])
    return optimizer


def make_optimizer(settings: LearningSettings, network: nn.Module, *, layer_decay: float | None = None) -> Optimizer:
    """Return the timm optimizer of the trainable parameters."""
    return create_optimizer_v2(
        network,
        opt=settings.optimizer,
        lr=settings.lr,
        weight_decay=settings.weight_decay,
        momentum=settings.momentum,
        layer_decay=layer_decay,
    )


def fix_rate(optimizer: Optimizer, parameters: Sequence[nn.Parameter]) -> None:
    """Move these parameters to separate groups with a constant learning rate."""
    fixed = {id(parameter) for parameter in parameters}
    for group in list(optimizer.param_groups):
        chosen = [parameter for parameter in group["params"] if id(parameter) in fixed]
        if chosen:
            group["params"] = [parameter for parameter in group["params"] if id(parameter) not in fixed]
            optimizer.add_param_group(group | {"params": chosen, "fix_lr": True})

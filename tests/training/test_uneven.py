"""Ranks with different numbers of samples make the update of one process, to rounding."""

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from group import on_ranks
from steps import JOBS, make_step
from torch import Tensor, nn

from deeplense.data.dataset import TENSORS, Batch
from deeplense.data.order import share_of
from deeplense.training import loop
from deeplense.training.loop import fit, make_accelerator, mean_over_ranks

UNEVEN = {
    "a classification": "train --model_name=test_vit --batch_size=16",
    "a regression in pieces": "train --model_name=test_vit --target=column --batch_size=16 --gradient_accumulation=2",
    "a clipped gradient": "train --model_name=test_vit --batch_size=7 --clip_grad=0.01",
    "DINO": "pretrain --method=dino --batch_size=8 --num_local=2 --hidden_dim=16 --out_dim=32 --model_name=test_vit",
    "iBOT": "pretrain --method=ibot --batch_size=8 --num_local=2 --hidden_dim=16 --out_dim=32 --model_name=test_vit",
    "iBOT in pieces": "pretrain --method=ibot --batch_size=8 --num_local=0 --hidden_dim=16 --out_dim=32 "
    "--model_name=test_vit --gradient_accumulation=2",
    "SimMIM": "pretrain --method=simmim --batch_size=8 --model_name=test_vit",
    "LeJEPA": "pretrain --method=lejepa --batch_size=8 --num_local=2 --hidden_dim=16 --out_dim=32 "
    "--model_name=test_vit",
    "diffusion": "diffuse --model_name=unet_small --batch_size=5 --conditions=class,column --flips=1",
}
"""Trainings without dropout and batch norms, with batches that three ranks cannot divide evenly."""
UPDATES = 2


def shared(batch: Batch, rank: int, size: int) -> Batch:
    """The samples of a rank."""
    return replace(batch, **{name: getattr(batch, name)[share_of(rank, size)] for name in TENSORS})


def without_batch_norm(network: nn.Module) -> None:
    """Put layers that treat each sample for itself in the place of batch norms, which on the CPU see one rank."""
    for module in list(network.modules()):
        for name, child in module.named_children():
            if isinstance(child, nn.BatchNorm1d):
                setattr(module, name, nn.LayerNorm(child.num_features))


def update(rank: int, size: int, name: str, dataset: Path, *, weighted: bool) -> dict[str, Any]:
    """Make some updates on a batch, each rank with its share of it; returns the change of all numbers, and the
    metrics."""
    accelerator = make_accelerator(device="cpu", precision="fp32")
    torch.manual_seed(0)
    step = make_step(name, dataset, dataset / "run")
    without_batch_norm(step.network)
    trainee, before = step.trainee(step.network), {k: v.clone() for k, v in step.network.state_dict().items()}
    learning = [parameter for parameter in step.network.parameters() if parameter.requires_grad]
    model, optimizer = loop.prepare(accelerator, step.network, torch.optim.SGD(learning, lr=0.05))
    updates = fit(
        lambda piece: trainee.step(model, piece, 1),
        iter(lambda: shared(step.batch, rank, size), None),
        accelerator=accelerator,
        model=model,
        optimizer=optimizer,
        learning_rate=lambda number: 0.05,
        first_step=0,
        num_steps=UPDATES,
        step_seed=lambda number: number,
        batch_size=len(step.batch) if weighted else None,
        accumulate=step.settings.gradient_accumulation,
        clip_grad=step.settings.clip_grad,
    )
    metrics = {}
    for made in updates:
        trainee.after_update(made.step, accelerator)
        metrics = mean_over_ranks(accelerator, made.metrics, weight=made.weight)
    change = {k: v - before[k] for k, v in step.network.state_dict().items() if v.is_floating_point()}
    return {"change": change, "metrics": metrics}


def update_all(rank: int, size: int, dataset: Path, folder: Path) -> None:
    """All trainings; with several ranks also as if all ranks had as many samples."""
    JOBS.update(UNEVEN)
    for name in UNEVEN:
        for weighted in (True, False)[: 1 if size == 1 else 2]:
            found = update(rank, size, name, dataset, weighted=weighted)
            if rank == 0:
                torch.save(found, folder / f"{name} {size} {weighted}.pt")


@pytest.fixture(scope="module")
def results(stamps: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What one and three processes come to."""
    folder = tmp_path_factory.mktemp("uneven")
    for size in (1, 3):
        on_ranks(size, partial(update_all, dataset=stamps, folder=folder))
    return folder


def difference(one: dict[str, Tensor], other: dict[str, Tensor]) -> float:
    """How far two changes are from one another, relative to the first."""
    assert one.keys() == other.keys()
    between = sum(float((one[name] - other[name]).square().sum()) for name in one)
    return (between / sum(float(change.square().sum()) for change in one.values())) ** 0.5


@pytest.mark.parametrize("name", UNEVEN)
def test_three_ranks_with_uneven_shares_make_the_update_of_one_process(name: str, results: Path) -> None:
    alone, three, careless = (torch.load(results / f"{name} {how}.pt") for how in ("1 True", "3 True", "3 False"))
    assert difference(alone["change"], three["change"]) < 2e-4
    assert three["metrics"] == pytest.approx(alone["metrics"], rel=1e-4, abs=1e-5)
    # The negative control: ranks that count as much as one another, whatever they have.
    assert difference(alone["change"], careless["change"]) > 2e-3

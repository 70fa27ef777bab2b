"""A step waits for nobody: in no job, by no method, with no network does the host read what the device computes."""

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from fakes import (
    NoCopies,
    Waiting,
    copied,
    faked,
    faked_batch,
    no_numbers,
    nobody_waits,
    really,
    told_where_it_reads,
)
from steps import JOBS, STEPS, Step, make_step, updates
from timm.utils import ModelEmaV3
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.optim import Optimizer

from deeplense.data import transforms
from deeplense.data.dataset import Split
from deeplense.data.scaling import Scaling
from deeplense.ssl.ibot import IBOT
from deeplense.training.loop import make_accelerator
from jobs.diffuse import learner as diffuse_learner
from jobs.frame.learner import Trainee
from jobs.frame.weights import optimizer_for
from jobs.pretrain import learner as pretrain_learner

GPU = "cuda:0"


@pytest.fixture(scope="module", params=STEPS)
def each(request: pytest.FixtureRequest, stamps: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Step]:
    """The name of a step, and what it is made with: both tests of a step share it."""
    return request.param, make_step(request.param, stamps, tmp_path_factory.mktemp("run"))


@pytest.fixture
def make(stamps: Path, tmp_path: Path) -> Callable[[str], Step]:
    """Makes what a step is made with."""
    return lambda name: make_step(name, stamps, tmp_path / "run")


def begin(mode: FakeTensorMode, step: Step, device: str, monkeypatch: pytest.MonkeyPatch) -> tuple[nn.Module, Trainee]:
    """A fake copy of a network on a device, ready to be trained."""
    copied = faked(mode, step.network, device)
    monkeypatch.setattr(Split, "images", really(mode, Split.images))
    monkeypatch.setattr(pretrain_learner, "estimate_sky", lambda images: torch.full(images.shape[1:2], 0.1))
    for name in ("bounds_of", "conditions_of"):
        monkeypatch.setattr(diffuse_learner, name, really(mode, getattr(diffuse_learner, name)))
    return copied, step.trainee(copied)


def step_on_the_host(step: Step, num_steps: int, monkeypatch: pytest.MonkeyPatch) -> int:
    """Make updates on a fake CPU; returns how many."""
    settings, decay = step.settings, step.learner.ema_decay
    accelerator = make_accelerator(device="cpu", precision="fp32")
    ema = ModelEmaV3(step.network, decay=decay, use_warmup=True) if decay else None
    with FakeTensorMode() as mode:
        network, trainee = begin(mode, step, "cpu", monkeypatch)
        optimizer = optimizer_for(network, settings, step.learner)
        if ema is not None:
            ema.module = faked(mode, ema.module, "cpu")
        batches = itertools.repeat(faked_batch(mode, step.batch))
        given: dict[str, Any] = {"accelerator": accelerator, "optimizer": optimizer, "ema": ema}
        with nobody_waits():
            return len(list(updates(step, trainee, network, batches, **given, num_steps=num_steps)))


def step_without_numbers(step: Step) -> int:
    """Make an update with tensors that have a shape and a type alone, three times as fast; returns how many."""
    accelerator = make_accelerator(device="cpu", precision="fp32")
    network = copied(step.network, lambda tensor: torch.empty_like(tensor, device="meta"))
    trainee, optimizer = step.trainee(network), optimizer_for(network, step.settings, step.learner)
    given: dict[str, Any] = {"accelerator": accelerator, "optimizer": optimizer, "ema": None}
    with no_numbers(accelerator), told_where_it_reads():
        return len(list(updates(step, trainee, network, itertools.repeat(step.batch), **given, num_steps=1)))


def one_of_each(optimizer: Optimizer) -> list[Tensor]:
    """Of the parameters that learn, one of each group, type and number of dimensions: for an optimizer others of these
    are the same."""
    found = {
        (place, parameter.dtype, parameter.dim()): parameter
        for place, group in enumerate(optimizer.param_groups)
        for parameter in group["params"]
        if parameter.requires_grad
    }
    return list(found.values())


def step_on_a_gpu(step: Step, monkeypatch: pytest.MonkeyPatch) -> None:
    """Make what of an update can be made on a fake GPU: all but the backward pass."""
    with FakeTensorMode() as mode:
        network, trainee = begin(mode, step, GPU, monkeypatch)
        network.train()
        optimizer = optimizer_for(network, step.settings, step.learner)
        with nobody_waits():
            batch = faked_batch(mode, step.batch).pinned().to(torch.device(GPU))
            metrics = trainee.step(network, batch, 1)
            for parameter in one_of_each(optimizer):
                parameter.grad = torch.empty_like(parameter)
            torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
            optimizer.step()
            trainee.after_update(1, make_accelerator(device="cpu", precision="fp32"))
        assert {value.device.type for value in metrics.values()} == {"cuda"}


def test_the_host_reads_nothing_in_a_step(each: tuple[str, Step], monkeypatch: pytest.MonkeyPatch) -> None:
    name, step = each
    if name in JOBS:
        # That the states of an optimizer are there changes what it does.
        assert step_on_the_host(step, 2, monkeypatch) == 2
    else:
        assert step_without_numbers(step) == 1


def test_all_stays_on_a_gpu_but_what_comes_from_pinned_memory(
    each: tuple[str, Step], monkeypatch: pytest.MonkeyPatch
) -> None:
    step_on_a_gpu(each[1], monkeypatch)


def by_masks(images: Tensor, ways: Tensor) -> Tensor:
    """Flips and turns as they were: a selection and an assignment by mask for each way."""
    out = torch.empty_like(images)
    for way in range(8):
        chosen = ways == way
        turned = torch.rot90(images[chosen], way % 4, dims=(-2, -1))
        out[chosen] = turned.flip(-1) if way >= 4 else turned
    return out


def hidden_ones(method: IBOT, masks: Tensor) -> Tensor:
    """The hidden patches as they were found: by asking how many there are."""
    return masks.flatten().nonzero().squeeze(1)


def band_each_time(scaling: Scaling, name: str, images: Tensor) -> Tensor:
    """A number of each band as it was: sent in each step."""
    return torch.tensor(scaling.statistics[name], dtype=images.dtype, device=images.device)[:, None, None]


@pytest.mark.parametrize(
    ("owner", "name", "before", "job", "place"),
    [
        (transforms, "flip_and_turn", by_masks, "simple_cnn", "data/transforms.py"),
        (IBOT, "hidden", hidden_ones, "iBOT", "ssl/ibot.py"),
    ],
)
def test_a_read_by_the_host_is_found_and_its_place_is_named(
    owner: Any,
    name: str,
    before: Any,
    job: str,
    place: str,
    make: Callable[[str], Step],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(owner, name, before)
    told, step = rf"deeplense/{place}:\d+: .*{name}\(.*: the host reads", make(job)
    with pytest.raises(Waiting, match=told):
        step_on_the_host(step, 1, monkeypatch)
    with pytest.raises(Waiting, match=told):
        step_without_numbers(step)


def test_a_copy_that_is_waited_for_is_found_and_its_place_is_named(
    make: Callable[[str], Step], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Scaling, "band", band_each_time)
    with pytest.raises(Waiting, match=r"deeplense/data/scaling.py:\d+: .*band.*a copy from cpu to cuda"):
        step_on_a_gpu(make("simple_cnn"), monkeypatch)


def test_a_tensor_on_the_wrong_device_is_found_and_its_place_is_named(
    make: Callable[[str], Step], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Scaling, "band", lambda scaling, name, images: torch.ones(1, 1, 1))
    with pytest.raises(Waiting, match=r"deeplense/data/scaling.py:\d+: .*two different devices"):
        step_on_a_gpu(make("simple_cnn"), monkeypatch)


@pytest.mark.parametrize(
    ("there", "told"),
    [
        (lambda x: x.sum().cpu(), "a copy from cuda to cpu"),
        (lambda x: torch.ones(2).to(x.device), "a copy from cpu to cuda"),
        (lambda x: torch.ones(2).to(x.device, non_blocking=True), "not pinned"),
        (lambda x: x.add_(torch.empty_like(x).copy_(torch.ones(2))), "a copy from cpu to cuda"),
        (lambda x: torch.ones(2).pin_memory().to(x.device, non_blocking=True), None),
        (lambda x: x[x > 0], "the host reads what aten.nonzero"),
        (lambda x: x.sum().item(), "the host reads what aten._local_scalar_dense"),
        (lambda x: x * 2 if bool(x.all()) else x, "the host reads"),
    ],
)
def test_what_a_gpu_would_wait_for_is_known(there: Callable[[Tensor], object], told: str | None) -> None:
    with FakeTensorMode():
        on_device = torch.empty(2, device=GPU)
        if told is None:
            with nobody_waits():
                there(on_device)
            return
        with pytest.raises(Waiting, match=told), nobody_waits():
            there(on_device)


def test_numbers_are_computed_as_they_are_elsewhere_while_copies_are_watched() -> None:
    numbers = torch.arange(6.0).view(2, 3)
    with NoCopies():
        found = numbers.pin_memory() if torch.cuda.is_available() else numbers.cpu()
    assert torch.equal(found.cpu(), numbers)

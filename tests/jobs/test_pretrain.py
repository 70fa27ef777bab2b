"""Pretraining: each method learns from images alone, the same however the work is shared out, and says where it
fails."""

import re
import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from conftest import CLASSES, Command, rank_variables, write_blobs
from left import last, logged
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from deeplense.data.building import build
from deeplense.data.dataset import Split
from deeplense.data.loading import StepBatches
from deeplense.data.shards import Manifest, Samples
from deeplense.evaluation.predict import Predictions
from deeplense.schedules import cosine
from deeplense.ssl import zoo
from jobs.data.order import make_order
from jobs.pretrain import work as pretrain_work
from jobs.pretrain.learner import Pretraining, PretrainingTrainee, probed
from jobs.pretrain.method import Method, share_batch_statistics
from jobs.pretrain.settings import Settings
from jobs.runs.attempts import EXIT_REFUSED, read_attempts
from jobs.runs.folder import FINISHED
from launch.__main__ import main

SMALL = {
    "model_name": "test_vit",
    "batch_size": 16,
    "epochs": 1,
    "num_local": 2,
    "hidden_dim": 16,
    "out_dim": 32,
    "warmup_epochs": 0,
    "log_interval": 1,
    "device": "cpu",
}
SMOOTH = {"optimizer": "sgd", "lr": 0.02, "clip_grad": 1e9}
"""Updates that are smooth in the gradients, unlike Adam's."""
WITHOUT_LOCAL: dict[str, Any] = {"num_local": None}
METHODS: dict[str, dict[str, Any]] = {
    "dino": {},
    "ibot": {},
    "simsiam": WITHOUT_LOCAL,
    "simmim": WITHOUT_LOCAL | {"hidden_dim": None, "out_dim": None},
    "lejepa": {},
}
CASES = [(name, "test_vit") for name in METHODS] + [(name, "test_resnet") for name in ("dino", "simsiam", "lejepa")]


def settings_of(dataset: Path | str, run: Path, **changes: Any) -> Settings:
    """A small pretraining."""
    return Settings(run=run, dataset=str(dataset), **(SMALL | changes))


def pretrained(dataset: Path | str, run: Path, **changes: Any) -> dict[str, Any]:
    """Pretrain to the end; returns what the last checkpoint holds."""
    assert pretrain_work.run(settings_of(dataset, run, **changes)) == 0
    assert (run / FINISHED).exists()
    return last(run)


def pretrained_apart(dataset: Path, run: Path, environments: list[dict[str, str]], **changes: Any) -> dict[str, Any]:
    """The same in processes of their own."""
    words = [f"--{name}={value}" for name, value in (SMALL | changes).items()]
    words = ["pretrain", f"--dataset={dataset}", f"--run={run}", *words]
    ranks = [Command(words, run.with_suffix(".log"), environment) for environment in environments]
    assert {rank.wait() for rank in ranks} == {0}, ranks[0].log.read_text()
    return last(run)


def same(first: Mapping[str, Tensor], second: Mapping[str, Tensor]) -> bool:
    """Whether all weights are equal, to the bit."""
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def apart(first: Mapping[str, Tensor], second: Mapping[str, Tensor]) -> float:
    """The largest difference of two weights."""
    assert first.keys() == second.keys()
    return max((first[name].double() - second[name].double()).abs().max().item() for name in first)


@pytest.fixture(scope="module")
def plain(stamps: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What the smallest pretraining ends with."""
    return pretrained(stamps, tmp_path_factory.mktemp("plain") / "run")


@pytest.mark.parametrize(("method", "model_name"), CASES)
def test_each_method_makes_an_epoch_and_leaves_a_backbone(
    method: str, model_name: str, stamps: Path, tmp_path: Path
) -> None:
    run, changes = tmp_path / "run", METHODS[method] | {"model_name": model_name}
    model = pretrained(stamps, run, method=method, **changes)["model"]
    found = {name: value for name, value in model.items() if name.startswith(zoo.METHODS[method].encoder)}
    learner = Pretraining.of(settings_of(stamps, run, method=method, **changes))
    torch.manual_seed(1)
    encoder = cast(Method, learner.make_network(load_pretrained=True)).encoder
    assert [value.shape for value in found.values()] == [value.shape for value in encoder.state_dict().values()]
    losses = logged(run, "train/loss")
    assert len(losses) == 5
    assert np.isfinite(losses).all()
    assert len(set(losses)) == 5
    assert all(len(logged(run, f"val/{name}")) == 1 for name in ("rankme", "embedding_std", "knn/accuracy"))
    assert len(logged(run, "val/teacher_entropy")) == (method in ("dino", "ibot"))


def test_in_bfloat16_a_method_learns_nearly_the_same(plain: dict[str, Any], stamps: Path, tmp_path: Path) -> None:
    # A process has one precision to its end.
    found = pretrained_apart(stamps, tmp_path / "run", [{}], precision="bf16")["model"]
    assert {value.dtype for value in found.values()} == {value.dtype for value in plain["model"].values()}
    assert not same(found, plain["model"])
    # Adam's updates are of the size of the learning rate, whatever the gradient.
    assert apart(found, plain["model"]) < 5 * 2 * 5e-4


def made(learner: Pretraining) -> PretrainingTrainee:
    """The method of a pretraining, ready to be trained."""
    statistics = {"mean": [0.1], "std": [2.0], "stretched_mean": [0.2], "stretched_std": [1.5]}
    return learner.make_trainee(learner.make_network(load_pretrained=True), statistics)


def seen_by(trainee: PretrainingTrainee, settings: Settings, step: int, *, rank: int, world_size: int) -> list[Tensor]:
    """The indices and views that one of some processes makes in a step."""
    train = trainee.learner.train
    batches = StepBatches(
        train.split,
        make_order(settings, train),
        rank=rank,
        world_size=world_size,
        target=None,
        num_uniforms=trainee.columns.total,
    )
    batch, made = batches[step].to(torch.device("cpu")), []

    class Watching(nn.Module):
        def forward(self, views: list[Tensor], random: Tensor, step: int) -> dict[str, Tensor]:
            made.extend([*(view.transpose(0, 1) for view in views), random])
            return {}

    trainee.step(Watching(), batch, step)
    return [batch.indices, *made]


def test_processes_see_together_what_one_sees(stamps: Path, tmp_path: Path) -> None:
    settings = settings_of(stamps, tmp_path / "run", method="ibot")
    learner = Pretraining.of(settings)
    trainee = made(learner)
    for step in (0, 3, 7):
        whole = seen_by(trainee, settings, step, rank=0, world_size=1)
        assert [len(tensor) for tensor in whole] == [16] * 4
        for rank in range(4):
            part = seen_by(trainee, settings, step, rank=rank, world_size=4)
            assert torch.equal(part[0], whole[0][rank::4])
            for mine, everyone in zip(part, whole, strict=True):
                torch.testing.assert_close(mine, everyone[rank::4], atol=1e-5, rtol=0)


def test_views_of_a_sample_are_other_ones_in_each_epoch(stamps: Path, tmp_path: Path) -> None:
    settings = settings_of(stamps, tmp_path / "run", batch_size=86)
    learner = Pretraining.of(settings)
    trainee = made(learner)
    first, again, second = (seen_by(trainee, settings, step, rank=0, world_size=1) for step in (0, 0, 1))
    assert torch.equal(first[1], again[1])
    place = int((second[0] == first[0][0]).nonzero())
    assert (first[1][0] - second[1][place]).abs().max() > 0.5


@pytest.mark.parametrize(("method", "fsdp"), [("dino", 0), ("ibot", 0), ("dino", 1), ("ibot", 1)])
def test_two_processes_learn_what_one_learns(method: str, fsdp: int, stamps: Path, tmp_path: Path) -> None:
    one = pretrained(stamps, tmp_path / "one", method=method, **SMOOTH)["model"]
    two = pretrained_apart(stamps, tmp_path / "two", rank_variables(2), method=method, fsdp=fsdp, **SMOOTH)["model"]
    assert apart(one, two) < 1e-5
    assert logged(tmp_path / "two", "train/loss") == pytest.approx(logged(tmp_path / "one", "train/loss"), abs=1e-5)
    faster = pretrained(stamps, tmp_path / "faster", method=method, **SMOOTH | {"lr": 0.021})["model"]
    assert apart(one, faster) > 1e-4, "the negative control"


def test_spread_over_two_processes_it_goes_on_in_one_that_holds_all(stamps: Path, tmp_path: Path) -> None:
    one, run = pretrained(stamps, tmp_path / "one", **SMOOTH)["model"], tmp_path / "run"
    pretrained_apart(stamps, run, rank_variables(2), fsdp=1, checkpoint_minutes=1e-9, **SMOOTH)
    newest = max((run / "checkpoints").glob("step_*"))
    (run / FINISHED).unlink()
    shutil.rmtree(newest)
    assert apart(one, pretrained(stamps, run, fsdp=0, **SMOOTH)["model"]) < 1e-5
    first, second = read_attempts(run)
    assert (first["num_processes"], second["num_processes"]) == (2, 1)
    assert 0 < second["first_step"] < first["last_step"]


@pytest.mark.parametrize("method", ["dino", "ibot"])
def test_a_batch_in_pieces_teaches_the_same(method: str, stamps: Path, tmp_path: Path) -> None:
    one = pretrained(stamps, tmp_path / "one", method=method, **SMOOTH)["model"]
    pieces = pretrained(stamps, tmp_path / "pieces", method=method, gradient_accumulation=4, **SMOOTH)["model"]
    assert 0 < apart(one, pieces) < 1e-5


def test_blocks_that_are_computed_twice_change_nothing(plain: dict[str, Any], stamps: Path, tmp_path: Path) -> None:
    assert same(plain["model"], pretrained(stamps, tmp_path / "run", checkpoint_blocks=1)["model"])


def relabelled(stamps: Path, folder: Path, **changes: Any) -> Path:
    """The training images with other labels, and changes of the schema."""
    train = Split(stamps / "train")
    schema = replace(Manifest.read(stamps / "train").schema, **changes)
    labels = np.random.default_rng(0).permutation(train.labels) if schema.classes else np.full(len(train), -1)
    rows = np.arange(len(train))
    images, ids, sources = train.images(rows), train.ids, train.column("source_index")

    def make(rows: range) -> Samples:
        chosen = slice(rows.start, rows.stop)
        return Samples(images[chosen], labels[chosen], {}, ids[chosen], sources[chosen])

    list(build(folder / "train", replace(schema, targets={}), make))
    return folder


@pytest.mark.parametrize("classes", [CLASSES, ()])
def test_labels_decide_nothing(classes: tuple[str, ...], plain: dict[str, Any], stamps: Path, tmp_path: Path) -> None:
    dataset = relabelled(stamps, tmp_path / "data", classes=classes)
    assert same(plain["model"], pretrained(dataset, tmp_path / "run")["model"])
    assert len(logged(tmp_path / "run", "val/knn/accuracy")) == bool(classes)
    assert len(logged(tmp_path / "run", "val/rankme")) == 1


def test_the_split_test_is_never_read(plain: dict[str, Any], stamps: Path, tmp_path: Path) -> None:
    shutil.copytree(stamps, tmp_path / "data")
    for shard in (tmp_path / "data" / "test").glob("*.h5"):
        shard.unlink()
    with pytest.raises(ValueError, match="test"):
        Split(tmp_path / "data" / "test")
    assert same(plain["model"], pretrained(tmp_path / "data", tmp_path / "run")["model"])


def test_a_split_val_is_looked_at_and_all_of_train_learnt_from(stamps: Path, tmp_path: Path) -> None:
    shutil.copytree(stamps / "train", tmp_path / "data" / "train")
    write_blobs(tmp_path / "data", "val", 12, size=32)
    learner, other = (Pretraining.of(settings_of(folder, tmp_path / "run")) for folder in (tmp_path / "data", stamps))
    assert (len(learner.train), len(learner.val), learner.val.split.schema.split) == (96, 12, "val")
    assert (len(other.train), len(other.val), other.val.split.schema.split) == (86, 10, "train")
    assert not set(other.train.indices) & set(other.val.indices)


def rates(saved: dict[str, Any], name: str) -> dict[float, int]:
    """How many parameters have each value of a setting of the optimizer."""
    groups = saved["optimizer"]["param_groups"]
    return {value: sum(len(g["params"]) for g in groups if g[name] == value) for value in {g[name] for g in groups}}


def test_weight_decay_goes_along_a_cosine_for_what_has_one(plain: dict[str, Any], stamps: Path, tmp_path: Path) -> None:
    found = pretrained(stamps, tmp_path / "run", weight_decay=0.04, weight_decay_end=0.4)
    before, after = rates(plain, "weight_decay"), rates(found, "weight_decay")
    assert before.keys() == {0.0, 0.04}
    assert after == {0.0: before[0.0], cosine(4, 5, start=0.04, end=0.4): before[0.04]}


def test_the_predictor_of_simsiam_alone_keeps_its_learning_rate(
    plain: dict[str, Any], stamps: Path, tmp_path: Path
) -> None:
    found = pretrained(stamps, tmp_path / "run", method="simsiam", lr=1e-3, warmup_epochs=0.4, **WITHOUT_LOCAL)
    predictor = sum(name.startswith("predictor.") and "running" not in name for name in found["model"]) - 1
    final = logged(tmp_path / "run", "lr")[-1]
    assert final < 3e-4
    by_rate = rates(found, "lr")
    assert by_rate.keys() == {1e-3, final}
    assert by_rate[1e-3] == predictor == 5
    assert len(rates(plain, "lr")) == 1


COLLAPSING = {"lr": 1.0, "epochs": 3, "teacher_momentum": 0.5, "checkpoint_minutes": 1e-9, "evaluate_epochs": 1}


def test_a_run_that_collapses_says_so_and_ends_if_told_to_with_its_checkpoint_standing(
    stamps: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    with pytest.raises(ValueError, match=r"collapsed .* Use a lower --lr"):
        pretrain_work.run(settings_of(stamps, run, stop_on_collapse=1, **COLLAPSING))
    said = re.findall(r"after step (\d+): The \w+ ha\w+ collapsed", capfd.readouterr().out)
    assert len(said) == 1, "it ends there"
    step = int(said[0])
    assert len(logged(run, "val/rankme")) >= 1, "what was found is logged"
    assert 0 < last(run)["progress"]["step"] < step
    assert "collapsed" in read_attempts(run)[-1]["ended"]
    assert pretrain_work.run(settings_of(stamps, run, **COLLAPSING)) == 0, "the same run goes on where it need not stop"
    assert (run / FINISHED).exists()


def test_collapse_is_not_told_while_nobody_has_learnt_anything(stamps: Path, tmp_path: Path) -> None:
    def first_verdict(**changes: Any) -> int:
        learner = Pretraining.of(settings_of(stamps, tmp_path / "run", **changes))
        return made(learner).first_verdict

    # 86 images, 16 in a batch: 5.4 updates an epoch.
    assert first_verdict(epochs=100, warmup_epochs=10) == 300, "the teacher stays by 0.99"
    assert first_verdict(epochs=100, warmup_epochs=80) == 430
    assert first_verdict(epochs=100, warmup_epochs=10, teacher_momentum=0.9) == 54
    assert first_verdict(epochs=100, warmup_epochs=10, method="lejepa") == 54
    assert first_verdict(epochs=10, warmup_epochs=10) == 53, "the last update"


def test_features_are_judged_from_then_on_and_what_is_no_number_at_once(stamps: Path, tmp_path: Path) -> None:
    trainee = made(Pretraining.of(settings_of(stamps, tmp_path / "run", epochs=100, warmup_epochs=10)))
    point = {"embedding_std": 0.01, "rankme": 1.0, "knn/accuracy": 0.3}
    told = {}
    for step in (0, 299, 300, 500):
        told[step] = trainee.judge(point, step)
        assert "finite" in trainee.judge(point | {"rankme": float("nan")}, step)
        assert trainee.judge({"embedding_std": 0.7, "rankme": 50.0, "knn/auc_macro": float("nan")}, step) == ""
    assert [bool(words) for words in told.values()] == [False, False, True, True]


def predictions(labels: list[int], *, seed: int = 0) -> Predictions:
    """Features that tell the labels, roughly."""
    features = np.eye(3)[labels] + 0.1 * np.random.default_rng(seed).normal(size=(len(labels), 3))
    return Predictions(features, np.array(labels), np.array(labels, float), np.arange(len(labels)))


def test_probes_ask_for_classes_that_can_be_learnt_and_asked_for() -> None:
    train = predictions([0] * 9 + [1] * 9 + [2] + [-1] * 5)
    assert probed(train, predictions([0, 1, 1, 2, -1])) == {
        f"{probe}/{name}": 1.0 for probe in ("knn", "linear") for name in ("accuracy", "auc_macro")
    }
    outputs = np.full_like(train.outputs, np.nan)
    assert probed(replace(train, outputs=outputs), predictions([0, 1])) == {}
    assert probed(None, predictions([0, 1])) == {}


def test_data_sets_of_other_classes_are_learnt_from_together_but_not_of_other_shapes(
    stamps: Path, dataset: Path, tmp_path: Path
) -> None:
    other = relabelled(stamps, tmp_path / "other", classes=("a", "b", "c"))
    learner = Pretraining.of(settings_of(f"{stamps},{other}", tmp_path / "run"))
    assert len(learner.train) + len(learner.val) == 192
    assert set(learner.train.labels) == {-1}
    assert pretrained(f"{stamps},{other}", tmp_path / "run", mix="2,1", num_local=0)
    with pytest.raises(ValueError, match="shape"):
        Pretraining.of(settings_of(f"{stamps},{dataset}", tmp_path / "run"))
    shutil.copytree(stamps / "test", tmp_path / "tests" / "test")
    with pytest.raises(ValueError, match="has no split 'train'; it has test"):
        Pretraining.of(settings_of(f"{stamps},{tmp_path / 'tests'}", tmp_path / "run"))


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"method": "moco"}, "method"),
        ({"image_size": -1}, "image_size=-1 must be 0 or more"),
        ({"local_size": -1}, "local_size=-1 must be 0 or more"),
        ({"num_local": -1}, "num_local=-1 must be 0 or more"),
        ({"out_dim": 0}, "out_dim=0 must be above 0"),
        ({"hidden_dim": 0}, "hidden_dim=0 must be above 0"),
        ({"teacher_momentum": 1.0}, "teacher_momentum=1.0 must be at least 0 and below 1"),
        ({"teacher_temp": 0.0}, "teacher_temp=0.0 must be above 0"),
        ({"method": "ibot", "mask_share": 1.0}, "mask_share=1.0 must be between 0 and 1"),
        ({"weight_decay_end": 0.0}, "weight_decay_end=0.0 must be above 0"),
        ({"weight_decay_end": 0.4, "weight_decay": 0.0}, "weight_decay_end needs weight_decay above 0; give both"),
        ({"method": "lejepa", "teacher_temp": 0.04}, "--teacher_temp has an effect only with --method dino or ibot"),
        (
            {"method": "simsiam", "teacher_momentum": 0.9},
            "--teacher_momentum has an effect only with --method dino or ibot",
        ),
        (
            {"method": "simmim", "out_dim": 64},
            "--out_dim has an effect only with --method dino, ibot, simsiam or lejepa",
        ),
        (
            {"method": "simmim", "hidden_dim": 64},
            "--hidden_dim has an effect only with --method dino, ibot, simsiam or lejepa",
        ),
        ({"local_size": 16, "num_local": 0}, "local_size has no effect with num_local=0"),
        ({"balance": "class"}, "balance=class needs labels"),
    ],
)
def test_settings_that_mean_nothing_are_refused_before_anything_is_read(
    changes: dict[str, Any], why: str, capfd: pytest.CaptureFixture[str]
) -> None:
    words = [f"--{name}={value}" for name, value in changes.items()]
    with pytest.raises(SystemExit) as ended:
        main(["pretrain", "--dataset=nowhere", "--run=run", *words])
    assert ended.value.code == EXIT_REFUSED
    assert why in capfd.readouterr().err


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"image_size": 33}, "image_size=33 exceeds the 32 pixels"),
        ({"image_size": 16, "local_size": 24}, "local_size=24 exceeds the 16 pixels of the global views"),
        ({"image_size": 20}, "test_vit cannot use views of 20 pixels unless they are padded to 32"),
        (
            {"local_size": 12},
            "cannot process views of 12 pixels (images of 12 pixels cannot be divided into patches of 16",
        ),
        ({"model_name": "test_convnext"}, "test_convnext cannot process views of 16 pixels"),
        ({"model_name": "avit_tiny"}, "avit_tiny adds a penalty term to the loss"),
        ({"model_name": "test_resnet", "checkpoint_blocks": 1}, "test_resnet has no transformer blocks"),
        (
            {"model_name": "test_resnet", "method": "ibot"},
            "ibot masks patches, which needs a vision transformer of timm; test_resnet is none",
        ),
        ({"model_name": "test_resnet", "method": "simmim"} | METHODS["simmim"], "simmim masks patches"),
        ({"method": "simsiam", "num_local": 2}, "simsiam uses views of one size only; leave out --num_local"),
        ({"val_fraction": 0.0}, "val_fraction=0.0 of 96 images leaves none for validation"),
        ({"batch_size": 90}, "batch_size=90 exceeds the 86 training samples"),
        ({"mix": "1,2"}, "has 2 weights for 1 data sets"),
        ({"drop_path": 0.1, "model_name": "simple_cnn"}, "drop_path"),
    ],
)
def test_what_does_not_fit_the_images_is_refused_and_leaves_no_half_a_run(
    changes: dict[str, Any], why: str, stamps: Path, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=re.escape(why)):
        pretrain_work.run(settings_of(stamps, tmp_path / "run", **changes))
    assert not (tmp_path / "run" / "checkpoints").exists()


def test_on_gpus_batch_norms_see_the_batch_of_all_processes(stamps: Path, tmp_path: Path) -> None:
    settings = settings_of(stamps, tmp_path / "run", method="simsiam", model_name="test_resnet", **WITHOUT_LOCAL)
    learner = Pretraining.of(settings)
    network = learner.make_network(load_pretrained=True)
    parameters, names = list(network.parameters()), list(network.state_dict())

    def kinds() -> set[str]:
        return {type(module).__name__ for module in network.modules() if isinstance(module, _BatchNorm)}

    before = kinds()
    for device, num_processes in (("cpu", 2), ("cuda", 1)):
        share_batch_statistics(cast(Method, network), device=device, num_processes=num_processes)
        assert kinds() == before
    share_batch_statistics(cast(Method, network), device="cuda", num_processes=2)
    assert kinds() == {"SyncBatchNorm"}
    assert all(new is old for new, old in zip(network.parameters(), parameters, strict=True)), "those of the optimizer"
    assert list(network.state_dict()) == names

"""Export: weights that timm loads by the line that is told give the outputs of the run, and nothing else is written."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import CLASSES, Command
from safetensors.torch import load_file
from torch import Tensor, nn

from deeplense.data.building import build
from deeplense.data.shards import Samples, Schema, statistics_of
from deeplense.models import portable
from deeplense.models.registry import Network
from deeplense.training import checkpoint
from deeplense.training.tracking import wandb_id
from jobs.command_line import parse
from jobs.export.work import run as export
from jobs.runs.folder import open_run
from jobs.train.network import make_network
from jobs.train.samples import learning_parts

SIZE = 40
WHOLE = {
    "resnet18": "native",
    "convnext_atto": "native",
    "efficientnet_b0": "native",
    "mobilenetv3_small_050": "native",
    "dla46_c": "pad",
    "deit_tiny_patch16_224": "pad",
    "deit_tiny_distilled_patch16_224": "pad",
    "efficientformer_l1": "resize",
}


@pytest.fixture(scope="module")
def lenses(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data set of 30 images of noise in two bands, 40 pixels a side, with a number."""
    generator = np.random.default_rng(0)
    images = generator.normal(2, 3, size=(30, 2, SIZE, SIZE)).astype(np.float32)
    labels, ids = np.arange(30) % len(CLASSES), [f"lens-{k}" for k in range(30)]
    mass = np.where(labels != 1, generator.normal(5, 2, size=30), np.nan)
    schema = Schema(
        split="train",
        num_samples=30,
        shape=(2, SIZE, SIZE),
        dtype="float32",
        bands=("g", "r"),
        unit="",
        pixel_scale_arcsec=0.1,
        classes=CLASSES,
        targets={"mass": "eV"},
    )
    folder = tmp_path_factory.mktemp("lenses")
    samples = Samples(images, labels, {"mass": mass}, ids, np.arange(30))
    list(build(folder / "train", schema, lambda rows: samples))
    return folder


@pytest.fixture
def run_of(lenses: Path, tmp_path: Path) -> Callable[..., tuple[Path, Network]]:
    """Makes runs, as if trained, of these settings, with the network of their best weights."""

    def make(name: str, *changes: str) -> tuple[Path, Network]:
        run = tmp_path / "run"
        settings = parse("train", [f"--run={run}", f"--dataset={lenses}", f"--model_name={name}", *changes])
        open_run(run, settings)
        part, _ = learning_parts(settings)
        networks = {}
        for kind, seed in (("best", 1), ("step", 2)):
            network = unlike_any_start(make_network(settings, part.split, load_pretrained=False), seed=seed)
            networks[kind] = network.eval()
            progress = {"step": 7, "best": 0.5, "best_step": 7, "dataset_id": part.split.dataset_id}
            progress["statistics"] = statistics_of([part.split.moments(part.indices)])
            states = {"model": network.state_dict(), "progress": progress}
            checkpoint.save(checkpoint.step_folder(run / "checkpoints", 7, kind=kind), states)
        return run, networks["best"]

    return make


RunOf = Callable[..., tuple[Path, Network]]


def unlike_any_start(network: Network, *, seed: int) -> Network:
    """The network with noise on all its weights and statistics, so that each of them counts."""
    generator = torch.Generator().manual_seed(seed)
    for name, value in network.state_dict().items():
        if value.dtype == torch.float32:
            noise = 0.1 * torch.randn(value.shape, generator=generator)
            value += noise.abs() if name.endswith("running_var") else noise
    return network


def exported(run: Path, output: Path, *more: str) -> dict[str, Any]:
    """Export a run; returns what is told beside the weights."""
    assert export(parse("export", [str(run), f"--output={output}", *more])) == 0
    return json.loads(Path(f"{output}.json").read_text())


def model_of(told: dict[str, Any], folder: Path, monkeypatch: pytest.MonkeyPatch) -> nn.Module:
    """The model that the lines of Python make, run as they are in the folder of the weights."""
    monkeypatch.chdir(folder)
    names: dict[str, Any] = {}
    exec("\n".join(told["python"]), names)
    return names["model"]


@torch.no_grad()
def outputs_of(told: dict[str, Any], model: nn.Module, images: Tensor) -> Tensor:
    """What the model says of normalised images, which reach it as is told."""
    python = told["images"]["python"]
    return model(eval(python, {"torch": torch, "images": images}) if python else images)


def noise(num_images: int = 3) -> Tensor:
    """Normalised images."""
    return torch.randn(num_images, 2, SIZE, SIZE, generator=torch.Generator().manual_seed(3))


def error(found: Tensor, expected: Tensor) -> float:
    """Largest difference, in units of the largest value."""
    assert found.shape == expected.shape
    assert expected.std(dim=0).min() > 1e-4 * expected.abs().max(), "the images must make a difference"
    return float((found - expected).abs().max() / expected.abs().max())


@pytest.mark.parametrize(("name", "way"), WHOLE.items())
def test_timm_alone_gives_the_outputs_of_the_run(
    name: str, way: str, run_of: RunOf, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, network = run_of(name, "--dropout=0.3")
    told = exported(run, tmp_path / "out" / "lens.safetensors")
    assert (told["not_one_timm_file_because"], told["images"]["way"]) == (None, way)
    assert told["python"][0] == "import timm"
    assert "num_classes=3, in_chans=2" in told["python"][1]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["lens.safetensors", "lens.safetensors.json"]
    model = model_of(told, tmp_path / "out", monkeypatch)
    assert type(model).__module__.startswith("timm.")
    with torch.no_grad():
        assert error(outputs_of(told, model, noise()), network(noise())) < 1e-5


@pytest.mark.parametrize(
    ("name", "changes", "why"),
    [
        ("resnet18", ["--complex=1", "--dropout=0.2"], "no layers of [1024, 512, 128] units"),
        ("levit_128s", [], "levit_128s does not have exactly one linear layer between features and outputs"),
    ],
)
def test_where_timm_has_other_last_layers_backbone_and_last_layers_go_apart(
    name: str, changes: list[str], why: str, run_of: RunOf, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, network = run_of(name, *changes)
    told = exported(run, tmp_path / "out" / "lens.safetensors")
    assert why in told["not_one_timm_file_because"]
    assert told["sha256"].keys() == {"lens.safetensors", "lens.head.safetensors"}
    model = model_of(told, tmp_path / "out", monkeypatch)
    with torch.no_grad():
        assert error(outputs_of(told, model, noise()), network(noise())) < 1e-5
    (backbone,) = [line for line in told["python"] if "create_model" in line]
    assert "num_classes=0, in_chans=2" in backbone


@pytest.mark.parametrize("changes", [[], ["--complex=1"]])
def test_simple_cnn_is_for_the_registry(
    changes: list[str], run_of: RunOf, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, network = run_of("simple_cnn", *changes)
    told = exported(run, tmp_path / "out" / "lens.safetensors")
    assert told["not_one_timm_file_because"] == "timm has no simple_cnn"
    model = model_of(told, tmp_path / "out", monkeypatch)
    with torch.no_grad():
        torch.testing.assert_close(outputs_of(told, model, noise()), network(noise()), rtol=0, atol=0)


def test_a_regression_tells_how_outputs_become_numbers(
    run_of: RunOf, lenses: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, network = run_of("resnet18", "--target=mass")
    told = exported(run, tmp_path / "out" / "lens.safetensors")
    assert (told["num_outputs"], told["classes"]) == (1, None)
    part, _ = learning_parts(parse("train", ["--run=a", f"--dataset={lenses}", "--target=mass"]))
    values = part.split.column("target/mass")[part.indices]
    assert told["target"]["center"] == pytest.approx(np.median(values))
    assert told["target"]["scale"] == pytest.approx(np.std(values))
    assert (told["target"]["name"], told["target"]["unit"]) == ("mass", "eV")
    with torch.no_grad():
        found = outputs_of(told, model_of(told, tmp_path / "out", monkeypatch), noise())
        assert error(found, network(noise())) < 1e-5


def test_the_last_weights_are_others_than_the_best(run_of: RunOf, tmp_path: Path) -> None:
    run, network = run_of("test_resnet", "--ema_decay=0.9")
    best, last = (exported(run, tmp_path / f"{which}.safetensors", f"--weights={which}") for which in ("best", "last"))
    assert best["weights"] == {"which": "best", "step": 7, "running_mean": True}
    assert last["weights"] == {"which": "last", "step": 7, "running_mean": False}
    assert torch.equal(load_file(tmp_path / "best.safetensors")["conv1.0.weight"], network.backbone.conv1[0].weight)  # type: ignore[index]
    assert best["sha256"]["best.safetensors"] != last["sha256"]["last.safetensors"]


def misnamed(form: portable.Form) -> portable.Form:
    """A form whose classifier has a wrong name."""
    (file, weights), *_ = form.files.items()
    return portable.Form(form.name, form.arguments, {file: {k.replace("fc.", "fd."): v for k, v in weights.items()}})


def confused(form: portable.Form) -> portable.Form:
    """A form whose classifier confuses two classes."""
    (file, weights), *_ = form.files.items()
    changed = {k: v[[1, 0, 2]] if k.startswith("fc.") else v for k, v in weights.items()}
    return portable.Form(form.name, form.arguments, {file: changed})


@pytest.mark.parametrize(("spoil", "problem"), [(misnamed, "fc.weight"), (confused, "its outputs differ by")])
def test_a_form_that_does_not_give_the_outputs_again_is_found_out(
    spoil: Callable[[portable.Form], portable.Form],
    problem: str,
    run_of: RunOf,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    make = portable.whole
    monkeypatch.setattr(portable, "whole", lambda *words, **named: spoil(make(*words, **named)))
    run, _ = run_of("resnet18")
    told = exported(run, tmp_path / "out" / "lens.safetensors")
    assert problem in told["not_one_timm_file_because"]
    assert "num_classes=0" in " ".join(told["python"])
    monkeypatch.setattr(portable, "apart", lambda *words, **named: spoil(make(*words, **named)))
    with pytest.raises(ValueError, match=r"no weight file reproduces the outputs of this resnet18"):
        exported(run, tmp_path / "none" / "lens.safetensors")
    assert list((tmp_path / "none").iterdir()) == []


def test_the_same_export_again_changes_nothing_and_another_is_refused(run_of: RunOf, tmp_path: Path) -> None:
    run, _ = run_of("test_resnet", "--complex=1")
    output = tmp_path / "out" / "lens.safetensors"
    exported(run, output)
    before = {path.name: (path.stat().st_mtime_ns, path.read_bytes()) for path in output.parent.iterdir()}
    exported(run, output)
    assert {path.name: (path.stat().st_mtime_ns, path.read_bytes()) for path in output.parent.iterdir()} == before
    with pytest.raises(ValueError, match=r"has different files lens\.head\.safetensors, .*give another --output"):
        exported(run, output, "--weights=last")
    assert {path.name: path.read_bytes() for path in output.parent.iterdir()} == {k: v[1] for k, v in before.items()}
    output.unlink()
    exported(run, output)
    assert output.read_bytes() == before[output.name][1], "an export that was killed half-way is completed"


def test_a_damaged_checkpoint_is_refused_and_left_where_it_is(run_of: RunOf, tmp_path: Path) -> None:
    run, _ = run_of("test_resnet")
    file = run / "checkpoints" / "best_00000007" / "model.safetensors"
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    with pytest.raises(ValueError, match=r"damaged: model\.safetensors .*deeplense verify"):
        exported(run, tmp_path / "out" / "lens.safetensors")
    assert file.exists()
    assert not (tmp_path / "out").exists()
    shutil.rmtree(file.parent)
    with pytest.raises(ValueError, match="has no intact checkpoint of its best weights yet"):
        exported(run, tmp_path / "out" / "lens.safetensors")


def test_weights_that_are_no_numbers_are_refused(run_of: RunOf, tmp_path: Path) -> None:
    run, _ = run_of("test_resnet")
    path = run / "checkpoints" / "best_00000007"
    saved = checkpoint.load(path)
    saved["model"]["head.1.bias"].fill_(torch.nan)
    checkpoint.save(path, saved)
    with pytest.raises(ValueError, match="contains non-finite numbers"):
        exported(run, tmp_path / "lens.safetensors")


def test_a_data_set_that_has_changed_is_refused(run_of: RunOf, tmp_path: Path) -> None:
    run, _ = run_of("test_resnet")
    path = run / "checkpoints" / "best_00000007"
    saved = checkpoint.load(path)
    checkpoint.save(path, {**saved, "progress": {**saved["progress"], "dataset_id": "another"}})
    with pytest.raises(ValueError, match=r"is not the data set that .* was trained on"):
        exported(run, tmp_path / "lens.safetensors")


def test_a_file_that_timm_would_not_take_for_safetensors_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parse("export", ["runs/a", "--output=lens.pth"])
    assert "output=lens.pth must end in .safetensors" in capsys.readouterr().err


def test_who_reads_nothing_but_what_is_told_gets_the_numbers_of_evaluate(
    dataset: Path, tmp_path: Path, start: Callable[..., Command], monkeypatch: pytest.MonkeyPatch
) -> None:
    run, output = tmp_path / "runs" / "a", tmp_path / "lens.safetensors"
    settings = ("--model_name=test_resnet", "--stretch=asinh", "--batch_size=16", "--epochs=3", "--lr=3e-3")
    assert start("train", f"--dataset={dataset}", f"--run={run}", "--device=cpu", *settings).wait() == 0
    assert start("evaluate", f"--run={run}", "--device=cpu").wait() == 0
    command = start("export", wandb_id(run), f"--runs_root={tmp_path / 'runs'}", f"--output={output}")
    assert command.wait() == 0, command.log.read_text()
    assert "timm.create_model('test_resnet', num_classes=3, in_chans=1" in command.log.read_text()
    told = json.loads(Path(f"{output}.json").read_text())
    given = told["normalisation"]
    known = {name: np.reshape(given[name], (-1, 1, 1)) for name in ("mean", "std")}
    raw, labels = images_and_labels(dataset / "test")
    images = eval(given["formula"], {"x": raw, "asinh": np.arcsinh, **known})
    model = model_of(told, tmp_path, monkeypatch)
    predicted = outputs_of(told, model, torch.from_numpy(images).float()).argmax(dim=1).numpy()
    confusion = np.zeros((3, 3), dtype=int)
    np.add.at(confusion, (labels, predicted), 1)
    assert confusion.tolist() == json.loads((run / "report" / "report.json").read_text())["confusion"]
    assert told["classes"] == list(CLASSES)


def images_and_labels(split: Path) -> tuple[np.ndarray, np.ndarray]:
    """All images of a split, and the numbers of their classes."""
    import h5py

    with h5py.File(next(split.glob("shard-*.h5"))) as file:
        return np.asarray(file["image"], dtype=float), np.asarray(file["label"])

"""The work behind `deeplense finetune`: a training that starts from a backbone, or a probe of its features; then the
report on held-out images."""

from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor, nn

from deeplense.data.dataset import Batch, in_pieces
from deeplense.data.shards import statistics_of
from deeplense.data.transforms import normalise
from deeplense.evaluation.predict import Predictions
from deeplense.evaluation.probes import knn_probabilities, linear_probabilities
from deeplense.files import write_json
from deeplense.training.loop import make_accelerator
from jobs import config, train
from jobs.config import require
from jobs.evaluate import Settings as EvaluateSettings
from jobs.evaluation_run import Evaluated, evaluate, refuse_other_kind, report
from jobs.experiment import Part, find_datasets, learning_parts, make_network, open_part, predict_part, without_shared
from jobs.finetune import SCRATCH, Settings
from jobs.pretrained import pretrain_settings, read_pretrained
from jobs.progress import say
from jobs.runs import FINISHED, open_run
from jobs.train import Settings as TrainSettings

RECIPE = Path(__file__).parent / "recipes" / "finetune.yaml"
PROBES = {"knn": knn_probabilities, "linear": linear_probabilities}
EVALUATION_BATCH = 256
TINY = 1e-12
"""Added to probabilities, whose logarithms a report is made of."""


def finetune(settings: Settings) -> int:
    """Learn and evaluate; returns the exit code."""
    trained = training_of(settings)
    if settings.mode != "full":
        return probe(settings, trained)
    code = train.run(trained)
    if code:
        return code
    weights = "best" if any((settings.run / "checkpoints").glob("best_*")) else "last"
    return evaluate(EvaluateSettings(run=str(settings.run), split=settings.split, weights=weights))


def training_of(settings: Settings) -> TrainSettings:
    """The settings of the training: the recipe, what the backbone asks for, what is given."""
    asked: dict[str, object] = {"run": settings.run, "dataset": settings.dataset, "seed": settings.seed}
    if settings.num_labels is not None:
        asked["num_labels"] = settings.num_labels
    if settings.backbone != SCRATCH:
        run = Path(settings.backbone)
        pretrained = pretrain_settings(run)
        asked |= {"backbone": run, "model_name": pretrained.model_name, "stretch": pretrained.stretch}
    words = [f"--config={RECIPE}", *(f"--{name}={value}" for name, value in (asked | dict(settings.training)).items())]
    trained = config.parse("train", words)
    # The validation samples are a part of those that are known.
    updates = settings.num_updates * trained.batch_size
    num_train = len(learning_parts(trained)[0])
    require(
        trained.batch_size <= num_train,
        f"batch_size={trained.batch_size} is more than the {num_train} samples to learn from; give a smaller one.",
    )
    epochs = updates / num_train
    between = max(epochs / 20, 1.0)
    return config.parse("train", [*words, f"--epochs={epochs}", f"--evaluate_epochs={between}"])


def probe(settings: Settings, trained: TrainSettings) -> int:
    """Fit a probe to frozen features, and report what it says of held-out images."""
    if (settings.run / FINISHED).exists():
        say(f"{settings.run} is finished; its report is {settings.run / 'report'}")
        return 0
    open_run(settings.run, settings)
    accelerator = make_accelerator(device=trained.device, precision="fp32")
    known, held, num_shared = probed_parts(settings, trained)
    pretrained = read_pretrained(Path(settings.backbone))
    network = make_network(trained, known.split, load_pretrained=True).to(accelerator.device)
    learnt = features_of(network, known, known, trained, accelerator)
    asked = features_of(network, held, known, trained, accelerator)
    num_classes = len(known.split.schema.classes)
    said = PROBES[settings.mode](learnt.outputs, learnt.labels, asked.outputs, num_classes)
    predictions = Predictions(np.log(said + TINY).astype(np.float32), asked.labels, asked.target, asked.indices)
    found = Evaluated(settings.run, trained, held, predictions, pretrained.step, 0.0, num_shared, None)
    report(
        EvaluateSettings(run=str(settings.run), split=settings.split, weights="last"), [found], settings.run / "report"
    )
    write_json(settings.run / FINISHED, {"step": pretrained.step})
    return 0


def probed_parts(settings: Settings, trained: TrainSettings) -> tuple[Part, Part, int]:
    """All samples whose labels are known, and the held-out ones less those that are among them; how many those were."""
    datasets = find_datasets(trained.dataset, trained.data_root)
    parts = learning_parts(trained)
    known = parts[0].only(np.arange(len(parts[0])))
    if parts[1].split is known.split:
        both = np.sort(np.concatenate([part.indices for part in parts]))
        known = Part(known.split, both, None)
    held = open_part(datasets, settings.split, trained)
    refuse_other_kind(known, held)
    return known, *without_shared(held, [known])


def features_of(
    network: nn.Module, part: Part, known: Part, trained: TrainSettings, accelerator: Accelerator
) -> Predictions:
    """Features (n, D) of a part, with the mean and standard deviation of the samples that are known."""
    found = statistics_of([known.split.moments(rows) for rows in in_pieces(known.indices)])
    mean, std = (torch.tensor(found[name]) for name in ("mean", "std"))

    def forward(network: nn.Module, batch: Batch) -> Tensor:
        images = normalise(batch.images, mean.to(batch.images), std.to(batch.images), stretch=trained.stretch)
        return network.backbone(network.input_size(images))

    return predict_part(network, forward, part, accelerator, batch_size=EVALUATION_BATCH)

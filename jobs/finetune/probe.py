"""Probes of the features of a frozen backbone: linear classifier or k-nearest neighbours."""

from pathlib import Path
from typing import cast

import numpy as np
from accelerate import Accelerator
from torch import Tensor, nn

from deeplense.data.dataset import Batch
from deeplense.data.scaling import Scaling
from deeplense.evaluation.predict import Predictions
from deeplense.evaluation.probes import knn_probabilities, linear_probabilities
from deeplense.models.registry import Network
from deeplense.records import write_record
from deeplense.training.loop import make_accelerator
from jobs.console import say
from jobs.data.part import Part
from jobs.data.statistics import find_statistics
from jobs.evaluate.report import Evaluated, report
from jobs.finetune.held_out import binding, hold_out, known_and_held, on_report
from jobs.finetune.settings import Settings
from jobs.frame.predict import predict_part
from jobs.pretrain.backbone import load_encoder, read_pretrained
from jobs.runs.attempts import begin_attempt, end_attempt
from jobs.runs.claim import Claim
from jobs.runs.folder import FINISHED, is_finished
from jobs.runs.stored import REPORT
from jobs.settings import plain
from jobs.train.network import make_network
from jobs.train.settings import Settings as TrainSettings

PROBES = {"knn": knn_probabilities, "linear": linear_probabilities}
EVALUATION_BATCH = 256
TINY = 1e-12
"""Added to probabilities before their logarithm is taken."""


def probe(settings: Settings, trained: TrainSettings) -> int:
    """Fit a probe to frozen features, and report its predictions on held-out images. There are no checkpoints: a
    stopped probe starts again."""
    accelerator = make_accelerator(device=trained.device, precision="fp32")
    known, held = known_and_held(settings, trained)
    unseen = hold_out(settings, trained, known, held)
    on_report(settings, held)
    pretrained = read_pretrained(Path(settings.backbone))
    network = make_network(trained, known.split, load_pretrained=False)
    load_encoder(network, pretrained)
    network.to(accelerator.device)
    with Claim(binding(settings), take_over=bool(trained.take_over)) as claim:
        claim.check()
        if is_finished(settings.run):
            say(f"{settings.run} is already finished; its report is {settings.run / 'report'}")
            return 0
        claim.open()
        learnt, asked = (features_of(network, each, known, trained, accelerator) for each in (known, unseen.part))
        said = PROBES[settings.mode](learnt.outputs, learnt.labels, asked.outputs, len(known.split.schema.classes))
        predictions = Predictions(np.log(said + TINY).astype(np.float32), asked.labels, asked.target, asked.indices)
        weights = f"those of the backbone, from step {pretrained.opened.step}"
        write_probe(settings, Evaluated(settings.run, trained, unseen, predictions, weights, extent=None))
    return 0


def write_probe(settings: Settings, found: Evaluated) -> None:
    """Write the report of a probe, as an attempt."""
    number = begin_attempt(settings.run, first_step=0, num_processes=1)
    report(settings.split, [found], settings.run / REPORT, shown=plain(settings))
    write_record(settings.run / FINISHED, {"step": 0})
    end_attempt(settings.run, number, reason="finished", last_step=0)


def features_of(
    network: nn.Module, part: Part, known: Part, trained: TrainSettings, accelerator: Accelerator
) -> Predictions:
    """Return the features (n, D) of a part, scaled with the mean and standard deviation of the labelled samples."""
    scaling = Scaling(find_statistics(known, trained.stretch, accelerator), trained.stretch)

    def forward(network: nn.Module, batch: Batch) -> Tensor:
        return cast(Network, network).backbone(cast(Network, network).input_size(scaling.scaled(batch.images)))

    return predict_part(network, forward, part, accelerator, batch_size=EVALUATION_BATCH)

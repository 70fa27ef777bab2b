"""The network of a training with labels."""

from pathlib import Path

from deeplense.data.dataset import Split
from deeplense.models.registry import Network, build
from deeplense.training.fitting import misfit
from jobs.pretrain.backbone import load_backbone, load_encoder, read_pretrained
from jobs.runs.opening import open_run_for
from jobs.settings import require
from jobs.train.settings import Settings


def make_network(settings: "Settings", split: Split, *, load_pretrained: bool) -> Network:
    """Return the network of a run. `load_pretrained` is off if other weights are loaded afterwards."""
    channels, height, width = split.schema.shape
    require(
        height == width,
        f"{split.name} has images of {height} x {width} pixels; they must be square. Pack them with --crop.",
    )
    network = build(
        settings.model_name,
        image_size=height,
        in_chans=channels,
        num_outputs=1 if settings.regression else len(split.schema.classes),
        dropout=settings.dropout,
        drop_path=settings.drop_path,
        extra_layers=bool(settings.complex),
        tune=bool(settings.tune),
        pretrained=bool(settings.pretrained),
        pretrained_file=settings.pretrained_file,
        load_pretrained=load_pretrained,
    )
    if settings.backbone and load_pretrained:
        load_encoder(network, read_pretrained(settings.backbone))
    if settings.init_from and load_pretrained:
        load_run(network, settings.init_from, target=settings.target)
    return network


def load_run(network: Network, run: Path, *, target: str) -> None:
    """Load the best weights of another run into a network: those of the backbone, and those of the head if it has the
    same target and number of outputs. Raises ValueError if the backbones differ, or the run has no intact weights."""
    opened = open_run_for(run, "train", Settings, which="best")
    model, prefix = opened.load("model"), "backbone."
    backbone = {name.removeprefix(prefix): value for name, value in model.items() if name.startswith(prefix)}
    load_backbone(network, backbone, model=opened.settings.model_name, run=run)
    head = {name.removeprefix("head."): value for name, value in model.items() if name.startswith("head.")}
    if opened.settings.target == target and not misfit(head, network.head.state_dict()):
        network.head.load_state_dict(head)

"""The network of a training with labels."""

from deeplense.data.dataset import Split
from deeplense.models.registry import Network, build
from jobs.pretrain.backbone import load_encoder, read_pretrained
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
    return network

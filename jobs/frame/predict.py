"""Network outputs for samples, each computed on one rank."""

from collections.abc import Callable

import numpy as np
from accelerate import Accelerator
from torch import Tensor, nn

from deeplense.data.dataset import Batch, evaluation_batches
from deeplense.data.order import rank_slice
from deeplense.evaluation.predict import Predictions, join, predict
from deeplense.training.finite import NotFinite
from deeplense.training.loop import gather_lists
from jobs.data.part import Part


def predict_part(
    network: nn.Module,
    forward: Callable[[nn.Module, Batch], Tensor],
    part: Part,
    accelerator: Accelerator,
    *,
    batch_size: int,
    after_batch: Callable[[], None] = lambda: None,
) -> Predictions:
    """Return the outputs (b, K) of `forward` for all samples of a part. Each is computed on one rank only, and all
    ranks get the same result. Raises NotFinite if outputs are not finite."""
    mine = part.indices[rank_slice(len(part), accelerator.process_index, accelerator.num_processes)]
    training = network.training
    network.eval()

    def forward_and_tell(batch: Batch) -> Tensor:
        after_batch()
        return forward(network, batch)

    with accelerator.autocast():
        parts = predict(
            forward_and_tell,
            evaluation_batches(part.split, mine, batch_size=batch_size, target=part.target),
            device=accelerator.device,
        )
    network.train(training)
    found = join(gather_lists(accelerator, parts), part.indices)
    bad = int((~np.isfinite(found.outputs)).reshape(len(found.outputs), -1).any(axis=1).sum())
    if bad:
        raise NotFinite(
            f"the outputs of the network are not finite for {bad} of {len(part)} images of {part.split.name}; its "
            "training has diverged. Train again with a lower --lr, a --clip_grad, or --precision fp32."
        )
    return found

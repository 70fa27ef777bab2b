"""What `deeplense diffuse` learns: to take noise out of images, and so to make new ones."""

from collections.abc import Callable, Mapping, Sequence
from typing import cast

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor, nn

from deeplense.data.dataset import Batch
from deeplense.data.order import rank_slice
from deeplense.data.transforms import augment
from deeplense.diffusion.denoiser import Denoiser
from deeplense.diffusion.noise import image_keys, normals
from deeplense.diffusion.samplers import dpm_solver
from deeplense.evaluation.memorisation import Memorisation, memorisation
from deeplense.training.finite import NotFinite
from deeplense.training.loop import from_main, gather_lists, share_buffers
from jobs.diffuse import CLASS, Settings
from jobs.experiment import Part, evenly, image_parts, predict_part
from jobs.generating import Scaling, bounds_of, conditions_of, make_denoiser, make_images, show
from jobs.learner import Evaluation
from jobs.ranks import announce, on_main

EVALUATION_BATCH = 64
LOOKS = 4
"""Times at which a validation image is looked at."""
STEPS = 20
MOST_COMPARED, MOST_KNOWN = 512, 4096
"""Held-out images, and images learnt from, that samples are held against at an evaluation."""
DRAWS = 1
"""Random numbers of an image beside those of the denoiser: for flips."""


class Diffusion:
    """The learner of a diffusion model."""

    patience_epochs: float | None = None
    layer_decay: float | None = None
    fixed_rate: tuple[str, ...] = ()
    score_name = "-loss"

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.ema_decay: float | None = settings.ema_decay or None
        self.train, self.val = image_parts(settings, labelled=CLASS in settings.condition_names)
        self.said = {part.split: conditions_of(settings, part) for part in self.read}
        self.updates_made = 0

    @property
    def read(self) -> Sequence[Part]:
        """What is learnt from, and what is looked at."""
        return [self.train, self.val]

    @property
    def num_uniforms(self) -> int:
        """That of the flips, and those of the denoiser."""
        return DRAWS + Denoiser.num_uniforms

    def make_network(self, *, load_pretrained: bool) -> nn.Module:
        """The U-Net, with what it is asked for."""
        self.network = make_denoiser(self.settings, self.train)
        return self.network

    def begin(self, statistics: Mapping[str, list[float]]) -> None:
        """Take the mean and standard deviation of each band of the samples."""
        self.scaling = Scaling(statistics, self.settings.stretch)
        self.bounds = bounds_of(self.settings, self.train, self.scaling)

    def description(self, where: str) -> str:
        """Which network on how many images."""
        settings, millions = self.settings, sum(p.numel() for p in self.network.parameters()) / 1e6
        told = f", told {' and '.join(settings.condition_names)}" if settings.conditions else ""
        return (
            f"diffusion by {settings.model_name} ({millions:.2f} M parameters), {settings.noise_schedule} schedule, "
            f"predicting {settings.predict}{told}, on {len(self.train)} images of {self.train.split.name} ({where}), "
            f"looking at {len(self.val)}"
        )

    def step(self, model: nn.Module, batch: Batch, step: int) -> Mapping[str, Tensor]:
        """The loss of a batch."""
        images = augment(
            self.scaling.scaled(batch.images),
            batch.uniforms[:, :DRAWS],
            flips=bool(self.settings.flips),
            random_zoom=1.0,
            random_rotation=0.0,
        )
        return model(images, batch.uniforms[:, DRAWS:], self.conditions(self.train, batch))

    def conditions(self, part: Part, batch: Batch) -> Tensor | None:
        """What is said of the images of a batch, (b, K)."""
        said = self.said[part.split]
        return None if said is None else said[batch.indices.cpu()].to(batch.images.device)

    def weight_decay(self, step: int, num_steps: int) -> None:
        """It stays what it is."""

    def after_update(self, step: int, accelerator: Accelerator) -> None:
        """Nothing follows."""
        self.updates_made = step

    def evaluate(self, network: nn.Module, accelerator: Accelerator, beat: Callable[[], None]) -> Evaluation:
        """The loss on images that are not learnt from, always with the same noise; and whether images that are made are
        copies, which is said in words."""
        share_buffers(accelerator, network)
        found = predict_part(network, self.losses, self.val, accelerator, batch_size=EVALUATION_BATCH, after_batch=beat)
        metrics = {"loss": float(found.outputs.mean(dtype=np.float64))}
        problem = ""
        if self.settings.num_sampled:
            made = self.samples(cast(Denoiser, network), accelerator, beat)
            judged = from_main(accelerator, on_main(accelerator, lambda: self.judge(made)))
            metrics |= {"copies/median": judged.median.value, "copies/lowest": judged.lowest.value}
            if not judged.passed:
                announce(accelerator, f"after step {self.updates_made}: {judged}")
                problem = str(judged) if self.settings.stop_on_copies else ""
        return Evaluation(metrics, score=-metrics["loss"], problem=problem)

    def losses(self, network: nn.Module, batch: Batch) -> Tensor:
        """The loss of each image of a batch at some times, (b, LOOKS), a function of its number alone."""
        denoiser, images = cast(Denoiser, network), self.scaling.scaled(batch.images)
        keys, said = image_keys(self.settings.seed, batch.indices), self.conditions(self.val, batch)
        places = (batch.indices % LOOKS)[:, None] + LOOKS * torch.arange(LOOKS, device=images.device)
        times = ((places + 0.5) / LOOKS**2 * self.settings.num_times).floor()
        looks = [
            denoiser.losses(images, normals(keys, images.shape[1:], look), times[:, look], said)
            for look in range(LOOKS)
        ]
        return torch.stack(looks, dim=1)

    def samples(self, denoiser: Denoiser, accelerator: Accelerator, beat: Callable[[], None]) -> np.ndarray:
        """Images of the running mean, the first `num_sampled` of the seed, in the unit of the data set, on all
        processes."""
        numbers = np.arange(self.settings.num_sampled)
        mine = numbers[rank_slice(len(numbers), accelerator.process_index, accelerator.num_processes)]
        plan, shape = dpm_solver(denoiser.schedule.cpu(), STEPS), self.train.split.schema.shape
        training = denoiser.training
        denoiser.eval()
        parts = []
        for start in range(0, len(mine), EVALUATION_BATCH):
            chosen = torch.from_numpy(mine[start : start + EVALUATION_BATCH]).to(accelerator.device)
            with accelerator.autocast():
                made = make_images(
                    denoiser,
                    plan,
                    chosen,
                    shape,
                    seed=self.settings.seed,
                    said=self.wanted(chosen),
                    bounds=self.bounds,
                )
            parts.append(self.scaling.unscaled(made).float().cpu().numpy())
            beat()
        denoiser.train(training)
        made = np.concatenate(gather_lists(accelerator, parts))
        bad = int((~np.isfinite(made)).any(axis=(1, 2, 3)).sum())
        if bad:
            raise NotFinite(f"{bad} of the {len(made)} images that the model makes are not finite; use a lower --lr.")
        return made

    def wanted(self, numbers: Tensor) -> Tensor | None:
        """What images that are made are told to be: what is said of those looked at, in turn."""
        said = self.said[self.val.split]
        rows = self.val.indices[numbers.cpu().numpy() % len(self.val)]
        return None if said is None else said[rows].to(numbers.device)

    def judge(self, made: np.ndarray) -> Memorisation:
        """Hold images that were made against those learnt from, and show them."""
        show(self.settings.run / "samples" / f"step_{self.updates_made:08d}.png", made)
        held, known = (
            part.split.images(part.indices[evenly(len(part), most)])
            for part, most in ((self.val, MOST_COMPARED), (self.train, MOST_KNOWN))
        )
        return memorisation(made, held, known, seed=self.settings.seed)

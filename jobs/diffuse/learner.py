"""Training of `deeplense diffuse`: a denoiser, which can generate new images."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import cast

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor, nn

from deeplense.data.dataset import Batch, Split
from deeplense.data.order import rank_slice
from deeplense.data.scaling import Scaling
from deeplense.data.transforms import augment
from deeplense.diffusion.denoiser import Denoiser
from deeplense.diffusion.samplers import dpm_solver
from deeplense.evaluation.memorisation import Memorisation, memorisation
from deeplense.random.columns import Columns
from deeplense.random.noise import image_keys, normals
from deeplense.training.finite import NotFinite
from deeplense.training.loop import from_main, gather_lists, share_buffers
from jobs.data.part import Part, evenly, image_parts
from jobs.diffuse.images import bounds_of, conditions_of, make_denoiser, make_images, show
from jobs.diffuse.settings import CLASS, Settings
from jobs.frame.learner import Evaluation
from jobs.frame.predict import predict_part
from jobs.ranks import announce, on_main

EVALUATION_BATCH = 64
LOOKS = 4
"""Number of times at which the loss of a validation image is computed."""
STEPS = 20
MOST_COMPARED, MOST_KNOWN = 512, 4096
"""Number of validation images, and of training images, with which generated images are compared at an evaluation."""
COLUMNS = Columns({"flips": 1, "denoiser": Denoiser.columns.total})
"""The random numbers per image."""


@dataclass(frozen=True)
class Diffusion:
    """The learner of a diffusion model."""

    settings: Settings
    train: Part
    val: Part
    patience_epochs: float | None = None
    layer_decay: float | None = None
    fixed_rate: tuple[str, ...] = ()
    score_name: str = "-loss"

    @classmethod
    def of(cls, settings: Settings) -> "Diffusion":
        """Return the learner for these settings. Raises ValueError if a condition is missing in the data set."""
        train, val = image_parts(settings, labelled=CLASS in settings.condition_names)
        for part in (train, val):
            conditions_of(settings, part)
        return cls(settings, train, val)

    @property
    def read(self) -> Sequence[Part]:
        """Training and validation images."""
        return [self.train, self.val]

    @property
    def ema_decay(self) -> float | None:
        """Decay of the moving average of the weights."""
        return self.settings.ema_decay or None

    def weight_decay(self, step: int, num_steps: int) -> None:
        """Return None: the weight decay is constant."""

    def make_network(self, *, load_pretrained: bool) -> nn.Module:
        """Return the U-Net with its conditions."""
        return make_denoiser(self.settings, self.train)

    def make_trainee(self, network: nn.Module, statistics: Mapping[str, list[float]]) -> "DiffusionTrainee":
        """Return the network with the scaling and bounds of its images, and their conditions on its device."""
        scaling = Scaling(statistics, self.settings.stretch)
        bounds = bounds_of(self.settings, self.train, scaling)
        device = next(network.parameters()).device
        found = {part.split: conditions_of(self.settings, part) for part in self.read}
        conditions = {split: None if values is None else values.to(device) for split, values in found.items()}
        return DiffusionTrainee(self, cast(Denoiser, network), scaling, bounds, conditions)


@dataclass(frozen=True)
class DiffusionTrainee:
    """A denoiser with the scaling of its images, the bounds of their pixels, and the conditions (N, K) of all images of
    each split, if there are any."""

    learner: Diffusion
    network: Denoiser
    scaling: Scaling
    bounds: tuple[float, float] | None
    known: Mapping[Split, Tensor | None]
    columns = COLUMNS

    @property
    def settings(self) -> Settings:
        """The settings of the training."""
        return self.learner.settings

    def description(self, where: str) -> str:
        """Describe the network and the number of images."""
        settings, train = self.settings, self.learner.train
        millions = sum(p.numel() for p in self.network.parameters()) / 1e6
        given = f", conditioned on {' and '.join(settings.condition_names)}" if settings.conditions else ""
        return (
            f"training the diffusion model {settings.model_name} ({millions:.2f} M parameters), "
            f"{settings.noise_schedule} schedule, predicting {settings.predict}{given}, on {train.split.name} "
            f"({where}): {len(train)} training, {len(self.learner.val)} validation images"
        )

    def step(self, model: nn.Module, batch: Batch, step: int) -> Mapping[str, Tensor]:
        """Return the loss of a batch."""
        images = augment(
            self.scaling.scaled(batch.images),
            COLUMNS.of(batch.uniforms, "flips"),
            flips=bool(self.settings.flips),
            random_zoom=1.0,
            random_rotation=0.0,
        )
        drawn = COLUMNS.of(batch.uniforms, "denoiser")
        return model(images, drawn, self.conditions(self.learner.train, batch))

    def conditions(self, part: Part, batch: Batch) -> Tensor | None:
        """Return the conditions of the images of a batch, (b, K)."""
        known = self.known[part.split]
        return None if known is None else known[batch.indices]

    def after_update(self, step: int, accelerator: Accelerator) -> None:
        """Do nothing."""

    def evaluate(
        self, network: nn.Module, accelerator: Accelerator, *, step: int, beat: Callable[[], None]
    ) -> Evaluation:
        """Return the loss on validation images, always with the same noise. Check whether generated images are copies
        of training images, and report it."""
        share_buffers(accelerator, network)
        val = self.learner.val
        found = predict_part(network, self.losses, val, accelerator, batch_size=EVALUATION_BATCH, after_batch=beat)
        metrics = {"loss": float(found.outputs.mean(dtype=np.float64))}
        problem = ""
        if self.settings.num_sampled:
            made = self.samples(cast(Denoiser, network), accelerator, beat)
            judged = from_main(accelerator, on_main(accelerator, lambda: self.judge(made, step)))
            metrics |= {"copies/median": judged.median.value, "copies/lowest": judged.lowest.value}
            if not judged.passed:
                announce(accelerator, f"after step {step}: {judged}")
                problem = str(judged) if self.settings.stop_on_copies else ""
        return Evaluation(metrics, score=-metrics["loss"], problem=problem)

    def losses(self, network: nn.Module, batch: Batch) -> Tensor:
        """Return the loss of each image of a batch at some times, (b, LOOKS). It depends only on the number of the
        image."""
        denoiser, images = cast(Denoiser, network), self.scaling.scaled(batch.images)
        keys, said = image_keys(self.settings.seed, batch.indices), self.conditions(self.learner.val, batch)
        places = (batch.indices % LOOKS)[:, None] + LOOKS * torch.arange(LOOKS, device=images.device)
        times = ((places + 0.5) / LOOKS**2 * self.settings.num_times).floor()
        looks = [
            denoiser.losses(images, normals(keys, images.shape[1:], look), times[:, look], said)
            for look in range(LOOKS)
        ]
        return torch.stack(looks, dim=1)

    def samples(self, denoiser: Denoiser, accelerator: Accelerator, beat: Callable[[], None]) -> np.ndarray:
        """Return images generated by the moving average, the first `num_sampled` of the seed, in the unit of the data
        set, on all processes."""
        numbers = np.arange(self.settings.num_sampled)
        mine = numbers[rank_slice(len(numbers), accelerator.process_index, accelerator.num_processes)]
        plan, shape = dpm_solver(denoiser.schedule.cpu(), STEPS), self.learner.train.split.schema.shape
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
            raise NotFinite(f"{bad} of the {len(made)} generated images are not finite; use a lower --lr.")
        return made

    def wanted(self, numbers: Tensor) -> Tensor | None:
        """Return the conditions of generated images: those of the validation images in turn."""
        known = self.known[self.learner.val.split]
        rows = torch.from_numpy(self.learner.val.indices[numbers.cpu().numpy() % len(self.learner.val)])
        return None if known is None else known[rows.to(known.device)]

    def judge(self, made: np.ndarray, step: int) -> Memorisation:
        """Compare generated images with the training images, and save a contact sheet."""
        show(self.settings.run / "samples" / f"step_{step:08d}.png", made)
        held, known = (
            part.split.images(part.indices[evenly(len(part), most)])
            for part, most in ((self.learner.val, MOST_COMPARED), (self.learner.train, MOST_KNOWN))
        )
        return memorisation(made, held, known, seed=self.settings.seed)

"""Read generated images, held-out real images, and the training images of the generator."""

from dataclasses import dataclass

import numpy as np

from deeplense.data.dataset import Split
from jobs.console import say
from jobs.data.folders import find_dataset, splits_of
from jobs.evaluate.settings import Settings
from jobs.settings import require

Images = np.ndarray


@dataclass(frozen=True)
class Sides:
    """Generated, held-out and training images, (n, C, S, S) each, in the unit of the data set."""

    generated: Images
    held_out: Images
    train: Images
    pixel_scale_arcsec: float
    facts: dict[str, str]
    subject: dict[str, str]
    """the samples that a report on these images is on"""

    @property
    def learnt(self) -> Images:
        """A random choice of training images, as many as there are generated ones, to compare real with real."""
        return self.train[np.random.default_rng(0).permutation(len(self.train))[: len(self.generated)]]


def open_sides(settings: Settings) -> Sides:
    """Read the images. Raises ValueError if they cannot be compared."""
    assert settings.generated is not None
    require(settings.dataset is not None, "generated images are compared with real ones; give them as --dataset DIR.")
    assert settings.dataset is not None
    real = find_dataset(settings.dataset, settings.data_root)
    there = splits_of(settings.generated)
    require(
        len(there) == 1, f"{settings.generated} has the splits {list(there)}; it must have one, the generated images."
    )
    for name in (settings.split, "train"):
        require(name in splits_of(real), f"{real} has no split {name!r}; it has {', '.join(splits_of(real))}.")
    splits = [
        Split(folder, labelled=False)
        for folder in (settings.generated / there[0], real / settings.split, real / "train")
    ]
    made, held, train = splits
    require_alike(made, held, train)
    images = {name: each.images(np.arange(len(each))) for name, each in (("generated", made), ("train", train))}
    unseen = unseen_by_training(held, train)
    out = f"{len(held) - len(unseen)} more are left out because they are also training images"
    facts = {
        "generated": f"{len(made)} images of {made.name} ({made.dataset_id[:16]}): {dict(made.schema.provenance)}",
        "held out": f"{len(unseen)} images of {held.name} ({held.dataset_id[:16]}); {out}",
        "training images": f"{len(train)} images of {train.name} ({train.dataset_id[:16]}); {who_trained(made, train)}",
    }
    for name in ("held out", "training images"):
        say(f"{name}: {facts[name]}")
    images["held_out"] = held.images(unseen)
    subject = {"generated": made.dataset_id, "dataset_id": held.dataset_id, "split": settings.split}
    return Sides(**images, pixel_scale_arcsec=held.schema.pixel_scale_arcsec or 1.0, facts=facts, subject=subject)


def require_alike(made: Split, held: Split, train: Split) -> None:
    """Raise ValueError unless generated images have the shape, bands and unit of the real ones and are not the same."""
    for name in ("shape", "bands", "unit"):
        wanted, given = getattr(held.schema, name), getattr(made.schema, name)
        require(
            given == wanted, f"{made.name} has {name} {given}, but {held.name} has {wanted}; they must be the same."
        )
    require(
        made.dataset_id not in (held.dataset_id, train.dataset_id),
        f"{made.name} contains the real images themselves; give generated images as --generated DIR.",
    )


def unseen_by_training(held: Split, train: Split) -> np.ndarray:
    """Return the rows (n,) of held-out images whose pixels are not identical to those of a training image. Raises
    ValueError if none is left."""
    there, known = (split.hashes(np.arange(len(split))) for split in (held, train))
    rows = np.flatnonzero(~np.isin(there, known))
    require(len(rows) > 0, f"all {len(held)} images of {held.name} are also in {train.name}; give other images.")
    return rows


def who_trained(made: Split, train: Split) -> str:
    """Say whether the generator was trained on these images, according to the provenance of the generated ones."""
    trained_on = made.schema.provenance.get("trained_on")
    if trained_on == train.dataset_id:
        return "the generator was trained on these"
    if trained_on is None:
        return "the training images of the generator are unknown, so it may have been trained on the held-out ones"
    return f"the generator was trained on other images ({str(trained_on)[:16]}), perhaps on the held-out ones"

"""Explanation maps of a trained network for some held-out images, with the true positions of their substructure."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import nn

from deeplense.data.dataset import Split, evaluation_batches
from deeplense.data.shards import Schema
from deeplense.evaluation import plots
from deeplense.evaluation.explanations import LEAST_SIDE, Map, explain
from deeplense.evaluation.metrics import softmax
from deeplense.evaluation.plots import Marks
from deeplense.evaluation.predict import Predictions
from deeplense.evaluation.report import Plot
from deeplense.simulation.images import PARAMETERS, image_generator
from deeplense.simulation.populations import Population, System, draw_system
from jobs.data.part import Part
from jobs.train.objective import Objective

AT_A_TIME = 4
NUM_SUBHALOES = 5
COLUMNS = 8


@dataclass(frozen=True)
class Explained:
    """Held-out images (n, C, S, S), each with a title, explanation maps (n, S, S each), and marks of the substructure
    if its position is known. `answer` names the output that Grad-CAM explains."""

    images: np.ndarray
    titles: Sequence[str]
    answer: str
    maps: Sequence[Map]
    marks: Sequence[Marks | None]


def explain_part(
    network: nn.Module,
    objective: Objective,
    part: Part,
    predictions: Predictions,
    *,
    num_images: int,
    device: torch.device,
) -> Explained:
    """Compute explanation maps for the first images of each class."""
    chosen = first_of_each(predictions.labels, num_images)
    indices, outputs = predictions.indices[chosen], predictions.outputs[chosen]
    maps = maps_of(network, objective, part, indices, outputs.argmax(axis=1), device=device)
    answer = "the predicted class" if part.target is None else "a larger predicted value"
    images, marks = part.split.images(indices), marks_of(part.split, indices)
    return Explained(images, titles(part, predictions, chosen), answer, maps, marks)


def first_of_each(labels: np.ndarray, number: int) -> np.ndarray:
    """Return the positions of `number` samples: the first of each class, the second of each class, and so on."""
    turn = np.zeros(len(labels), dtype=int)
    for label in np.unique(labels):
        members = labels == label
        turn[members] = np.arange(members.sum())
    return np.lexsort((labels, turn))[:number]


def maps_of(
    network: nn.Module,
    objective: Objective,
    part: Part,
    indices: np.ndarray,
    class_index: np.ndarray,
    *,
    device: torch.device,
) -> list[Map]:
    """Compute the maps of the samples with these indices, a few at a time because attention weights are large."""
    parts = []
    for k, batch in enumerate(evaluation_batches(part.split, indices, batch_size=AT_A_TIME, target=None)):
        classes = torch.from_numpy(class_index[k * AT_A_TIME : (k + 1) * AT_A_TIME])
        parts.append(explain(network, objective.inputs(batch.to(device)), class_index=classes))
    return [
        Map(same[0].name, same[0].kind, torch.cat([each.values for each in same]), same[0].side)
        for same in zip(*parts, strict=True)
    ]


def titles(part: Part, predictions: Predictions, chosen: np.ndarray) -> list[str]:
    """Return the true and the predicted class (or value) of each of these samples as text."""
    if part.target is not None:
        pairs = zip(predictions.target[chosen], predictions.outputs[chosen, 0], strict=True)
        return [f"{true:.3g}, predicted {said:.3g}" for true, said in pairs]
    classes, probabilities = part.split.schema.classes, softmax(predictions.outputs[chosen])
    return [
        f"{classes[label]}, predicted {classes[row.argmax()]} ({row.max():.2f})"
        for label, row in zip(predictions.labels[chosen], probabilities, strict=True)
    ]


def marks_of(split: Split, indices: np.ndarray) -> list[Marks | None]:
    """Return the marks of the substructure in each of these samples; None if its position is unknown."""
    systems = systems_of(split, indices)
    return [None if system is None else substructure(system, split.schema) for system in systems]


def systems_of(split: Split, indices: np.ndarray) -> list[System | None]:
    """Recreate the simulated systems of these samples; None for samples that were not simulated by this package, or by
    a version that sampled them differently."""
    manifests = [split.manifests[source] for source in split.sources[indices]]
    if any(manifest.schema.provenance.get("made_by") != "deeplense simulate" for manifest in split.manifests):
        return [None] * len(indices)
    places, labels = split.column("source_index")[indices], split.labels[indices]
    known = {name: split.column(f"target/{name}")[indices] for name in ("source_x", "source_y", "substructure_mass")}
    drawn = [
        draw_again(manifest.schema, int(place), int(label))
        for manifest, place, label in zip(manifests, places, labels, strict=True)
    ]
    return [
        system if all(getattr(system, name) == known[name][k] for name in known) else None
        for k, system in enumerate(drawn)
    ]


def draw_again(schema: Schema, index: int, label: int) -> System:
    """Recreate the system of an image of a simulated split from its seed."""
    made = schema.provenance
    population = Population(made["model"], made["preset"], made["mass_slope"])
    return draw_system(population, label, image_generator(made["seed"], schema.split, index, PARAMETERS))


def substructure(system: System, schema: Schema) -> Marks:
    """Mark the heaviest subhaloes as circles with their Einstein radii (at least one pixel), and a vortex as a line."""
    assert schema.pixel_scale_arcsec is not None
    x, y, theta_E = (getattr(system, f"point_{name}") for name in ("x", "y", "theta_E"))
    lines, circles = np.empty((0, 4)), np.empty((0, 3))
    if schema.classes[system.label] == "axion":
        along = np.array([np.cos(system.line_angle), np.sin(system.line_angle)]) * system.line_half_length
        lines = np.array([[x[0], y[0], x[-1], y[-1]] if len(x) else [*-along, *along]])
    elif len(x):
        heaviest = np.argsort(-theta_E, kind="stable")[:NUM_SUBHALOES]
        circles = np.stack([x, y, theta_E], axis=1)[heaviest]
    scale, middle = schema.pixel_scale_arcsec, schema.shape[-1] / 2
    circles, lines = circles / scale, lines / scale + middle
    circles[:, :2] += middle
    circles[:, 2] = circles[:, 2].clip(min=1)
    return Marks(circles, lines)


def explanation_plots(found: Explained) -> list[Plot]:
    """Return the figure of all images, and the figure of all layers for the first image."""
    panels = {each.name.removeprefix("backbone."): each.values.numpy() for each in shown(found.maps)}
    draw = partial(plots.explained, images=found.images, maps=panels, titles=found.titles, marks=found.marks)
    rows = -(-len(found.titles) // plots.images_per_row(len(panels)))
    drawn = [Plot("explanations", caption(found), draw, size=(9.0, 0.2 + 1.63 * rows), wide=True)] if panels else []
    strip = [each for each in found.maps if each.kind == "layer"]
    return [*drawn, layer_plot(found, strip)] if len(strip) > 1 else drawn


def shown(maps: Sequence[Map]) -> list[Map]:
    """Select the maps to show: attention rollout, or else the last layer that is not too coarse; and Grad-CAM."""
    rollout = [each for each in maps if each.kind == "rollout"]
    by_layer = sorted((each for each in maps if each.kind == "layer"), key=lambda each: each.side >= LEAST_SIDE)
    return [*(rollout or by_layer[-1:]), *(each for each in maps if each.kind == "grad_cam")]


def caption(found: Explained) -> str:
    """Return the caption of the figure of explanations."""
    by_attention = any(each.kind != "grad_cam" for each in found.maps)
    marked = any(marks is not None for marks in found.marks)
    told = [
        "Explanation maps for the first images of each class.",
        "Attention maps show the attention weight of each position."
        if by_attention
        else "This network has no attention that can be mapped onto the image.",
        f"Grad-CAM shows the evidence for {found.answer}; it is blank where there is none.",
        "The colours of each map range from its minimum to its maximum.",
        f"Circles: the {NUM_SUBHALOES} heaviest subhaloes, with their Einstein radii (at least 1 pixel); line: vortex."
        if marked
        else "The positions of the substructure are unknown for this data set.",
    ]
    return " ".join(told)


def layer_plot(found: Explained, strip: Sequence[Map]) -> Plot:
    """Return the figure of the attention of each layer for the first image."""
    maps: Mapping[str, np.ndarray] = {
        f"{k + 1} ({each.side} x {each.side})": each.values[0].numpy() for k, each in enumerate(strip)
    }
    draw = partial(plots.layers, image=found.images[0], maps=maps, marks=found.marks[0], columns=COLUMNS)
    told = (
        f"Attention of each layer for the first image ({found.titles[0]}), from {strip[0].name} to {strip[-1].name}; "
        "titles: number of the layer and size of its attention grid"
    )
    return Plot("layers", told, draw, size=(9.0, 0.1 + 1.3 * (len(strip) // COLUMNS + 1)), wide=True)

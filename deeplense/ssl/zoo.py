"""The methods of self-supervised learning by name, as plain data: torch is not imported.

To add one, write a module with a class of the form that `jobs/pretrain/method.py` describes, and add a line to
`METHODS`.
"""

from dataclasses import dataclass

from deeplense.choices import Lazy


@dataclass(frozen=True)
class Method:
    """One method.

    Args:
        name: name in the settings.
        place: `module:Class`.
        encoder: path of the backbone that is used afterwards, in the state of the class.
        teacher: whether a teacher follows the student, with a momentum and temperatures.
        head: whether the head behind the features has the sizes `out_dim` and `hidden_dim`.
        local_views: whether it takes small views, too.
        hidden_views: fraction of the views with masked patches; 0 for a method that masks none.
        hidden_spread: half width of the distribution of the fraction of masked patches.
        fixed_rate: prefixes of the names of parameters whose learning rate stays at its maximum.
        least_samples: fewest samples of a forward pass in training; a batch norm over one view of each needs two.
    """

    name: str
    place: str
    encoder: str = "backbone"
    teacher: bool = False
    head: bool = True
    local_views: bool = True
    hidden_views: float = 0.0
    hidden_spread: float = 0.0
    fixed_rate: tuple[str, ...] = ()
    least_samples: int = 1


SSL, TEACHER = "deeplense.ssl", "teacher.backbone"
METHODS = {
    method.name: method
    for method in (
        Method("dino", f"{SSL}.dino:DINO", TEACHER, teacher=True),
        Method("ibot", f"{SSL}.ibot:IBOT", TEACHER, teacher=True, hidden_views=0.5, hidden_spread=0.2),
        Method("simsiam", f"{SSL}.simsiam:SimSiam", local_views=False, fixed_rate=("predictor.",), least_samples=2),
        Method("simmim", f"{SSL}.simmim:SimMIM", head=False, local_views=False, hidden_views=1.0),
        Method("lejepa", f"{SSL}.lejepa:LeJEPA"),
    )
}
CLASSES = Lazy("method", {name: method.place for name, method in METHODS.items()})
"""The class of each method, imported when it is looked up."""

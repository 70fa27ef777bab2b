"""What each process of a test would load, build or look up anew: imported once by the server that forks them. Nothing
here starts a thread or leaves a file open. Figures and linear probes are coarse here: to arrange five figures takes
longer than an evaluation, and to choose among seven strengths longer than a pretraining."""

import gc
import sys
from importlib import import_module
from pathlib import Path

import hypothesis
import numpy as np
from PIL import Image

import jobs.diffuse.learner
import jobs.evaluate.generated
import jobs.evaluate.runs
import jobs.finetune.work
import jobs.frame.updates
import jobs.pretrain.learner
import launch.__main__
from deeplense.evaluation import page, plots, probes, report
from jobs.command_line import make_parser
from jobs.runs.environment import environment
from jobs.verbs import JOBS
from tests import undrawn

sys.path.append(str(Path(__file__).parent))
LOADED = (
    hypothesis,
    jobs.diffuse.learner,
    jobs.evaluate.generated,
    jobs.evaluate.runs,
    jobs.finetune.work,
    jobs.frame.updates,
    jobs.pretrain.learner,
    launch.__main__,
    import_module("conftest"),
    import_module("deeplense.models.cnn"),
    import_module("matplotlib.backends.backend_agg"),
)
Image.preinit()

LOADED_NAMES = frozenset(sys.modules)

report.figure = page.figure = undrawn.figure
plots.DPI, plots.LAYOUT = 20, "none"
probes.STRENGTHS, probes.MOST_FOLDS = np.array([0.01, 1.0]), 2
for job in JOBS:
    make_parser(job)
environment()
# A collection in a child would look at all that is loaded here, and so copy it.
gc.collect()
gc.freeze()

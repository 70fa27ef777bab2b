"""What each process of a test would load, build or look up anew: imported once by the server that forks them. Nothing
here starts a thread or leaves a file open. Figures are coarse here: to arrange five of them takes longer than an
evaluation."""

import jobs.evaluate.generated
import jobs.evaluate.runs
import jobs.finetune.work
import jobs.frame.updates
import jobs.pretrain.learner
import launch.__main__
from deeplense.evaluation import plots
from jobs.command_line import make_parser
from jobs.runs.environment import environment
from jobs.verbs import JOBS

LOADED = (
    jobs.evaluate.generated,
    jobs.evaluate.runs,
    jobs.finetune.work,
    jobs.frame.updates,
    jobs.pretrain.learner,
    launch.__main__,
)

plots.DPI, plots.LAYOUT = 20, "none"
for job in JOBS:
    make_parser(job)
environment()

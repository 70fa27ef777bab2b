"""What each process of a test would load or build anew: imported once by the server that forks them. Nothing here
starts a thread or opens a file."""

import jobs.evaluate.work
import jobs.finetune.work
import jobs.frame.updates
import jobs.pretrain.learner
import launch.__main__
from jobs.command_line import make_parser
from jobs.verbs import JOBS

LOADED = (jobs.evaluate.work, jobs.finetune.work, jobs.frame.updates, jobs.pretrain.learner, launch.__main__)

for job in JOBS:
    make_parser(job)

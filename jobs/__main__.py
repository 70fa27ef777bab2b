"""`python -m jobs JOB --setting value ...`: run one job in this process. Ranks and the runs of a benchmark table are
started this way."""

import os
import sys

from jobs.run_job import leave, main

if __name__ == "__main__":
    leave(main) if "RANK" in os.environ else sys.exit(main())

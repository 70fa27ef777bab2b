"""How the ranks of one machine find each other: by a file that only their user can read.

By default torch lets them meet at a port, on which it listens on all networks of the machine, and ranks trust what they
receive there.
"""

import os

VARIABLE = "DEEPLENSE_MEETING_FILE"
"""Environment variable with the path of the file; without it the ranks meet at MASTER_ADDR and MASTER_PORT."""


def join(backend: str) -> None:
    """Form the group of the ranks by their file, if there is one; Accelerate then uses this group."""
    # Read by the launcher, too, which does without torch.
    import torch.distributed

    file, size = os.environ.get(VARIABLE), int(os.environ.get("WORLD_SIZE", "1"))
    if not file or size == 1 or torch.distributed.is_initialized():
        return
    store = torch.distributed.FileStore(file, size)
    torch.distributed.init_process_group(backend, store=store, rank=int(os.environ["RANK"]), world_size=size)

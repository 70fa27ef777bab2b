"""The commands beside the jobs: each takes the words after its name and returns an exit code."""

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from jobs.bounds import MOST_PARTS
from jobs.config import DIVISIBLE, SPREAD, named, require, with_nearest
from jobs.runs import FINISHED
from launch import status
from launch.clusters import Cluster, describe, find_cluster, load_clusters
from launch.ends import DEFAULT_RESTARTS
from launch.record import launched

if TYPE_CHECKING:
    from launch.script import Submission

SHARED = " or ".join(DIVISIBLE)
OPTIONS: dict[str, tuple[type, str]] = {
    "nodes": (int, "nodes"),
    "gpus_per_node": (int, "GPUs of each node; one process for each"),
    "tasks_per_node": (int, "processes on each node, where that is not one for each GPU"),
    "cpus_per_task": (int, "CPU cores of each process"),
    "memory_gb_per_task": (float, "memory of each process"),
    "hours": (float, "time limit of one attempt"),
    "partition": (str, "partition"),
    "account": (str, "account"),
    "qos": (str, "quality of service"),
    "image": (str, "Apptainer image"),
}


class CommandParser(argparse.ArgumentParser):
    """Takes no abbreviation of an option, and says what is wrong in one line, with the nearest right name."""

    def __init__(self, **options: Any) -> None:
        super().__init__(allow_abbrev=False, **options)

    def error(self, message: str) -> NoReturn:
        names = [action.dest for action in self._actions if action.option_strings and action.dest != "help"]
        sys.stderr.write(f"{self.prog}: {with_nearest(message, names)}\n")
        sys.exit(2)


def submit(words: Sequence[str]) -> int:
    """Send a job to a cluster: deeplense submit --on CLUSTER [--nodes N --hours H ...] JOB --setting value ..."""
    from launch.submit import prepare, prepare_parts, prepare_spread

    parser = submission_parser("submit")
    parser.add_argument(
        "--parts", type=at_least(1, most=MOST_PARTS), metavar="N", help=f"share {SHARED} among the N tasks of an array"
    )
    given = parser.parse_args(words)
    require(bool(given.command), "no job is given; end the line with one, such as: train --config ... --run ...")
    command, spread = named(given.command), named(given.command)[0] in SPREAD
    if not given.parts and not spread:
        return check_and_send(prepare(command, chosen_cluster(given), folder=given.folder), given)
    what = command[0] if spread else "--parts"
    require(not given.export, f"{what} makes an array; --export writes the script of a single run.")
    if spread and not given.parts:
        return check_and_send(prepare_spread(command, chosen_cluster(given), folder=given.folder), given)
    shared = prepare_parts(command, chosen_cluster(given), num_parts=given.parts, folder=given.folder)
    return check_and_send(shared, given)


def sweep(words: Sequence[str]) -> int:
    """Send many runs as one job array: deeplense sweep --on CLUSTER train --run 'runs/{seed}' --seed=0:5 ..."""
    from launch.submit import prepare_sweep
    from launch.sweeps import expand

    given = submission_parser("sweep").parse_args(words)
    require(
        bool(given.command), "no job is given; end the line with one, such as: train --run 'runs/{seed}' --seed=0:5"
    )
    require(not given.export, "a sweep is an array; --export writes the script of a single run.")
    return check_and_send(
        prepare_sweep(expand(named(given.command)), chosen_cluster(given), folder=given.folder), given
    )


def check_and_send(submission: "Submission", given: argparse.Namespace) -> int:
    """Show what would be sent, or check it and send it, or write it to a file."""
    from launch.checks import check_before_submission
    from launch.script import submitit_script
    from launch.submit import send

    by_slurm = submission.cluster.executor == "slurm"
    require(by_slurm or not given.export, "this machine needs no batch script; leave --export out.")
    if given.dry_run:
        print(submitit_script(submission) if by_slurm else "# this machine needs no batch script\n", end="")
        if not by_slurm or len(submission.folders) > 1:
            print("\n".join(f"# {shown(folder)}" for folder in submission.folders))
        return 0
    for line in check_before_submission(submission):
        print(line)
    if given.export:
        return export(submission, given)
    job_ids = send(submission, allow_untracked=given.allow_untracked)
    for folder, job_id in zip(submission.folders, job_ids, strict=True):
        print(f"{shown(folder)}: {submitted(job_id)}; `deeplense logs {shown(folder)} --follow` shows it")
    return 0


def export(submission: "Submission", given: argparse.Namespace) -> int:
    """Write a batch script that needs no submitit, and all that it refers to."""
    from launch.script import whole_script
    from launch.submit import set_up

    set_up(submission, allow_untracked=given.allow_untracked)
    given.export.write_text(whole_script(submission))
    print(f"{given.export}: submit it by `sbatch {given.export}`; the run is {submission.folders[0]}")
    return 0


def submission_parser(name: str) -> CommandParser:
    """Options of a submission, which stand before the job."""
    parser = CommandParser(prog=f"deeplense {name}", description=COMMANDS[name].__doc__)
    parser.add_argument(
        "--on", required=True, metavar="CLUSTER", help="see `deeplense clusters`; local is this machine"
    )
    for option, (kind, text) in OPTIONS.items():
        parser.add_argument(f"--{option}", type=kind, help=f"{text} (default: the cluster's)")
    parser.add_argument(
        "--restarts",
        type=budgets,
        default=None,
        metavar="KIND=N,...",
        help="how often to start again, by why it ended: " + ", ".join(DEFAULT_RESTARTS),
    )
    parser.add_argument("--folder", type=Path, help="for logs, code and attempts (default: the run; else launches/...)")
    parser.add_argument("--dry_run", action="store_true", help="print the whole batch script, and write nothing")
    parser.add_argument(
        "--export", type=Path, metavar="FILE", help="write a batch script that needs no submitit, and submit nothing"
    )
    parser.add_argument("--allow_untracked", action="store_true", help="copy files that git does not track, too")
    parser.add_argument("command", nargs=argparse.REMAINDER, metavar="JOB ...", help="the job and its settings")
    return parser


def budgets(text: str) -> dict[str, int]:
    """Budgets from `crash=3,hang=1`."""
    pairs = [part.split("=") for part in text.split(",")]
    if any(len(pair) != 2 or not pair[1].isdigit() for pair in pairs):
        raise argparse.ArgumentTypeError(f"{text!r} is not like crash=3,hang=1")
    return {name.strip().replace("_", " "): int(number) for name, number in pairs}


def chosen_cluster(given: argparse.Namespace) -> Cluster:
    """The profile with what the command line says over it."""
    cluster = find_cluster(given.on)
    given.image = given.image and str(Path(given.image).expanduser().absolute())
    return cluster.override(**{option: getattr(given, option) for option in OPTIONS}, restarts=given.restarts)


def resume(words: Sequence[str]) -> int:
    """Submit runs that ended once more, with the code and on the cluster of before: deeplense resume RUN ..."""
    from launch.submit import send_again

    parser = CommandParser(prog="deeplense resume", description=resume.__doc__)
    parser.add_argument("runs", type=Path, nargs="+", metavar="RUN")
    parser.add_argument("--update_code", action="store_true", help="with the code as it is now")
    parser.add_argument("--hours", type=float, help="time limit of one attempt (default: as before)")
    given = parser.parse_args(words)
    folders = {run.absolute(): run for run in given.runs}
    finished = [folder for folder in folders if (folder / FINISHED).exists()]
    sent = send_again([f for f in folders if f not in finished], hours=given.hours, update_code=given.update_code)
    for folder, run in folders.items():
        print(f"{run}: {submitted(sent[folder])}" if folder in sent else f"{run} is finished")
    return 0


def submitted(job_id: str | None) -> str:
    """What became of a run that was sent."""
    return f"submitted as job {job_id}" if job_id else "waits until the runs before it have ended"


def show_status(words: Sequence[str]) -> int:
    """Tell what runs do, and why they ended: deeplense status [RUN ...]"""
    parser = CommandParser(prog="deeplense status", description=show_status.__doc__)
    parser.add_argument(
        "runs", type=Path, nargs="*", metavar="RUN", help="or folders of runs (default: all below this folder)"
    )
    roots = parser.parse_args(words).runs or [Path()]
    folders = status.find_launched([root.absolute() for root in roots])
    require(
        bool(folders),
        f"there is no run at or below {', '.join(map(str, roots))}; `deeplense train` or `submit` starts one.",
    )
    print("\n".join(status.table(folders)))
    return 0


def logs(words: Sequence[str]) -> int:
    """Show the log of a run: deeplense logs RUN [--follow] [--rank K]"""
    parser = CommandParser(prog="deeplense logs", description=logs.__doc__)
    parser.add_argument("run", type=Path, metavar="RUN")
    parser.add_argument(
        "--rank", type=at_least(0), default=0, help="process (default: 0, with what the batch script says)"
    )
    parser.add_argument("--follow", action="store_true", help="go on as long as the run is with the scheduler")
    given = parser.parse_args(words)
    run = launched(given.run.absolute())
    require(
        not run.by_hand,
        f"{given.run} was started by hand: what it says is in the terminal where that was done, and its curves are in "
        f"{given.run}/metrics.jsonl.",
    )
    path = status.log_of(run, given.rank)
    if given.follow:
        for text in status.follow(run, given.rank):
            sys.stdout.write(text)
            sys.stdout.flush()
        return 0
    require(path.exists(), f"there is no log {path}; the run has not begun, or has no rank {given.rank}.")
    sys.stdout.write(path.read_text(errors="replace"))
    return 0


def cancel(words: Sequence[str]) -> int:
    """End runs that wait or run, for good: deeplense cancel RUN ..."""
    parser = CommandParser(prog="deeplense cancel", description=cancel.__doc__)
    parser.add_argument("runs", type=Path, nargs="+", metavar="RUN", help="or folders of runs, such as an array's")
    for given in parser.parse_args(words).runs:
        for run in status.to_cancel(given.absolute()):
            status.cancel(run)
            print(f"{shown(run.folder)}: cancelled; `deeplense resume {shown(run.folder)}` would continue it")
    return 0


def clusters(words: Sequence[str]) -> int:
    """List the clusters that are known: deeplense clusters"""
    CommandParser(prog="deeplense clusters", description=clusters.__doc__).parse_args(words)
    print("\n".join(describe(load_clusters())))
    return 0


def doctor(words: Sequence[str]) -> int:
    """Tell whether a cluster is usable, and what to change: deeplense doctor --on CLUSTER"""
    from launch.doctor import examine

    parser = CommandParser(prog="deeplense doctor", description=doctor.__doc__)
    parser.add_argument("--on", required=True, metavar="CLUSTER")
    parser.add_argument("--run_job", action="store_true", help="also send a small job that looks at the nodes")
    given = parser.parse_args(words)
    findings = examine(find_cluster(given.on), run_job=given.run_job)
    for finding in findings:
        print(f"{finding.level:<7} {finding.text}")
    return 1 if any(finding.level == "wrong" for finding in findings) else 0


def sync(words: Sequence[str]) -> int:
    """Send what runs logged offline to Weights & Biases: deeplense sync RUN ..."""
    parser = CommandParser(prog="deeplense sync", description=sync.__doc__)
    parser.add_argument("runs", type=Path, nargs="+", metavar="RUN")
    for run in parser.parse_args(words).runs:
        count = status.sync(run)
        print(f"{run}: {count} attempts sent" if count else f"{run}: nothing was logged offline")
    return 0


def demo(words: Sequence[str]) -> int:
    """The whole chain on one machine: simulate, submit a training, be stopped, go on, evaluate"""
    from launch.demo import demo as run_demo

    parser = CommandParser(prog="deeplense demo", description=demo.__doc__)
    parser.add_argument(
        "--output", type=Path, default=Path("demo"), help="folder for data, run and report (default: demo)"
    )
    return run_demo(parser.parse_args(words).output)


def at_least(smallest: int, *, most: int | None = None) -> Callable[[str], int]:
    """A reader of whole numbers from `smallest` on, up to `most` if given."""

    def number(text: str) -> int:
        if int(text) < smallest:
            raise argparse.ArgumentTypeError(f"{text} is below {smallest}")
        if most is not None and int(text) > most:
            raise argparse.ArgumentTypeError(f"{text} is above {most}")
        return int(text)

    return number


def shown(folder: Path) -> Path:
    """A folder as a user would type it here."""
    return folder.relative_to(Path.cwd()) if folder.is_relative_to(Path.cwd()) else folder


COMMANDS: dict[str, Callable[[Sequence[str]], int]] = {
    "submit": submit,
    "sweep": sweep,
    "status": show_status,
    "logs": logs,
    "cancel": cancel,
    "resume": resume,
    "clusters": clusters,
    "doctor": doctor,
    "sync": sync,
    "demo": demo,
}

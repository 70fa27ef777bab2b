"""Commands that are not jobs. Each takes the arguments after its name and returns an exit code."""

import argparse
import contextlib
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deeplense.files import sole_writer
from jobs.bounds import MOST_PARTS
from jobs.runs.folder import FINISHED
from jobs.settings import require
from jobs.verbs import DIVISIBLE, SPREAD, with_joined_name
from launch import cancelling, following, offline, status
from launch.clusters import Cluster, describe, find_cluster, load_clusters
from launch.ends import DEFAULT_RESTARTS
from launch.parsing import DESCRIBE, CommandParser, at_least
from launch.record import launched
from launch.sight.attempts import attempt_lines
from launch.sight.overview import ask, read_all, tell_users
from launch.sight.search import find_runs
from launch.sight.table import table
from launch.status import shown
from launch.widths import parse_nodes

if TYPE_CHECKING:
    from launch.pipelines.work import Request
    from launch.record import Launched
    from launch.submission import Submission

SHARED = " or ".join(DIVISIBLE)
SECONDS_OF_WATCH, LEAST_SECONDS_OF_WATCH, MOST_SECONDS_OF_WATCH = 5.0, 0.5, 3600.0
OPTIONS: dict[str, tuple[Callable[[str], Any], str]] = {
    "nodes": (parse_nodes, "number of nodes, or a range MIN:MAX, of which each attempt gets what is free"),
    "gpus_per_node": (int, "number of GPUs per node; one process runs per GPU"),
    "tasks_per_node": (int, "number of processes per node, if not one per GPU"),
    "cpus_per_task": (int, "number of CPU cores per process"),
    "memory_gb_per_task": (float, "memory per process, in GB"),
    "hours": (float, "time limit of one attempt, in hours"),
    "partition": (str, "Slurm partition"),
    "account": (str, "Slurm account"),
    "qos": (str, "Slurm quality of service"),
    "image": (str, "path of the Apptainer image"),
    "notify": (str, "command to call when a run finishes, fails, or stands still"),
    "mail": (str, "address to which Slurm sends a mail when a job ends"),
}


def submit(words: Sequence[str]) -> int:
    """Submit a job to a cluster: deeplense submit --on CLUSTER [--nodes N --hours H ...] JOB --setting value ..."""
    from launch.submit import prepare, prepare_parts, prepare_spread

    parser = submission_parser("submit")
    parser.add_argument(
        "--parts", type=at_least(1, most=MOST_PARTS), metavar="N", help=f"split {SHARED} across an array of N tasks"
    )
    given = parser.parse_args(words)
    require(
        bool(given.command),
        "no job was given; add one at the end of the command, for example: train --config ... --run ...",
    )
    command, spread = with_joined_name(given.command), with_joined_name(given.command)[0] in SPREAD
    if not given.parts and not spread:
        return check_and_send(prepare(command, chosen_cluster(given), folder=given.folder), given)
    what = command[0] if spread else "--parts"
    require(
        not given.export,
        f"{what} submits a job array, but --export writes the script of a single run; leave --export out.",
    )
    if spread and not given.parts:
        return check_and_send(prepare_spread(command, chosen_cluster(given), folder=given.folder), given)
    shared = prepare_parts(command, chosen_cluster(given), num_parts=given.parts, folder=given.folder)
    return check_and_send(shared, given)


def sweep(words: Sequence[str]) -> int:
    """Submit many runs as one job array: deeplense sweep --on CLUSTER train --run 'runs/{seed}' --seed=0:5 ..."""
    from launch.submit import prepare_sweep
    from launch.sweeps import expand

    given = submission_parser("sweep").parse_args(words)
    require(
        bool(given.command),
        "no job was given; add one at the end of the command, for example: train --run 'runs/{seed}' --seed=0:5",
    )
    require(
        not given.export, "a sweep is a job array, but --export writes the script of a single run; leave --export out."
    )
    return check_and_send(
        prepare_sweep(expand(with_joined_name(given.command)), chosen_cluster(given), folder=given.folder), given
    )


def check_and_send(submission: "Submission", given: argparse.Namespace) -> int:
    """Check and submit a submission. With --dry_run, only print it; with --export, write its script to a file."""
    from launch import chains
    from launch.checks import check_before_submission
    from launch.script import submitit_script
    from launch.submit import send

    by_slurm = submission.cluster.executor == "slurm"
    if given.after:
        require(not given.export, "--after depends on jobs that run now, and --export writes a script; leave one out.")
        submission = chains.after(submission, chains.named_parents(given.after))
    require(by_slurm or not given.export, "jobs on this machine use no batch script; leave --export out.")
    if given.dry_run:
        submission = chains.with_dependency(submission)
        print(submitit_script(submission) if by_slurm else "# jobs on this machine use no batch script\n", end="")
        if not by_slurm or len(submission.folders) > 1:
            print("\n".join(f"# {shown(folder)}" for folder in submission.folders))
        return 0
    for line in check_before_submission(submission):
        print(line)
    if given.export:
        return export(submission, given)
    job_ids = send(submission, allow_untracked=given.allow_untracked)
    for folder, job_id in zip(submission.folders, job_ids, strict=True):
        print(f"{shown(folder)}: {submitted(job_id)}; `deeplense logs {shown(folder)} --follow` shows its log")
    return 0


def export(submission: "Submission", given: argparse.Namespace) -> int:
    """Write a batch script that does not need submitit, and all files that it refers to."""
    from launch.script import whole_script
    from launch.submit import set_up

    set_up(submission, allow_untracked=given.allow_untracked)
    given.export.write_text(whole_script(submission))
    print(f"{given.export}: submit it with `sbatch {given.export}`; the run folder is {submission.folders[0]}")
    return 0


def submission_parser(name: str) -> CommandParser:
    """Return the parser of the options of a submission, which come before the name of the job."""
    parser = CommandParser(prog=f"deeplense {name}", description=COMMANDS[name].__doc__)
    parser.add_argument(
        "--on",
        required=True,
        metavar="CLUSTER",
        help="name of a cluster profile (`deeplense clusters` lists them); local is this machine",
    )
    for option, (kind, text) in OPTIONS.items():
        parser.add_argument(f"--{option}", type=kind, help=f"{text} (default: value of the profile)")
    parser.add_argument(
        "--restarts",
        type=budgets,
        default=None,
        metavar="REASON=N,...",
        help="maximum number of restarts without progress, per reason why an attempt ended; reasons: "
        + ", ".join(DEFAULT_RESTARTS),
    )
    parser.add_argument(
        "--folder",
        type=Path,
        help="folder for logs, code and attempts (default: the run folder; for jobs without one, launches/...)",
    )
    parser.add_argument("--dry_run", action="store_true", help="print the batch script and write nothing")
    parser.add_argument(
        "--export",
        type=Path,
        metavar="FILE",
        help="write a batch script that does not need submitit to FILE, and submit nothing",
    )
    parser.add_argument("--allow_untracked", action="store_true", help="also copy code files that git does not track")
    parser.add_argument(
        "--after",
        metavar="RUN[,RUN]",
        help="start only when these runs, or all runs in these folders, have finished; if one stops, wait until "
        "`deeplense resume` has finished it",
    )
    parser.add_argument("command", nargs=argparse.REMAINDER, metavar="JOB ...", help="the job and its settings")
    return parser


def budgets(text: str) -> dict[str, int]:
    """Parse restart budgets such as `crash=3,hang=1`."""
    pairs = [part.split("=") for part in text.split(",")]
    if any(len(pair) != 2 or not pair[1].isdigit() for pair in pairs):
        raise argparse.ArgumentTypeError(f"{text!r} is not of the form REASON=NUMBER,...; for example: crash=3,hang=1")
    return {name.strip().replace("_", " "): int(number) for name, number in pairs}


def chosen_cluster(given: argparse.Namespace) -> Cluster:
    """Return the cluster profile, with the options of the command line replacing its values."""
    cluster = find_cluster(given.on)
    given.image = given.image and str(Path(given.image).expanduser().absolute())
    return cluster.override(**{option: getattr(given, option) for option in OPTIONS}, restarts=given.restarts)


def pipeline(words: Sequence[str]) -> int:
    """Run the stages of a file, each after those whose results it needs: deeplense pipeline FILE.yaml [--on CLUSTER]"""
    from launch.pipelines.work import Request

    parser = CommandParser(prog="deeplense pipeline", description=pipeline.__doc__)
    parser.add_argument("file", type=Path, metavar="FILE.yaml", help="file of the stages; see docs/pipelines.md")
    parser.add_argument(
        "--on",
        metavar="CLUSTER",
        help="name of a cluster profile: submit each stage as a job (default: run them here, one after another)",
    )
    parser.add_argument("--dry_run", action="store_true", help="print what would run and why, and change nothing")
    parser.add_argument(
        "--again", default="", metavar="STAGE,...", help="run these stages again, and those that follow them"
    )
    parser.add_argument("--folder", type=Path, help="folder for records and logs (default: launches/FILE)")
    parser.add_argument("--allow_untracked", action="store_true", help="also copy code files that git does not track")
    given = parser.parse_args(words)
    again = tuple(name.strip() for name in given.again.split(",") if name.strip())
    home = (given.folder or Path("launches") / given.file.stem).absolute()
    kinds = {name: kind for name, (kind, _) in OPTIONS.items()}
    return run_pipeline(Request(given.file, given.on, again, home, kinds), given)


def run_pipeline(request: "Request", given: argparse.Namespace) -> int:
    """Print what is left to do for a pipeline, and do it unless --dry_run is given."""
    from launch.pipelines.jobs import submit_stages
    from launch.pipelines.work import Pipeline, run_here

    with contextlib.nullcontext() if given.dry_run else sole_writer(request.home):
        found = Pipeline(request)
        print("\n".join(found.describe()), flush=True)
        if given.dry_run:
            return 0
        if given.on is None:
            return run_here(found)
        return submit_stages(found, given.on, allow_untracked=given.allow_untracked)


def resume(words: Sequence[str]) -> int:
    """Resubmit runs that have ended, to the same cluster and with the same code: deeplense resume RUN ..."""
    from launch.submit import send_again

    parser = CommandParser(prog="deeplense resume", description=resume.__doc__)
    parser.add_argument("runs", type=Path, nargs="+", metavar="RUN", help="run folder")
    parser.add_argument(
        "--update_code", action="store_true", help="use the current code instead of the copy of the run"
    )
    parser.add_argument("--hours", type=float, help="time limit of one attempt, in hours (default: as before)")
    parser.add_argument(
        "--nodes",
        type=parse_nodes,
        help="number of nodes, or a range MIN:MAX (default: as before); the samples of each step stay the same, but a "
        "different number of processes sums gradients in another order and has other batch statistics, so the weights "
        "differ",
    )
    given = parser.parse_args(words)
    folders = {run.absolute(): run for run in given.runs}
    finished = [folder for folder in folders if (folder / FINISHED).exists()]
    runs = [folder for folder in folders if folder not in finished]
    sent = send_again(runs, hours=given.hours, nodes=given.nodes, update_code=given.update_code, tell=print)
    for folder, run in folders.items():
        told = f"{run}: {submitted(sent.get(folder))}{status.goes_on_from(folder)}"
        print(told if folder in sent else f"{run} is finished")
    return 0


def submitted(job_id: str | None) -> str:
    """Return the result of a submission as text: the job id, or that the run waits for its turn."""
    return f"submitted as job {job_id}" if job_id else "queued; starts when the runs before it have ended"


def show_status(words: Sequence[str]) -> int:
    """Show the state of runs and why their last attempts ended: deeplense status [RUN ...] [--watch [SECONDS]]"""
    parser = CommandParser(prog="deeplense status", description=show_status.__doc__)
    parser.add_argument(
        "runs",
        type=Path,
        nargs="*",
        metavar="RUN",
        help="run, or folder with runs (default: all runs below the current folder)",
    )
    parser.add_argument(
        "--attempts", action="store_true", help="also list the attempts of each run: nodes, processes, wait and steps"
    )
    parser.add_argument(
        "--watch",
        type=seconds_between_looks,
        nargs="?",
        const=SECONDS_OF_WATCH,
        metavar="SECONDS",
        help="keep showing them, also their places in the queue and their loss, until Ctrl-C; look again after this "
        f"number of seconds (default: {SECONDS_OF_WATCH:g})",
    )
    parser.add_argument(
        "--notices",
        action="store_true",
        help="first call the commands (`notify`) of your runs that stand still or whose end was not told; for cron. "
        "--watch does so, too",
    )
    given = parser.parse_args(words if words is DESCRIBE else with_value(words, "--watch", f"{SECONDS_OF_WATCH:g}"))
    roots = [root.absolute() for root in given.runs or [Path()]]
    folders = find_runs(roots)
    require(
        bool(folders) or given.watch is not None,
        f"no run found in or below {', '.join(map(str, given.runs or [Path()]))}; start one with `deeplense train` or "
        "`submit`.",
    )
    if given.watch is not None:
        from launch.sight.live import watch

        return watch(lambda: find_runs(roots), given.watch, told=tell_users)
    if given.notices:
        readings, _ = read_all(folders)
        tell_users(readings, ask(readings))
    print("\n".join(table(folders)))
    if given.attempts:
        print("\n".join(line for folder in folders for line in attempt_lines(folder)))
    return 0


def with_value(words: Sequence[str], option: str, value: str) -> list[str]:
    """Return the words with a value after an option that has none: the next word, such as a run, is not a number."""
    found = []
    for word, after in zip(words, [*words[1:], ""], strict=False):
        found.append(word)
        if word == option and not after.replace(".", "", 1).lstrip("-").isdecimal():
            found.append(value)
    return found


def seconds_between_looks(text: str) -> float:
    """Parse the time between two looks of `status --watch`."""
    seconds = float(text)
    if not LEAST_SECONDS_OF_WATCH <= seconds <= MOST_SECONDS_OF_WATCH:
        told = f"{text} is not from {LEAST_SECONDS_OF_WATCH:g} to {MOST_SECONDS_OF_WATCH:g}"
        raise argparse.ArgumentTypeError(told)
    return seconds


def report(words: Sequence[str]) -> int:
    """Write a page on runs: attempts, curves, hours used and lost: deeplense report RUN ... --output PAGE.html"""
    parser = CommandParser(prog="deeplense report", description=report.__doc__)
    parser.add_argument("runs", type=Path, nargs="+", metavar="RUN", help="run, or folder with runs")
    parser.add_argument(
        "--output",
        type=Path,
        default=Path("report.html"),
        metavar="PAGE.html",
        help="file to write (default: report.html)",
    )
    parser.add_argument("--title", help="title of the page (default: the names of the folders)")
    given = parser.parse_args(words)
    right = given.output.suffix in (".html", ".htm") and not given.output.is_dir()
    require(right, f"--output {given.output} must be a file that ends in .html.")
    folders = find_runs([run.absolute() for run in given.runs])
    require(bool(folders), f"no run found in or below {', '.join(map(str, given.runs))}.")
    from launch.sight.curves import curves_of
    from launch.sight.gathering import gather
    from launch.sight.page import write_page
    from launch.sight.proposal import paragraph

    found = gather(folders)
    title = given.title or f"Runs of {', '.join(run.absolute().name for run in given.runs)}"
    write_page(given.output, found, curves_of(found), title=title)
    print(f"{paragraph(found)}\npage: {given.output}")
    return 0


def logs(words: Sequence[str]) -> int:
    """Show the log of a run: deeplense logs RUN [--follow] [--rank K]"""
    parser = CommandParser(prog="deeplense logs", description=logs.__doc__)
    parser.add_argument("run", type=Path, metavar="RUN", help="run folder")
    parser.add_argument(
        "--rank",
        type=at_least(0),
        default=0,
        help="rank of the process (default: 0, whose log includes the batch script's output)",
    )
    parser.add_argument(
        "--follow", action="store_true", help="keep printing new lines until the run has left the queue"
    )
    given = parser.parse_args(words)
    run = launched(given.run.absolute())
    require(
        not run.by_hand,
        f"{given.run} was not submitted, so it has no log: its output is in the terminal where it was started; see "
        f"{given.run}/metrics.jsonl for its metrics.",
    )
    path = following.log_of(run, given.rank)
    if given.follow:
        for text in following.follow(run, given.rank):
            sys.stdout.write(text)
            sys.stdout.flush()
        return tell_standing(run)
    require(
        path.exists(),
        f"there is no log {path}: the run has not started, or it has no rank {given.rank}; check `deeplense status`.",
    )
    sys.stdout.write(path.read_text(errors="replace"))
    return tell_standing(run)


def tell_standing(run: "Launched") -> int:
    """Print below a log that the run has stopped and will not be restarted, if that is so and can be found out."""
    with contextlib.suppress(ValueError):
        for line in status.nobody_continues(run):
            sys.stderr.write(f"{line}\n")
    return 0


def cancel(words: Sequence[str]) -> int:
    """Cancel pending or running runs, without restart: deeplense cancel RUN ..."""
    parser = CommandParser(prog="deeplense cancel", description=cancel.__doc__)
    parser.add_argument(
        "runs", type=Path, nargs="+", metavar="RUN", help="run, or folder with runs, such as that of a job array"
    )
    given = dict.fromkeys(run.absolute() for run in parser.parse_args(words).runs)
    runs = {run.folder: run for folder in given for run in cancelling.to_cancel(folder)}
    ended = [run.folder for run in cancelling.cancel_all(list(runs.values()))]
    for folder in ended:
        print(f"{shown(folder)}: cancelled; `deeplense resume {shown(folder)}` resumes it")
    left = [folder for folder in runs if folder not in ended]
    require(not left, f"{shown(left[0]) if left else ''} is neither pending nor running; there is nothing to cancel.")
    return 0


def clusters(words: Sequence[str]) -> int:
    """List the cluster profiles: deeplense clusters"""
    CommandParser(prog="deeplense clusters", description=clusters.__doc__).parse_args(words)
    print("\n".join(describe(load_clusters())))
    return 0


def doctor(words: Sequence[str]) -> int:
    """Check whether a cluster is usable, and report what to change: deeplense doctor --on CLUSTER"""
    from launch.doctor import examine

    parser = CommandParser(prog="deeplense doctor", description=doctor.__doc__)
    parser.add_argument("--on", required=True, metavar="CLUSTER", help="name of a cluster profile")
    parser.add_argument("--run_job", action="store_true", help="also submit a small job that checks the nodes")
    given = parser.parse_args(words)
    findings = examine(find_cluster(given.on), run_job=given.run_job)
    for finding in findings:
        print(f"{finding.level:<7} {finding.text}")
    return 1 if any(finding.level == "wrong" for finding in findings) else 0


def sync(words: Sequence[str]) -> int:
    """Upload offline logs of runs to Weights & Biases: deeplense sync RUN ..."""
    parser = CommandParser(prog="deeplense sync", description=sync.__doc__)
    parser.add_argument("runs", type=Path, nargs="+", metavar="RUN", help="run folder")
    for run in parser.parse_args(words).runs:
        count = offline.sync(run)
        print(f"{run}: {count} attempts uploaded" if count else f"{run}: there are no offline logs")
    return 0


def completion(words: Sequence[str]) -> int:
    """Print the script for tab completion: deeplense completion bash|zsh|tcsh"""
    parser = CommandParser(prog="deeplense completion", description=completion.__doc__)
    parser.add_argument("shell", choices=("bash", "zsh", "tcsh"), help="the shell; the script says how to install it")
    given = parser.parse_args(words)
    from launch.completion import script

    print(script(given.shell, COMMANDS), end="")
    return 0


def demo(words: Sequence[str]) -> int:
    """Run the whole workflow on this machine: simulate, submit a training, interrupt it, resume it, evaluate it"""
    from launch.demo import demo as run_demo

    parser = CommandParser(prog="deeplense demo", description=demo.__doc__)
    parser.add_argument(
        "--output", type=Path, default=Path("demo"), help="folder for data, run and report (default: demo)"
    )
    return run_demo(parser.parse_args(words).output)


COMMANDS: dict[str, Callable[[Sequence[str]], int]] = {
    "submit": submit,
    "sweep": sweep,
    "pipeline": pipeline,
    "status": show_status,
    "report": report,
    "logs": logs,
    "cancel": cancel,
    "resume": resume,
    "clusters": clusters,
    "doctor": doctor,
    "sync": sync,
    "completion": completion,
    "demo": demo,
}

"""The copy of the code that a job runs: what is there now, all of it, and nothing that comes later."""

import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from deeplense.files import TEMPORARY
from launch import snapshot
from launch.snapshot import DIFF, RECORD, ROOT, hash_files, take_snapshot

FILES = {
    "deeplense/files.py": "files\n",
    "deeplense/deep/er.py": "deeper\n",
    "jobs/train.py": "train\n",
    "jobs/recipes/a recipe.yaml": "lr: 1\n",
    "launch/__main__.py": "main\n",
    "slurm_templates/job.sh": "srun\n",
    "containers/deeplense.def": "From: debian\n",
    "pyproject.toml": "[project]\n",
    "requirements.lock": "torch\n",
}
ELSEWHERE = {"README.md": "read\n", "tests/test_files.py": "test\n", ".gitignore": "__pycache__/\nlaunch/secret.py\n"}


def git(root: Path, *words: str) -> str:
    """What git prints."""
    owner = ("-c", "user.name=a", "-c", "user.email=a@b.c")
    done = subprocess.run(["git", "-C", root, *owner, *words], capture_output=True, text=True, check=True)
    return done.stdout.strip()


def write(root: Path, files: dict[str, str]) -> None:
    """Write files below a root."""
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)


def read(folder: Path) -> dict[str, str]:
    """The copied files and their text, without the snapshot's own."""
    names = {str(path.relative_to(folder)): path for path in folder.rglob("*") if path.is_file() or path.is_symlink()}
    return {name: path.read_text() for name, path in names.items() if name not in (RECORD, DIFF)}


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A work tree of a small project, all of it committed."""
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", os.devnull)
    root = tmp_path / "work tree"
    write(root, FILES | ELSEWHERE)
    git(root, "init", "--quiet")
    git(root, "add", "--all")
    git(root, "commit", "--quiet", "--message", "first")
    return root


@pytest.fixture
def code(tmp_path: Path) -> Path:
    """Where the snapshot goes."""
    return tmp_path / "runs" / "a run" / "code"


def test_what_a_job_needs_is_copied_and_nothing_else(root: Path, code: Path) -> None:
    record = take_snapshot(code, root=root)
    assert read(code) == FILES
    assert record == json.loads((code / RECORD).read_text())
    assert (record["commit"], record["dirty"]) == (git(root, "rev-parse", "HEAD"), False)
    assert (record["untracked"], record["num_files"]) == ([], len(FILES))
    assert not (code / DIFF).exists()
    assert [path.name for path in code.parent.iterdir()] == ["code"]


def test_later_edits_do_not_reach_it(root: Path, code: Path) -> None:
    record = take_snapshot(code, root=root)
    write(root, {"jobs/train.py": "edited\n"})
    (root / "deeplense/files.py").unlink()
    assert read(code) == FILES
    assert hash_files(code) == record["hash"]


def test_staged_and_unstaged_changes_and_deletions_are_in_it(root: Path, code: Path) -> None:
    changed = {"jobs/train.py": "unstaged\n", "launch/__main__.py": "staged\n", "launch/new.py": "added\n"}
    write(root, changed | {"README.md": "not of the code\n"})
    git(root, "add", "launch")
    (root / "deeplense/deep/er.py").unlink()
    git(root, "rm", "--quiet", "slurm_templates/job.sh")
    record = take_snapshot(code, root=root)
    gone = ("deeplense/deep/er.py", "slurm_templates/job.sh")
    assert read(code) == {name: text for name, text in (FILES | changed).items() if name not in gone}
    assert record["dirty"]
    assert "README" not in (code / DIFF).read_text()


@pytest.mark.parametrize("option", ["diff.noprefix", "diff.mnemonicPrefix", "color.ui"])
def test_the_commit_and_the_patch_give_the_same_code(option: str, root: Path, code: Path, tmp_path: Path) -> None:
    write(root, {"jobs/train.py": "edited\n", "launch/new name.py": "added\n"})
    (root / "jobs" / "bytes.yaml").write_bytes(bytes(range(256)))
    git(root, "add", "--all")
    (root / "deeplense/files.py").unlink()
    git(root, "config", option, "always" if option == "color.ui" else "true")
    record = take_snapshot(code, root=root)
    git(tmp_path, "clone", "--quiet", str(root), str(tmp_path / "clone"))
    git(tmp_path / "clone", "checkout", "--quiet", record["commit"])
    assert take_snapshot(tmp_path / "before", root=tmp_path / "clone")["hash"] != record["hash"]
    git(tmp_path / "clone", "apply", "--index", str(code / DIFF))
    assert take_snapshot(tmp_path / "after", root=tmp_path / "clone")["hash"] == record["hash"]


def test_a_change_elsewhere_leaves_the_code_clean(root: Path, code: Path) -> None:
    write(root, {"README.md": "edited\n", "tests/test_new.py": "untracked\n", "notes.py": "untracked\n"})
    assert not take_snapshot(code, root=root)["dirty"]
    assert read(code) == FILES


@pytest.mark.parametrize("name", ["jobs/new.py", "launch/a.yaml", "deeplense/a/b.html", "slurm_templates/x y.sh"])
def test_an_untracked_file_is_refused_and_named_or_copied_where_allowed(name: str, root: Path, code: Path) -> None:
    write(root, {name: "new\n"})
    with pytest.raises(ValueError, match=f"does not track '{name}'; `git add` or remove"):
        take_snapshot(code, root=root)
    assert not code.parent.exists()
    record = take_snapshot(code, root=root, allow_untracked=True)
    assert read(code) == FILES | {name: "new\n"}
    assert (record["untracked"], record["dirty"], (code / DIFF).read_text()) == ([name], True, "")


def test_of_many_untracked_files_some_are_named_and_all_counted(root: Path, code: Path) -> None:
    write(root, {f"jobs/new_{number:02}.py": "" for number in range(15)})
    with pytest.raises(ValueError, match=r"new_00\.py'.*new_09\.py' and 5 more;") as refused:
        take_snapshot(code, root=root)
    assert "new_10" not in str(refused.value)
    for number in range(10, 15):
        (root / f"jobs/new_{number}.py").unlink()
    with pytest.raises(ValueError, match=r"new_09\.py'; `git add`"):
        take_snapshot(code, root=root)


@pytest.mark.parametrize("allow", [True, False])
def test_ignored_files_and_notes_are_never_copied(allow: bool, root: Path, code: Path) -> None:
    write(root, {"jobs/__pycache__/a.py": "", "launch/secret.py": "", "jobs/notes.txt": "", "containers/a.sif": ""})
    take_snapshot(code, root=root, allow_untracked=allow)
    assert read(code) == FILES


def test_a_file_taken_out_of_git_but_still_there_is_untracked(root: Path, code: Path) -> None:
    git(root, "rm", "--quiet", "--cached", "jobs/train.py")
    with pytest.raises(ValueError, match=r"does not track 'jobs/train\.py'"):
        take_snapshot(code, root=root)


@pytest.mark.parametrize("name", ["a b.py", "new\nline.py", "'quoted' \"twice\".py", "-n.py", "été.py", "*.py"])
def test_any_name_is_copied(name: str, root: Path, code: Path) -> None:
    write(root, {f"jobs/{name}": "odd\n"})
    assert take_snapshot(code, root=root, allow_untracked=True)["untracked"] == [f"jobs/{name}"]
    git(root, "add", "--all")
    assert take_snapshot(code, root=root)["untracked"] == []
    assert read(code) == FILES | {f"jobs/{name}": "odd\n"}


def test_a_name_that_is_no_text_is_copied(root: Path, code: Path) -> None:
    name = os.fsdecode(b"jobs/\xff.py")
    write(root, {name: "odd\n"})
    take_snapshot(code, root=root, allow_untracked=True)
    assert read(code) == FILES | {name: "odd\n"}
    assert json.loads((code / RECORD).read_text())["untracked"] == [name]


def test_links_stay_links_and_modes_modes(root: Path, code: Path) -> None:
    (root / "jobs" / "alias.py").symlink_to("train.py")
    (root / "launch" / "templates").symlink_to("../slurm_templates")
    (root / "slurm_templates" / "job.sh").chmod(0o755)
    git(root, "add", "--all")
    take_snapshot(code, root=root)
    assert os.readlink(code / "jobs" / "alias.py") == "train.py"
    assert os.readlink(code / "launch" / "templates") == "../slurm_templates"
    assert os.access(code / "slurm_templates" / "job.sh", os.X_OK)
    assert not os.access(code / "jobs" / "recipes" / "a recipe.yaml", os.X_OK)


@pytest.mark.parametrize("target", ["../README.md", "{root}/jobs/train.py", "nowhere.py", "link.py", "/etc/hosts"])
def test_a_link_out_of_the_copy_is_refused(target: str, root: Path, code: Path) -> None:
    (root / "jobs" / "link.py").symlink_to(target.format(root=root))
    git(root, "add", "--all")
    with pytest.raises(ValueError, match=r"'jobs/link\.py' is a link to .*, outside the copy"):
        take_snapshot(code, root=root)
    assert list(code.parent.iterdir()) == []


def test_the_same_code_has_the_same_hash(root: Path, code: Path, tmp_path: Path) -> None:
    first = take_snapshot(code, root=root)
    for path in root.rglob("*.py"):
        os.utime(path, (1, 1))
    assert take_snapshot(tmp_path / "again", root=root) == first
    write(root, {"jobs/train.py": "edited\n"})
    assert take_snapshot(tmp_path / "edited", root=root)["hash"] != first["hash"]
    write(root, {"jobs/train.py": FILES["jobs/train.py"]})
    git(root, "commit", "--quiet", "--allow-empty", "--message", "second")
    second = take_snapshot(code, root=root)
    assert (second["hash"], second["commit"] == first["commit"]) == (first["hash"], False)


@pytest.mark.parametrize(
    "change",
    [
        lambda root: (root / "jobs/train.py").rename(root / "jobs/trained.py"),
        lambda root: (root / "jobs/train.py").unlink(),
        lambda root: write(root, {"jobs/train.py": "", "launch/__main__.py": "train\nmain\n"}),
        lambda root: write(root, {"jobs/empty.py": ""}),
        lambda root: ((root / "jobs/train.py").unlink(), (root / "jobs/train.py").symlink_to("../deeplense/files.py")),
    ],
)
def test_other_code_has_another_hash(change: Callable[[Path], Any], root: Path, code: Path) -> None:
    before = take_snapshot(code, root=root)["hash"]
    change(root)
    assert take_snapshot(code, root=root, allow_untracked=True)["hash"] != before


def test_compiled_files_do_not_change_the_hash_of_a_snapshot(root: Path, code: Path) -> None:
    record = take_snapshot(code, root=root)
    write(code, {"jobs/__pycache__/train.pyc": "compiled"})
    assert hash_files(code) == record["hash"]
    write(code, {"jobs/other.py": ""})
    assert hash_files(code) != record["hash"]


def test_an_earlier_snapshot_is_replaced_whole(root: Path, code: Path) -> None:
    write(root, {"jobs/train.py": "edited\n"})
    take_snapshot(code, root=root)
    git(root, "checkout", "--quiet", ".")
    (root / "launch/__main__.py").unlink()
    git(root, "commit", "--quiet", "--all", "--message", "second")
    take_snapshot(code, root=root)
    assert read(code) == {name: text for name, text in FILES.items() if name != "launch/__main__.py"}
    assert not (code / DIFF).exists()


def copy_and_die(root: str, code: str, num_copied: int) -> None:
    """Take a snapshot and be killed after so many files."""
    copy, calls = shutil.copy2, itertools.count()

    def copy_or_die(*told: Any, **options: Any) -> Any:
        return copy(*told, **options) if next(calls) < num_copied else os.kill(os.getpid(), signal.SIGKILL)

    snapshot.shutil.copy2 = copy_or_die
    take_snapshot(Path(code), root=Path(root))


@pytest.mark.parametrize("num_copied", [0, 4, len(FILES) - 1, len(FILES)])
@pytest.mark.parametrize("earlier", [True, False])
def test_one_killed_half_way_leaves_what_was_there_before(
    num_copied: int, earlier: bool, root: Path, code: Path
) -> None:
    if earlier:
        take_snapshot(code, root=root)
        write(root, {"jobs/train.py": "edited\n"})
    program = f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r}); import test_snapshot as t"
    command = f"{program}; t.copy_and_die({str(root)!r}, {str(code)!r}, {num_copied})"
    ended = subprocess.run([sys.executable, "-c", command], cwd=ROOT, timeout=60).returncode
    if num_copied == len(FILES):
        assert ended == 0
        assert read(code).keys() == FILES.keys()
        return
    assert ended == -signal.SIGKILL
    assert (read(code) == FILES) if earlier else not code.exists()
    left = [path.name for path in code.parent.iterdir() if path != code]
    assert [name.startswith(TEMPORARY) for name in left] == [True]
    take_snapshot(code, root=root)
    assert read(code)["jobs/train.py"] == (root / "jobs/train.py").read_text()


def test_outside_git_the_packages_are_copied(root: Path, code: Path, tmp_path: Path) -> None:
    site = tmp_path / "site-packages"
    write(site, FILES | {"jobs/__pycache__/train.pyc": "", "numpy/__init__.py": ""})
    record = take_snapshot(code, root=site)
    packages = {name: text for name, text in FILES.items() if name.split("/")[0] in ("deeplense", "jobs", "launch")}
    assert read(code) == packages
    assert (record["commit"], record["dirty"], record["num_files"]) == (None, False, len(packages))
    assert record["hash"] == hash_files(code)


def test_packages_installed_in_an_ignored_folder_of_a_work_tree_are_outside_git(root: Path, code: Path) -> None:
    write(root, {".gitignore": "/.venv/\n"})
    write(root / ".venv" / "lib", FILES)
    assert take_snapshot(code, root=root / ".venv" / "lib")["commit"] is None
    assert set(read(code)) < set(FILES)


def test_a_project_in_a_folder_of_a_larger_work_tree_is_found(root: Path, code: Path) -> None:
    write(root / "inner", FILES)
    git(root, "add", "--all")
    git(root, "commit", "--quiet", "--message", "inner")
    write(root / "inner", {"jobs/train.py": "edited\n"})
    assert take_snapshot(code, root=root / "inner")["dirty"]
    assert read(code) == FILES | {"jobs/train.py": "edited\n"}


def test_without_git_the_packages_are_copied(root: Path, code: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(root))
    assert take_snapshot(code, root=root)["commit"] is None


def test_a_folder_without_code_is_refused(tmp_path: Path, code: Path) -> None:
    with pytest.raises(ValueError, match=r"contains no code of deeplense"):
        take_snapshot(code, root=tmp_path)


def test_what_git_refuses_to_say_is_not_taken_for_a_folder_without_git(root: Path, code: Path) -> None:
    (root / ".git" / "index").write_bytes(b"torn")
    with pytest.raises(ValueError, match=r"git ls-files in .*index"):
        take_snapshot(code, root=root)


def test_variables_of_a_git_hook_do_not_mislead(
    root: Path, code: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    git(tmp_path, "init", "--quiet", "other")
    monkeypatch.setenv("GIT_DIR", str(tmp_path / "other" / ".git"))
    monkeypatch.setenv("GIT_INDEX_FILE", str(tmp_path / "other" / ".git" / "index"))
    take_snapshot(code, root=root)
    assert read(code) == FILES


def test_this_project_can_be_copied_and_its_copy_can_be_run(code: Path) -> None:
    take_snapshot(code, allow_untracked=True)
    words = [sys.executable, "-B", "-c", "import launch.snapshot as s; print(s.ROOT)"]
    done = subprocess.run(words, cwd=code, env=os.environ | {"PYTHONPATH": str(code)}, capture_output=True, text=True)
    assert (done.stdout.strip(), done.stderr) == (str(code.resolve()), "")
    assert (code / "jobs" / "recipes").is_dir()
    assert not (code / "tests").exists()

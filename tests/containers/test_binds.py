"""What a job sees in the real Apptainer of the folders that its settings name, behind links and from any folder."""

import os
import shlex
import subprocess
from pathlib import Path

import pytest
import yaml

from containers.image import privilege_flags, require_apptainer, small_image
from launch.clusters import Cluster
from launch.containers import container_words
from launch.submission import Submission


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    require_apptainer()
    return small_image(tmp_path_factory.mktemp("image"))


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project folder, the current one, whose data and runs lie elsewhere, behind links that lead to links."""
    project, deep = tmp_path / "home" / "project", tmp_path / "disk" / "deep"
    for folder in (project / "sub", deep / "data", deep / "runs", tmp_path / "links", tmp_path / "apart"):
        folder.mkdir(parents=True)
    (tmp_path / "links" / "disk").symlink_to(Path("..") / "disk")
    (tmp_path / "links" / "lustre").symlink_to(tmp_path / "links" / "disk" / "deep")
    (project / "data").symlink_to(tmp_path / "links" / "lustre" / "data")
    (project / "runs").symlink_to(Path("..") / ".." / "links" / "lustre" / "runs")
    for name in ("m1", "m2", "m3"):
        make_split(deep / "data" / name / "train")
    make_split(tmp_path / "apart" / "split")
    (deep / "data" / "m3" / "test").symlink_to(tmp_path / "apart" / "split")
    monkeypatch.chdir(project)
    return tmp_path


def make_split(folder: Path) -> None:
    """What is seen of a split."""
    folder.mkdir(parents=True)
    (folder / "manifest.json").write_text("{}")


def seen(image: Path, words: list[str], *commands: str) -> list[str]:
    """Which of these files a job of these commands can read in the image, as its settings name them."""
    # The folders of the test lie in /tmp, which Apptainer would show whole.
    apptainer = ["apptainer", "exec", *privilege_flags(), "--no-mount", "tmp,home"]
    cluster = Cluster(name="x", image=str(image), apptainer=shlex.join(apptainer))
    runs = [word.removeprefix("--run=") for line in commands for word in line.split() if word.startswith("--run=")]
    folders = tuple(Path(run).absolute() for run in runs)
    for folder in folders:
        (folder / "logs").mkdir(parents=True, exist_ok=True)
        (folder / "code").mkdir(exist_ok=True)
    home = folders[0]
    job = Submission(cluster, tuple(tuple(line.split()) for line in commands), folders, home / "logs", home / "code")
    script = "for path; do [ -e $path ] && echo $path; done; true"
    done = subprocess.run(
        [*container_words(job), "sh", "-c", script, "-", *words], capture_output=True, text=True, cwd=Path.cwd()
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


def test_a_run_and_its_data_behind_links_are_seen_as_they_are_written(image: Path, place: Path) -> None:
    files = ["data/m3/train/manifest.json", "data/m3/test/manifest.json", "runs/first/logs", "runs/first/code"]
    assert seen(image, files, "train --dataset=data/m3 --run=runs/first") == files


def test_from_another_folder_too(image: Path, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place / "apart")
    project = place / "home" / "project"
    files = [
        f"{project}/data/m3/train/manifest.json",
        f"{project}/data/m3/test/manifest.json",
        f"{project}/runs/a/logs",
    ]
    assert seen(image, files, f"train --dataset={project}/data/m3 --run={project}/runs/a") == files


def test_a_path_that_leads_up_from_the_end_of_a_link_leads_where_it_does_outside(
    image: Path, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(place / "home" / "project" / "sub")
    files = ["../data/../data/m2/train/manifest.json", "../data/m1/train/manifest.json"]
    command = "train --dataset=../data/../data/m2,../data/m1 --run=first"
    assert seen(image, files, command) == files


def test_all_data_sets_of_a_list_and_of_a_sweep_are_seen(image: Path, place: Path) -> None:
    data = place / "disk" / "deep" / "data"
    files = [f"{data}/{name}/train/manifest.json" for name in ("m1", "m2", "m3")]
    assert (
        seen(image, files, f"train --dataset={data}/m1,{data}/m2 --run=a", f"train --dataset={data}/m3 --run=b")
        == files
    )


def test_what_a_recipe_names_is_seen_and_the_recipe_and_what_a_run_names_that_is_used(image: Path, place: Path) -> None:
    (place / "recipe.yaml").write_text(f"dataset: {place}/links/lustre/data/m1\nmodel_name: resnet18\n")
    (place / "old").mkdir()
    (place / "old" / "config.yaml").write_text(yaml.safe_dump({"dataset": str(place / "links/lustre/data/m2")}))
    data = [f"{place}/links/lustre/data/{name}/train/manifest.json" for name in ("m1", "m2")]
    files = [f"{place}/recipe.yaml", f"{place}/old/config.yaml", *data]
    assert seen(image, files, f"train --config={place}/recipe.yaml --backbone={place}/old --run=first") == files


def test_what_nobody_names_is_not_seen(image: Path, place: Path) -> None:
    (place / "secret").mkdir()
    (place / "apart" / "other").touch()
    assert (
        seen(image, [str(place / "secret"), str(place / "apart" / "other")], "train --dataset=data/m3 --run=runs/first")
        == []
    )


@pytest.mark.parametrize("sign", [",", ":"])
def test_a_sign_that_apptainer_reads_as_the_end_of_a_path_is_refused(
    sign: str, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = place / f"my{sign}dir"
    folder.mkdir()
    job = Submission(
        Cluster(name="x", image="/x.sif"),
        (("train", "--dataset=d", f"--run={folder}/r"),),
        (folder / "r",),
        folder / "r" / "logs",
        folder / "r" / "code",
    )
    with pytest.raises(ValueError, match=f"reads the '{sign}' in it as a separator; rename the folder"):
        container_words(job)


def test_links_in_a_circle_are_told(place: Path) -> None:
    os.symlink("b", place / "a")
    os.symlink("a", place / "b")
    job = Submission(
        Cluster(name="x", image="/x.sif"), (("train", f"--run={place}/a/r", "--dataset=d"),), (place,), place, place
    )
    with pytest.raises(ValueError, match="symbolic links form a loop"):
        container_words(job)

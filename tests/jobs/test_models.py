"""The list of the zoo, and what is told of one architecture."""

import subprocess
import sys

import pytest

from deeplense.models.zoo import ARCHITECTURES
from jobs.models.settings import Settings
from jobs.models.work import run


def test_every_name_is_listed_with_its_facts_and_torch_is_not_needed(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(Settings()) == 0
    lines = capsys.readouterr().out.splitlines()
    for one in ARCHITECTURES.values():
        (line,) = [line for line in lines if line.startswith(f"{one.name} ")]
        assert f"{one.millions:.2f}" in line
        assert f"{one.padded(32)}, {one.padded(64)}, {one.padded(150)}" in line
        assert line.endswith(one.paper)
    code = "import sys; from jobs.models import settings, work; work.run(settings.Settings()); "
    code += "sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True).returncode == 0


@pytest.mark.parametrize(
    ("name", "image_size", "told"),
    [
        ("pit_tiny", 150, ["padded to 152", "timm.pit_ti_224", "transformer.yaml", "drop_path   yes"]),
        ("simple_cnn", 64, ["not resized", "deeplense.models.cnn.SimpleCNN", "cnn.yaml", "drop_path   no"]),
        ("test_resnet", 64, ["timm.test_resnet", "recipe      none"]),
    ],
)
def test_one_is_told_whole(name: str, image_size: int, told: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert run(Settings(name=name, image_size=image_size)) == 0
    printed = capsys.readouterr().out
    assert all(text in printed for text in told), printed


def test_an_unknown_name_is_answered_with_the_nearest_and_a_wrong_size_is_refused() -> None:
    with pytest.raises(ValueError, match="convit_tiny"):
        run(Settings(name="convit_tny"))
    with pytest.raises(ValueError, match="image_size=0"):
        Settings(image_size=0)

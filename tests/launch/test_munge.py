"""Questions to Slurm where munge is not what it should be, and accounts that Slurm does not look at."""

import socket
from pathlib import Path

import pytest

from launch import doctor, slurm
from launch.limits import Site, account_findings
from launch.slurm import refuse_dead_munge
from tests.launch.made_up import MINE, SITE, program


@pytest.fixture
def conf(tmp_path: Path) -> Path:
    """A slurm.conf that names a socket which a process has left behind."""
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(f"{tmp_path}/s")
    (tmp_path / "slurm.conf").write_text(f"ClusterName=x\n  authinfo = cred_expire=5,socket={tmp_path}/s,ttl=60\n")
    return tmp_path / "slurm.conf"


def test_munge_that_has_ended_is_told_at_once_before_slurm_is_asked(
    conf: Path, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program(here, "squeue", f"touch {here}/asked")
    monkeypatch.setenv("PATH", f"{here}:/usr/bin:/bin")
    with pytest.raises(
        ValueError, match=r"munge, the authentication service of Slurm, does not answer .*s: Connection refused"
    ):
        slurm.queued(str(conf))
    monkeypatch.setenv("SLURM_CONF", str(conf))
    with pytest.raises(ValueError, match="ask the administrators to start it, or use another login node"):
        slurm.queued(None)
    assert not (here / "asked").exists()


def test_munge_that_listens_or_is_none_of_ours_is_no_reason(conf: Path, tmp_path: Path) -> None:
    (tmp_path / "s").unlink()
    refuse_dead_munge(str(conf))
    refuse_dead_munge(str(tmp_path / "none.conf"))
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(f"{tmp_path}/s")
        listening.listen()
        refuse_dead_munge(str(conf))


def test_munge_that_hangs_is_told_by_doctor(conf: Path, here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (here / "s").unlink()
    for name in doctor.PROGRAMS:
        program(here, name, "sleep 60")
    program(here, "munge", "exec sleep 60")
    monkeypatch.setenv("PATH", f"{here}:/usr/bin:/bin")
    monkeypatch.setattr(doctor, "MUNGE_S", 0.2)
    with socket.socket(socket.AF_UNIX) as hanging:
        hanging.bind(f"{here}/s")
        hanging.listen()
        first, *_ = doctor.examine(MINE.override(slurm_conf=str(conf)))
    assert first.level == "wrong"
    assert "s: no answer in 0.2 s); ask the administrators" in first.text


def test_what_slurm_says_of_munge_is_told_in_words(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said = (
        "squeue: error: If munged is up, restart with --num-threads=10\\nsqueue: error: Munge encode failed: Failed to "
    )
    program(here, "squeue", f"printf '{said}access \"/x\": No such file\\nsqueue: error: auth_g_create\\n' >&2; exit 1")
    monkeypatch.setenv("PATH", f"{here}:/usr/bin:/bin")
    with pytest.raises(ValueError, match=r'does not run on this machine: Failed to access "/x": No such file$'):
        slurm.queued(None)


def site(enforced: str, accounts: dict[str, bool] | None) -> Site:
    """A cluster with these accounts."""
    return Site(dict(SITE.config) | {"AccountingStorageEnforce": enforced}, {}, {}, {}, accounts)


def test_an_account_is_looked_up_where_slurm_takes_every_one() -> None:
    def told(name: str, enforced: str = "none", accounts: dict[str, bool] | None = None) -> list[tuple[str, str]]:
        found = account_findings(MINE.override(account=name), site(enforced, accounts))
        return [(finding.level, finding.text) for finding in found]

    known = {"ours": True, "theirs": False}
    assert told("ours", accounts=known) == []
    assert told("our", "associations,limits", known) == []
    ((level, text),) = told("our", accounts=known)
    assert level == "wrong"
    assert "unknown account 'our'" in text
    assert "Did you mean ours?" in text
    ((level, text),) = told("theirs", accounts=known)
    assert (level, "is not one of yours" in text) == ("note", True)
    ((level, text),) = told("ours")
    assert (level, "cannot be checked" in text) == ("note", True)
    assert list(account_findings(MINE, site("none", known))) == []


def test_accounts_are_read_with_whether_they_are_ones_own(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program(here, "sacctmgr", 'printf "ours|\\nours|$(id -un)\\ntheirs|\\ntheirs|somebody\\n"')
    monkeypatch.setenv("PATH", f"{here}:/usr/bin:/bin")
    assert slurm.accounts(None) == {"ours": True, "theirs": False}
    program(here, "sacctmgr", "exit 1")
    assert slurm.accounts(None) is None

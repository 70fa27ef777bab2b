"""Sums over the attempts of runs: hours used, waited and lost, and the work that was lost, by cause."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from launch.ends import FINISHED
from launch.sight.spending import NO_ATTEMPT, RUNNING, Spell

HOUR = 3600.0
JOULES_PER_KWH = 3.6e6


@dataclass(frozen=True)
class Hours:
    """Hours of CPU cores and of GPUs."""

    cpu: float = 0.0
    gpu: float = 0.0

    def __add__(self, other: "Hours") -> "Hours":
        return Hours(self.cpu + other.cpu, self.gpu + other.gpu)


@dataclass(frozen=True)
class Loss:
    """What the ends of attempts for one reason cost.

    Args:
        cause: kind of the reason.
        ends: number of attempts that ended so.
        steps: number of steps that were lost.
        again: hours for these steps.
        restart: hours of the attempts that followed, without their steps.
        waited_h: hours in the queue until the attempts that followed.
    """

    cause: str
    ends: int
    steps: int
    again: Hours
    restart: Hours
    waited_h: float


@dataclass(frozen=True)
class Totals:
    """Sums over all attempts.

    Args:
        used: hours for which resources were held.
        kept: hours for steps that are in the results.
        again: hours for steps that were lost.
        first: hours of starting and ending of first attempts.
        restart: the same of later attempts, and of starts that made no attempt.
        waited_h: hours in the queue.
        waits_h: the single waits.
        energy_kwh: energy; None if it is not known of any attempt.
        share_with_energy: share of the used hours of cores of which the energy is known.
        attempts: number of attempts.
        begun: start of the first attempt, in seconds since the epoch; 0 if there is none.
        ended: end of the last one.
    """

    used: Hours
    kept: Hours
    again: Hours
    first: Hours
    restart: Hours
    waited_h: float
    waits_h: tuple[float, ...]
    energy_kwh: float | None
    share_with_energy: float
    attempts: int
    begun: float
    ended: float

    @property
    def lost(self) -> Hours:
        """Hours that an unbroken run would not have used."""
        return self.again + self.restart


def hours(spell: Spell, seconds: float) -> Hours:
    """Return the hours of the cores and GPUs of an attempt for some of its seconds."""
    return Hours(seconds * spell.cpus / HOUR, seconds * spell.gpus / HOUR)


def total(parts: Iterable[Hours]) -> Hours:
    """Return a sum of hours."""
    return sum(parts, Hours())


def totals_of(spells: Sequence[Spell]) -> Totals:
    """Return the sums over attempts."""
    firsts = first_attempts(spells)
    energy = [spell for spell in spells if spell.energy_j is not None]
    used = total(hours(spell, spell.seconds) for spell in spells)
    known = total(hours(spell, spell.seconds) for spell in energy)
    return Totals(
        used=used,
        kept=total(hours(spell, spell.kept_s) for spell in spells),
        again=total(hours(spell, spell.again_s) for spell in spells),
        first=total(hours(spell, spell.other_s) for spell in spells if id(spell) in firsts),
        restart=total(hours(spell, spell.other_s) for spell in spells if id(spell) not in firsts),
        waited_h=sum(spell.waited_s for spell in spells) / HOUR,
        waits_h=tuple(spell.waited_s / HOUR for spell in spells),
        energy_kwh=sum(spell.energy_j or 0.0 for spell in energy) / JOULES_PER_KWH if energy else None,
        share_with_energy=known.cpu / used.cpu if used.cpu else 0.0,
        attempts=sum(spell.number is not None for spell in spells),
        begun=min((spell.begun for spell in spells), default=0.0),
        ended=max((spell.ended for spell in spells), default=0.0),
    )


def first_attempts(spells: Sequence[Spell]) -> set[int]:
    """Return the identities of the first attempts of each run."""
    found: dict[str, int] = {}
    for spell in spells:
        if spell.number is not None:
            found.setdefault(spell.run, id(spell))
    return set(found.values())


def losses(spells: Sequence[Spell]) -> list[Loss]:
    """Return what was lost by cause, the most expensive first. The attempt that follows an end in the same run starts
    anew because of it."""
    causes: dict[str, list[tuple[Spell, Spell | None]]] = {}
    for spell, after in pairs(spells):
        if spell.cause not in (RUNNING, FINISHED):
            causes.setdefault(spell.cause, []).append((spell, after))
    found = [loss_of(cause, ends) for cause, ends in causes.items()]
    return sorted(found, key=lambda loss: -(loss.again.cpu + loss.restart.cpu))


def pairs(spells: Sequence[Spell]) -> list[tuple[Spell, Spell | None]]:
    """Return each attempt with the next one of the same run, if it has one; starts without an attempt alone."""
    runs: dict[str, list[Spell]] = {}
    for spell in spells:
        runs.setdefault(spell.run, []).append(spell)
    found: list[tuple[Spell, Spell | None]] = []
    for ours in runs.values():
        attempts = [spell for spell in ours if spell.number is not None]
        found += zip(attempts, [*attempts[1:], None], strict=True)
        found += [(spell, None) for spell in ours if spell.number is None]
    return found


def loss_of(cause: str, ends: Sequence[tuple[Spell, Spell | None]]) -> Loss:
    """Return what the ends of attempts for one reason cost. Of a start without an attempt, all hours are lost."""
    after = [spell for _, spell in ends if spell is not None] if cause != NO_ATTEMPT else [spell for spell, _ in ends]
    return Loss(
        cause,
        len(ends),
        sum(spell.again for spell, _ in ends),
        total(hours(spell, spell.again_s) for spell, _ in ends),
        total(hours(spell, spell.other_s) for spell in after),
        sum(spell.waited_s for spell in after) / HOUR,
    )

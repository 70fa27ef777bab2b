"""The simulation of a busy cluster: where it can be told what comes out, that comes out."""

import pytest

from tests.cluster import busy
from tests.cluster.busy import START_H, WORK_H, Cluster, Job, arrivals, run_through, speed, table


def on(width: int) -> float:
    """The hours of the run on so many nodes that nobody else wants."""
    return START_H + WORK_H / speed(width)


@pytest.mark.parametrize(("nodes", "width"), [((4, 4), 4), ((1, 4), 4), ((1, 1), 1), ((2, 8), 8)])
def test_alone_a_run_has_the_most_nodes_at_once(nodes: tuple[int, int], width: int) -> None:
    found = run_through([], nodes, limit_h=1000.0)
    assert found.hours == pytest.approx(on(width))
    assert found.waited == 0
    assert found.attempts == [(width, pytest.approx(on(width)))]


def test_a_time_limit_costs_a_start_and_a_requeue_each_time() -> None:
    found = run_through([], (4, 4), limit_h=10.0)
    restarts = len(found.attempts) - 1
    assert restarts == 2
    assert found.hours == pytest.approx(on(4) + restarts * (START_H + busy.HOLD_H))
    assert found.waited == pytest.approx(restarts * busy.HOLD_H)


def occupied(nodes: int, hours: float) -> list[tuple[float, Job]]:
    """Somebody has so many nodes from the beginning."""
    return [(0.0, Job(nodes, nodes, busy.WARM_UP_H + hours, 1e6))]


def test_where_two_nodes_are_free_a_range_runs_on_them_and_a_fixed_number_waits() -> None:
    others = occupied(busy.NUM_NODES - 2, 5.0)
    assert run_through(others, (1, 4), limit_h=1000.0).hours == pytest.approx(on(2))
    fixed = run_through(others, (4, 4), limit_h=1000.0)
    assert (fixed.hours, fixed.waited) == (pytest.approx(5.0 + on(4)), pytest.approx(5.0))
    # It keeps the width that it has, though more nodes become free: here the fixed number is sooner.
    assert fixed.hours < on(2)


def test_the_next_attempt_has_the_nodes_that_became_free() -> None:
    found = run_through(occupied(busy.NUM_NODES - 1, 3.0), (1, 4), limit_h=6.0)
    assert [width for width, _ in found.attempts[:2]] == [1, 4]


def test_an_urgent_job_takes_nodes_of_the_run_which_goes_on_with_those_that_are_left() -> None:
    urgent = Job(busy.NUM_NODES - 3, busy.NUM_NODES - 3, 1000.0, 2000.0, urgent=True)
    found = run_through([(busy.WARM_UP_H + 2.0, urgent)], (1, 4), limit_h=1000.0)
    assert [width for width, _ in found.attempts] == [4, 3]
    assert found.attempts[0][1] == pytest.approx(2.0)
    left = WORK_H - (2.0 - START_H) * speed(4)
    assert found.hours == pytest.approx(2.0 + busy.HOLD_H + START_H + left / speed(3))


def test_a_job_may_pass_the_first_of_the_queue_only_if_that_starts_no_later() -> None:
    cluster = Cluster(num_nodes=4)
    first, short, long, small = Job(4, 4, 1.0, 1.0), Job(1, 1, 1.0, 1.0), Job(1, 1, 9.0, 9.0), Job(1, 4, 1.0, 1.5)
    running = Job(2, 2, 2.0, 2.0, width=2)
    cluster.running.append(running)
    cluster.queue += [first, long, short, small]
    cluster.schedule()
    assert cluster.queue == [first, long]
    assert (short.width, small.width) == (1, 1)


@pytest.mark.parametrize("nodes", [(4, 4), (1, 4), (2, 8)])
@pytest.mark.parametrize("seed", range(3))
def test_no_node_has_two_jobs_all_work_is_done_and_a_seed_gives_the_same(
    nodes: tuple[int, int], seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    schedule, least_free, moments = Cluster.schedule, [], []

    def watched(cluster: Cluster) -> None:
        schedule(cluster)
        least_free.append(cluster.free)
        moments.append(cluster.now)
        assert all(job.least <= job.width <= job.most for job in cluster.running)
        assert not set(map(id, cluster.running)) & set(map(id, cluster.queue))

    monkeypatch.setattr(Cluster, "schedule", watched)
    found = run_through(arrivals(seed, 0.8), nodes, limit_h=6.0)
    assert min(least_free) >= 0
    assert moments == sorted(moments)
    done = sum((hours - START_H) * speed(width) for width, hours in found.attempts if hours > START_H)
    assert done == pytest.approx(WORK_H, rel=0.01)
    assert run_through(arrivals(seed, 0.8), nodes, limit_h=6.0) == found


def test_jobs_of_others_ask_for_the_load_that_is_given() -> None:
    jobs = [arrivals(seed, 0.7) for seed in range(8)]
    asked = sum(job.least * job.work for each in jobs for _, job in each)
    assert asked / (len(jobs) * busy.HORIZON_H * busy.NUM_NODES) == pytest.approx(0.7, rel=0.1)
    assert arrivals(0, 0.0) == []


def test_the_table_has_the_time_that_a_range_saves_of_that_of_four_nodes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(busy, "OTHERS", {"4:4": (4, 4), "8": (8, 8)})
    (*_, line) = table(range(2), [0.0], [1000.0])
    saved = round(100 * (1 - on(8) / on(4)))
    hours = [f"{on(width):.0f} h (0)" for width in (4, 4, 8)]
    assert line == f"| 0% | 1000 h | {hours[0]} | {hours[1]}, 0 % [0, 0] | {hours[2]}, {saved} % [{saved}, {saved}] |"

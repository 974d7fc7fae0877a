"""The command: what is missing is run, what is unknown is refused; statistics of paired seeds; Dask."""

import os
import signal
import time

import pytest
from click.testing import CliRunner

from experiments.claim import get_claim
from experiments.command import main
from experiments.estimate import duration, seconds_left
from experiments.execution import make_executor, on_dask
from experiments.runs import Record, Run
from experiments.statistics import holm, paired
from experiments.store import Store


def invoke(*arguments):
    return CliRunner().invoke(main, list(arguments), env={"COLUMNS": "100"})


def test_a_run_computes_what_is_missing_and_no_more(tmp_path, monkeypatch):
    claim, done = get_claim("epsilon"), []
    known = claim.store().records()
    monkeypatch.setattr("experiments.command.measure", lambda run: done.append(run.key) or known[run.key])
    monkeypatch.setattr("experiments.command.one_thread", lambda: None)
    for run in claim.runs()[:20]:
        claim.store(folder=tmp_path).append(known[run.key])
    assert " 20        24 " in invoke("status", "epsilon", "--store", str(tmp_path)).output
    result = invoke("run", "epsilon", "--store", str(tmp_path))
    assert result.exit_code == 0 and "epsilon: 4 runs in" in result.output
    assert done == [run.key for run in claim.runs()[20:]]
    assert invoke("run", "epsilon", "--store", str(tmp_path)).exit_code == 0 and len(done) == 4


@pytest.mark.parametrize(
    ("arguments", "says"),
    [(("run", "nothing"), "there is no claim 'nothing'; there are"),
     (("run", "epsilon", "--executor", "slurm"), "local and dask"),
     (("run", "epsilon", "--store", "bad"), "results.jsonl, line 1"),
     (("status", "epsilon", "--store", "bad"), "results.jsonl, line 1"),
     (("report", "epsilon", "--store", "bad", "--output", "page.md"), "results.jsonl, line 1"),
     (("status", "table5"), "--root DIRECTORY"),
     (("status", "table5", "--root", "."), "has no cifar-10-binary.tar.gz")],
)  # fmt: skip
def test_what_is_unknown_or_missing_is_said(arguments, says, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FPSIM_DATA", "")
    monkeypatch.delenv("FPSIM_DATA")
    monkeypatch.setattr("experiments.command.one_thread", lambda: None)
    (tmp_path / "bad" / "epsilon").mkdir(parents=True)
    (tmp_path / "bad" / "epsilon" / "results.jsonl").write_text("nothing\n")
    result = invoke(*arguments)
    assert result.exit_code != 0 and says in result.output and "Traceback" not in result.output


def test_more_seeds_are_more_runs_and_quick_ones_are_others():
    claim = get_claim("parity")
    full, more, quick = ({run.key for run in claim.runs(*size)} for size in (("full",), ("full", 40), ("quick",)))
    assert full < more and not full & quick


def test_estimates_are_of_the_same_arm():
    runs = [Run("c", {"arm": arm, "seed": seed}) for arm in "ab" for seed in range(3)]
    done = [Record(runs[0], {}, 2.0, {}), Record(runs[1], {}, 4.0, {})]
    assert seconds_left(done, runs[2:3]) == 3.0 and seconds_left(done, runs[2:5]) == 9.0
    assert seconds_left([], runs) is None
    assert [duration(x) for x in (None, 5, 600, 7200)] == ["?", "5 s", "10 min", "2.0 h"]


def test_paired_tests_against_worked_values():
    """Differences 1, 2, 3: mean 2, deviation 1, t(2) 97.5 % quantile 4.302653."""
    found = paired([2.0, 4.0, 6.0], [1.0, 2.0, 3.0], 0.5)
    assert (found.mean, found.deviation, found.count) == (2.0, 1.0, 3)
    assert round(found.high - found.mean, 4) == round(4.302653 / 3**0.5, 4)
    assert found.seeds_needed is None and paired([0.0, 1.0], [0.0, 0.0], 1.0).seeds_needed == 19
    assert paired([0.0, 3.0], [0.0, 0.0], 0.5).seeds_to_exclude == 37
    assert paired([0.0, 1.0], [0.0, 0.0], 1.0).seeds_to_exclude is None
    assert found.equivalent > 0.9 and 0.05 < found.different < 0.1
    assert found.outside == pytest.approx(1 - 6.75**0.5 / 8.75**0.5, abs=1e-12)  # t(2) has a distribution in closed form
    assert paired([0.0, 0.0, 0.0], [1.0, 2.0, 3.0], 0.5).outside == found.outside
    assert paired([0.0, 1.0], [0.0, 0.0], 2.0).outside == 1.0
    assert paired([1.0, 1.0], [1.0, 1.0], 0.5).equivalent == 0.0 and paired([2.0, 2.0], [1.0, 1.0], 0.5).equivalent == 1.0
    assert paired([1.0, 1.0], [1.0, 1.0], 0.5).outside == 1.0 and paired([2.0, 2.0], [1.0, 1.0], 0.5).outside == 0.0
    with pytest.raises(ValueError, match="at least two"):
        paired([1.0], [1.0], 0.5)


def test_holm_multiplies_by_what_is_left_and_never_falls():
    assert holm([0.01, 0.04, 0.03]) == [0.03, 0.06, 0.06]
    assert holm([0.5, 0.9]) == [1.0, 1.0]


def slow(run):
    time.sleep(0.1)
    return Record(run, {"square": run.seed**2}, 0.1, {})


def test_dask_is_asked_for_by_name():
    assert make_executor("dask://local", 1).__qualname__.startswith("on_dask")


@pytest.mark.exhaustive
def test_a_dask_worker_that_is_killed_costs_no_run(tmp_path):
    distributed = pytest.importorskip("distributed", reason="the extra `cluster` is not installed")
    runs, store = [Run("trivial", {"arm": "a", "seed": seed}) for seed in range(20)], Store(tmp_path / "results.jsonl")
    with distributed.LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None) as cluster:
        with distributed.Client(cluster) as client:
            workers = client.run(os.getpid)
        address = cluster.scheduler_address.removeprefix("tcp://")
        records = on_dask(f"dask://{address}")(store, runs, slow)
        first = next(records)
        os.kill(min(workers.values()), signal.SIGKILL)
        rest = list(records)
    assert {record.run.key for record in (first, *rest)} == set(store.records()) == {run.key for run in runs}

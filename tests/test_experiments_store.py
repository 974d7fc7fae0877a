"""The store of finished runs: whoever is killed when, what is finished is there, once, and a run continues where it stopped."""

import itertools
import multiprocessing
import os
import random
import signal
import time
from pathlib import Path

import pytest

from experiments.execution import in_processes, in_this_process, missing
from experiments.runs import Record, Run, canonical
from experiments.store import Store

RUNS = [Run("trivial", {"arm": "a", "seed": seed}) for seed in range(40)]


def square(run):
    return Record(run, {"square": run.seed**2}, 0.0, {})


def slow_square(run):
    time.sleep(0.002)
    return square(run)


def test_a_run_is_known_by_its_configuration_alone():
    one, other = Run("c", {"arm": "a", "seed": 1}), Run("c", {"seed": 1, "arm": "a"})
    assert one.key == other.key == "a3c75222ad905982"
    assert len({Run(c, {"arm": a, "seed": s}).key for c in "cd" for a in "ab" for s in (0, 1)}) == 8


def test_records_come_back_as_they_were(tmp_path):
    store = Store(tmp_path / "deep" / "results.jsonl")
    kept = [store.append(square(run)) for run in RUNS]
    assert list(Store(store.path).records().values()) == kept
    assert missing(store, RUNS) == []


def test_what_is_not_finite_is_refused():
    with pytest.raises(ValueError):
        canonical({"loss": float("nan")})


def test_a_second_result_is_kept_only_if_it_is_the_same(tmp_path):
    store = Store(tmp_path / "results.jsonl")
    first = store.append(square(RUNS[3]))
    assert store.append(Record(RUNS[3], {"square": 9}, 7.0, {"machine": "other"})) == first
    with pytest.raises(ValueError, match="gave two results"):
        store.append(Record(RUNS[3], {"square": 8}, 0.0, {}))
    assert len(store.records()) == 1


def test_a_line_cut_anywhere_costs_that_line_alone(tmp_path):
    store = Store(tmp_path / "results.jsonl")
    for run in RUNS[:3]:
        store.append(square(run))
    whole = store.path.read_bytes()
    last = whole[:-1].rindex(b"\n") + 1
    for cut in range(last, len(whole), 7):
        store.path.write_bytes(whole[:cut])
        again = Store(store.path)
        assert list(again.records()) == [run.key for run in RUNS[:2]]
        again.append(square(RUNS[2]))
        assert store.path.read_bytes() == whole


@pytest.mark.parametrize("edited", ["{", '{"key": "0"}\n', "not json\n"])
def test_what_is_no_record_is_named(tmp_path, edited):
    path = tmp_path / "results.jsonl"
    path.write_text(square(RUNS[0]).line() + edited.rstrip("\n") + "\n")
    with pytest.raises(ValueError, match=r"results\.jsonl, line 2"):
        Store(path).records()


def test_an_edited_configuration_and_a_doubled_line_are_refused(tmp_path):
    path, line = tmp_path / "results.jsonl", square(RUNS[1]).line()
    path.write_text(line.replace('"seed":1', '"seed":2'))
    with pytest.raises(ValueError, match="it was edited"):
        Store(path).records()
    path.write_text(line + line)
    with pytest.raises(ValueError, match="a second record"):
        Store(path).records()


def work(path, compute):
    for _ in in_this_process(Store(path), missing(Store(path), RUNS), compute):
        pass


def survive(path, kills, seed):
    """Kill a process that works on the runs, again and again, and let the last one finish; the finished runs after each."""
    chance = random.Random(seed)
    finished = []
    for _ in range(kills):
        read, write = os.pipe()
        child = os.fork()
        if child == 0:
            os.write(write, b"begun")
            work(path, slow_square)
            os._exit(0)
        os.read(read, 5)  # on a busy machine that takes longer than what follows
        os.close(read), os.close(write)
        time.sleep(chance.uniform(0, 0.01))
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        finished.append(set(Store(path).records()))
    work(path, square)
    return finished


def check_survival(path, kills, seed):
    finished = survive(path, kills, seed)
    assert all(before <= after for before, after in itertools.pairwise(finished)), "a finished run was lost"
    records = Store(path).records()
    assert {key: record.result for key, record in records.items()} == {run.key: {"square": run.seed**2} for run in RUNS}
    assert len(path.read_text().splitlines()) == len(RUNS)
    return finished


def test_twenty_kills_lose_nothing(tmp_path):
    finished = check_survival(tmp_path / "results.jsonl", 20, 0)
    assert 0 < len(finished[-1]) and len(set(map(len, finished))) > 3, "the kills came between runs"


@pytest.mark.exhaustive
def test_two_hundred_kills_lose_nothing(tmp_path):
    for seed in range(10):
        check_survival(tmp_path / str(seed) / "results.jsonl", 20, seed)


def test_several_processes_write_each_run_once(tmp_path):
    path = tmp_path / "results.jsonl"
    context = multiprocessing.get_context("fork")
    workers = [context.Process(target=work, args=(path, square)) for _ in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
        assert worker.exitcode == 0
    assert set(Store(path).records()) == {run.key for run in RUNS}
    assert len(path.read_text().splitlines()) == len(RUNS)


def test_local_processes_give_what_this_one_gives(tmp_path):
    one, two = Store(tmp_path / "one.jsonl"), Store(tmp_path / "two.jsonl")
    here = {record.run.key: record.result for record in in_this_process(one, RUNS[:6], square)}
    there = {record.run.key: record.result for record in in_processes(2)(two, RUNS[:6], square)}
    assert here == there == {key: record.result for key, record in two.records().items()}


def sleep(run):
    time.sleep(60)


def work_in_processes(path):
    list(in_processes(2)(Store(path), RUNS[:2], sleep))


def test_worker_processes_end_with_the_one_that_started_them(tmp_path):
    parent = multiprocessing.get_context("spawn").Process(target=work_in_processes, args=(tmp_path / "results.jsonl",))
    parent.start()
    locks = tmp_path / "results.jsonl.running"
    while not locks.exists() or len(list(locks.iterdir())) < 2:
        time.sleep(0.02)
        assert parent.is_alive()
    children = list(map(int, Path(f"/proc/{parent.pid}/task/{parent.pid}/children").read_text().split()))
    os.kill(parent.pid, signal.SIGKILL)
    parent.join()
    deadline = time.monotonic() + 5
    while any(Path(f"/proc/{child}/cmdline").exists() for child in children):
        assert time.monotonic() < deadline, "a worker outlived its parent"
        time.sleep(0.02)

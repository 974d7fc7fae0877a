"""The threads, torch's own or a pool: sizes, splitting, errors, forks, flush-to-zero."""

from __future__ import annotations

import multiprocessing
import os
import threading

import numpy as np
import pytest

import fpsim
from fpsim.backend import team, threads


@pytest.fixture(autouse=True)
def _usual_number() -> object:
    yield
    threads.set_num_threads(None)


@pytest.fixture(params=["team", "pool"])
def kind(request, monkeypatch):
    """Torch's threads, and the pool that there is without them."""
    if request.param == "team":
        pytest.importorskip("torch")
        if not team.is_there():
            pytest.skip("this torch has no team of threads that others can use")
    else:
        monkeypatch.setattr(team, "_start", False)


def test_ranges_cover_everything_once_in_order() -> None:
    threads.set_num_threads(3)
    for length in (0, 1, 5, 64, 101):
        for granule in (1, 4):
            ranges = threads.parts(length, 10**9, granule)
            assert [i for start, stop in ranges for i in range(start, stop)] == list(range(length))
            assert all(start % granule == 0 for start, _ in ranges)
    assert threads.parts(100, 1000) == [(0, 100)]


def test_number_of_threads() -> None:
    threads.set_num_threads(5)
    assert threads.get_num_threads() == 5
    threads.set_num_threads(None)
    torch = pytest.importorskip("torch")
    assert threads.get_num_threads() == torch.get_num_threads()
    for bad, error in ((0, ValueError), (True, TypeError), ("2", TypeError)):
        with pytest.raises(error, match="count"):
            threads.set_num_threads(bad)  # type: ignore[arg-type]


@pytest.mark.usefixtures("kind")
def test_the_first_error_of_tasks_reaches_the_caller() -> None:
    done = []

    def task(start: int, stop: int) -> None:
        if start:
            raise KeyError(start)
        done.append(start)

    with pytest.raises(KeyError, match="1"):
        threads.run(task, [(0, 1), (1, 2), (2, 3)])
    assert done == [0]


@pytest.mark.usefixtures("kind")
def test_tasks_run_at_the_same_time_on_threads_of_their_own() -> None:
    meeting = threading.Barrier(3, timeout=60)
    found = []

    def task(start: int, stop: int) -> None:
        meeting.wait()
        found.append((start, threading.get_ident(), threads.parts(100, 10**9)))

    threads.set_num_threads(3)
    threads.run(task, [(0, 1), (1, 2), (2, 3)])
    assert {start for start, _, _ in found} == {0, 1, 2}
    assert len({thread for _, thread, _ in found}) == 3
    assert all(split == [(0, 100)] for _, _, split in found)  # a task's own work is not split again
    assert len(threads.parts(100, 10**9)) == 3


def _product(_: int = 0) -> np.ndarray:
    x = fpsim.round(np.random.default_rng(0).standard_normal((128, 128)).astype(np.float32), "fp16")
    return fpsim.matmul(x, x, fmt="fp16", accumulate="fp16")


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
@pytest.mark.usefixtures("kind")
def test_a_forked_child_multiplies_as_its_parent() -> None:
    threads.set_num_threads(2)
    expected = _product()
    with multiprocessing.get_context("fork").Pool(2) as pool:
        for result in pool.map(_product, range(2)):
            assert np.array_equal(result, expected)


@pytest.mark.usefixtures("kind")
def test_concurrent_callers_get_their_own_results() -> None:
    threads.set_num_threads(2)
    expected, found = _product(), []
    callers = [threading.Thread(target=lambda: found.append(_product())) for _ in range(4)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    assert len(found) == 4 and all(np.array_equal(result, expected) for result in found)


def test_flush_to_zero_is_refused() -> None:
    torch = pytest.importorskip("torch")
    x = np.ones((2, 2), np.float32)
    if not torch.set_flush_denormal(True):
        pytest.skip("this processor has no such mode")
    try:
        with pytest.raises(ValueError, match="flush"):
            fpsim.matmul(x, x, fmt="fp16")
    finally:
        torch.set_flush_denormal(False)

"""Tasks on workers: all results in order, whoever computes them, whatever happens to them."""

import logging
import multiprocessing
import threading
import time
from concurrent.futures import BrokenExecutor, ThreadPoolExecutor

import pytest

import tasks
from fits import send
from pymc_flows.errors import ArgumentError, WorkerError
from pymc_flows.workers import Failed, Finished, Workers, run_tasks
from pymc_flows.workers.crews import Foreign

NAMES = [f"restart {i}" for i in range(4)]


def run(function, workers=None, shared=10, n=4):
    workers = workers or Workers(progressbar=False)
    return run_tasks(function, shared, range(n), workers, NAMES[:n])


def on(executor):
    return Workers(executor=executor, progressbar=False)


def values(tally):
    return [r.value if isinstance(r, Finished) else r for r in tally.results]


def test_results_come_in_the_order_of_the_tasks_whoever_computes_them():
    assert values(run(tasks.add)) == [10, 11, 12, 13]
    with ThreadPoolExecutor(3) as threads:
        assert values(run(tasks.add, on(threads))) == [10, 11, 12, 13]


@pytest.mark.parametrize("threads", [False, True])
def test_a_task_that_raises_leaves_the_others_alone(threads):
    with ThreadPoolExecutor(2) as executor:
        tally = run(tasks.fail_at_two, on(executor) if threads else None)
    assert [isinstance(r, Finished) for r in tally.results] == [True, True, False, True]
    assert isinstance(tally.results[2].error, ValueError)
    assert str(tally.results[2].error) == "two"


def test_an_error_that_cannot_travel_goes_as_text():
    class LocalError(Exception):
        pass

    def raise_it(shared, task):
        raise LocalError("here")

    [result] = run(raise_it, n=1).results
    assert isinstance(result.error, WorkerError)
    assert str(result.error) == "LocalError: here"


def test_warnings_of_a_task_are_part_of_its_result(caplog):
    caplog.set_level(logging.INFO)
    tally = run(tasks.speak, n=2)
    assert [r.messages for r in tally.results] == [
        ("logged 0", "warned 0"),
        ("logged 1", "warned 1"),
    ]
    assert [r.getMessage() for r in caplog.records] == ["quiet 0", "quiet 1"]
    logging.getLogger("pymc_flows.here").warning("as before")
    assert caplog.messages[-1] == "as before"


# --------------------------------------------------------------------------------------- interrupts


def test_an_interrupt_leaves_what_has_finished():
    tally = run(tasks.interrupt_at_one)
    assert values(tally) == [0, None, None, None]
    assert tally.is_interrupted


def test_a_task_that_an_interrupt_ends_in_good_order_has_a_result():
    tally = run(tasks.end_in_good_order_at_one)
    assert values(tally) == [0, "as far as it came", None, None]
    assert tally.is_interrupted


def test_an_interrupt_while_others_work_leaves_what_has_finished():
    go_on, all_begun = threading.Event(), threading.Event()

    class Slow(ThreadPoolExecutor):
        def submit(self, function, job, task):
            if task == 3:
                all_begun.set()
            return super().submit(lambda: function(job, task) if task < 1 else go_on.wait(20))

    with Slow(2) as executor:
        thread = send(0.5)
        begin = time.perf_counter()
        tally = run(tasks.add, on(executor))
        go_on.set()
        thread.join()
    assert time.perf_counter() - begin < 10
    assert values(tally) == [10, None, None, None]
    assert tally.is_interrupted
    assert all_begun.is_set()


# ------------------------------------------------------------------------------------- lost workers


def test_a_task_whose_worker_is_lost_is_run_once_more_and_named(caplog):
    executor = tasks.LosesWorkers({2: 1})
    assert values(run(tasks.add, on(executor))) == [10, 11, 12, 13]
    assert executor.order == [0, 1, 2, 3, 2]
    [record] = caplog.records
    assert record.getMessage() == (
        "A worker was lost that ran restart 2 (RuntimeError: gone): run again."
    )


def test_a_task_that_loses_its_worker_twice_fails_and_is_named():
    tally = run(tasks.add, on(tasks.LosesWorkers({1: 2})))
    assert values(tally)[:1] + values(tally)[2:] == [10, 12, 13]
    assert isinstance(tally.results[1], Failed)
    assert isinstance(tally.results[1].error, WorkerError)
    assert str(tally.results[1].error).startswith(
        "restart 1 has no result: it was begun 2 times, and its worker was lost (RuntimeError: gone"
    )


def test_an_executor_that_is_broken_fails_what_is_left():
    tally = run(tasks.add, on(tasks.Breaks({3: 1}, BrokenExecutor)))
    assert values(tally)[:3] == [10, 11, 12]
    assert isinstance(tally.results[3].error, WorkerError)


def test_an_executor_that_breaks_while_tasks_wait_may_be_renewed():
    class Renews(tasks.LosesWorkers):
        """One that is broken when task 1 first comes."""

        refusals = 1

        def submit(self, function, job, task):
            if task == 1 and self.refusals:
                self.refusals -= 1
                raise BrokenExecutor("broken")
            return super().submit(function, job, task)

    executor = Renews({0: 1}, BrokenExecutor)
    assert values(run(tasks.add, on(executor))) == [10, 11, 12, 13]


def test_a_result_that_is_lost_does_not_end_other_processes(monkeypatch):
    executor = tasks.LosesWorkers({1: 1}, TypeError)
    monkeypatch.setattr(Foreign, "renew", lambda crew: pytest.fail("no worker has died"))
    assert values(run(tasks.add, on(executor))) == [10, 11, 12, 13]


def test_processes_that_die_are_replaced(tmp_path, caplog):
    """Task 0 dies once, task 1 always; whoever runs beside them is innocent."""
    # Started as spawned processes are, but from one that has imported what they need.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tasks", "pymc_flows.workers"])
    workers = Workers(2, mp_ctx=context, blas_cores=4, progressbar=False)
    tally = run(tasks.die, workers, str(tmp_path), n=3)
    assert [isinstance(r, Failed) for r in tally.results] == [False, True, False]
    assert (values(tally)[0], values(tally)[2]) == ((0, {2}), (2, {2}))
    assert "restart 1 has no result: it was begun 2 times" in str(tally.results[1].error)
    assert "restart 0" in caplog.text


def test_processes_are_spawned_unless_told_otherwise():
    assert Workers(2).context.get_start_method() == "spawn"
    assert Workers(2, mp_ctx="forkserver").context.get_start_method() == "forkserver"


# ---------------------------------------------------------------------------------------- arguments


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"cores": 0}, "cores must be an integer of at least 1"),
        ({"cores": 2, "executor": tasks.LosesWorkers({})}, "give cores= or executor=, not both"),
        ({"executor": "dask"}, "executor must be a concurrent.futures.Executor, got 'dask'"),
        ({"executor": ThreadPoolExecutor}, "executor must be a concurrent.futures.Executor"),
        ({"mp_ctx": "sporn"}, "mp_ctx must be a multiprocessing context or one of"),
        ({"blas_cores": 0}, "blas_cores must be an integer"),
        ({"blas_cores": "all"}, "blas_cores must be an integer"),
    ],
)
def test_what_cannot_be_is_refused(arguments, message):
    with pytest.raises(ArgumentError, match=message):
        Workers(**arguments)


@pytest.mark.parametrize(
    ("cores", "blas_cores", "threads"), [(2, "auto", 1), (2, 8, 4), (4, 2, 1), (2, None, None)]
)
def test_threads_of_blas_are_shared_out(cores, blas_cores, threads):
    assert Workers(cores, blas_cores=blas_cores).blas_threads == threads

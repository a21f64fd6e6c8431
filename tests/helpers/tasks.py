"""Tasks for workers; processes import them from here."""

import logging
import os
import signal
import time
import warnings
from concurrent.futures import BrokenExecutor, Future
from pathlib import Path

import threadpoolctl


def add(shared, task):
    return shared + task


def fail_at_two(shared, task):
    if task == 2:
        raise ValueError("two")
    return task


def speak(shared, task):
    logging.getLogger("pymc_flows.here").warning("logged %d", task)
    logging.getLogger("pymc_flows.here").info("quiet %d", task)
    warnings.warn(f"warned {task}", UserWarning, stacklevel=2)
    return task


def interrupt_at_one(shared, task):
    if task == 1:
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(5)
    return task


def end_in_good_order_at_one(shared, task):
    try:
        return interrupt_at_one(shared, task)
    except KeyboardInterrupt:
        return "as far as it came"


def die(shared, task):
    """Task 0 kills its process the first time, task 1 each time."""
    mark = Path(shared) / f"{task}"
    if task == 1 or (task == 0 and not mark.exists()):
        mark.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    blas = [info for info in threadpoolctl.threadpool_info() if info["user_api"] == "blas"]
    return task, {info["num_threads"] for info in blas}


class LosesWorkers:
    """An executor that loses the tasks that it is told, so many times each."""

    def __init__(self, losses, error=RuntimeError):
        self.left, self.error, self.order = dict(losses), error, []

    def submit(self, function, job, task):
        self.order.append(task)
        future = Future()
        if self.left.get(task, 0):
            self.left[task] -= 1
            future.set_exception(self.error("gone"))
        else:
            future.set_result(function(job, task))
        return future


class Breaks(LosesWorkers):
    """One that takes no further tasks once it has broken."""

    def submit(self, function, job, task):
        if task in self.order or any(i in self.order for i in self.left):
            raise BrokenExecutor("broken")
        return super().submit(function, job, task)

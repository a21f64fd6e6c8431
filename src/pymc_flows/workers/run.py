"""`run_tasks`: all results, in the order of the tasks."""

from __future__ import annotations

import logging
from collections import Counter, deque
from collections.abc import Sequence
from concurrent.futures import FIRST_COMPLETED, BrokenExecutor, Future, wait
from dataclasses import dataclass
from typing import Any

from pymc_flows.errors import WorkerError
from pymc_flows.support.interrupts import Interrupts
from pymc_flows.workers.attempt import Failed, Function, Result, attempt
from pymc_flows.workers.crews import Crew, Foreign, Job, Pool
from pymc_flows.workers.options import Workers, listed
from pymc_flows.workers.progress import TaskProgress

_log = logging.getLogger(__name__)

# A worker may have died by chance or because of its task, so the task is tried once more.
ATTEMPTS = 2


@dataclass
class Tally:
    """The results of tasks.

    Attributes
    ----------
    results : list of Finished, Failed or None
        In the order of the tasks; None for tasks that an interrupt prevented.
    is_interrupted : bool
        Whether a Ctrl-C ended the run.
    """

    results: list[Result]
    is_interrupted: bool = False


def run_tasks(
    function: Function, shared: Any, tasks: Sequence[Any], workers: Workers, names: Sequence[str]
) -> Tally:
    """Run ``function(shared, task)`` for each task.

    A task that raises does not end the others. A task whose worker dies is run once more. A Ctrl-C
    ends all tasks, and keeps the results of those that have finished; in this process also that of
    the running task, if it returns a result when it is interrupted.

    Parameters
    ----------
    function : callable
    shared : object
        Anything that cloudpickle can pack, such as a model.
    tasks : sequence
        Anything that pickle can pack.
    workers : Workers
    names : sequence of str
        Names of the tasks, for messages and the progress bar.

    Returns
    -------
    Tally
    """
    tally = Tally([None] * len(tasks))
    with TaskProgress(len(tasks), show=workers.progressbar) as bar:
        if workers.are_here:
            _run_here(function, shared, tasks, names, tally, bar)
            return tally
        job, crew = Job.of(function, shared), _crew(workers, len(tasks))
        try:
            with Interrupts(deferred=False):
                _Round(crew, job, tasks, names, tally, bar).run()
        except KeyboardInterrupt:
            tally.is_interrupted = True
        finally:
            crew.stop()
    return tally


def _crew(workers: Workers, n_tasks: int) -> Crew:
    if workers.executor is not None:
        return Foreign(workers.executor)
    return Pool(workers, min(workers.cores, n_tasks))


def _run_here(
    function: Function,
    shared: Any,
    tasks: Sequence[Any],
    names: Sequence[str],
    tally: Tally,
    bar: TaskProgress,
) -> None:
    try:
        for i, task in enumerate(tasks):
            bar.show(names[i])
            # A fit that a Ctrl-C ends returns what it has; then this block raises.
            with Interrupts(deferred=False):
                tally.results[i] = attempt(function, shared, task)
            bar.advance()
    except KeyboardInterrupt:
        tally.is_interrupted = True


class _Round:
    """Gives tasks to workers, and takes results."""

    def __init__(
        self,
        crew: Crew,
        job: Job,
        tasks: Sequence[Any],
        names: Sequence[str],
        tally: Tally,
        bar: TaskProgress,
    ):
        self._crew, self._job, self._tasks, self._names = crew, job, tasks, names
        self._results, self._bar = tally.results, bar
        self._waiting = deque(range(len(tasks)))
        self._running: dict[Future[Any], int] = {}
        self._attempts: Counter[int] = Counter()

    def run(self) -> None:
        """Go on until every task has a result."""
        while self._waiting or self._running:
            self._fill()
            if not self._running:
                continue
            done, _ = wait(self._running, return_when=FIRST_COMPLETED)
            lost = self._take(done)
            if any(isinstance(error, BrokenExecutor) for error in lost.values()):
                # A broken executor fails all its tasks.
                wait(self._running)
                lost |= self._take(set(self._running))
                self._crew.renew()
            if lost:
                self._try_again(lost)
            self._bar.show(listed([self._names[i] for i in self._running.values()], 4))

    def _fill(self) -> None:
        # One by one after a loss, which shows which task the worker died of.
        is_second = any(self._attempts[i] for i in self._waiting) or any(
            self._attempts[i] > 1 for i in self._running.values()
        )
        width = self._crew.width_after_loss if is_second else self._crew.width
        while self._waiting and len(self._running) < width:
            i = self._waiting.popleft()
            self._attempts[i] += 1
            try:
                self._running[self._crew.submit(self._job, self._tasks[i])] = i
            except BrokenExecutor as error:
                if self._running:  # these fail too, and then there may be new workers
                    self._attempts[i] -= 1
                    self._waiting.appendleft(i)
                    return
                self._give_up([i, *self._waiting], error)
                self._waiting.clear()

    def _take(self, done: set[Future[Any]]) -> dict[int, BaseException]:
        """Keep results; return the tasks without one, and the reasons."""
        lost: dict[int, BaseException] = {}
        for future in done:
            i = self._running.pop(future)
            try:
                self._results[i] = future.result()
            except Exception as error:  # of the worker: an error of the task is a result
                lost[i] = error
            else:
                self._bar.advance()
        return lost

    def _try_again(self, lost: dict[int, BaseException]) -> None:
        again = sorted(i for i in lost if self._attempts[i] < ATTEMPTS)
        for i in sorted(set(lost) - set(again)):
            self._give_up([i], lost[i])
        if again:
            _log.warning(
                "A worker was lost that ran %s (%s): run again.",
                listed([self._names[i] for i in again]),
                _brief(lost[again[0]]),
            )
        self._waiting.extendleft(reversed(again))

    def _give_up(self, tasks: Sequence[int], error: BaseException) -> None:
        for i in tasks:
            name, times = self._names[i], self._attempts[i]
            often = f"{times} times" if times > 1 else "once"
            self._results[i] = Failed(
                WorkerError(
                    f"{name} has no result: it was begun {often}, and its worker was lost "
                    f"({_brief(error)})\nIf memory ran out, use fewer cores. A script must start "
                    "processes under `if __name__ == '__main__':`."
                )
            )
            self._bar.advance()


def _brief(error: BaseException) -> str:
    text = str(error).strip().splitlines()
    return f"{type(error).__name__}: {text[0][:200]}" if text else type(error).__name__

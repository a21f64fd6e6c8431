"""Serialising an approximation together with its model: cloudpickle can, pickle cannot."""

from __future__ import annotations

from typing import Any

import cloudpickle


class OnlyCloudpickle:
    """Pickles with cloudpickle alone, which PyMC models need; plain pickle's error says so."""

    def __reduce__(self) -> Any:
        def guard() -> None:
            return None

        # Plain pickle looks a function up by this name and quotes it when that fails;
        # cloudpickle then pickles it by value.
        guard.__qualname__ = guard.__name__ = (
            "a NormalizingFlow: a PyMC model cannot be pickled with pickle, "
            "use cloudpickle.dumps(approx)"
        )
        return guard, ()


def deep_copy[T](thing: T) -> T:
    """Copy something that holds graphs of a model, together with the model.

    `copy.deepcopy` lets PyMC clone the model by itself, and graphs that are copied apart from it
    belong to neither model. Serialised together they stay together.
    """
    return cloudpickle.loads(cloudpickle.dumps(thing))

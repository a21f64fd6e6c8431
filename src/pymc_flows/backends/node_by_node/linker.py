"""`ArrayLinker`: one NumPy call after the other."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from pymc_flows.backends.node_by_node.buffers import share_buffers
from pymc_flows.backends.node_by_node.thunks import thunk_of
from pymc_flows.support.compat import PerformLinker, raise_with_op


class ArrayLinker(PerformLinker):
    """Runs a graph node by node, most nodes by thunks of `thunk_of`, the others by PyTensor's.

    NumPy neither warns nor raises while a function runs, whatever the caller's ``errstate`` says:
    overflow and NaN are for those who read the results.
    """

    def make_all(self, *args: Any, **kwargs: Any) -> tuple[Any, ...]:
        """Do what PyTensor's linker does, with other thunks."""
        plain, inputs, outputs, thunks, order = super().make_all(*args, **kwargs)
        buffers = share_buffers(self.fgraph, order)
        # Lazy Ops ask whether their inputs are there, which PyTensor's thunks alone record.
        asked = {
            variable
            for node, thunk in zip(order, thunks, strict=True)
            if getattr(thunk, "lazy", False)
            for variable in node.inputs
        }
        for i, node in enumerate(order):
            if not asked.isdisjoint(node.outputs):
                continue
            cells = thunks[i].inputs, thunks[i].outputs
            found = thunk_of(node, *cells, buffers.get(node))
            if found is not None:
                found.inputs, found.outputs = cells  # type: ignore[attr-defined]
                thunks[i] = found
        run = self._program(thunks, order, plain.storage_map, [c.storage for c in outputs])
        run.allow_gc, run.storage_map = plain.allow_gc, plain.storage_map  # type: ignore[attr-defined]
        return run, inputs, outputs, thunks, order

    def _program(
        self,
        thunks: list[Any],
        order: list[Any],
        storage_map: dict[Any, Any],
        outputs: list[list[Any]],
    ) -> Callable[[], list[Any]]:
        """Run all thunks; let go of results that no later thunk reads."""
        fgraph = self.fgraph
        last = {variable: node for node in order for variable in node.inputs}
        kept = {*fgraph.outputs, *fgraph.inputs}
        dead = [
            [
                storage_map[variable]
                for variable in dict.fromkeys(node.inputs)
                if variable.owner is not None and variable not in kept and last[variable] is node
            ]
            for node in order
        ]
        fresh = [storage_map[v] for v in self.no_recycling if v not in fgraph.inputs]
        steps = list(zip(thunks, dead, order, strict=True))

        def run() -> list[Any]:
            for cell in fresh:
                cell[0] = None
            with np.errstate(all="ignore"):
                try:
                    for thunk, cells, node in steps:  # noqa: B007 - named by an error
                        thunk()
                        for cell in cells:
                            cell[0] = None
                except Exception:
                    raise_with_op(fgraph, node, thunk)
            return [cell[0] for cell in outputs]

        return run

"""A loop that NumPy has no function for: it adds weighted outer products of sparse rows."""

from __future__ import annotations

from functools import cache
from typing import Any


@cache
def outer_products() -> Any:
    """Return the kernel; numba is imported and compiles it at the first call."""
    from numba import njit

    @njit(cache=True, nogil=True)
    def kernel(  # type: ignore[no-untyped-def]
        out,
        weights,
        left,
        right,
        table,
        begin,
        places,
        same,
        p_left,
        c_left,
        d_left,
        p_right,
        c_right,
        d_right,
    ):
        """Add weights[t] · row left[t] of one matrix ⊗ row right[t] of another, symmetrised.

        ``places[begin[table[t]]:]`` are the positions of the products in ``out``, which holds lower
        triangles. With ``same`` both matrices are one, and only columns i ≥ j are paired. Rows of
        ``out`` and ``weights`` are points; the matrices have values for each point, or one for all.
        """
        for point in range(len(weights)):
            at_left = point if len(d_left) > 1 else 0
            at_right = point if len(d_right) > 1 else 0
            for t in range(weights.shape[1]):
                w = weights[point, t]
                if w == 0.0:
                    continue
                k = begin[table[t]]
                r0, r1 = p_right[right[t]], p_right[right[t] + 1]
                for a in range(p_left[left[t]], p_left[left[t] + 1]):
                    wa = w * d_left[at_left, a]
                    stop = r0 + (a - p_left[left[t]]) + 1 if same else r1
                    for b in range(r0, stop):
                        v = wa * d_right[at_right, b]
                        if not same and c_left[a] == c_right[b]:
                            v *= 2.0
                        out[point, places[k]] += v
                        k += 1

    return kernel

"""Which tests are left out where JAX is missing."""

import numpy as np
import pytest

import fits
from needs_jax import uses_jax

ON_JAX = {"backend": "jax"}


def by_constant():
    return dict(backend="jax")  # noqa: C408


def by_default(backend="jax"):
    return backend


def by_default_of_name(*, backend="jax"):
    return backend


def by_import():
    import jax

    return jax


def by_program():
    return "import sys\nimport jax\n"


def by_global():
    return ON_JAX


def by_helper():
    return by_global()


def by_inner_function():
    return [by_helper() for _ in range(2)]


def by_another_module():
    return fits.JAX


@pytest.fixture
def by_fixture():
    return by_constant()


class ByMethod:
    def run(self):
        return by_constant()


def without():
    """Nothing here is "jax"."""
    return np.ones(2), fits.ADAM, helper_without()


def helper_without():
    return "jaxen", {"backend": "numba"}


@pytest.mark.parametrize(
    "function",
    [
        by_constant,
        by_default,
        by_default_of_name,
        by_import,
        by_program,
        by_global,
        by_helper,
        by_inner_function,
        by_another_module,
        ByMethod,
    ],
)
def test_what_names_jax_needs_it(function):
    assert uses_jax(function, set())


def test_what_does_not_name_it_runs():
    assert not uses_jax(without, set())


def test_fixtures_are_looked_at(request, by_fixture):
    assert request.node.get_closest_marker(by_fixture["backend"]) is not None


@pytest.mark.parametrize("backend", ["jax", "pm.fit on JAX", "NumPyro", "numba"])
def test_parameters_are_looked_at(backend, request):
    markers = [marker.name for marker in request.node.iter_markers()]
    assert markers.count("j" + "ax") == (backend != "numba")

"""What JAX compiles is kept on disk, and JAX is left as it was."""

import numpy as np
import pytest

from pymc_flows.backends import jax as backend

pytestmark = pytest.mark.jax
jax = pytest.importorskip("jax")
NAMES = ("jax_compilation_cache_dir", "jax_persistent_cache_min_compile_time_secs")


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setattr(backend, "cache_folder", lambda: tmp_path)
    monkeypatch.setattr(backend, "LEAST_SECONDS", 0.0)
    return tmp_path


def settings():
    return [getattr(jax.config, name) for name in NAMES]


@pytest.fixture
def user_settings():
    """Puts back what a test sets as a user would."""
    before = {n: getattr(jax.config, n) for n in (*NAMES, "jax_enable_compilation_cache")}
    jax.config.update("jax_compilation_cache_dir", None)
    yield
    for name, value in before.items():
        jax.config.update(name, value)


def compiled(shift):
    return float(jax.jit(lambda x: x + shift)(1.0))


@pytest.mark.usefixtures("user_settings")
def test_what_is_compiled_in_the_block_is_kept_and_found_again(folder):
    before = settings()
    with backend.kept_on_disk():
        assert compiled(0.123) == pytest.approx(1.123)
        assert settings() == [str(folder), 0.0]
    assert settings() == before
    [kept] = folder.glob("*-cache")
    written = kept.stat().st_mtime_ns
    assert compiled(0.456) == pytest.approx(1.456)  # outside: not kept
    jax.clear_caches()
    with backend.kept_on_disk():
        assert compiled(0.123) == pytest.approx(1.123)
    assert [p.stat().st_mtime_ns for p in folder.glob("*-cache")] == [written]


@pytest.mark.usefixtures("user_settings")
@pytest.mark.parametrize(
    ("name", "value"),
    [("jax_compilation_cache_dir", "elsewhere"), ("jax_enable_compilation_cache", False)],
)
def test_what_the_user_has_said_of_the_cache_stays(folder, tmp_path_factory, name, value):
    if isinstance(value, str):
        value = str(tmp_path_factory.mktemp(value))
    jax.config.update(name, value)
    with backend.kept_on_disk():
        assert compiled(np.random.default_rng(0).random()) > 1
        assert getattr(jax.config, name) == value
    assert not list(folder.iterdir())


@pytest.mark.usefixtures("user_settings")
def test_an_error_in_the_block_leaves_jax_as_it_was(folder):
    before = settings()
    with pytest.raises(ZeroDivisionError), backend.kept_on_disk():
        raise ZeroDivisionError
    assert settings() == before

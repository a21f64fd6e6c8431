"""Skipped tests fail in continuous integration, and only there."""

import os
import subprocess
import sys
from pathlib import Path

import skips

TESTS = f"""
import pytest

def test_runs():
    pass

def test_lacks_a_library():
    pytest.importorskip("no_such_library")

@pytest.mark.skip(reason="not today")
def test_is_put_off():
    pass

@pytest.mark.skipif(True, reason={skips.ALLOWED[0]!r})
def test_may_be_skipped():
    pass

@pytest.mark.xfail
def test_known_to_fail():
    raise ValueError
"""
MODULE = 'import pytest\n\npytest.importorskip("no_such_library")\n'


def run(folder: Path, ci: str) -> tuple[int, str]:
    """Run the tests in a process of their own; return the exit code and the output."""
    (folder / "test_functions.py").write_text(TESTS, "utf-8")
    (folder / "test_module.py").write_text(MODULE, "utf-8")
    flags = [
        "-p",
        "skips",
        "-p",
        "no:cacheprovider",
        "-q",
        "-rfE",
        "--continue-on-collection-errors",
    ]
    environment = {
        "CI": ci,
        "PYTHONPATH": str(Path(skips.__file__).parent),
        "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",
    }
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *flags],
        cwd=folder,
        env=os.environ | environment,
        capture_output=True,
        text=True,
    )
    return done.returncode, done.stdout


def test_skips_pass_on_a_developers_machine(tmp_path):
    code, out = run(tmp_path, "")
    assert (code, "1 passed, 4 skipped, 1 xfailed" in out) == (0, True), out


def test_skips_fail_in_continuous_integration(tmp_path):
    """A skip by mark is met in the set-up of its test, and that of a module in collection."""
    code, out = run(tmp_path, "true")
    assert (code, "1 failed, 1 passed, 1 skipped, 1 xfailed, 2 errors" in out) == (1, True), out
    missing = "was skipped: Skipped: could not import 'no_such_library'"
    assert f"test_lacks_a_library {missing}" in out
    assert "test_is_put_off was skipped: Skipped: not today" in out
    assert f"test_module.py {missing}" in out

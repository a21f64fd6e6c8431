"""Rows on eight devices of one process, and of two processes, one device each.

Two programs run once (``helpers/on_devices.py``); the tests look at what they have found.
"""

import json
import os
import socket
import subprocess
import sys

import pytest

FLAGS = "--xla_force_host_platform_device_count=8"
SECONDS = 300


@pytest.fixture(scope="module")
def found():
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    both = [
        subprocess.Popen(
            [sys.executable, "-c", f"import jax, on_devices; on_devices.main({port}, {process})"],
            env={**os.environ, "XLA_FLAGS": flags, "PYTHONPATH": os.pathsep.join(sys.path)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for process, flags in enumerate([FLAGS, ""])
    ]
    try:
        (out, errors), (_, errors_there) = (each.communicate(timeout=SECONDS) for each in both)
    finally:
        for each in both:
            each.kill()
    assert [each.returncode for each in both] == [0, 0], errors + errors_there
    return json.loads(out.strip().splitlines()[-1])


@pytest.mark.parametrize("where", ["two", "eight"])
def test_losses_are_those_of_one_device(found, where):
    losses = found["losses"]
    assert len(losses[where]) == 100
    assert losses[where] == pytest.approx(losses["one"], rel=0, abs=1e-8)


def test_each_device_has_its_share_of_the_rows(found):
    whole = 80 * 3 * 8
    assert found["bytes"] == {
        "one": [whole, whole],
        "two": [whole, whole // 2],
        "eight": [whole, *[whole // 8] * 8],
    }


def test_the_log_says_which_variables_were_shared_out(found):
    assert found["texts"] == [
        "2 processes, each with rows of its own: here y (40 rows).",
        "Rows are shared out among 8 devices: y (80 rows), x (80 rows).",
        "Rows are shared out among 8 devices: y (80 rows), x (80 rows). Whole on each: "
        "few (3 rows).",
    ]


@pytest.mark.parametrize(
    ("what", "message"),
    [
        (
            "potential",
            "ModelError: devices of several processes need a log density that is a prior",
        ),
        ("joint", "the model has 'm', which has no log density for each row"),
        ("latent", "the model has 'each', which has as many entries as this process has rows"),
        ("seed", "ArgumentError: processes differ in: random_seed=\n"),
        ("report", "the model has the rows of this process alone"),
        ("search", "ArgumentError: devices= of several processes: a search sees the rows of its"),
        ("few", "nothing"),
        ("uneven", "78 rows of 'y' cannot be divided evenly among 8 devices\nLeave out 6 rows, or"),
        ("no rows", "ModelError: no observed variable has rows"),
        ("minibatch", "ModelError: steps see batches of the rows"),
        ("stream", "ModelError: steps see batches of the rows"),
        ("two of one", "ArgumentError: devices= has 9 devices of 2 processes"),
        ("of the other", "ArgumentError: devices= has none of this process"),
        ("too many", "BackendError: devices=1000, but JAX has 9: cpu\n"),
        ("text", "ArgumentError: devices must be a number, a sequence of jax.devices(), a"),
        ("whole", "ArgumentError: devices= got a sharding that leaves the first axis whole"),
        ("numba", "ArgumentError: devices= are those of JAX: leave out backend='numba'"),
        ("structured", "is not trained step by step: devices has no meaning there"),
    ],
)
def test_what_cannot_be_shared_out_is_refused(found, what, message):
    assert message in found["refused"][what]

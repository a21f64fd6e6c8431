"""What a fit shows while it runs, and what it logs."""

import numpy as np
import pytest
from pymc.progress_bar import default_progress_theme
from rich.theme import Theme

from fits import JAX, inference
from pymc_flows.training.progress import FitProgress, SearchProgress


def test_the_bar_shows_steps_loss_and_speed(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "160")
    monkeypatch.setenv("FORCE_COLOR", "1")
    inf = inference()
    theme = Theme({"bar.complete": "green", "bar.finished": "green", "bar.pulse": "green"})
    inf.fit(500, progressbar_theme=theme, progressbar=True, backend="jax")
    shown = capsys.readouterr().out
    for text in (
        "Compiling scale-loc:",
        "Fitting scale-loc:",
        "Average Loss = ",
        "steps/s",
        "100%",
    ):
        assert text in shown
    inf.refine(5, progressbar=False)
    assert capsys.readouterr().out == ""


@pytest.fixture
def jupyter(monkeypatch):
    """A notebook without ipywidgets: what it shows, by lines."""
    lines = {}

    class ZMQInteractiveShell:
        @property
        def display_pub(self):
            return self

        def publish(self, data, *, transient, update):
            assert (transient["display_id"] in lines) == update
            lines.setdefault(transient["display_id"], []).append(data["text/plain"])

    monkeypatch.setattr("builtins.get_ipython", ZMQInteractiveShell, raising=False)
    monkeypatch.setattr("pymc_flows.training.progress.find_spec", lambda name: None)
    return lines


def test_without_widgets_a_notebook_shows_a_line_of_text(jupyter):
    formula = "nvp(hidden=32)*4-scale-hh*10-loc-scale-loc"
    with FitProgress(20, default_progress_theme, show=True, label=formula) as bar:
        bar.begin()
        bar.update(10, np.full(10, 3.0))
        bar.update(20, np.array([2.0, np.nan]))
    [shown] = jupyter.values()
    label = "nvp(hidden=32)*4-scale-hh*10-lo…"
    assert shown[0] == f"Compiling {label}"
    assert shown[1].startswith(f"Fitting {label}: 10 of 20 steps  Average Loss = 3  ")
    assert shown[2].startswith(f"Fitting {label}: 20 of 20 steps  Average Loss = 2  ")
    assert len(shown) == 3
    with FitProgress(20, default_progress_theme, show=False, label="loc") as bar:
        bar.update(20, np.zeros(0))
    assert len(jupyter) == 1


def test_a_search_shows_its_stage_and_its_gap(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "160")
    monkeypatch.setenv("FORCE_COLOR", "1")
    with SearchProgress(default_progress_theme, show=True) as bar:
        bar.say("Searching for modes")
        bar.reach(0.1234)
        with bar.paused():
            pass
        bar.say("Training loc")
        bar.reach(np.inf)
    shown = capsys.readouterr().out
    assert "Training loc" in shown
    assert "Searching for modes; gap of the last 0.123 nats" in shown
    with SearchProgress(default_progress_theme, show=False) as bar:
        bar.say("nothing")
    assert capsys.readouterr().out == ""


def test_without_widgets_a_search_is_a_line_of_text(jupyter):
    with SearchProgress(default_progress_theme, show=True) as bar:
        bar.say("one")
        bar.say("two")
    assert list(jupyter.values()) == [["one", "two"]]


def test_the_log_says_what_is_fitted_and_how_it_ended(caplog):
    def stop(approx, losses, i):
        if i == 7:
            raise StopIteration("enough")

    inf = inference()
    with caplog.at_level("INFO", logger="pymc_flows"):
        inf.fit(3, obj_n_mc=1, callbacks=[stop], **JAX)
        inf.refine(10, progressbar=False)
        inf.refine(1, progressbar=False)
        inf.fit(0, score=False, **JAX)
    chosen, finished, why, stopped, further, _, nothing = caplog.messages
    assert chosen.endswith(": 2 layers, 1 draw per step, 1 dimension.")
    assert finished == f"Finished after 3 steps: average loss {inf.hist[:3].mean():.5g}."
    assert why == "enough"
    assert stopped.startswith("Stopped after 4 of 10 steps: average loss ")
    assert further.startswith("Finished after 1 further step: average loss ")
    assert nothing == "Finished after 0 steps."

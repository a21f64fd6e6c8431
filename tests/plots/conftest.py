"""What every plot must respect."""

from collections.abc import Iterator

import pytest


@pytest.fixture(autouse=True)
def _good_manners(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No plot shows a figure or changes a setting; every figure renders, without a warning."""
    matplotlib = pytest.importorskip("matplotlib")
    plt = pytest.importorskip("matplotlib.pyplot")

    def refuse(*args: object, **kwargs: object) -> None:
        raise AssertionError("a plot called plt.show")

    monkeypatch.setattr(plt, "show", refuse)
    settings = matplotlib.rcParams.copy()
    yield
    assert settings == matplotlib.rcParams
    for number in plt.get_fignums():
        plt.figure(number).canvas.draw()

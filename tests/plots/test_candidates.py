"""The picture of a ladder shows the numbers of its table."""

import pytest

from pymc_flows import plots
from pymc_flows.errors import ArgumentError
from pymc_flows.fitting.ladder import Ladder, Rung
from pymc_flows.formula import Formula
from pymc_flows.importance import Quality

plt = pytest.importorskip("matplotlib.pyplot")


def rung(formula, elbo, khat):
    quality = Quality(4_000, elbo, 0.01, khat, 3_000.0, -2.9, 0.01)
    return Rung(Formula(formula), quality, 1.0, 100)


LADDER = Ladder((rung("loc", -4.0, 2.5), rung("scale-loc", -3.0, 0.4)), taken=1)


def test_the_numbers_are_those_of_the_rungs():
    class Approximation:
        ladder = LADDER

    for subject in (LADDER, Approximation()):
        left, right = plots.ladder(subject)
        places = [container.lines[0].get_xydata()[0].tolist() for container in left.containers]
        assert places == [[-4.0, 0], [-3.0, 1]]
        [bar] = left.containers[0].lines[2]
        assert bar.get_segments()[0][:, 0].tolist() == pytest.approx([-4.02, -3.98])
        assert [text.get_text() for text in left.get_yticklabels()] == [
            "loc, 100 steps",
            "scale-loc, 100 steps",
        ]
        assert [t.get_fontweight() for t in left.get_yticklabels()] == ["normal", "bold"]
        assert [text.get_text().strip() for text in right.texts] == ["2.50", "0.40"]
        assert right.patches[1].get_width() == pytest.approx(0.4)
        assert right.get_xlim()[1] > 1.5 >= right.patches[0].get_width()
        assert right.get_lines()[0].get_xdata()[0] == pytest.approx(0.7)


@pytest.mark.parametrize(
    ("subject", "message"),
    [
        (None, "got NoneType"),
        ("scale-loc", "got str"),
        (Ladder((Rung(Formula("loc"), None, 1.0, 100),), 0), "got one without numbers"),
    ],
)
def test_what_is_refused(subject, message):
    with pytest.raises(ArgumentError, match=message):
        plots.ladder(subject)

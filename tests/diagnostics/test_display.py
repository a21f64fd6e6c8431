"""The report as it is shown: as text, and in a notebook."""

import html
from html.parser import HTMLParser

import pymc_flows as pmf
from conjugate import conjugate, conjugate_model, gaussian


class Words(HTMLParser):
    def __init__(self):
        super().__init__()
        self.open, self.text = [], []

    def handle_starttag(self, tag, attrs):
        self.open.append(tag)
        assert not {"color", "background"} & {k for k, _ in attrs}
        assert all("color" not in value for _, value in attrs)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)


def test_the_notebook_shows_what_the_text_says(rng):
    data = rng.normal(1.5, 2, size=12)
    mean, sd, _ = conjugate(data)
    approx = gaussian(conjugate_model(data), mean, 1.2 * sd)
    for reference in (None, {"mu": rng.normal(mean, sd, size=(1, 300))}):
        found = pmf.report(approx, 500, reference=reference, random_seed=1)
        words = Words()
        words.feed(found._repr_html_())
        assert words.open == []
        shown = " ".join(words.text)
        assert html.unescape(found.verdict) in shown
        text = str(found).replace("\n", " ")
        for value in ("Pareto k-hat", "effective draws", "ELBO", "mu", "never visited"):
            assert value in shown
            assert value in text
        assert repr(found) == str(found)
        assert max(map(len, str(found).splitlines())) < 130

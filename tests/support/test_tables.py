from xml.etree import ElementTree

from pymc_flows.support.tables import html_table, text_table

ROWS = [("a & <b>", "1.5"), ("c", "10")]


def test_text_is_aligned():
    lines = text_table([("name", "n"), *ROWS], right=[1], indent="> ").split("\n")
    assert lines == ["> name       n", "> a & <b>  1.5", "> c         10"]
    assert text_table([("", "x"), ("yy", "")]).split("\n") == ["      x", "  yy"]


def test_html_has_the_same_cells_and_leaves_colours_to_the_theme():
    markup = html_table(ROWS, header=("name", "n"), right=[1], title="c < d")
    above, table = ElementTree.fromstring(f"<div>{markup}</div>")
    assert [[cell.text for cell in row] for row in table.iter("tr")] == [
        ["name", "n"],
        *map(list, ROWS),
    ]
    assert above.text == "c < d"
    sides = [cell.attrib["style"] for cell in table.iter("td")]
    assert sides == ["text-align: left", "text-align: right"] * 2
    assert "color" not in markup
    assert ElementTree.fromstring(html_table(ROWS)).find("thead") is None

"""Tables as text and as HTML.

The HTML has no colours or borders of its own: the theme of a notebook decides, light or dark.
"""

from collections.abc import Sequence
from html import escape

type Row = Sequence[str]


def text_table(rows: Sequence[Row], *, right: Sequence[int] = (), indent: str = "  ") -> str:
    """Return a table as text: aligned columns, two spaces apart, and a line for each row.

    Parameters
    ----------
    rows : sequence of sequence of str
        With the header, if there is one, as the first row.
    right : sequence of int
        Columns that are aligned on the right, such as numbers.
    indent : str
        Text before each line.
    """
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for row in rows:
        cells = [
            text.rjust(width) if i in right else text.ljust(width)
            for i, (text, width) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append((indent + "  ".join(cells)).rstrip())
    return "\n".join(lines)


def html_table(
    rows: Sequence[Row], *, header: Row = (), right: Sequence[int] = (), title: str = ""
) -> str:
    """Return a table as HTML.

    Parameters
    ----------
    rows : sequence of sequence of str
        Without the header.
    header : sequence of str
    right : sequence of int
        As in `text_table`.
    title : str
        A paragraph above the table. (A caption could not be wider than the table.)
    """
    above = f"<p>{escape(title)}</p>" if title else ""
    head = f"<thead>{_html_row('th', header, right)}</thead>" if header else ""
    body = "".join(_html_row("td", row, right) for row in rows)
    return f"{above}<table>{head}<tbody>{body}</tbody></table>"


def _html_row(tag: str, cells: Row, right: Sequence[int]) -> str:
    # Themes have different default alignments.
    sides = ("right" if i in right else "left" for i in range(len(cells)))
    row = "".join(
        f'<{tag} style="text-align: {side}">{escape(cell)}</{tag}>'
        for side, cell in zip(sides, cells, strict=True)
    )
    return f"<tr>{row}</tr>"

"""Print what the newest versions are tested with, as requirements that pip and uv read.

    python tools/newest.py [--pre]

These are pyproject.toml's, with the extras and the groups that the tests need. With ``--pre``
PyMC and PyTensor may be pre-releases and beyond their upper bounds: what will break is seen early.
"""

import argparse
import re
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

EXTRAS = ("plots", "jax", "files")
GROUPS = ("build", "test", "peers")


def requirements(project: dict, *, pre: bool) -> Iterator[str]:
    """Yield the requirements of a parsed pyproject.toml, one a line."""
    main = project["project"]
    lists = [main["dependencies"]]
    lists += [main["optional-dependencies"][extra] for extra in EXTRAS]
    lists += [project["dependency-groups"][group] for group in GROUPS]
    for requirement in (text for each in lists for text in each):
        found = re.fullmatch(r"(pymc|pytensor)>=([\d.]+)(,<\d+)?", requirement)
        # A bound that is a pre-release itself lets others in.
        yield f"{found[1]}>={found[2]}.dev0" if pre and found else requirement


def main() -> None:
    """Read the command line, and print."""
    parser = argparse.ArgumentParser(description="Print the requirements of the newest versions.")
    parser.add_argument(
        "--pre", action="store_true", help="also PyMC's and PyTensor's pre-releases"
    )
    arguments = parser.parse_args()
    text = (Path(__file__).parents[1] / "pyproject.toml").read_text("utf-8")
    sys.stdout.write("\n".join(requirements(tomllib.loads(text), pre=arguments.pre)) + "\n")


if __name__ == "__main__":
    main()

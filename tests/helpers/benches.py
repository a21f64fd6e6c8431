"""What tests of benchmarks share."""

import json
from pathlib import Path


def record(out: Path, name: str) -> dict:
    """The JSON file of a run."""
    read = json.loads((out / f"{name}.json").read_text(encoding="utf-8"))
    page = (out / f"{name}.md").read_text(encoding="utf-8")
    assert f"`{read['command']}`" in page
    assert read["environment"]["pymc"] in page
    return read

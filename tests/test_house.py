"""The package's README describes the house as it stands."""

import re
from pathlib import Path

import drunet_cli

PACKAGE = Path(drunet_cli.__file__).parent
README = (PACKAGE / "README.md").read_text()


def test_readme_names_every_module_of_every_room_and_no_other() -> None:
    rooms = dict(re.findall(r"^\| (?:\[?`(\w+)/`\S*|top of the package) \| .* \| (.*) \|$", README, re.MULTILINE))
    named = {room: set(re.findall(r"`(\w+)`", cell)) for room, cell in rooms.items()}
    found: dict[str, set[str]] = {}
    for path in PACKAGE.rglob("*.py"):
        if not path.stem.startswith("__"):
            found.setdefault("/".join(path.relative_to(PACKAGE).parts[:-1]), set()).add(path.stem)
    assert {room: modules for room, modules in named.items() if modules} == found


def test_readme_names_no_module_that_is_not_there() -> None:
    named = set(re.findall(r"`(\w+/\w+)(?:\.py)?`", README)) - {"tests/test_architecture"}
    assert not {name for name in named if not (PACKAGE / f"{name}.py").exists()}

"""config/sllmd.toml is the defaults, all of them."""

from __future__ import annotations

import itertools
import re
import tomllib
from pathlib import Path

import jsonschema
import pytest

from sllmd.config.loading import load_config
from sllmd.config.reference import effective, json_schema, reference
from sllmd.config.settings import Config
from sllmd.roles.settings import ModelSettings

SHIPPED = Path(__file__).parents[2] / "config" / "sllmd.toml"


def test_the_shipped_file_is_the_reference() -> None:
    assert SHIPPED.read_text() == reference(), "run: sllmd config init config/sllmd.toml --force"


def test_the_shipped_file_equals_the_defaults(tmp_path: Path) -> None:
    empty = tmp_path / "empty.toml"
    empty.write_text("")
    assert load_config(SHIPPED, environ={}).config == load_config(empty, environ={}).config


def test_the_shipped_file_names_every_key() -> None:
    text = SHIPPED.read_text()
    for section in Config.model_fields:
        assert re.search(rf"^(# )?\[{section}[.\]]", text, re.MULTILINE), section
    for section, values in Config().model_dump().items():
        for key in values if section != "models" else ModelSettings.model_fields:
            assert re.search(rf"^(# )?(\[{section}\.)?{key}( =|\])", text, re.MULTILINE), f"{section}.{key}"


def test_every_key_is_explained() -> None:
    """A key is preceded by a comment, which is its setting's docstring."""
    lines = SHIPPED.read_text().splitlines()
    bare = [
        line
        for before, line in itertools.pairwise(lines)
        if re.match(r"[\w-]+ = ", line) and not before.startswith("# ")
    ]
    assert bare == []


@pytest.mark.parametrize("dev", [False, True])
def test_what_is_shown_can_be_read_again(tmp_path: Path, dev: bool) -> None:
    loaded = load_config(dev=dev, environ={"SLLMD_SERVING__KEEP_ALIVE": "-1", "SLLMD_API__BACKLOG": "7"})
    shown = tmp_path / "shown.toml"
    shown.write_text(effective(loaded, origin=True))
    assert load_config(shown, environ={}).config == loaded.config
    assert "# environment SLLMD_API__BACKLOG" in shown.read_text()


def test_the_schema_fits_the_shipped_file() -> None:
    schema = json_schema()
    values = tomllib.loads(SHIPPED.read_text())
    jsonschema.validate(values, schema)
    values["serving"]["keep_alive"] = [1]
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(values, schema)

"""How long a context a model has."""

from typing import Any

import pytest

from sllmd.core.context import context_tokens


@pytest.mark.parametrize(
    ("config", "tokens"),
    [
        ({"max_position_embeddings": 4096}, 4096),
        ({"n_ctx": 1024, "rope_scaling": None}, 1024),
        ({}, 2048),
        ({"max_position_embeddings": 8192, "rope_scaling": {"rope_type": "yarn", "factor": 2.0}}, 8192),
        (
            {
                "max_position_embeddings": 131_072,
                "original_max_position_embeddings": 4096,
                "rope_scaling": {"type": "longrope", "short_factor": [1.0], "long_factor": [2.0]},
            },
            4096,
        ),
        (
            {
                "max_position_embeddings": 131_072,
                "rope_parameters": {"rope_type": "longrope", "original_max_position_embeddings": 8192},
            },
            8192,
        ),
    ],
)
def test_what_config_json_says(config: dict[str, Any], tokens: int) -> None:
    assert context_tokens(config) == tokens

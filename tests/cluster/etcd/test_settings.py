from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import ValidationError

from sllmd.cluster.etcd.settings import EtcdSettings


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"endpoints": []}, "at least one endpoint"),
        ({"endpoints": ["10.0.0.1:2379"]}, "is not an endpoint"),
        ({"endpoints": ["http://10.0.0.1"]}, "is not an endpoint"),
        ({"endpoints": ["http://10.0.0.1:port"]}, "is not a URL"),
        ({"endpoints": ["grpc://10.0.0.1:2379"]}, "is not an endpoint"),
        ({"endpoints": ["http://10.0.0.1:2379/v3"]}, "more than a scheme, a host and a port"),
        ({"endpoints": ["http://a:1", "https://b:1"]}, "all endpoints are https or none"),
        ({"prefix": "/"}, "must not be empty"),
        ({"username": "u"}, "go together"),
        ({"endpoints": ["https://a:1"], "cert_file": "c"}, "go together"),
        ({"ca_file": "ca"}, "for https endpoints"),
        ({"lease_seconds": "10ms"}, "greater than or equal to 1"),
        ({"incarnation": 1 << 15}, "less than or equal to"),
    ],
)
def test_what_cannot_work_is_refused(given: dict[str, object], words: str) -> None:
    with pytest.raises(ValidationError, match=words):
        EtcdSettings.model_validate(given)


def test_a_slash_at_the_end_is_no_difference() -> None:
    settings = EtcdSettings(endpoints=("https://a:1/",), prefix="/p/", ca_file=Path("ca"))
    assert settings.endpoints == ("https://a:1",)
    assert settings.prefix == "/p"
    assert settings.tls

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from tests.cluster.etcd_process import EtcdCluster, etcd_cluster, why_no_etcd


@pytest.fixture(scope="session", autouse=True)
def etcd_is_installed() -> None:
    reason = why_no_etcd()
    if reason is not None and os.environ.get("CI") != "true":
        pytest.skip(reason)


@pytest.fixture(scope="module")
def etcd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EtcdCluster]:
    with etcd_cluster(tmp_path_factory.mktemp("etcd"), 1) as cluster:
        yield cluster


@pytest.fixture(scope="module")
def three_etcds(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EtcdCluster]:
    with etcd_cluster(tmp_path_factory.mktemp("etcds"), 3) as cluster:
        yield cluster

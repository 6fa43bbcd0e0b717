"""A cluster of one comes to be: its id, its CA, its gossip key, and this node as its first member."""

from __future__ import annotations

import time
from dataclasses import replace

import structlog

from sllmd.cluster.home import Belonging, Home, new_id
from sllmd.wire.identity import make_identity, make_request, new_authority, new_key
from sllmd.wire.seal import Keyring

_log = structlog.get_logger(__name__)


def found(home: Home, belonging: Belonging, *, plain: bool) -> Belonging:
    """Write down all that a cluster needs, the cluster's id last; ``plain``: one without TLS.

    A crash on the way leaves a node without a cluster, which founds one anew. Raises OSError.
    """
    cluster_id = new_id()
    if not plain:
        now_seconds = time.time()
        authority = new_authority(cluster_id, now_seconds=now_seconds)
        key = new_key()
        signed = authority.sign(make_request(belonging.node, key), belonging.node, now_seconds=now_seconds)
        home.save_authority(authority)
        home.save_identity(make_identity(key, signed, authority.certificate_pem))
    home.save_keyring(Keyring([Keyring.new_key()]))
    member = replace(belonging, cluster_id=cluster_id, founding=True)
    home.save_belonging(member)
    _log.info("cluster founded", cluster=cluster_id, node=member.node)
    return member

import pytest

from sllmd.engine.cores import CoreShares, compute_cores


class Told:
    """A replica that notes what it is told."""

    def __init__(self) -> None:
        self.threads: list[int] = []

    def use_threads(self, threads: int) -> None:
        self.threads.append(threads)


def test_busy_replicas_share_the_cores_evenly():
    shares = CoreShares(5)
    first, second = Told(), Told()
    shares.set_busy(first, True)
    shares.set_busy(second, True)
    shares.set_busy(first, False)
    assert (first.threads, second.threads) == ([5, 2], [2, 5])


def test_being_busy_twice_counts_once():
    shares = CoreShares(4)
    one, other = Told(), Told()
    shares.set_busy(one, True)
    shares.set_busy(one, True)
    shares.set_busy(other, False)
    assert shares.share == 4
    shares.set_busy(one, False)
    shares.set_busy(one, False)
    assert shares.share == 4


def test_everybody_has_a_thread():
    shares = CoreShares(2)
    replicas = [Told() for _ in range(3)]
    for replica in replicas:
        shares.set_busy(replica, True)
    assert [replica.threads[-1] for replica in replicas] == [1, 1, 1]


@pytest.mark.parametrize(("usable", "compute"), [(1, 1), (2, 2), (7, 7), (8, 7), (64, 63)])
def test_a_core_of_many_is_the_daemons(usable: int, compute: int):
    assert compute_cores(usable) == compute

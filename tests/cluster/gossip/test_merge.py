"""Whatever order news comes in, and however often, everybody comes to believe the same."""

from hypothesis import given
from hypothesis import strategies as st

from sllmd.cluster.gossip.messages import Claim, Dead, Left, Status, Suspect
from sllmd.core.ids import NodeId
from tests.cluster.gossip.seat import Seat, alive

X = NodeId("x")
incarnations = st.integers(0, 4)
sources = st.sampled_from([NodeId("a"), NodeId("b"), NodeId("c")])
claims = st.one_of(
    st.builds(lambda incarnation: alive("x", incarnation, meta=bytes([incarnation])), incarnations),
    st.builds(Suspect, st.just(X), incarnations, sources),
    st.builds(Dead, st.just(X), incarnations, sources),
    st.builds(Left, st.just(X), incarnations),
)


def believed(heard: list[Claim]) -> object:
    seat = Seat("abcx")
    for claim in heard:
        seat.hear(claim)
    member = seat.machine.table.members[X]
    return member.status, member.incarnation, member.claim


@given(st.lists(claims, max_size=8).flatmap(lambda heard: st.tuples(st.just(heard), st.permutations(heard))))
def test_the_order_does_not_matter(both: tuple[list[Claim], list[Claim]]) -> None:
    assert believed(both[0]) == believed(both[1])


@given(st.lists(claims, max_size=8), st.data())
def test_hearing_it_again_does_not_matter(heard: list[Claim], data: st.DataObject) -> None:
    again = data.draw(st.lists(st.sampled_from(heard))) if heard else []
    assert believed(heard) == believed(heard + again)


@given(st.lists(claims, max_size=8))
def test_the_answer_wins_whatever_was_said(heard: list[Claim]) -> None:
    highest = max((claim.incarnation for claim in heard), default=0)
    answer = alive("x", highest + 1)
    for place in range(len(heard) + 1):
        status, incarnation, claim = believed([*heard[:place], answer, *heard[place:]])  # type: ignore[misc]
        assert (status, incarnation, claim) == (Status.ALIVE, highest + 1, answer)


@given(st.lists(claims, max_size=8))
def test_belief_never_goes_back(heard: list[Claim]) -> None:
    seat = Seat("abcx")
    before = (0, Status.ALIVE)
    for claim in heard:
        seat.hear(claim)
        member = seat.machine.table.members[X]
        after = (member.incarnation, member.status)
        assert after >= before
        before = after


@given(st.lists(claims, max_size=8))
def test_what_is_told_on_leads_others_to_the_same(heard: list[Claim]) -> None:
    """The queue holds one piece per member: it must be enough for who knew nothing newer."""
    seat = Seat("abcx")
    for claim in heard:
        seat.hear(claim)
    other = Seat("abcx")
    other.hear(*seat.news)
    ours, theirs = seat.machine.table.members[X], other.machine.table.members[X]
    assert (ours.status, ours.incarnation) == (theirs.status, theirs.incarnation)

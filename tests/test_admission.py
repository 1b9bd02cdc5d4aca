"""Slots: counted, bounded, given back, and refused while the server drains."""

import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serving.admission import Admission
from serving.errors import Overloaded


@given(st.integers(1, 20), st.lists(st.integers(1, 8), max_size=12))
def test_no_more_run_than_may(most: int, asked: list[int]) -> None:
    admission = Admission(most)
    taken = []
    for choices in asked:
        slot = admission.slot(choices)
        room = most - admission.running_choices
        if choices > room:
            with pytest.raises(Overloaded), slot:
                pass
        else:
            slot.__enter__()
            taken.append(slot)
        assert admission.running_choices <= most
    for slot in taken:
        slot.__exit__(None, None, None)
    assert admission.running_choices == 0


@pytest.mark.parametrize("error", [ValueError, asyncio.CancelledError, GeneratorExit])
def test_a_slot_is_given_back_whatever_happens(error: type[BaseException]) -> None:
    admission = Admission(1)
    with pytest.raises(error), admission.slot(1):
        raise error
    assert admission.running_choices == 0


def test_a_full_server_says_when_to_come_again() -> None:
    admission = Admission(1)
    with admission.slot(1), pytest.raises(Overloaded) as refused, admission.slot(1):
        pass
    assert refused.value.retry_after_s
    with admission.slot(1):
        assert admission.running_choices == 1


async def test_draining_refuses_new_work_and_waits_for_the_running() -> None:
    admission = Admission(10)
    async with asyncio.timeout(5):
        await admission.idle()
    with admission.slot(2):
        admission.draining = True
        idle = asyncio.create_task(admission.idle())
        with pytest.raises(Overloaded) as refused, admission.slot(1):
            pass
        assert refused.value.retry_after_s
        await asyncio.sleep(0)
        assert not idle.done()
    async with asyncio.timeout(5):
        await idle

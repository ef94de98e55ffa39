"""Images and the lease of their builder: who lost the lease writes nothing any more."""

from __future__ import annotations

import threading
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from caa.images.image import Held, IllegalImageTransitionError, ImageState, Lease, PodVmImage
from caa.ledger import LeaseLostError, Ledger, StaleWriteError
from tests.ledger.samples import attempt, starting

NOW = datetime(2026, 1, 1, tzinfo=UTC)
LATER = NOW + timedelta(seconds=1)
NAME = "image of prod in aws/eu-west-1"


def image(number: int = 1, state: ImageState = ImageState.BUILDING) -> PodVmImage:
    return PodVmImage(f"image-{number}", "prod", "aws/eu-west-1", "recipe", state, NOW, NOW)


def lease(ledger: Ledger, holder: str = "a", seconds: float = 30) -> Lease:
    taken = ledger.images.take_lease(NAME, holder, seconds, NOW)
    assert isinstance(taken, Lease)
    return taken


def ready(ledger: Ledger, held: Lease, number: int) -> PodVmImage:
    added = ledger.images.add(image(number), held)
    return ledger.images.save(replace(added, state=ImageState.READY, image_id=f"ami-{number}"), held)


def test_one_has_the_lease_and_the_others_are_told_who(ledger: Ledger) -> None:
    lease(ledger, "a")
    held = ledger.images.take_lease(NAME, "b", 30, NOW)
    assert isinstance(held, Held)
    assert held.holder == "a"
    assert 0 < held.seconds <= 30
    assert isinstance(ledger.images.take_lease("another", "b", 30, NOW), Lease)


def test_a_lease_that_ran_out_or_whose_holder_is_dead_or_that_was_given_back_is_free(ledger: Ledger) -> None:
    first = lease(ledger, "a", seconds=0)
    second = lease(ledger, "b")
    assert second.fence > first.fence
    assert isinstance(ledger.images.take_lease(NAME, "c", 30, NOW, lambda holder: holder == "b"), Lease)
    third = ledger.images.holder(NAME, NOW)
    assert third is not None
    assert third.holder == "c"
    ledger.images.give_back_lease(second)  # long lost: c keeps it
    assert ledger.images.holder(NAME, NOW) is not None


def test_who_lost_the_lease_writes_nothing_any_more(ledger: Ledger) -> None:
    old = lease(ledger, "a", seconds=0)
    row = ledger.images.add(image(), old)
    ledger.images.renew_lease(old, 0, NOW)  # ran out, but nobody took it
    lease(ledger, "b")
    for write in (
        lambda: ledger.images.save(replace(row, digest="ab"), old),
        lambda: ledger.images.add(image(2), old),
        lambda: ledger.images.renew_lease(old, 30, NOW),
    ):
        with pytest.raises(LeaseLostError):
            write()
    assert ledger.images.image(row.id) == row


def test_of_many_at_once_one_gets_the_lease(ledger: Ledger) -> None:
    got: list[Lease | Held] = []
    threads = [
        threading.Thread(target=lambda who=f"node-{n}": got.append(ledger.images.take_lease(NAME, who, 30, NOW)))
        for n in range(12)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(isinstance(one, Lease) for one in got) == 1
    assert len(got) == 12


def test_an_image_that_becomes_ready_retires_the_one_before(ledger: Ledger) -> None:
    held = lease(ledger)
    ready(ledger, held, 1)
    ready(ledger, held, 2)
    states = {one.image_id: one.state for one in ledger.images.all("prod")}
    assert states == {"ami-1": ImageState.RETIRED, "ami-2": ImageState.READY}
    current = ledger.images.ready("prod", "aws/eu-west-1")
    assert current is not None
    assert current.image_id == "ami-2"
    assert ledger.images.all("other") == []


def test_writes_are_versioned_and_states_go_their_way_only(ledger: Ledger) -> None:
    held = lease(ledger)
    row = ledger.images.add(image(), held)
    ledger.images.save(replace(row, done=1, blocks=b"\x01", changed_at=LATER), held)
    with pytest.raises(StaleWriteError):
        ledger.images.save(row, held)
    current = ledger.images.image(row.id)
    assert current is not None
    with pytest.raises(IllegalImageTransitionError):
        ledger.images.save(replace(current, state=ImageState.RETIRED), held)
    assert (current.blocks, current.done) == (b"\x01", 1)


def test_asking_for_the_end_of_a_build_is_seen_by_its_builder_and_never_overwritten(ledger: Ledger) -> None:
    held = lease(ledger)
    row = ledger.images.add(image(), held)
    ledger.images.cancel(row.id)
    assert ledger.images.save(replace(row, done=1), held).cancelled


def test_a_failed_image_is_tried_again_when_somebody_asks(ledger: Ledger) -> None:
    held = lease(ledger)
    row = ledger.images.add(image(), held)
    failed = ledger.images.save(replace(row, state=ImageState.FAILED, failures=5, attempts=9), held)
    assert ledger.images.retry(failed.id, LATER)
    again = ledger.images.open("prod", "aws/eu-west-1")
    assert again is not None
    assert (again.state, again.failures, again.attempts) == (ImageState.BUILDING, 0, 0)
    assert not ledger.images.retry("no such image", LATER)


def test_the_sandboxes_that_need_an_image_are_counted(ledger: Ledger) -> None:
    row = starting(ledger, "sb-1")
    ledger.add_attempt(replace(attempt("sb-1"), image="ami-1"), sandbox_version=row.version)
    row = starting(ledger, "sb-2")
    ledger.add_attempt(replace(attempt("sb-2"), image=""), sandbox_version=row.version)
    assert ledger.images.users("ami-1") == 2  # the second may be of an older release, which named none
    assert ledger.images.users("ami-2") == 1

"""Pod VM images that are built here, and the lease of their builder.

Fenced: a builder's write names its lease, and is refused once somebody else has that, however late it comes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields, replace
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, Row, exists, func, insert, select, update

from caa.images.image import OPEN_STATES, Held, ImageState, Lease, PodVmImage, check_image_transition
from caa.ledger.account import Transaction, _insert, _moment
from caa.ledger.errors import LeaseLostError, StaleWriteError
from caa.ledger.tables import attempts, images, leases, sandboxes
from caa.sandbox import LIVE_STATES


class ImageStore:
    """Part of the ledger; get it as `Ledger.images`. Each method is one transaction."""

    def __init__(self, read: Transaction, write: Transaction) -> None:
        self._read = read
        self._write = write

    # The lease. On PostgreSQL the database's clock counts instead of `now`, for holders on several nodes need one.

    def take_lease(
        self,
        name: str,
        holder: str,
        seconds: float,
        now: datetime,
        is_dead: Callable[[str], bool] = lambda _holder: False,
    ) -> Lease | Held:
        """The lease of that name, if nobody has it, its time is up, or its holder `is_dead` for certain.

        `holder` is told to those who wait.
        """
        with self._write() as connection:
            values = {"name": name, "holder": "", "fence": 0, "until": 0.0}
            connection.execute(_insert(connection, leases).values(values).on_conflict_do_nothing())
            row = connection.execute(select(leases).where(leases.c.name == name).with_for_update()).one()
            moment = _moment(connection, now)
            if row.holder and row.until > moment and not is_dead(row.holder):
                return Held(row.holder, row.until - moment)
            lease = Lease(name, holder, row.fence + 1)
            _set_lease(connection, lease, holder, moment + seconds)
            return lease

    def renew_lease(self, lease: Lease, seconds: float, now: datetime) -> None:
        """Keep it for longer. Raises LeaseLostError; not when it ran out and nobody took it."""
        with self._write() as connection:
            _check_lease(connection, lease)
            _set_lease(connection, lease, lease.holder, _moment(connection, now) + seconds)

    def give_back_lease(self, lease: Lease) -> None:
        """Others may have it now. Nothing when somebody has it already."""
        with self._write() as connection:
            mine = (leases.c.name == lease.name) & (leases.c.fence == lease.fence)
            connection.execute(update(leases).where(mine).values(holder="", until=0.0))

    def holder(self, name: str, now: datetime) -> Held | None:
        """Who has the lease."""
        with self._read() as connection:
            row = connection.execute(select(leases).where(leases.c.name == name)).one_or_none()
            if row is None or not row.holder or row.until <= (moment := _moment(connection, now)):
                return None
            return Held(row.holder, row.until - moment)

    # Images

    def all(self, cluster: str, account: str = "") -> list[PodVmImage]:
        """Every image of a cluster, oldest first; of one account only, if one is given."""
        query = select(images).where(images.c.cluster == cluster).order_by(images.c.created_at, images.c.id)
        if account:
            query = query.where(images.c.account == account)
        with self._read() as connection:
            return [_to_image(row) for row in connection.execute(query)]

    def image(self, image: str) -> PodVmImage | None:
        """The image with this id of ours, or None."""
        with self._read() as connection:
            row = connection.execute(select(images).where(images.c.id == image)).one_or_none()
        return None if row is None else _to_image(row)

    def ready(self, cluster: str, account: str) -> PodVmImage | None:
        """What pod VMs boot."""
        return self._one(cluster, account, frozenset({ImageState.READY}))

    def open(self, cluster: str, account: str) -> PodVmImage | None:
        """What is being built, or failed."""
        return self._one(cluster, account, OPEN_STATES)

    def _one(self, cluster: str, account: str, states: frozenset[ImageState]) -> PodVmImage | None:
        return next((one for one in self.all(cluster, account) if one.state in states), None)

    def add(self, image: PodVmImage, lease: Lease) -> PodVmImage:
        """Record an image that is to be built, at version 1. Raises LeaseLostError."""
        with self._write() as connection:
            _check_lease(connection, lease)
            connection.execute(insert(images).values(_values(replace(image, version=1))))
            return _image(connection, image.id)

    def save(self, image: PodVmImage, lease: Lease) -> PodVmImage:
        """Write an image read before; returns it with its next version. One that becomes ready retires the one before.

        Raises LeaseLostError, StaleWriteError and IllegalImageTransitionError; nothing is written then. That somebody
        asked for its end (`cancelled`) is never overwritten, nor does it make a write stale.
        """
        with self._write() as connection:
            _check_lease(connection, lease)
            row = connection.execute(select(images).where(images.c.id == image.id).with_for_update()).one_or_none()
            if row is None or row.version != image.version:
                raise StaleWriteError(f"image {image.id} was written by somebody else")
            check_image_transition(ImageState(row.state), image.state)
            if image.state is ImageState.READY and row.state != ImageState.READY:
                _retire(connection, image)
            values = _values(replace(image, version=image.version + 1, cancelled=row.cancelled))
            connection.execute(update(images).where(images.c.id == image.id).values(values))
            return _image(connection, image.id)

    def cancel(self, image: str) -> None:
        """Ask the builder of an image to end. Anybody may; nothing happens to one that is not being built."""
        with self._write() as connection:
            being_built = (images.c.id == image) & (images.c.state == ImageState.BUILDING.value)
            connection.execute(update(images).where(being_built).values(cancelled=True))

    def retry(self, image: str, now: datetime) -> bool:
        """Let a failed image, or one that waits for its next try, be tried again now. Whether there was one."""
        with self._write() as connection:
            row = connection.execute(select(images).where(images.c.id == image).with_for_update()).one_or_none()
            if row is None or ImageState(row.state) not in OPEN_STATES:
                return False
            values = {"state": ImageState.BUILDING.value, "changed_at": now, "retry_at": None}
            values |= {"attempts": 0, "failures": 0, "cancelled": False, "version": row.version + 1}
            connection.execute(update(images).where(images.c.id == image).values(values))
            return True

    def users(self, image_id: str) -> int:
        """How many sandboxes that are not over boot this image, or may have to boot it again.

        An attempt that names none boots what the configuration named, and that may have been any image.
        """
        live = sandboxes.c.state.in_([state.value for state in LIVE_STATES])
        boots = exists().where(attempts.c.sandbox_id == sandboxes.c.id, attempts.c.image.in_([image_id, ""]))
        with self._read() as connection:
            return int(connection.execute(select(func.count()).select_from(sandboxes).where(live, boots)).scalar_one())


def _retire(connection: Connection, image: PodVmImage) -> None:
    theirs = (images.c.cluster == image.cluster) & (images.c.account == image.account)
    others = theirs & (images.c.state == ImageState.READY.value) & (images.c.id != image.id)
    values = {"state": ImageState.RETIRED.value, "changed_at": image.changed_at, "version": images.c.version + 1}
    connection.execute(update(images).where(others).values(values))


def _check_lease(connection: Connection, lease: Lease) -> None:
    row = connection.execute(select(leases).where(leases.c.name == lease.name).with_for_update()).one_or_none()
    if row is None or row.fence != lease.fence:
        raise LeaseLostError(f"{lease.holder} lost the lease {lease.name!r} to {row.holder if row else 'nobody'}")


def _set_lease(connection: Connection, lease: Lease, holder: str, until: float) -> None:
    values = {"holder": holder, "fence": lease.fence, "until": until}
    connection.execute(update(leases).where(leases.c.name == lease.name).values(values))


def _image(connection: Connection, image: str) -> PodVmImage:
    return _to_image(connection.execute(select(images).where(images.c.id == image)).one())


def _values(image: PodVmImage) -> dict[str, Any]:
    values = {one.name: getattr(image, one.name) for one in fields(image)}
    return values | {
        "state": image.state.value,
        "resources": dict(image.resources),
        "measurements": dict(image.measurements),
    }


def _to_image(row: Row[Any]) -> PodVmImage:
    values = dict(row._mapping)
    values["state"] = ImageState(values["state"])
    values["blocks"] = bytes(values["blocks"])
    values["step"] = values["step"] or ""  # of a row that is older than the column
    return PodVmImage(**values)

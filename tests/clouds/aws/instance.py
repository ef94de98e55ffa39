"""An instance that takes its time, as EC2's do: pending, running, shutting-down, terminated by the emulator's clock."""

from __future__ import annotations

from typing import Any, ClassVar

from moto.ec2.models.instances import Instance, InstanceState, StateReason

from tests.clouds.aws.conditions import Conditions

_GONE = ("shutting-down", "terminated")


class EmulatedInstance(Instance):
    """Replaces moto's, which runs at once, ends at once, and keeps the address and network interface of the dead."""

    conditions: ClassVar[Conditions]
    moving: ClassVar[dict[str, EmulatedInstance]] = {}
    """Those whose state time will change."""
    version: ClassVar[int] = 0
    """Goes up whenever the set of answering guests may have changed."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        now, delays = self.conditions.clock.now(), self.conditions.delays
        self._state = InstanceState("pending", 0)
        self._running_at = now + delays.pending
        self._answers_at = self._running_at + delays.boot
        self._gone_at = float("inf")
        self._invisible_calls = self.conditions.staleness.calls
        self._visible_at = now + self.conditions.staleness.seconds
        self.answers = False
        self.market = "spot" if kwargs.get("instance_market_options") else "on-demand"
        self.cpu_options: dict[str, Any] | None = None
        self.boot_mode: str | None = None
        self.current_instance_boot_mode: str | None = None
        EmulatedInstance.moving[self.id] = self

    @classmethod
    def settle(cls) -> None:
        """Let every instance reach the state of this moment."""
        now = cls.conditions.clock.now()
        for instance in list(cls.moving.values()):
            instance._settle(now)

    def _settle(self, now: float) -> None:
        if self.state == "pending" and now >= self._running_at:
            self._state = InstanceState("running", 16)
        if self.state == "running" and now >= self._answers_at and not self.answers:
            self.answers = True
            EmulatedInstance.version += 1
            EmulatedInstance.moving.pop(self.id, None)
        if self.state == "shutting-down" and now >= self._gone_at:
            reason, text = self.state_reason, self._reason
            super().terminate()
            self.state_reason, self._reason = reason, text
            self.nics = {}
            EmulatedInstance.moving.pop(self.id, None)

    @property
    def gone(self) -> bool:
        """Terminated, or on the way to it."""
        return self.state in _GONE

    def terminate(self) -> InstanceState:
        """Begin to end. Again is no error, as in EC2. Returns the state before."""
        return self.end("Client.UserInitiatedShutdown", "Client.UserInitiatedShutdown: User initiated shutdown")

    def end(self, code: str, message: str) -> InstanceState:
        """Begin to end for a reason of EC2's own."""
        before = self._state
        if not self.gone:
            self._state = InstanceState("shutting-down", 32)
            self.state_reason, self._reason = StateReason(message, code), message
            self._gone_at = self.conditions.clock.now() + self.conditions.delays.shutting_down
            EmulatedInstance.moving[self.id] = self
            if self.answers:
                self.answers = False
                EmulatedInstance.version += 1
        return before

    def visible(self) -> bool:
        """Whether the lists know of it by now. Counts as one list call."""
        if self.conditions.clock.now() < self._visible_at:
            return False
        if self._invisible_calls > 0:
            self._invisible_calls -= 1
            return False
        return True

    @property
    def still_unknown(self) -> bool:
        """Whether the lists do not know of it yet. Counts as nothing."""
        return self._invisible_calls > 0 or self.conditions.clock.now() < self._visible_at

    def prep_nics(self, nic_spec: list[dict[str, Any]], *args: Any, **kwargs: Any) -> None:
        """Interfaces made with the instance go with it, unless the request says otherwise."""
        kept = {
            int(nic["DeviceIndex"])
            for nic in nic_spec
            if nic.get("DeleteOnTermination") is False or nic.get("NetworkInterfaceId")
        }
        super().prep_nics(nic_spec, *args, **kwargs)
        for index, nic in self.nics.items():
            if index not in kept:
                nic.delete_on_termination = True

    def get_tags(self) -> list[dict[str, str]]:
        """As moto gives them, without its look at all tags of all resources: a list of 1,000 instances took 60 s."""
        own: dict[str, str] = self.ec2_backend.tags.get(self.id, {})
        about = {"resource_id": self.id, "resource_type": "instance"}
        return [{**about, "key": key, "value": value} for key, value in own.items()]

    # A terminated instance has no interface any more, and so no address and no network.

    @property
    def private_ip(self) -> str | None:
        return self.nics[0].private_ip_address if self.nics else None

    @property
    def private_ip_address(self) -> str | None:
        return self.private_ip

    @property
    def public_ip(self) -> str | None:
        return self.nics[0].public_ip if self.nics else None

    @property
    def public_ip_address(self) -> str | None:
        return self.public_ip

    @property
    def private_dns_name(self) -> str:
        return super().private_dns_name if self.nics else ""

    @property
    def subnet_id(self) -> str | None:
        return None if self.state == "terminated" else super().subnet_id

    @property
    def vpc_id(self) -> str | None:
        return None if self.state == "terminated" else super().vpc_id

"""A subnet that gives an address again as late as it can.

moto gives the last one freed. A guest of the instance before could then still be there for a moment, and be met in the
place of the new one, which no cloud lets happen.
"""

from __future__ import annotations

from collections import deque
from typing import Any

from moto.ec2.models.instances import Instance
from moto.ec2.models.subnets import Subnet

# EC2 keeps the first four addresses of a subnet and the last one.
_FIRST = 4


class EmulatedSubnet(Subnet):
    """Addresses in ascending order, then the one freed longest ago."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._next = _FIRST
        self._freed: deque[str] = deque()

    def get_available_subnet_ip(self, instance: Instance) -> str:
        """An address in nobody's use. Whoever asks has checked that there is one."""
        address = self._unused()
        self._subnet_ips[address] = instance
        return address

    def del_subnet_ip(self, ip: str) -> None:
        if self._subnet_ips.pop(ip, None) is not None:
            self._freed.append(ip)

    def _unused(self) -> str:
        while self._next < self.cidr.num_addresses - 1:
            address = str(self.cidr[self._next])
            self._next += 1
            if address not in self._subnet_ips:
                return address
        while (address := self._freed.popleft()) in self._subnet_ips:
            pass
        return address

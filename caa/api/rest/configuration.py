"""The route that tells which configuration applies. Names of keys and what is wrong with them, never their values."""

from __future__ import annotations

from datetime import datetime
from typing import Protocol

from fastapi import APIRouter
from pydantic import Field

from caa.api.rest.routers import errors
from caa.api.rest.schemas import Model
from caa.reload import Refused, Status


class Reload(Protocol):
    """Where the configuration comes from: `caa.reload.Reload`."""

    @property
    def status(self) -> Status:
        """As of now."""
        ...


class KeyProblem(Model):
    """One thing that is wrong."""

    key: str = Field(description="The key to change; empty when none is to blame.")
    message: str = Field(description="A sentence for people. The values of secret keys are not in it.")


class RefusedView(Model):
    """A change of the ConfigMap or the Secret that was not taken over."""

    at: datetime
    keys: list[str] = Field(description="What it would have changed; empty when it could not be read.")
    problems: list[KeyProblem]


class ConfigStatus(Model):
    """Which configuration applies to the next sandbox."""

    generation: int = Field(description="1 when the service starts; one more for each change that was taken over.")
    since: datetime = Field(description="When this generation began to apply.")
    directories: list[str] = Field(description="Mounted directories and watched objects whose changes are taken over.")
    restart_needed: list[str] = Field(description="Keys whose changed values wait for a restart of the service.")
    warnings: list[str] = Field(description="Keys that have no effect and are probably misspelt.")
    refused: RefusedView | None = Field(description="The change that is there and does not apply; null when all does.")
    last_refused: RefusedView | None = Field(description="The newest change that was refused, though it may be gone.")


def config_router(reload: Reload) -> APIRouter:
    """The configuration."""
    router = APIRouter(prefix="/v1/config", tags=["service"])

    @router.get("/status", operation_id="getConfigStatus", responses=errors(401))
    async def status() -> ConfigStatus:
        """Which configuration applies, since when, and what of a change does not."""
        now = reload.status
        return ConfigStatus(
            generation=now.generation,
            since=now.since,
            directories=list(now.directories),
            restart_needed=list(now.restart_needed),
            warnings=list(now.warnings),
            refused=_refused(now.refused),
            last_refused=_refused(now.last_refused),
        )

    return router


def _refused(refused: Refused | None) -> RefusedView | None:
    if refused is None:
        return None
    problems = [KeyProblem(key=problem.key, message=problem.message) for problem in refused.problems]
    return RefusedView(at=refused.at, keys=list(refused.keys), problems=problems)

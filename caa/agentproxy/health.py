"""Asks the agent in the pod VM whether it answers: one grpc.Health/Check, on a connection of its own.

Of its own, because ttrpc servers refuse a stream id that was used before on the same connection, and the shim's
first call has the lowest id there is.
"""

from __future__ import annotations

import asyncio

from caa.agentproxy.frame_readers import ResponseReader
from caa.agentproxy.repeatable import CHECK
from caa.agentproxy.streams import Stream
from caa.ttrpc.frames import HEADER, REQUEST, Request, Response, Status, frame, response_frame
from caa.ttrpc.protobuf import DecodeError, Message, field

# grpc.health.v1's ServingStatus, which Kata's agent uses.
SERVING = 1


class HealthCheckResponse(Message):
    """The answer of Check."""

    status: int = field(1)


class AgentNotReadyError(Exception):
    """The VM answered, and its agent does not serve yet."""


def serving_frame(stream_id: int) -> bytes:
    """The answer to a Check while the agent is out of reach but expected back."""
    return response_frame(stream_id, HealthCheckResponse(status=SERVING).encode())


async def check(link: Stream) -> None:
    """Return when the agent says it serves. Raises AgentNotReadyError, or the OSError that ended the link."""
    answer: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
    reader = ResponseReader()

    def take(data: memoryview) -> None:
        frames = reader.feed(data).data
        if frames and not answer.done():
            answer.set_result(b"".join(frames))

    def lost(error: Exception) -> None:
        if not answer.done():
            answer.set_exception(error)

    link.on_data, link.on_lost = take, lost
    service, method = CHECK
    link.write(frame(1, REQUEST, Request(service=service, method=method).encode()))
    _judge(await answer)


def _judge(data: bytes) -> None:
    try:
        length = HEADER.unpack_from(data)[0]
        response = Response.decode(memoryview(data)[HEADER.size : HEADER.size + length])
        status = response.status or Status()
        serving = HealthCheckResponse.decode(response.payload).status
    except DecodeError as error:
        raise AgentNotReadyError(f"its answer to a health check cannot be read: {error}") from error
    if status.code:
        raise AgentNotReadyError(f"its agent answered a health check with status {status.code}: {status.message}")
    if serving != SERVING:
        raise AgentNotReadyError(f"its agent answered a health check with serving status {serving}")

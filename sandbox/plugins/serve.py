"""Serves a plugin to the engine over gRPC.

`pulumi.provider.experimental.server.main` would do, were it not for what its servicer leaves out: the state of a
resource whose creation failed midway, automatic names as the stack configures them, plain error messages, and an end
when the engine is gone.
"""

import asyncio
import os
import signal
import sys
from collections.abc import Awaitable, Callable
from importlib import metadata
from typing import Any

import grpc
import grpc.aio
from google.protobuf import any_pb2
from pulumi.provider.experimental import server
from pulumi.provider.experimental.property_value import PropertyValue
from pulumi.runtime.proto import provider_pb2, provider_pb2_grpc, status_pb2

from .common import NamedCheckRequest, PartialError, Plugin, PluginError

# The engine's own limit for one message (400 MB): sdk/go/common/util/rpcutil in Pulumi.
MESSAGE_BYTES = 400 * 1024 * 1024
# A plugin whose engine was killed would otherwise stay forever.
ORPHAN_CHECK_SECONDS = 5


def _plainly(answer: Callable[..., Awaitable[Any]]) -> Any:
    """Give errors that are meant for a person to the engine as they are, with the state they leave behind."""

    async def wrapped(self: Any, request: Any, context: Any) -> Any:
        try:
            return await answer(self, request, context)
        except PartialError as error:
            detail = provider_pb2.ErrorResourceInitFailed(
                id=error.id,
                properties=PropertyValue.marshal_map(dict(error.properties)),
                reasons=[str(error)],
                inputs=getattr(request, "properties", None),
            )
            packed = any_pb2.Any()
            packed.Pack(detail)
            status = status_pb2.Status(code=grpc.StatusCode.UNKNOWN.value[0], message=str(error), details=[packed])
            await context.abort(
                grpc.StatusCode.UNKNOWN,
                str(error),
                (("grpc-status-details-bin", status.SerializeToString()),),
            )
        except PluginError as error:
            await context.abort(grpc.StatusCode.UNKNOWN, str(error))

    return wrapped


class Servicer(server.ProviderServicer):
    """The SDK's servicer, completed."""

    _provider: Plugin

    async def _check(self, request: provider_pb2.CheckRequest, context: Any) -> provider_pb2.CheckResponse:
        named = NamedCheckRequest(
            request.urn,
            PropertyValue.unmarshal_map(request.olds),
            PropertyValue.unmarshal_map(request.news),
            request.randomSeed,
        )
        if request.HasField("autonaming"):
            named.proposed_name = request.autonaming.proposed_name
            named.naming_disabled = request.autonaming.mode == provider_pb2.CheckRequest.AutonamingOptions.DISABLE
        answer = await self._provider.check(named)
        return provider_pb2.CheckResponse(
            inputs=PropertyValue.marshal_map(answer.inputs or {}),
            failures=[
                provider_pb2.CheckFailure(property=failure.property, reason=failure.reason)
                for failure in answer.failures or []
            ],
        )

    async def _configure(self, request: Any, context: Any) -> provider_pb2.ConfigureResponse:
        answer: provider_pb2.ConfigureResponse = await super().Configure(request, context)
        answer.supports_autonaming_configuration = True
        return answer

    Check = _plainly(_check)
    Configure = _plainly(_configure)
    CheckConfig = _plainly(server.ProviderServicer.CheckConfig)
    Diff = _plainly(server.ProviderServicer.Diff)
    Create = _plainly(server.ProviderServicer.Create)
    Read = _plainly(server.ProviderServicer.Read)
    Update = _plainly(server.ProviderServicer.Update)
    Delete = _plainly(server.ProviderServicer.Delete)
    Invoke = _plainly(server.ProviderServicer.Invoke)


def main(plugin: Plugin) -> None:
    """Serve `plugin` to the engine whose address is the first argument; prints the port as the engine expects."""
    addresses = [argument for argument in sys.argv[1:] if not argument.startswith("-")]
    if not addresses:
        raise SystemExit(
            f"This is the stand-in for Pulumi's {plugin.name} plugin; the Pulumi engine starts it with its own address."
        )
    asyncio.run(_serve(plugin, addresses[0]))


async def _serve(plugin: Plugin, engine: str) -> None:
    options = [("grpc.max_receive_message_length", MESSAGE_BYTES), ("grpc.max_send_message_length", MESSAGE_BYTES)]
    listener = grpc.aio.server(options=options)
    servicer = Servicer(sys.argv[1:], metadata.version(f"pulumi-{plugin.name}"), plugin, engine)
    provider_pb2_grpc.add_ResourceProviderServicer_to_server(servicer, listener)
    port = listener.add_insecure_port("127.0.0.1:0")
    await listener.start()
    # How the engine ends its plugins; nothing may be said then, or the engine reports a crash.
    asyncio.get_running_loop().add_signal_handler(signal.SIGINT, os._exit, 0)
    print(port, flush=True)
    parent = os.getppid()
    while os.getppid() == parent:
        await asyncio.sleep(ORPHAN_CHECK_SECONDS)
    # Threads that still wait for a service must not keep the process.
    os._exit(1)

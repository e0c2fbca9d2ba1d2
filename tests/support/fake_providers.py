"""Providers that make nothing: the real engine talks to them as it does to the real ones."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import grpc
from google.protobuf import empty_pb2, json_format, struct_pb2
from pulumi.runtime.proto import plugin_pb2, provider_pb2, provider_pb2_grpc

from infra.policy.wire import SECRET, SIGNATURE, unwrapped
from tests.support.provider_answers import answers

REPLACING = {  # what the real providers cannot change in place, as far as the tests look at it
    "docker:index/container:Container": {"image", "envs", "command", "ports"},
    "kubernetes:batch/v1:Job": {"spec"},
}


def place(inputs: Any, key: str) -> Any:
    """A name or namespace of a cluster's object."""
    metadata = inputs.get("metadata")
    return metadata.get(key) if isinstance(metadata, dict) else None


class FakeProvider(provider_pb2_grpc.ResourceProviderServicer):
    """Takes all that it is given, and remembers what was done to what: `create`, `Deployment controller`.

    `gone` is what somebody deleted by hand.
    """

    def __init__(self) -> None:
        self.done: list[tuple[str, str]] = []
        self.gone: set[str] = set()
        self._count = 0

    def Attach(self, request: Any, context: Any) -> Any:
        return empty_pb2.Empty()

    def GetPluginInfo(self, request: Any, context: Any) -> Any:
        return plugin_pb2.PluginInfo(version="0.0.1")

    def CheckConfig(self, request: Any, context: Any) -> Any:
        return provider_pb2.CheckResponse(inputs=request.news)

    def DiffConfig(self, request: Any, context: Any) -> Any:
        return provider_pb2.DiffResponse(changes=provider_pb2.DiffResponse.DIFF_NONE)

    def Configure(self, request: Any, context: Any) -> Any:
        return provider_pb2.ConfigureResponse(acceptSecrets=True, supportsPreview=True, acceptResources=True)

    def Check(self, request: Any, context: Any) -> Any:
        return provider_pb2.CheckResponse(inputs=request.news)

    def Diff(self, request: Any, context: Any) -> Any:
        before, after = in_clear(request.old_inputs), in_clear(request.news)
        changed = sorted(key for key in before.keys() | after.keys() if before.get(key) != after.get(key))
        kind = provider_pb2.DiffResponse.DIFF_SOME if changed else provider_pb2.DiffResponse.DIFF_NONE
        token, _ = token_and_name(request.urn)
        replacing = {"stringData"} if after.get("immutable") else set(REPLACING.get(token, ()))
        if any(place(before, key) != place(after, key) for key in ("name", "namespace")):
            replacing |= {"metadata"}
        return provider_pb2.DiffResponse(
            changes=kind, diffs=changed, replaces=[key for key in changed if key in replacing]
        )

    def Create(self, request: Any, context: Any) -> Any:
        token, name = token_and_name(request.urn)
        if not request.preview:
            self._count += 1
            self.done.append(("create", called(request.urn)))
            self.gone.discard(called(request.urn))
        added = answers(token, name, in_clear(request.properties), self._count)
        if "result" in added:
            added["result"] = {SIGNATURE: SECRET, "value": f"{added['result']}-{self._count}"}  # each is another
        properties = json_format.MessageToDict(request.properties) | added
        return provider_pb2.CreateResponse(id=f"{name}-{self._count}", properties=structure(properties))

    def Read(self, request: Any, context: Any) -> Any:
        self.done.append(("read", called(request.urn)))
        if called(request.urn) in self.gone:
            return provider_pb2.ReadResponse()
        return provider_pb2.ReadResponse(id=request.id, properties=request.properties, inputs=request.inputs)

    def Update(self, request: Any, context: Any) -> Any:
        token, name = token_and_name(request.urn)
        if not request.preview:
            self._count += 1
            self.done.append(("update", called(request.urn)))
        kept = json_format.MessageToDict(request.olds) | json_format.MessageToDict(request.news)
        if token.startswith("kubernetes:"):
            kept |= answers(token, name, in_clear(request.news), self._count)
        return provider_pb2.UpdateResponse(properties=structure(kept))

    def Delete(self, request: Any, context: Any) -> Any:
        self.done.append(("delete", called(request.urn)))
        return empty_pb2.Empty()

    def Cancel(self, request: Any, context: Any) -> Any:
        return empty_pb2.Empty()


def token_and_name(urn: str) -> tuple[str, str]:
    """Of a resource: `kubernetes:core/v1:ConfigMap` and `settings`."""
    _, _, types, name = urn.split("::")
    return types.rpartition("$")[2], name


def called(urn: str) -> str:
    """Kind and name: `ConfigMap settings`."""
    token, name = token_and_name(urn)
    return f"{token.rpartition(':')[2]} {name}"


def in_clear(properties: Any) -> dict[str, Any]:
    """Properties with secrets unwrapped."""
    found: dict[str, Any] = unwrapped(json_format.MessageToDict(properties))
    return found


def structure(properties: Mapping[str, Any]) -> struct_pb2.Struct:
    """Properties as they are sent."""
    made = struct_pb2.Struct()
    json_format.ParseDict(properties, made)
    return made


@contextmanager
def serving(*packages: str) -> Iterator[tuple[FakeProvider, str]]:
    """One provider for these packages, and what PULUMI_DEBUG_PROVIDERS says of them."""
    provider = FakeProvider()
    with ThreadPoolExecutor(8) as threads:
        server = grpc.server(threads)
        provider_pb2_grpc.add_ResourceProviderServicer_to_server(provider, server)
        port = server.add_insecure_port("127.0.0.1:0")
        server.start()
        try:
            yield provider, ",".join(f"{package}:{port}" for package in packages)
        finally:
            server.stop(None).wait()

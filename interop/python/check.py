#!/usr/bin/env python3
"""Calls a running `trouble` node as a peer that shares no code with it would.

    python3 check.py 127.0.0.1:7500

The client is grpcio, the stubs are generated from the repository's .proto files. Prints one line
per check; ends with 1 and one clear line at the first that fails, with 2 if it was called wrongly.
"""

import importlib
import pathlib
import sys
import tempfile
import time
import uuid

import grpc
import grpc_tools
from google.protobuf import descriptor_pool
from google.rpc import error_details_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase
from grpc_status import rpc_status
from grpc_tools import protoc

ROOT = pathlib.Path(__file__).resolve().parents[2]
PROTO_DIRS = (ROOT / "proto" / "proto", ROOT / "examples" / "proto")
SERVICE = "wardkeep.examples.v1.Trouble"
ERROR_ID_KEY = "wardkeep-error-id"
# Every call ends within this many seconds, whatever the node does.
PATIENCE = 10.0
# Raw bytes of details that every peer in the field takes.
MAX_DETAILS_BYTES = 4096


class Failed(Exception):
    """What a check found wrong, in one line."""


def expect(seen, wanted, what):
    if seen != wanted:
        raise Failed(f"{what}: expected {wanted!r}, got {seen!r}")


def require(condition, what):
    if not condition:
        raise Failed(what)


def generate(out):
    """Generates stubs for all our .proto files into a folder and makes it importable."""
    files = [str(file) for folder in PROTO_DIRS for file in sorted(folder.rglob("*.proto"))]
    include = pathlib.Path(grpc_tools.__file__).parent / "_proto"
    arguments = [f"-I{folder}" for folder in (*PROTO_DIRS, include)]
    arguments += [f"--python_out={out}", f"--grpc_python_out={out}", *files]
    if protoc.main(["protoc", *arguments]) != 0:
        raise Failed("protoc does not accept the .proto files")
    # protoc leaves Python packages without __init__.py; they import as namespace packages.
    sys.path.insert(0, str(out))
    importlib.invalidate_caches()
    return files


class Peer:
    """One channel to the node, with the generated modules."""

    def __init__(self, address):
        self.channel = grpc.insecure_channel(address)
        self.pb = importlib.import_module("wardkeep.examples.v1.trouble_pb2")
        self.error_pb = importlib.import_module("wardkeep.v1.error_pb2")
        stubs = importlib.import_module("wardkeep.examples.v1.trouble_pb2_grpc")
        self.trouble = stubs.TroubleStub(self.channel)

    def request(self, kind, **fields):
        return self.pb.TroubleRequest(kind=self.pb.TroubleRequest.Kind.Value(kind), **fields)

    def failure(self, kind, call=None, **fields):
        """The failure that this kind of trouble is answered with."""
        call = call or self.trouble.Make
        try:
            answer = call(self.request(kind, **fields), timeout=PATIENCE)
            if not hasattr(answer, "payload"):
                list(answer)
        except grpc.RpcError as error:
            return error
        raise Failed(f"{kind} was answered with success")


def unpacked(status, message):
    """The one detail of this type in a google.rpc.Status."""
    found = [detail for detail in status.details if detail.Is(message.DESCRIPTOR)]
    expect(len(found), 1, f"details of type {message.DESCRIPTOR.full_name}")
    found[0].Unpack(message)
    return message


def read_well_formed(peer, failure, code):
    """Everything that must be true of any error that crosses the boundary; returns our own record."""
    expect(failure.code(), code, "status code")
    # Raises ValueError if the status in the details differs in code or message from the outer one.
    status = rpc_status.from_call(failure)
    require(status is not None, "the error carries no google.rpc.Status")
    require(status.ByteSize() <= MAX_DETAILS_BYTES, f"details have {status.ByteSize()} bytes")
    error = unpacked(status, peer.error_pb.Error())
    info = unpacked(status, error_details_pb2.ErrorInfo())
    request = unpacked(status, error_details_pb2.RequestInfo())
    line = unpacked(status, error_details_pb2.LocalizedMessage())

    expect(uuid.UUID(error.id).version, 7, "version of the error's UUID")
    ids = [value for key, value in failure.trailing_metadata() if key == ERROR_ID_KEY]
    expect(ids, [error.id], f"metadata {ERROR_ID_KEY}")
    expect(info.metadata["id"], error.id, "ErrorInfo.metadata[id]")
    expect(request.serving_data, error.id, "RequestInfo.serving_data")
    expect((info.domain, info.reason), (error.domain, error.kind), "ErrorInfo's domain and reason")
    expect(line.message, error.user_message, "LocalizedMessage")
    expect(failure.details(), error.user_message, "grpc-message")
    expect(error.code, code.value[0], "code in our record")
    for field in ("machine", "domain", "kind", "user_message", "group_hash"):
        require(getattr(error, field), f"{field} is empty")
    require("\n" not in error.user_message, "the user's message has more than one line")
    age = time.time() - error.occurred_at.ToNanoseconds() / 1e9
    require(abs(age) < 60, f"occurred_at is {age:.0f} s from this machine's clock")
    return error


def read_from_node(peer, failure, code):
    """An error that the node made of what the handler did: it says which ward it was, too."""
    error = read_well_formed(peer, failure, code)
    require(error.node and error.ward and error.incarnation >= 1, "node, ward or incarnation is empty")
    return error


def check_make(peer):
    """Make answers with the payload that was asked for"""
    reply = peer.trouble.Make(peer.request("OK", bytes=1000), timeout=PATIENCE)
    expect((reply.number, len(reply.payload)), (1, 1000), "reply")


def check_make_stream(peer):
    """MakeStream answers with every message in order"""
    replies = peer.trouble.MakeStream(peer.request("OK", depth=50, bytes=10), timeout=PATIENCE)
    expect([reply.number for reply in replies], list(range(1, 51)), "numbers in the stream")


def check_who_answered(peer):
    """a reply says which node, ward and incarnation made it"""
    _, call = peer.trouble.Make.with_call(peer.request("OK"), timeout=PATIENCE)
    metadata = dict(call.initial_metadata())
    for key in ("wardkeep-node", "wardkeep-ward", "wardkeep-incarnation"):
        require(metadata.get(key), f"no metadata {key}")
    require(int(metadata["wardkeep-incarnation"]) >= 1, "the incarnation is not counted from 1")


def check_health(peer):
    """grpc.health.v1 Check answers for the node and for the service"""
    health = health_pb2_grpc.HealthStub(peer.channel)
    for service in ("", SERVICE):
        reply = health.Check(health_pb2.HealthCheckRequest(service=service), timeout=PATIENCE)
        expect(reply.status, health_pb2.HealthCheckResponse.SERVING, f"health of {service!r}")
    try:
        health.Check(health_pb2.HealthCheckRequest(service="no.such.Service"), timeout=PATIENCE)
    except grpc.RpcError as error:
        expect(error.code(), grpc.StatusCode.NOT_FOUND, "health of an unknown service")
    else:
        raise Failed("an unknown service has a health")


def check_health_watch(peer):
    """grpc.health.v1 Watch tells the present state at once"""
    health = health_pb2_grpc.HealthStub(peer.channel)
    watch = health.Watch(health_pb2.HealthCheckRequest(service=SERVICE), timeout=PATIENCE)
    expect(next(watch).status, health_pb2.HealthCheckResponse.SERVING, "first state")
    watch.cancel()


def check_reflection(peer):
    """reflection lists the services and gives descriptors that fit the generated ones"""
    database = ProtoReflectionDescriptorDatabase(peer.channel)
    listed = set(database.get_services())
    for service in (SERVICE, "grpc.health.v1.Health"):
        require(service in listed, f"{service} is not listed, only {sorted(listed)}")
    pool = descriptor_pool.DescriptorPool(database)
    service = pool.FindServiceByName(SERVICE)
    generated = peer.pb.DESCRIPTOR.services_by_name["Trouble"]
    expect([m.name for m in service.methods], [m.name for m in generated.methods], "methods")
    for method, ours in zip(service.methods, generated.methods):
        expect(method.input_type.fields_by_name.keys(), ours.input_type.fields_by_name.keys(), method.name)
        # IDEMPOTENT: it is what allows a client to replicate the call.
        expect(method.GetOptions().idempotency_level, 2, f"idempotency_level of {method.name}")


def check_well_formed(peer):
    """WELL_FORMED arrives whole, with the retry hint it was made with"""
    failure = peer.failure("WELL_FORMED")
    error = read_well_formed(peer, failure, grpc.StatusCode.UNAVAILABLE)
    expect(error.kind, "ASKED_FOR", "kind")
    require(error.transitory and not error.malformed, "it is not transitory, or counts as malformed")
    retry = unpacked(rpc_status.from_call(failure), error_details_pb2.RetryInfo())
    expect(retry.retry_delay.ToMilliseconds(), 100, "RetryInfo.retry_delay in ms")


def check_well_formed_stream(peer):
    """WELL_FORMED arrives whole at the end of a stream as well"""
    failure = peer.failure("WELL_FORMED", call=peer.trouble.MakeStream)
    expect(read_well_formed(peer, failure, grpc.StatusCode.UNAVAILABLE).kind, "ASKED_FOR", "kind")


def check_deep_chain(peer):
    """DEEP_CHAIN with 1,000 causes is cut to what every peer takes"""
    failure = peer.failure("DEEP_CHAIN", depth=1000)
    error = read_well_formed(peer, failure, grpc.StatusCode.UNAVAILABLE)
    require(0 < len(error.causes) < 1000, f"it has {len(error.causes)} causes")


def check_bare_status(peer):
    """BARE_STATUS is adopted: the handler's code, a well-formed error"""
    failure = peer.failure("BARE_STATUS")
    error = read_from_node(peer, failure, grpc.StatusCode.FAILED_PRECONDITION)
    require(not error.malformed, "a deliberate status counts as malformed")


def check_internal_status(peer):
    """INTERNAL_STATUS counts as malformed and shows the user nothing of the inside"""
    error = read_from_node(peer, peer.failure("INTERNAL_STATUS"), grpc.StatusCode.INTERNAL)
    require(error.malformed, "it does not count as malformed")
    require("internal status" not in error.user_message, f"it shows {error.user_message!r}")


def check_panic(peer):
    """PANIC arrives as a well-formed INTERNAL, and the same connection serves on"""
    error = read_from_node(peer, peer.failure("PANIC"), grpc.StatusCode.INTERNAL)
    expect((error.kind, error.malformed), ("PANIC", True), "kind and malformed")
    check_make(peer)


def check_panic_mid_stream(peer):
    """PANIC_MID_STREAM ends the stream after its first message with a well-formed INTERNAL"""
    numbers = []
    try:
        stream = peer.trouble.MakeStream(peer.request("PANIC_MID_STREAM", depth=3), timeout=PATIENCE)
        numbers.extend(reply.number for reply in stream)
    except grpc.RpcError as failure:
        expect(read_from_node(peer, failure, grpc.StatusCode.INTERNAL).kind, "PANIC", "kind")
    else:
        raise Failed("the stream ended with success")
    # grpcio gives up messages that it had not asked for when the status came.
    require(numbers in ([], [1]), f"messages {numbers}")


def check_same_failure(peer):
    """the same failure twice has two IDs and one group hash"""
    first, second = (
        read_well_formed(peer, peer.failure("WELL_FORMED"), grpc.StatusCode.UNAVAILABLE) for _ in range(2)
    )
    require(first.id != second.id, "two failures share an ID")
    expect(second.group_hash, first.group_hash, "group_hash")


def check_unknown_service(peer):
    """a service that no ward answers is UNIMPLEMENTED, and that is well-formed too"""
    call = peer.channel.unary_unary("/no.such.Service/Method")
    try:
        call(b"", timeout=PATIENCE)
    except grpc.RpcError as failure:
        expect(failure.code(), grpc.StatusCode.UNIMPLEMENTED, "status code")
        status = rpc_status.from_call(failure)
        require(status is not None, "the error carries no google.rpc.Status")
        require(unpacked(status, peer.error_pb.Error()).id, "the error has no ID")
    else:
        raise Failed("it was answered with success")


def check_deadline(peer):
    """a deadline that passes is DEADLINE_EXCEEDED, in time"""
    begun = time.monotonic()
    try:
        peer.trouble.Make(peer.request("SLOW", millis=60_000), timeout=0.3)
    except grpc.RpcError as failure:
        expect(failure.code(), grpc.StatusCode.DEADLINE_EXCEEDED, "status code")
    else:
        raise Failed("it was answered with success")
    took = time.monotonic() - begun
    require(took < 3, f"it took {took:.1f} s")


def check_cancel(peer):
    """calls that are cancelled leave the connection fit for the next ones"""
    for _ in range(200):
        peer.trouble.Make.future(peer.request("SLOW", millis=60_000), timeout=PATIENCE).cancel()
    check_make(peer)


CHECKS = (
    check_make,
    check_make_stream,
    check_who_answered,
    check_health,
    check_health_watch,
    check_reflection,
    check_well_formed,
    check_well_formed_stream,
    check_deep_chain,
    check_bare_status,
    check_internal_status,
    check_panic,
    check_panic_mid_stream,
    check_same_failure,
    check_unknown_service,
    check_deadline,
    check_cancel,
)


def main(arguments):
    if len(arguments) != 1:
        print("usage: check.py HOST:PORT", file=sys.stderr)
        return 2
    with tempfile.TemporaryDirectory(prefix="wardkeep-interop-") as out:
        try:
            files = generate(out)
        except Failed as failed:
            print(f"FAILED: {failed}", file=sys.stderr)
            return 1
        print(f"ok: stubs from {len(files)} .proto files (grpcio {grpc.__version__})", flush=True)
        peer = Peer(arguments[0])
        for check in CHECKS:
            try:
                check(peer)
            except Exception as failed:  # a bug in a check is a failure of it, told in one line as well
                kind = "" if isinstance(failed, Failed) else f"{type(failed).__name__}: "
                line = " ".join(str(failed).split())
                print(f"FAILED: {check.__doc__}: {kind}{line}", file=sys.stderr, flush=True)
                return 1
            print(f"ok: {check.__doc__}", flush=True)
        peer.channel.close()
    print(f"all {len(CHECKS)} checks passed")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

#!/usr/bin/env python3
"""Reads every kind of error that a `trouble` node makes, 500 times each.

    python3 errors.py 127.0.0.1:7500

The caller knows none of our .proto files and sets no options: its requests are bytes made by hand. Each
error is read twice: by what gRPC itself gives to any client, and by grpcio's `rpc_status.from_call` with
our record in it. Prints a table; ends with 1 if any error was not read, with 2 if it was called wrongly.
"""

import concurrent.futures
import sys
import tempfile
import time
import uuid

import grpc

from check import ERROR_ID_KEY, PATIENCE, SERVICE, Failed, Peer, expect, generate, read_well_formed, require

CALLS = 500
IN_FLIGHT = 16
KB = 1024
SIBLINGS = 200
# How long the siblings take: long enough for some errors to arrive in the middle of all of them.
SIBLING_MILLIS = 3000
# What must have arrived by then for the check to mean something.
FEWEST_HUGE_ERRORS = 16

Code = grpc.StatusCode
# Kind, its number in the .proto file, the other fields of the request, the code it is answered with.
KINDS = (
    ("WELL_FORMED", 3, {}, Code.UNAVAILABLE),
    *(("DEEP_CHAIN", 8, {"depth": depth}, Code.UNAVAILABLE) for depth in (1, 10, 1000)),
    ("BARE_STATUS", 4, {}, Code.FAILED_PRECONDITION),
    ("INTERNAL_STATUS", 5, {}, Code.INTERNAL),
    *(("HUGE_ERROR", 9, {"bytes": kilobytes * KB}, Code.UNKNOWN) for kilobytes in (1, 10, 100, 1024)),
    ("PANIC", 6, {}, Code.INTERNAL),
    ("PANIC_MID_STREAM", 7, {}, Code.INTERNAL),
)
METHODS = ("Make", "MakeStream")


class Bare:
    """A client that knows no message of ours: the request is bytes made by hand, the answer is not read."""

    FIELDS = {"kind": 1, "millis": 2, "bytes": 3, "depth": 4}

    def __init__(self, channel):
        # Without serializers grpcio passes bytes as they are.
        self.calls = {
            "Make": channel.unary_unary(f"/{SERVICE}/Make"),
            "MakeStream": channel.unary_stream(f"/{SERVICE}/MakeStream"),
        }

    def request(self, number, fields):
        pairs = {"kind": number, **fields}.items()
        return b"".join(varint(self.FIELDS[name] << 3) + varint(value) for name, value in pairs)

    def failure(self, method, number, fields):
        try:
            answer = self.calls[method](self.request(number, fields), timeout=PATIENCE)
            if not isinstance(answer, bytes):
                list(answer)
        except grpc.RpcError as error:
            return error
        raise Failed("it was answered with success")


def varint(number):
    """A number as protobuf writes it."""
    out = bytearray()
    while number > 0x7F:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    out.append(number)
    return bytes(out)


def read_bare(failure, code):
    """What gRPC alone tells of an error: code, the user's line, the ID. Returns the ID."""
    expect(failure.code(), code, "status code")
    line = failure.details()
    require(line and len(line) < 200 and "\n" not in line, f"the user's line is {line!r}")
    ids = [value for key, value in failure.trailing_metadata() if key == ERROR_ID_KEY]
    expect(len(ids), 1, f"metadata {ERROR_ID_KEY}")
    expect(uuid.UUID(ids[0]).version, 7, "version of the error's UUID")
    return ids[0]


class Tally:
    """How many errors were read, and what was wrong with the first that was not."""

    def __init__(self):
        self.read, self.wrong = 0, None

    def count(self, read, *arguments):
        try:
            read(*arguments)
            self.read += 1
        except Exception as failed:  # whatever it is, this error was not read
            kind = "" if isinstance(failed, Failed) else f"{type(failed).__name__}: "
            self.wrong = self.wrong or kind + " ".join(str(failed).split())[:300]


def read_all(peer, pool):
    """Prints a line for each kind and method; returns what was wrong."""
    caller = Bare(peer.channel)
    wrong, ids = [], set()
    print(f"{'kind':<24} {'method':<11} {'calls':>5} {'bare':>6} {'parsed':>6}")
    for kind, number, fields, code in KINDS:
        name = " ".join([kind, *(f"{key}={value}" for key, value in fields.items())])
        for method in METHODS:
            bare, parsed = Tally(), Tally()
            for call in [pool.submit(caller.failure, method, number, fields) for _ in range(CALLS)]:
                bare.count(lambda: ids.add(read_bare(call.result(), code)))
                parsed.count(lambda: read_well_formed(peer, call.result(), code))
            print(f"{name:<24} {method:<11} {CALLS:>5} {bare.read:>6} {parsed.read:>6}", flush=True)
            for how, tally in (("read by a bare client", bare), ("parsed", parsed)):
                if tally.read != CALLS:
                    wrong.append(f"{name}, {method}: {tally.read} of {CALLS} {how}: {tally.wrong}")
    made = CALLS * len(KINDS) * len(METHODS)
    if not wrong and len(ids) != made:
        wrong.append(f"{made} errors have only {len(ids)} IDs")
    return wrong


def spare_siblings(peer):
    """Huge errors on a connection while other calls are in progress on it; returns what was wrong."""
    sibling = peer.request("SLOW", millis=SIBLING_MILLIS)
    siblings = [peer.trouble.Make.future(sibling, timeout=60) for _ in range(SIBLINGS)]
    errors = 0
    while not any(call.done() for call in siblings):
        for call in (peer.trouble.Make, peer.trouble.MakeStream):
            failure = peer.failure("HUGE_ERROR", call, bytes=100 * KB)
            read_well_formed(peer, failure, Code.UNKNOWN)
            errors += 1
    ended = [call.exception() for call in siblings]
    harmed = [failure for failure in ended if failure is not None]
    print(f"{errors} errors of 100 KB among {SIBLINGS} other calls: {SIBLINGS - len(harmed)} succeeded")
    if harmed:
        return [f"{len(harmed)} of {SIBLINGS} siblings of huge errors failed, one with {harmed[0].code()}"]
    if errors < FEWEST_HUGE_ERRORS:
        return [f"only {errors} huge errors came before the first of their siblings was done"]
    return []


def main(arguments):
    if len(arguments) != 1:
        print("usage: errors.py HOST:PORT", file=sys.stderr)
        return 2
    begun = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="wardkeep-interop-") as out:
        generate(out)
        peer = Peer(arguments[0])
        with concurrent.futures.ThreadPoolExecutor(IN_FLIGHT) as pool:
            wrong = read_all(peer, pool)
        wrong += spare_siblings(peer)
        peer.channel.close()
    for line in wrong:
        print(f"FAILED: {line}", file=sys.stderr)
    print(f"{time.monotonic() - begun:.0f} s, grpcio {grpc.__version__}")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

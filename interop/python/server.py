#!/usr/bin/env python3
"""A server that knows nothing of wardkeep: grpcio, with all its limits as they are by default.

    python3 server.py

Its one method, `third.Party/Find`, leaves the first attempt of a call without an answer and answers a further one (gRFC A6's
`grpc-previous-rpc-attempts`) with 100 bytes, so that each racing call has a loser whose handler runs. Says where it listens;
when its standard input ends, how many calls it answered and how many were cancelled under it.
"""

import asyncio
import sys

import grpc

# A message of one field, 98 bytes long.
ANSWER = b"\n\x62" + b"x" * 98


class Party:
    def __init__(self):
        self.answered = self.cancelled = self.waiting = 0
        self.idle = asyncio.Event()

    async def find(self, _request, context):
        metadata = dict(context.invocation_metadata())
        if "grpc-previous-rpc-attempts" in metadata:
            self.answered += 1
            return ANSWER
        self.waiting += 1
        self.idle.clear()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        finally:
            self.waiting -= 1
            if not self.waiting:
                self.idle.set()


async def main():
    party = Party()
    server = grpc.aio.server()
    find = grpc.unary_unary_rpc_method_handler(party.find)
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("third.Party", {"Find": find}),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    print(f"listening on 127.0.0.1:{port}", flush=True)
    await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)
    # What was cancelled last may not have been heard of.
    await asyncio.wait_for(party.idle.wait(), 30)
    print(f"answered {party.answered}, cancelled {party.cancelled}", flush=True)
    await server.stop(0)


if __name__ == "__main__":
    asyncio.run(main())

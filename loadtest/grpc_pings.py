"""The server and the clients of grpc_pings.sh. Messages are bytes as they are."""

import concurrent.futures
import sys
import threading
import time

import grpc


class Handlers(grpc.GenericRpcHandler):
    """Hold answers each message at once; Peer tells which connection a call came on; health is well."""

    def service(self, details):
        if details.method == "/test.Echo/Hold":
            return grpc.stream_stream_rpc_method_handler(lambda messages, _: messages)
        if details.method == "/test.Echo/Peer":
            return grpc.unary_unary_rpc_method_handler(lambda _, context: context.peer().encode())
        if details.method == "/grpc.health.v1.Health/Check":
            return grpc.unary_unary_rpc_method_handler(lambda *_: b"\x08\x01")
        return None


def serve(port):
    server = grpc.server(concurrent.futures.ThreadPoolExecutor(16), handlers=[Handlers()])
    server.add_insecure_port(f"127.0.0.1:{port}")
    server.start()
    print("listens", flush=True)
    server.wait_for_termination()


def hold(port, seconds, name, options):
    """One call that says something, is silent, and says something again. What went wrong, if anything did."""
    with grpc.insecure_channel(f"127.0.0.1:{port}", options=options) as channel:
        spoken = threading.Event()

        def messages():
            yield b"before"
            spoken.wait(seconds)
            yield b"after"

        peer = channel.unary_unary("/test.Echo/Peer")
        before = peer(b"", timeout=30)
        answers = channel.stream_stream("/test.Echo/Hold")(messages(), timeout=seconds + 60)
        heard = [next(answers)]
        began = time.monotonic()
        heard += list(answers)
        silent = time.monotonic() - began
        after = peer(b"", timeout=30)
        same = "the same" if before == after else "another"
        print(f"{name}: heard {heard} with {silent:.0f} s of silence; {same} connection to the server", flush=True)
        assert heard == [b"before", b"after"] and silent >= seconds - 1 and before == after


def call(port, seconds):
    pinging = [("grpc.keepalive_time_ms", 10_000), ("grpc.keepalive_permit_without_calls", 1),
               ("grpc.http2.max_pings_without_data", 0)]
    with concurrent.futures.ThreadPoolExecutor() as pool:
        calls = [pool.submit(hold, port, seconds, "a client as it is by default", []),
                 pool.submit(hold, port, seconds, "a client that pings each 10 s", pinging)]
        for done in calls:
            done.result()


if sys.argv[1] == "serve":
    serve(int(sys.argv[2]))
else:
    call(int(sys.argv[2]), float(sys.argv[3]))

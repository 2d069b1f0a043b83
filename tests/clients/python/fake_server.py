"""A t6.v1.Chat that does what a script says, call by call, and notes what it saw."""

import threading
import time
from concurrent import futures
from dataclasses import dataclass

import grpc
from t6.v1 import chat_pb2, chat_pb2_grpc


@dataclass
class Refuse:
    """Ends the call with an error, after `chunks` pieces of an answer; pushback: grpc-retry-pushback-ms."""

    code: grpc.StatusCode = grpc.StatusCode.UNAVAILABLE
    pushback: str | None = None
    chunks: int = 0


ANSWER = None


@dataclass
class Seen:
    at: float
    metadata: dict
    request: chat_pb2.ChatCompletionRequest


class FakeServer(chat_pb2_grpc.ChatServicer):
    """Answers "yes" once the script is used up."""

    def __init__(self, *script):
        self.script = list(script)
        self.seen = []
        self._lock = threading.Lock()
        self._server = grpc.server(futures.ThreadPoolExecutor(8), options=[("grpc.max_receive_message_length", 16 << 20)])
        chat_pb2_grpc.add_ChatServicer_to_server(self, self._server)
        self.target = f"127.0.0.1:{self._server.add_insecure_port('127.0.0.1:0')}"
        self._server.start()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._server.stop(None).wait()

    @property
    def gaps(self):
        """Seconds between the attempts."""
        times = [seen.at for seen in self.seen]
        return [later - earlier for earlier, later in zip(times, times[1:])]

    def _next(self, request, context):
        with self._lock:
            self.seen.append(Seen(time.monotonic(), dict(context.invocation_metadata()), request))
            return self.script.pop(0) if self.script else ANSWER

    @staticmethod
    def _refuse(action, context):
        if action.pushback is not None:
            context.set_trailing_metadata((("grpc-retry-pushback-ms", action.pushback),))
        context.abort(action.code, "as the script says")

    def CreateCompletion(self, request, context):
        if (action := self._next(request, context)) is not ANSWER:
            self._refuse(action, context)
        return chat_pb2.ChatCompletionResponse(choices=[{"message": {"role": "assistant", "content": "yes"}}])

    def StreamCompletion(self, request, context):
        action = self._next(request, context)
        for _ in range(2 if action is ANSWER else action.chunks):
            yield chat_pb2.ChatCompletionChunk(choice={"message": {"content": "yes"}})
        if action is not ANSWER:
            self._refuse(action, context)

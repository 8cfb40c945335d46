"""Child processes with a time limit: commands with a log, and workers that answer requests one after another.

What may crash, hang or break the GPU's context runs in a worker: its end is an answer, and the next request gets a new
one.
"""

from __future__ import annotations

import contextlib
import json
import os
import queue
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


def run_logged(command: Sequence[str], log: Path, seconds: float, env: dict[str, str], cwd: Path) -> int | None:
    """Run with all output in ``log`` (appended). Answers the exit code, or None if it was stopped at the limit."""
    with log.open("ab") as output:
        output.write(f"$ {' '.join(command)}\n".encode())
        output.flush()
        process = subprocess.Popen(
            command, stdout=output, stderr=subprocess.STDOUT, env=env, cwd=cwd, start_new_session=True
        )
        try:
            return process.wait(max(seconds, 0.1))
        except subprocess.TimeoutExpired:
            return None
        finally:
            stop(process)


def stop(process: subprocess.Popen[Any]) -> None:
    """End it and everything that it started. It leads a session of its own."""
    with contextlib.suppress(ProcessLookupError, PermissionError):  # all gone already
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


@dataclass
class Answer:
    """What came of a request.

    ending: "answered", "crashed" or "hung". result: the last message, if it answered. progress: the messages before.
    """

    ending: str
    result: dict[str, Any] = field(default_factory=dict)
    progress: list[dict[str, Any]] = field(default_factory=list)
    reason: str = ""


class Worker:
    """A child that reads a request per line and writes messages, the last of a request with "done": true."""

    def __init__(self, command: Sequence[str], log: Path, env: dict[str, str], cwd: Path) -> None:
        self._command, self._log, self._env, self._cwd = command, log, env, cwd
        self._process: subprocess.Popen[bytes] | None = None
        self._messages: queue.Queue[bytes] = queue.Queue()

    def ask(self, request: dict[str, Any], seconds: float) -> Answer:
        """Starts the child if there is none."""
        process = self._process or self._start()
        assert process.stdin is not None
        answer = Answer("crashed")
        with contextlib.suppress(OSError):  # it ended after the last answer: its queue says so below
            process.stdin.write(json.dumps(request).encode() + b"\n")
            process.stdin.flush()
        end = time.monotonic() + seconds
        while True:
            try:
                line = self._messages.get(timeout=max(end - time.monotonic(), 0.001))
            except queue.Empty:
                self.close()
                answer.ending, answer.reason = "hung", f"stopped after {seconds:.0f} s"
                return answer
            if not line:
                code = process.wait()
                self.close()
                answer.reason = f"the process ended: {ending(code)}; see {self._log.name}"
                return answer
            message = json.loads(line)
            if message.pop("done", False):
                answer.ending, answer.result = "answered", message
                if message.get("exiting"):
                    self.close()
                return answer
            answer.progress.append(message)

    def _start(self) -> subprocess.Popen[bytes]:
        with self._log.open("ab") as log:
            process = subprocess.Popen(
                self._command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                env=self._env,
                cwd=self._cwd,
                start_new_session=True,
            )
        self._process, self._messages = process, queue.Queue()
        threading.Thread(target=_pump, args=(process.stdout, self._messages), daemon=True).start()
        return process

    def close(self) -> None:
        if self._process is not None:
            stop(self._process)
            self._process = None


def _pump(stream: Any, messages: queue.Queue[bytes]) -> None:
    for line in stream:
        messages.put(line)
    messages.put(b"")


def ending(code: int) -> str:
    return f"exit code {code}" if code >= 0 else signal.Signals(-code).name


def run_pool(
    make_worker: Callable[[], Worker],
    count: int,
    requests: Sequence[dict[str, Any]],
    seconds_each: float,
    deadline: float,
    finished: Callable[[dict[str, Any], Answer], None],
) -> int:
    """Put the requests to ``count`` workers until the deadline (time.monotonic()). Answers how many were not reached.

    finished: called with each request and its answer, by one thread at a time.
    """
    waiting, lock = list(reversed(requests)), threading.Lock()

    def serve() -> None:
        worker = make_worker()
        try:
            while True:
                with lock:
                    left = deadline - time.monotonic()
                    if not waiting or left <= 0:
                        return
                    request = waiting.pop()
                answer = worker.ask(request, min(seconds_each, left))
                with lock:
                    if answer.ending == "hung" and time.monotonic() >= deadline:
                        waiting.append(request)  # the stage's time was over, which says nothing about this one
                        return
                    finished(request, answer)
        finally:
            worker.close()

    threads = [threading.Thread(target=serve) for _ in range(max(1, min(count, len(requests))))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return len(waiting)

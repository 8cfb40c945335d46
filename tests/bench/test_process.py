"""Child processes of a benchmark: whatever one of them does, its end is an answer, and in time."""

from __future__ import annotations

import contextlib
import os
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from tilewright.bench import session
from tilewright.bench.process import Answer, Worker, run_logged, run_pool

#: Answers, crashes or hangs as the request says; "try" does what ``peer`` says unless it is to be left out.
CHILD = """
import json, os, signal, sys, time
def send(**message): print(json.dumps(message), flush=True)
def act(word):
    if word == "crash": os.kill(os.getpid(), signal.SIGSEGV)
    if word == "hang": time.sleep(100)
    if word == "exit": sys.exit(3)
for line in sys.stdin:
    request = json.loads(line)
    if request["do"] == "item":
        for provider in ("good", "peer"):
            send(doing="checking", provider=provider)
            if provider not in request["without"] and provider == "peer": act(request["bench"]["peer"])
        rows = [{"item": request["item"], "provider": p, "status": "timed", **request["without"].get(p, {})}
                for p in ("good", "peer")]
        broken = request["bench"]["peer"] == "break" and "peer" not in request["without"]
        if broken: rows[1]["status"] = "raised"
        send(done=True, rows=rows, exiting=broken, **({"device": "illegal access"} if broken else {}))
    else:
        act(request["do"])
        send(done=True, pid=os.getpid())
"""


def child(tmp_path: Path) -> Worker:
    return Worker([sys.executable, "-u", "-c", CHILD], tmp_path / "child.log", dict(os.environ), tmp_path)


def session_of(tmp_path: Path, peer: str, seconds: float) -> session.Session:
    deadline = time.monotonic() + seconds
    return session.Session(lambda env: child(tmp_path), {"peer": peer}, deadline, lambda done, of, what: None)


def test_a_worker_goes_on_after_it_answered_and_is_replaced_after_it_did_not(tmp_path: Path) -> None:
    worker = child(tmp_path)
    first, second = worker.ask({"do": "answer"}, 20), worker.ask({"do": "answer"}, 20)
    assert first.ending == "answered" and first.result == second.result
    crashed = worker.ask({"do": "crash"}, 20)
    assert crashed.ending == "crashed" and "SIGSEGV" in crashed.reason and "child.log" in crashed.reason
    assert "exit code 3" in worker.ask({"do": "exit"}, 20).reason
    start = time.monotonic()
    hung = worker.ask({"do": "hang"}, 0.5)
    assert hung.ending == "hung" and time.monotonic() - start < 5
    third = worker.ask({"do": "answer"}, 20)
    worker.close()
    assert third.ending == "answered" and third.result != first.result


@pytest.mark.parametrize(("peer", "status"), [("crash", "crashed"), ("hang", "hung"), ("break", "crashed")])
def test_a_peer_that_ends_the_process_costs_one_row(
    peer: str, status: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(session, "SECONDS_AN_ITEM", 1.5)
    with contextlib.closing(session_of(tmp_path, peer, 30)) as measured:
        rows = measured.measure_item("an item", {})
    assert [(r["provider"], r["status"]) for r in rows] == [("good", "timed"), ("peer", status)]
    assert rows[1]["reason"]


def test_what_the_time_does_not_allow_is_said(tmp_path: Path) -> None:
    with contextlib.closing(session_of(tmp_path, "hang", 1)) as measured:
        list(measured.measure_all(["a", "b"]))
    assert [(r["item"], r["status"]) for r in measured.rows] == [("a", "not reached"), ("b", "not reached")]


def test_a_pool_answers_every_request_and_replaces_what_crashed(tmp_path: Path) -> None:
    found: list[tuple[str, str]] = []

    def finished(request: dict[str, Any], answer: Answer) -> None:
        found.append((request["do"], answer.ending))

    requests = [{"do": word} for word in ("answer", "crash", "answer", "exit", "answer")]
    left = run_pool(lambda: child(tmp_path), 2, requests, 20.0, time.monotonic() + 60, finished)
    assert left == 0
    expected = [("answer", "answered")] * 3 + [("crash", "crashed"), ("exit", "crashed")]
    assert sorted(found) == sorted(expected)


def test_a_pool_ends_at_its_deadline_and_says_what_is_left(tmp_path: Path) -> None:
    start = time.monotonic()
    left = run_pool(lambda: child(tmp_path), 1, [{"do": "hang"}, {"do": "answer"}], 60.0, start + 1.0, lambda *_: None)
    assert left == 2 and time.monotonic() - start < 6


def test_a_command_that_runs_too_long_is_stopped_with_what_it_started(tmp_path: Path) -> None:
    log = tmp_path / "log"
    start = time.monotonic()
    assert run_logged(["sh", "-c", "echo begun; sleep 60 & sleep 60"], log, 0.5, dict(os.environ), tmp_path) is None
    assert time.monotonic() - start < 5
    assert "begun" in log.read_text()
    assert run_logged(["sh", "-c", "exit 4"], log, 10, dict(os.environ), tmp_path) == 4

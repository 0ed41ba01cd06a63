"""Chromium over its debugging pipe: load a page, wait for an element, read the document.

Messages are JSON texts that end in a null byte; Chromium reads them from descriptor 3 and answers on descriptor 4
(Chromium, content/browser/devtools/devtools_pipe_handler.cc).
"""

import contextlib
import fcntl
import json
import os
import select
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--no-first-run",
    "--host-resolver-rules=MAP * ~NOTFOUND",
    "--window-size=1280,900",
    "--remote-debugging-pipe",
)
FIRST_FREE = 10
"""Descriptors from here on collide with none that the browser expects."""
START = (
    "import os, sys; os.dup2(int(sys.argv[1]), 3); os.dup2(int(sys.argv[2]), 4); os.execvp(sys.argv[3], sys.argv[3:])"
)
"""Becomes the browser, with the two ends of the pipes where it expects them."""


def _pipe() -> tuple[int, int]:
    """The reading and the writing end of a pipe."""
    ends = os.pipe()
    moved = [fcntl.fcntl(end, fcntl.F_DUPFD_CLOEXEC, FIRST_FREE) for end in ends]
    for end in ends:
        os.close(end)
    return moved[0], moved[1]


class Browser:
    """A running Chromium without network."""

    def __init__(self, program: str, profile: Path, seconds: float) -> None:
        self.deadline = time.monotonic() + seconds
        theirs_in, self.write = _pipe()
        self.read, theirs_out = _pipe()
        start = [sys.executable, "-c", START, str(theirs_in), str(theirs_out), program]
        self.process = subprocess.Popen(
            [*start, *FLAGS, f"--user-data-dir={profile}", "about:blank"],
            pass_fds=(theirs_in, theirs_out),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(theirs_in)
        os.close(theirs_out)
        self.asked, self.buffer = 0, b""

    def ask(self, method: str, session: str | None = None, **parameters: Any) -> dict[str, Any]:
        """The result of a command. Raises TimeoutError when the time is over."""
        self.asked += 1
        message = {"id": self.asked, "method": method, "params": parameters}
        os.write(self.write, json.dumps(message | ({"sessionId": session} if session else {})).encode() + b"\0")
        while True:
            answer = self._message()
            if answer.get("id") == self.asked:
                assert "result" in answer, answer
                return answer["result"]

    def _message(self) -> dict[str, Any]:
        while b"\0" not in self.buffer:
            left = self.deadline - time.monotonic()
            if left <= 0 or not select.select([self.read], [], [], left)[0]:
                raise TimeoutError("the browser did not answer in time")
            part = os.read(self.read, 1 << 20)
            if not part:
                raise ConnectionError(f"the browser ended with {self.process.wait()}")
            self.buffer += part
        first, _, self.buffer = self.buffer.partition(b"\0")
        return json.loads(first)

    def close(self) -> None:
        """End it, politely first."""
        with contextlib.suppress(OSError, TimeoutError, ConnectionError, AssertionError):
            self.deadline = time.monotonic() + 5
            self.ask("Browser.close")
        try:
            self.process.wait(5)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        os.close(self.write)
        os.close(self.read)


def document(program: str, url: str, element: str, profile: Path, seconds: float) -> str:
    """The document at a URL once it has an element of this id."""
    browser = Browser(program, profile, seconds)
    try:
        target = browser.ask("Target.createTarget", url=url)["targetId"]
        session = browser.ask("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        there = f"document.getElementById({json.dumps(element)}) ? document.documentElement.outerHTML : null"
        while True:
            found = browser.ask("Runtime.evaluate", session, expression=there, returnByValue=True)["result"]
            if found.get("value"):
                return found["value"]
            if time.monotonic() > browser.deadline:
                raise TimeoutError(f"{url}: no element {element} after {seconds:g} s")
            time.sleep(0.05)
    finally:
        browser.close()

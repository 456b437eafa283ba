"""A headless Chromium that tests drive over its debugging pipe; pages are opened from files, without a network."""

import base64
import json
import os
import shutil
import subprocess
import tempfile
import time
from pathlib import Path

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
PATIENCE = 120  # seconds until a command is given up; machines of tests may be slow


class Browser:
    """One page in a Chromium of its own.

    Attributes:
        errors: what the console said as an error, exceptions of scripts among them.
        requests: addresses that the page asked for.
    """

    def __init__(self, width=1400, height=1000, dark=False):
        self.errors, self.requests, self.number = [], [], 0
        self.folder = tempfile.TemporaryDirectory()
        to_read, self.to_write = os.pipe()
        self.to_listen, to_tell = os.pipe()
        # Chromium reads its commands from 3 and answers on 4
        options = f"--remote-debugging-pipe --user-data-dir={self.folder.name} --no-sandbox --disable-gpu"
        options += " --headless --disable-background-networking --no-first-run --disable-dev-shm-usage"
        script = f"exec {CHROMIUM} {options} about:blank 3<&{to_read} 4>&{to_tell}"
        self.process = subprocess.Popen(
            ["bash", "-c", script],
            pass_fds=(to_read, to_tell),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(to_read)
        os.close(to_tell)
        self.buffer, self.session = b"", None
        pages = []
        while not pages:
            pages = [t for t in self.call("Target.getTargets")["targetInfos"] if t["type"] == "page"]
        target = {"targetId": pages[0]["targetId"], "flatten": True}
        self.session = self.call("Target.attachToTarget", **target)["sessionId"]
        for domain in ("Runtime", "Page", "Log", "Network"):
            self.call(f"{domain}.enable")
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
        self.call("Emulation.setDeviceMetricsOverride", **size)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.call("Emulation.setEmulatedMedia", features=[scheme])

    def __enter__(self):
        return self

    def __exit__(self, *_):
        os.close(self.to_write)
        os.close(self.to_listen)
        self.process.kill()
        self.process.wait()
        for _attempt in range(20):  # its children go a moment later
            try:
                self.folder.cleanup()
                return
            except OSError:
                time.sleep(0.1)

    def call(self, method, **arguments):
        """The result of a command; what is told meanwhile is entered."""
        self.number += 1
        command = {"id": self.number, "method": method, "params": arguments}
        if self.session is not None:
            command["sessionId"] = self.session
        os.write(self.to_write, json.dumps(command).encode() + b"\0")
        deadline = time.monotonic() + PATIENCE
        while True:
            told = self._next()
            if told.get("id") == self.number:
                assert "error" not in told, told
                return told["result"]
            assert time.monotonic() < deadline, method

    def _next(self):
        while b"\0" not in self.buffer:
            more = os.read(self.to_listen, 1 << 20)
            assert more, "Chromium has ended"
            self.buffer += more
        message, self.buffer = self.buffer.split(b"\0", 1)
        told = json.loads(message)
        method, arguments = told.get("method"), told.get("params", {})
        if method == "Runtime.exceptionThrown":
            details = arguments["exceptionDetails"]
            self.errors.append(details.get("exception", {}).get("description") or details["text"])
        elif method == "Runtime.consoleAPICalled" and arguments["type"] in ("error", "assert"):
            self.errors.append(str(arguments["args"]))
        elif method == "Log.entryAdded" and arguments["entry"]["level"] == "error":
            self.errors.append(arguments["entry"]["text"])
        elif method == "Network.requestWillBeSent":
            self.requests.append(arguments["request"]["url"])
        return told

    def open(self, path: Path, part=""):
        """Open a file, at a tab of the page, and wait until it is drawn."""
        self.call("Page.navigate", url="about:blank")
        self.call("Page.navigate", url=f"{path.absolute().as_uri()}{part}")
        self.wait("document.readyState === 'complete' && location.protocol === 'file:'")
        self.settle()

    def run(self, script):
        """The value of an expression, of which promises are awaited."""
        told = self.call("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in told, told["exceptionDetails"]
        return told["result"].get("value")

    def wait(self, condition):
        """Wait until an expression is true."""
        deadline = time.monotonic() + PATIENCE
        while not self.run(condition):
            assert time.monotonic() < deadline, condition
            time.sleep(0.05)

    def settle(self):
        """Wait for two frames, in which observers have been told."""
        self.run("new Promise(done => requestAnimationFrame(() => requestAnimationFrame(() => setTimeout(done, 50))))")

    def screenshot(self, path: Path, whole=False):
        """Write what is seen, or the whole page, as a PNG."""
        content = self.call("Page.captureScreenshot", format="png", captureBeyondViewport=whole)["data"]
        path.write_bytes(base64.b64decode(content))

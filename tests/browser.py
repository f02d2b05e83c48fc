"""Headless Chromium, controlled through chromedriver with the W3C WebDriver protocol.

python tests/browser.py runs/inference/report.html results/report.png    a picture of its first part
"""

import base64
import contextlib
import json
import shutil
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
DRIVER = shutil.which("chromedriver")
DIRECT = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # the driver is local
KEYS = {  # codes of the WebDriver protocol
    **{"right": "\ue014", "left": "\ue012", "home": "\ue011", "end": "\ue010"},
    **{"enter": "\ue007", "escape": "\ue00c"},
}


class Browser:
    """A browser session. Commands raise HTTPError if the driver reports a failure."""

    def __init__(self, port: int, folder: Path) -> None:
        # The driver may have this port on one of the addresses of localhost only.
        self.session = f"http://localhost:{port}/session"
        flags = ["--headless=new", "--no-sandbox", "--disable-gpu", "--window-size=1100,900"]
        options = {"binary": CHROMIUM, "args": [*flags, f"--user-data-dir={folder}"]}
        wanted = {"goog:chromeOptions": options, "goog:loggingPrefs": {"browser": "ALL"}}
        answer = self.post("", capabilities={"alwaysMatch": wanted})
        self.session += f"/{answer['sessionId']}"

    def post(self, command: str, method: str = "POST", **content: Any) -> Any:
        body = json.dumps(content).encode()
        request = urllib.request.Request(self.session + command, body, method=method)
        with DIRECT.open(request, timeout=60) as answer:
            return json.load(answer)["value"]

    def run(self, script: str, *arguments: Any) -> Any:
        """Run the body of a JavaScript function. Returns its result."""
        return self.post("/execute/sync", script=script, args=arguments)

    def cdp(self, command: str, **parameters: Any) -> Any:
        """Run a command of the Chrome DevTools Protocol."""
        return self.post("/goog/cdp/execute", cmd=command, params=parameters)

    def click(self, selector: str) -> None:
        """Click the element, which must be visible."""
        found = self.post("/element", using="css selector", value=selector)
        self.post(f"/element/{next(iter(found.values()))}/click")

    def press(self, key: str) -> None:
        """Press a key; the focused element receives it."""
        strokes = [{"type": each, "value": KEYS[key]} for each in ("keyDown", "keyUp")]
        self.post("/actions", actions=[{"type": "key", "id": "keyboard", "actions": strokes}])

    def wait(self, condition: str) -> None:
        """Wait until the body of a JavaScript function returns true."""
        until = time.monotonic() + 30
        while not self.run(condition):
            assert time.monotonic() < until, condition
            time.sleep(0.05)


@contextlib.contextmanager
def browser(folder: Path) -> Iterator[Browser]:
    """Start a browser with its profile in `folder`."""
    with subprocess.Popen(
        [DRIVER, "--port=0"], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as driver:
        try:
            line = next(line for line in driver.stdout if "started successfully on port" in line)
            opened = Browser(int(line.split()[-1].rstrip(".")), folder)
            yield opened
            opened.post("", "DELETE")
        finally:
            driver.terminate()


if __name__ == "__main__":
    page, picture = map(Path, sys.argv[1:])
    with tempfile.TemporaryDirectory() as folder, browser(Path(folder)) as opened:
        size = {"width": 1200, "height": 800, "deviceScaleFactor": 1, "mobile": False}
        opened.cdp("Emulation.setDeviceMetricsOverride", **size)
        opened.cdp("Emulation.setScrollbarsHidden", hidden=True)
        opened.post("/url", url=page.resolve().as_uri())
        bottom = "return document.getElementById('explore').getBoundingClientRect().bottom"
        clip = {"x": 0, "y": 0, "width": 1200, "height": opened.run(bottom) + 10, "scale": 1}
        picture.write_bytes(
            base64.b64decode(opened.cdp("Page.captureScreenshot", clip=clip)["data"])
        )

"""A real Chromium without a window, spoken to over a pipe in its own protocol: what a person would see on a page."""

import base64
import json
import os
import shutil
import subprocess
import time
from pathlib import Path
from typing import Any

CHROMIUM = next(
    (path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), None
)

# Text of a page as it is shown, through the shadow trees in which TensorBoard's pages live.
_WALK = """
(() => {
  const shown = (n) => !(n instanceof Element) || (n.tagName !== 'STYLE' && n.tagName !== 'SCRIPT');
  const walk = (n, see) => { if (!n || !shown(n)) return; see(n); if (n.shadowRoot) walk(n.shadowRoot, see);
    for (const c of n.childNodes) walk(c, see); };
  const elements = []; const texts = [];
  walk(document.body, n => { if (n instanceof Element) elements.push(n);
    if (n.nodeType === 3 && n.data.trim()) texts.push(n.data.trim()); });
  return ANSWER;
})()
"""
_TEXT = _WALK.replace("ANSWER", "texts.join('\\n')")
_CLICK = _WALK.replace(
    "ANSWER",
    """(what => { const found = elements.filter(
    e => e.childElementCount === 0 && e.textContent.trim().toLowerCase() === what).pop();
    if (found) found.click(); return found !== undefined; })(WHAT)""",
)
_COUNT = _WALK.replace("ANSWER", "elements.filter(e => e.matches(WHAT) && e.getBoundingClientRect().width > 0).length")


class Browser:
    """One page. Use as a context manager."""

    def __init__(self, profile: Path, *, size: tuple[int, int] = (1500, 950)) -> None:
        """`profile`: a folder for what the browser keeps."""
        assert CHROMIUM is not None
        to_it, from_us = os.pipe()
        to_us, from_it = os.pipe()
        self._out, self._in = from_us, to_us
        argv = [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"]
        argv += [
            f"--user-data-dir={profile}",
            "--remote-debugging-pipe",
            f"--window-size={size[0]},{size[1]}",
            "about:blank",
        ]
        # Chromium reads from 3 and writes to 4.
        shell = f'exec "$@" 3<&{to_it} 4>&{from_it}'
        self._process = subprocess.Popen(
            ["bash", "-c", shell, "bash", *argv], pass_fds=(to_it, from_it), stderr=subprocess.DEVNULL
        )
        os.close(to_it)
        os.close(from_it)
        self._rest, self._number, self._session = b"", 0, None
        page = self._say("Target.createTarget", url="about:blank")["targetId"]
        self._session = self._say("Target.attachToTarget", targetId=page, flatten=True)["sessionId"]
        self._say(
            "Emulation.setDeviceMetricsOverride", width=size[0], height=size[1], deviceScaleFactor=1, mobile=False
        )

    def __enter__(self) -> "Browser":
        return self

    def __exit__(self, *_: object) -> None:
        self._process.terminate()
        self._process.wait()
        os.close(self._out)
        os.close(self._in)

    def open(self, url: str) -> None:
        """Go to a page."""
        self._say("Page.navigate", url=url)

    def text(self) -> str:
        """All text of the page, a line for each piece."""
        return str(self.evaluate(_TEXT))

    def wait_for(self, *texts: str, seconds: float = 600.0) -> str:
        """Until all these words are on the page; its text."""
        end = time.monotonic() + seconds
        while not all(w in (text := self.text()) for w in texts):
            assert time.monotonic() < end, ([w for w in texts if w not in text], text)
            time.sleep(0.3)
        return text

    def click(self, text: str) -> None:
        """Click on what has this text, letters' case aside."""
        assert self.evaluate(_CLICK.replace("WHAT", json.dumps(text.lower()))), f"nothing says '{text}'"

    def count(self, css: str) -> int:
        """How many visible elements match a selector."""
        return int(self.evaluate(_COUNT.replace("WHAT", json.dumps(css))))

    def picture(self, path: Path) -> None:
        """A screenshot, as PNG."""
        path.write_bytes(base64.b64decode(self._say("Page.captureScreenshot", format="png")["data"]))

    def drag(self, css: str) -> None:
        """Draw with the mouse across the middle of the first visible element that matches."""
        code = (
            "(what => { const e = [...document.querySelectorAll(what)].filter(e => e.getBoundingClientRect().width > 0)"
            "[0]; e.scrollIntoView({block: 'center'}); const r = e.getBoundingClientRect();"
            "return [r.x, r.y, r.width, r.height]; })(WHAT)"
        )
        x, y, width, height = self.evaluate(code.replace("WHAT", json.dumps(css)))
        middle = {"y": y + height / 2, "button": "left", "buttons": 1, "clickCount": 1}
        kinds = ["mousePressed", *["mouseMoved"] * 20, "mouseReleased"]
        for k, kind in enumerate(kinds):
            self._say("Input.dispatchMouseEvent", type=kind, x=x + width * (0.35 + 0.3 * k / len(kinds)), **middle)

    def evaluate(self, code: str) -> Any:
        """The value of JavaScript on the page."""
        answer = self._say("Runtime.evaluate", expression=code, returnByValue=True)
        assert "exceptionDetails" not in answer, answer
        return answer["result"].get("value")

    def _say(self, method: str, **params: Any) -> dict[str, Any]:
        self._number += 1
        message: dict[str, Any] = {"id": self._number, "method": method, "params": params}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._out, json.dumps(message).encode() + b"\0")
        while True:
            while b"\0" not in self._rest:
                piece = os.read(self._in, 1 << 16)
                assert piece, "the browser has gone"
                self._rest += piece
            line, _, self._rest = self._rest.partition(b"\0")
            answer = json.loads(line)
            if answer.get("id") == self._number:
                assert "error" not in answer, answer
                return dict(answer["result"])

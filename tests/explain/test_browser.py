"""The page in a real browser: the slider moves, the numbers change, and nothing is fetched.

Skipped where there is no Chromium; nothing else needs one.
"""

import html
import json
import os
import re
import shutil
import subprocess
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from cnnx import explain

BROWSER = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))),
    None,
)
pytestmark = pytest.mark.skipif(BROWSER is None, reason="there is no Chromium here")

IMAGE = [[1, 3, 2, 1], [4, 2, 0, 5], [3, 1, 4, 2], [2, 0, 3, 6]]

# What a reader does, and what is to be seen after each thing.
VISIT = """
<script>
const seen = [];
function look(what) {
  const shown = [...document.querySelectorAll(".step")].filter((step) => step.offsetHeight > 0);
  seen.push({
    what: what, shown: shown.length, title: shown[0].querySelector("h2").textContent,
    numbers: [...shown[0].querySelectorAll("td")].map((cell) => cell.textContent).join(" "),
    place: document.getElementById("place").value, slider: document.getElementById("slider").value,
    chapter: document.querySelector("nav [aria-current]").textContent,
    wide: document.body.scrollWidth > document.documentElement.clientWidth,
  });
}
function press(key) {
  document.dispatchEvent(new KeyboardEvent("keydown", { key: key, bubbles: true }));
  look(key);
}
addEventListener("load", () => {
  look("opened");
  const slider = document.getElementById("slider");
  slider.value = 3; slider.dispatchEvent(new Event("input")); look("slider");
  ["ArrowRight", "ArrowLeft", "End", "ArrowRight", "Home", "ArrowLeft"].forEach(press);
  document.getElementById("next").click(); look("next");
  document.querySelectorAll("nav button")[2].click(); look("chapter");
  const result = document.createElement("pre");
  result.id = "result";
  const fetched = performance.getEntriesByType("resource").length;
  result.textContent = JSON.stringify({ seen: seen, fetched: fetched });
  document.body.append(result);
});
</script></body>"""


def test_slider_moves_numbers_change_and_nothing_is_fetched(tmp_path):
    e = explain.max_pool2d(IMAGE, 2, grad_out=[[0.5, 1.2], [0.8, -0.3]])
    e.save(tmp_path / "page.html")
    page = (tmp_path / "page.html").read_text("utf-8").replace("</body>", VISIT)
    asked = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            asked.append(self.path)
            self.send_response(200)
            self.send_header("Content-Type", "text/html; charset=utf-8")
            self.end_headers()
            self.wfile.write(page.encode())

        def log_message(self, *arguments):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        options = [
            "--headless",
            "--disable-gpu",
            "--window-size=1200,800",
            f"--user-data-dir={tmp_path}/profile",
        ]
        if hasattr(os, "geteuid") and os.geteuid() == 0:
            options.append("--no-sandbox")  # Chromium has none for root
        done = subprocess.run(
            [BROWSER, *options, "--dump-dom", f"http://127.0.0.1:{server.server_port}/page"],
            capture_output=True, timeout=120, check=True,
        )  # fmt: skip
    finally:
        server.shutdown()
        server.server_close()
    found = re.search(r'<pre id="result">(.*?)</pre>', done.stdout.decode(), re.DOTALL)
    result = json.loads(html.unescape(found[1]))
    assert asked == ["/page"]
    assert result["fetched"] == 0
    seen = {one["what"]: one for one in result["seen"]}
    assert all(one["shown"] == 1 and not one["wide"] for one in result["seen"])
    places = [int(one["place"].partition(" / ")[0]) for one in result["seen"]]
    last = len(e)
    assert places == [1, 3, 4, 3, last, last, 1, 1, 2, 6]
    assert [int(one["slider"]) for one in result["seen"]] == places
    assert [one["title"].replace("−", "-") for one in result["seen"]] == [
        e[place - 1].title.replace("^{l-1}", "l-1") for place in places
    ]
    assert seen["slider"]["numbers"] != seen["opened"]["numbers"]
    assert "5" in seen["slider"]["numbers"]
    assert seen["chapter"]["chapter"] == "backward"

"""report.html in a real browser: no error in its console, no request to anywhere. Skipped where Chromium is absent."""

import json
import shutil
import subprocess
from pathlib import Path

import pytest
from support.reports import full_report

from bench.report.page import as_html

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
FLAGS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync"),
    *("--disable-background-networking", "--disable-component-update", "--disable-default-apps"),
    *("--enable-logging=stderr", "--virtual-time-budget=3000"),
)

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no chromium here; install Debian's package chromium")


def visit(page: Path, folder: Path) -> tuple[str, list[str], list[str]]:
    """The page's DOM after its scripts, what its console said, and the addresses that it asked for.

    Chromium asks for some on its own account; those have no origin.
    """
    net = folder / "net.json"
    command = [str(CHROMIUM), *FLAGS, f"--user-data-dir={folder / 'profile'}", f"--log-net-log={net}", "--dump-dom"]
    done = subprocess.run([*command, page.as_uri()], capture_output=True, text=True, timeout=120, check=True)
    console = [line for line in done.stderr.splitlines() if "CONSOLE" in line]
    events = json.loads(net.read_text())["events"]
    started = [event["params"] for event in events if "initiator" in event.get("params", {})]
    asked = {request["url"] for request in started if request["initiator"] != "not an origin"}
    return done.stdout, console, sorted(url for url in asked if not url.startswith("file:"))


def test_the_page_opens_offline_without_an_error(tmp_path: Path) -> None:
    """Stops a page whose pictures come from somewhere else, or whose script fails where nobody looks."""
    page = tmp_path / "report.html"
    page.write_text(as_html(full_report()), encoding="utf-8")
    dom, console, asked = visit(page, tmp_path)
    assert console == []
    assert asked == []
    assert dom.count("<svg") >= 3
    assert "How each number was made" in dom


def test_a_page_that_is_not_offline_would_be_noticed(tmp_path: Path) -> None:
    """Stops the test above from passing because nothing is watched."""
    page = tmp_path / "report.html"
    page.write_text('<img src="http://outside.invalid/x.png"><script>console.error("loud")</script>')
    _, console, asked = visit(page, tmp_path)
    assert any("loud" in line for line in console)
    assert any(url.startswith("http://outside.invalid/") for url in asked)

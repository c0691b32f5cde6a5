"""What a report of a large cluster takes: to write, on disk, and to open in Chromium.

    .venv/bin/python benchmarks/report.py [--nodes N] [--runs N]

The clusters are made up, the matrix is the one that is planned for them. "one node": a node dropped VXLAN, and was
mended; "all": the fabric drops it, between all nodes.
"""

from __future__ import annotations

import argparse
import importlib.util
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from selenium.webdriver import Chrome, ChromeOptions, ChromeService

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from tests.unit.report import sample  # noqa: E402  it is not installed, and found by the line above
from tests.unit.report.test_page import FLAGS  # noqa: E402  as above


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nodes", type=int, default=200)
    parser.add_argument("--runs", type=int, default=5, help="times that the page is opened")
    arguments = parser.parse_args()
    count = arguments.nodes
    reports = {
        "one node": sample.mended(count),
        "all": sample.sick(count, between_all, [sample.finding(sample.names(count), "vxlan-dropped-by-fabric")]),
    }
    with tempfile.TemporaryDirectory() as directory:
        for name, whole in reports.items():
            show(name, whole, Path(directory), arguments.runs)


def between_all(probe: Any) -> str:
    crosses = probe["row"] in ("host-pod", "pod-pod") and probe["source_node"] != probe["target_node"]
    return "timeout" if crosses else ""


def show(name: str, whole: Any, directory: Path, runs: int) -> None:
    spec = importlib.util.spec_from_file_location("netmend_report", ROOT / "plugins/action/netmend_report.py")
    assert spec
    assert spec.loader
    plugin = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(plugin)
    start = time.monotonic()
    files = plugin.written(whole, ROOT / "playbooks/templates")
    took = time.monotonic() - start
    print(f"\n{name}: {len(whole['nodes'])} nodes, {whole['now']['matrix']['total']} probes; written in {took:.1f} s")
    for file, text in files.items():
        (directory / file).write_text(text)
        print(f"  {file:<12} {len(text.encode()) / 1e6:7.2f} MB")
    took_and_used = zip(*opened(directory / "report.html", runs))
    for what, seconds in zip(("opened in", "CPU of that"), took_and_used):
        print(
            f"  {what:<12} {statistics.median(seconds):7.2f} s  ({min(seconds):.2f} to {max(seconds):.2f}, {runs} runs)"
        )


def opened(page: Path, runs: int) -> list[tuple[float, float]]:
    """Seconds from asking for the page until it is drawn, heat map and all, and the CPU seconds of its main thread."""
    options = ChromeOptions()
    with tempfile.TemporaryDirectory() as profile:
        for flag in (*FLAGS, f"--user-data-dir={profile}"):
            options.add_argument(flag)
        browser = Chrome(options, ChromeService("/usr/bin/chromedriver"))
        try:
            browser.execute_cdp_cmd("Performance.enable", {"timeDomain": "threadTicks"})
            loads = []
            for _ in range(runs):
                browser.get("about:blank")
                start = time.monotonic()
                browser.get(page.as_uri())
                browser.execute_async_script("requestAnimationFrame(() => setTimeout(arguments[0]))")
                took = time.monotonic() - start
                metrics = browser.execute_cdp_cmd("Performance.getMetrics", {})["metrics"]
                loads.append((took, next(item["value"] for item in metrics if item["name"] == "TaskDuration")))
            return loads
        finally:
            browser.quit()


if __name__ == "__main__":
    main()

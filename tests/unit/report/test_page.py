"""The page in a real browser, from a file: without a network, a mouse or scripts, in the dark, and on paper."""

from __future__ import annotations

import base64
import json
import re
from pathlib import Path
from typing import Any, Callable, Iterator

import pytest
from selenium.webdriver import ActionChains, Chrome, ChromeOptions, ChromeService, Keys
from selenium.webdriver.common.by import By
from selenium.webdriver.remote.webelement import WebElement

from tests.unit.report import sample

FLAGS = (
    "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync",
    "--disable-background-networking", "--disable-component-update", "--disable-dev-shm-usage",
    "--window-size=1280,900",
)  # fmt: skip
HOSTILE = '</script><script>document.title = "taken"</script><img src=x onerror="document.title=1"><!--'
# Text and what it stands on, by the names of the style sheet's colours; 4.5 is WCAG 2's AA for text.
READABLE = [
    ("text", "page"), ("text", "surface"), ("muted", "page"), ("muted", "surface"), ("accent", "surface"),
    ("accent", "page"), ("surface", "accent"), ("ok", "ok-soft"), ("ok", "surface"), ("some", "some-soft"),
    ("bad", "bad-soft"), ("bad", "surface"), ("on-bad", "bad"), ("muted", "raised"), ("text", "raised"),
]  # fmt: skip
Open = Callable[[Any], None]


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Chrome]:
    options = ChromeOptions()
    for flag in (*FLAGS, f"--user-data-dir={tmp_path_factory.mktemp('profile')}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    running = Chrome(options, ChromeService("/usr/bin/chromedriver"))
    yield running
    running.quit()


@pytest.fixture
def show(browser: Chrome, written: Callable[[Any], dict[str, str]], tmp_path: Path) -> Iterator[Open]:
    """Opens a report's page; whatever the test then does, the browser must not complain."""

    def open_page(whole: Any) -> None:
        (tmp_path / "report.html").write_text(written(whole)["report.html"])
        browser.get((tmp_path / "report.html").as_uri())

    browser.get_log("browser")
    emulate(browser)
    yield open_page
    assert browser.get_log("browser") == []
    browser.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": False})


def emulate(browser: Chrome, scheme: str = "light", media: str = "") -> None:
    features = [{"name": "prefers-color-scheme", "value": scheme}]
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": media, "features": features})


def one(browser: Chrome, selector: str) -> WebElement:
    return browser.find_element(By.CSS_SELECTOR, selector)


def press(browser: Chrome, *keys: str) -> None:
    for key in keys:
        ActionChains(browser).send_keys(key).perform()


def tab_to(browser: Chrome, selector: str) -> WebElement:
    """Goes from control to control as a person without a mouse does."""
    for _ in range(60):
        press(browser, Keys.TAB)
        if browser.execute_script("return document.activeElement.matches(arguments[0])", selector):
            return browser.switch_to.active_element
    raise AssertionError(f"no {selector} is reached by Tab")


MENDED = sample.mended(3)


def test_nothing_is_fetched(written: Callable[[Any], dict[str, str]]) -> None:
    page = written(MENDED)["report.html"]
    assert not re.findall(r"""(?:src|href)=["'](?!#)|url\((?!#)|@import|//[a-z]""", page.partition('id="data"')[0])
    assert "default-src 'none'" in page


def test_verdict_findings_and_changes(browser: Chrome, show: Open) -> None:
    show(MENDED)
    assert browser.title.startswith("netmend: Mended")
    assert "Mended: vxlan-dropped-by-host" in one(browser, "h1").text
    assert "214 packets" in one(browser, ".finding").text
    assert one(browser, ".diff ins").text.startswith("+ 8472/udp")
    assert len(browser.find_elements(By.CSS_SELECTOR, ".topology .node")) == 6
    assert len(browser.find_elements(By.CSS_SELECTOR, ".topology .link.fails")) == 2


def test_the_points_of_a_checklist(browser: Chrome, show: Open) -> None:
    show(sample.checked(3))
    assert "the checklist is not met" in one(browser, "h1").text
    one(browser, "nav a[href='#checklist']").click()
    lines = [row.text for row in browser.find_elements(By.CSS_SELECTOR, "section[aria-labelledby=checklist] tbody tr")]
    assert [re.sub(r"\s+", " ", line) for line in lines] == [
        f"{point['name']} {'✓ yes' if point['met'] else '✕ no'} {point['seen']}" for point in sample.POINTS
    ]
    show(MENDED)
    assert not browser.find_elements(By.CSS_SELECTOR, "#checklist")


def test_a_cell_is_reached_and_opened_by_keyboard(browser: Chrome, show: Open) -> None:
    show(MENDED)
    cell = tab_to(browser, "td[role=gridcell]")
    assert cell.get_attribute("aria-label") == "k3s-master-01 to k3s-worker-002, 0 of 1 as expected: timeout"
    press(browser, Keys.ENTER)
    details = one(browser, "#details")
    assert details.is_displayed()
    assert browser.switch_to.active_element.text == "k3s-master-01 → k3s-worker-002"
    assert re.search(r"tcp/8080\s+10\.42\.2\.5, keybuzz/web-2\s+✕ timeout\s+no answer to SYN\s", details.text)
    assert re.search(r"AFTER.*✓ ok\s+[0-9.]+ ms", details.text, re.S)
    press(browser, Keys.ESCAPE)
    assert not details.is_displayed()
    assert browser.switch_to.active_element == cell
    press(browser, Keys.ARROW_DOWN, Keys.HOME)
    assert browser.switch_to.active_element.get_attribute("aria-label").startswith("k3s-worker-001 to k3s-master-01, 1")
    assert len(browser.find_elements(By.CSS_SELECTOR, "figure:first-child td[tabindex='0']")) == 1


def test_a_click_opens_too_and_says_which_pod(browser: Chrome, show: Open) -> None:
    show(MENDED)
    browser.execute_script("document.querySelector('input[value=pod-pod]').click()")
    one(browser, "td.bad").click()
    assert "FROM POD KEYBUZZ/TOOL-0" in one(browser, "#details").text
    one(browser, "#details-close").click()
    assert not one(browser, "#details").is_displayed()


def test_a_failing_cell_has_the_hops_of_its_packet_and_says_whether_they_agree(browser: Chrome, show: Open) -> None:
    show(MENDED)
    one(browser, "td.bad").click()
    assert [item.text for item in browser.find_elements(By.CSS_SELECTOR, "#details .hops li")] == [
        "k3s-master-01 route\n10.42.2.5 by 10.42.0.0/16 dev flannel.1 (vxlan)",
        "k3s-worker-002 firewall ✕ drops\nINPUT: nft filter INPUT policy DROP",
    ]
    assert "Seen: timeout, as by these hops." in one(browser, "#details").text
    hostile = [{**walk, "agrees": False, "saw": HOSTILE} for walk in MENDED["before"]["walks"]]
    show({**MENDED, "before": {**MENDED["before"], "walks": hostile}})
    one(browser, "td.bad").click()
    assert f"Seen: {HOSTILE}, AGAINST what these hops say: drops." in one(browser, "#details .against").text


def test_before_and_after(browser: Chrome, show: Open) -> None:
    show(MENDED)

    def shown() -> dict[str, int]:
        figures = browser.find_elements(By.CSS_SELECTOR, "#grids figure")
        return {
            figure.find_element(By.TAG_NAME, "figcaption").text: len(figure.find_elements(By.CSS_SELECTOR, "td.bad"))
            for figure in figures
        }

    assert shown() == {"Before": 4, "After": 0}
    tab_to(browser, "input[name=when]")
    press(browser, Keys.ARROW_LEFT)
    assert shown() == {"After": 0}
    press(browser, Keys.ARROW_LEFT)
    assert shown() == {"Before": 4}


def test_every_control_has_a_name_and_every_table_its_headings(browser: Chrome, show: Open) -> None:
    show(MENDED)
    one(browser, "td.bad").click()
    tree = browser.execute_cdp_cmd("Accessibility.getFullAXTree", {})["nodes"]
    roles: dict[str, list[str]] = {}
    for item in tree:
        if not item.get("ignored"):
            roles.setdefault(item["role"]["value"], []).append(item.get("name", {}).get("value", ""))
    for role in ("button", "radio", "link", "grid", "gridcell", "columnheader", "rowheader", "table", "image"):
        named = roles.get(role, [])
        assert named, role
        assert role in ("table", "columnheader") or all(named), role
    levels = [int(heading.tag_name[1]) for heading in browser.find_elements(By.CSS_SELECTOR, "h1, h2, h3, h4")]
    assert levels[0] == 1
    assert all(after - before <= 1 for before, after in zip(levels, levels[1:]))
    ids = [element.get_attribute("id") for element in browser.find_elements(By.CSS_SELECTOR, "[id]")]
    assert len(set(ids)) == len(ids)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_colours_can_be_read(browser: Chrome, show: Open, tmp_path: Path, scheme: str) -> None:
    emulate(browser, scheme)
    show(MENDED)
    script = "return getComputedStyle(document.documentElement).getPropertyValue('--' + arguments[0])"
    colours = {name: browser.execute_script(script, name) for pair in READABLE for name in pair}
    page = luminance(colours["page"])
    assert page > 0.8 if scheme == "light" else page < 0.05
    ratios = {pair: contrast(*(colours[name] for name in pair)) for pair in READABLE}
    assert min(ratios.values()) >= 4.5, ratios
    assert browser.save_screenshot(str(tmp_path / f"{scheme}.png"))


def test_paper(browser: Chrome, show: Open) -> None:
    show(MENDED)
    emulate(browser, "dark", "print")
    white = browser.execute_script("return getComputedStyle(document.body).getPropertyValue('--surface')")
    assert luminance(white) == 1  # whatever the screen's
    assert not one(browser, "nav").is_displayed()
    assert not one(browser, ".controls").is_displayed()
    assert one(browser, ".finding").is_displayed()
    printed = base64.b64decode(browser.execute_cdp_cmd("Page.printToPDF", {"preferCSSPageSize": True})["data"])
    assert printed.startswith(b"%PDF")


def test_without_scripts(browser: Chrome, show: Open) -> None:
    browser.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": True})
    show(MENDED)
    assert not one(browser, "#heat").is_displayed()
    text = one(browser, "main").text
    for part in ("214 packets", "5 of 9", "k3s-worker-002 to k3s-master-01", "+ 8472/udp", "JavaScript"):
        assert part in text


def test_what_is_lost_is_listed(browser: Chrome, show: Open) -> None:
    show(sample.lossy(3))
    assert "k3s-worker-002 to k3s-master-01 (tcp/8080): 4 of 20 (20 %, 8.07 to" in one(browser, "main").text


def test_what_is_measured_is_text_and_no_markup(browser: Chrome, show: Open) -> None:
    found = {**sample.finding([HOSTILE], text=HOSTILE, command=HOSTILE), "title": HOSTILE, "evidence": [HOSTILE]}
    whole = sample.sick(3, sample.overlay_to("k3s-worker-002"), [found])
    matrix = whole["now"]["matrix"]
    matrix["outcomes"][-1]["detail"] = HOSTILE
    matrix["rows"] = {HOSTILE: matrix["rows"]["host-pod"]}
    matrix["rows"][HOSTILE]["checks"][0]["to"] = HOSTILE
    matrix["rows"][HOSTILE]["sources"][HOSTILE] = matrix["rows"][HOSTILE]["sources"].pop("k3s-worker-002")
    whole["nodes"][0]["name"] = whole["verdict"] = HOSTILE
    whole["changes"] = [{"node": HOSTILE, "role": HOSTILE, "diff": [{"before": "", "after": HOSTILE}]}]
    show(whole)
    one(browser, "td.bad").click()
    assert HOSTILE in one(browser, "#details").text
    assert browser.title.strip() == f"netmend: {HOSTILE}"
    assert not browser.find_elements(By.TAG_NAME, "img")
    embedded = browser.execute_script("return document.getElementById('data').textContent")
    assert json.loads(embedded)["now"] == matrix


@pytest.mark.parametrize("whole", [sample.healthy(1), sample.healthy(3), sample.sick(14, lambda _: "timeout")])
def test_other_clusters(browser: Chrome, show: Open, whole: Any) -> None:
    show(whole)
    assert one(browser, "h1").text
    assert browser.find_elements(By.CSS_SELECTOR, "#grids td[role]")


def test_what_was_measured_of_nothing(browser: Chrome, show: Open) -> None:
    whole = sample.whole({**sample.measured(1), "matrix": {"ok": 0, "total": 0, "outcomes": [], "rows": {}}}, None, 1)
    show({**whole, "phases": [], "nodes": []})
    assert not one(browser, "#heat").is_displayed()


def contrast(one_colour: str, other: str) -> float:
    """https://www.w3.org/TR/WCAG22/#dfn-contrast-ratio"""
    darker, lighter = sorted((luminance(one_colour), luminance(other)))
    return (lighter + 0.05) / (darker + 0.05)


def luminance(colour: str) -> float:
    """Of "#abc" or "#aabbcc": https://www.w3.org/TR/WCAG22/#dfn-relative-luminance"""
    digits = colour.strip().lstrip("#")
    digits = "".join(digit * 2 for digit in digits) if len(digits) == 3 else digits
    parts = [int(digits[place : place + 2], 16) / 255 for place in (0, 2, 4)]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

"""The page of a report: what it holds, and what a browser makes of it."""

import builtins
import html
import json
import math
import re
from dataclasses import replace

import pytest
import torch

import fpsim
from fpsim.report import pages, payload
from fpsim.report.counts import Counts, Range
from fpsim.report.layout import Scale, number_line, timeline
from fpsim.report.pages import fragment, page
from fpsim.report.plain import plain
from fpsim.report.records import EVENTS, Event, Row
from fpsim.report.report import Report
from fpsim.report.strip import strip
from fpsim.report.verdict import beside, number
from tests.browser import open_browser, requests, resize
from tests.made_up_reports import FP16, HOSTILE, broken, quiet
from tests.planted_faults import FAULTS, identities


def data_of(text):
    return json.loads(re.search(r'<script type="application/json" id="data">(.*?)</script>', text, re.DOTALL)[1])


def test_the_page_asks_no_network_and_is_small():
    text = page(broken(400))  # 1600 rows
    assert not re.search(r"https?:|//[a-z]|@import|url\(", text)
    assert len(text.encode()) < 1_000_000


def test_names_are_text_everywhere():
    for text in (page(broken()), fragment(broken())):
        assert "<b>" not in text and "\x1b" not in text and "<!--\\x1b" not in text
        assert text.count("</script>") == 2 * ("<body" in text)
        assert html.escape(plain(HOSTILE), quote=False).replace('"', "&#34;").replace("'", "&#39;") in text
    assert plain(HOSTILE) in [path for path, _ in data_of(page(broken()))["modules"]]


def test_the_first_screen_answers_in_order():
    text = html.unescape(re.sub(r"<[^>]+>", " ", fragment(broken())))
    order = [
        "Breaks at step 5 of 12: square in layers.1 (net.py:41) made 3 of 4,096 results infinite or NaN.",
        "0.31 (95 % interval 0.22 to 0.43), over 256 samples and 12 steps",
        "The run ended early: FloatingPointError",
        "What broke first", "models/net.py:41", "energy = scores.square().mean()", "260 * 260 = 67600", "67600", "65504",
        "What to change", "Square in fp32", "verified: relative error 0.002 remains", "'layers.1': 'fp32'", "not verified",
        "Exponents over the network's depth", "local relative error", "cumulative",
        "What was computed how", "48 calls of 1 operation emulated", "12 calls left to the library: argsort (integers)",
    ]  # fmt: skip
    text, place = re.sub(r"\s+", " ", text), 0
    for words in order:
        place = text.find(words, place)
        assert place >= 0, f"{words!r} is missing, or stands too early"


def test_two_fragments_share_no_names():
    assert not re.search(r"\sid=|<script", fragment(broken()) + fragment(quiet()))


def test_nothing_seen_is_said():
    text = page(quiet())
    assert "Nothing has been computed in this arithmetic yet." in text and data_of(text)["rows"] == []


def made(**counts):
    return Report("p", (Row("a", "mm", "forward", Counts(elements=10, **counts), "fp16"),), (FP16,), ("counts", "events"), 3)


def event(kind, **more):
    return Event(kind, 1, "a", "mm", "forward", text="It happened. And more.", format="fp16", **more)


@pytest.mark.parametrize(
    "report, word, sentence",
    [
        (quiet(), "nothing ran", "Nothing has been computed"),
        (made(), "survives", "Survives 3 steps: 10 results, no overflows, no infinities or NaN."),
        (made(underflows=9, subnormals=1), "survives", "Survives"),
        (made(nonfinite=2), "survives", "2 infinities or NaN"),
        (replace(made(), observed=("counts",)), "survives", "events were not observed"),
        (replace(made(made=1), observed=("counts",)), "breaks", "Breaks: 1 infinity or NaN made of finite operands."),
        (made(made=1), "survives", "Survives"),  # events, which were observed, have none that led to anything
        (replace(made(), events=(event("underflow"),)), "survives", "Survives"),
        *((replace(made(), events=(event(kind),)), "survives", "Survives") for kind in ("passed-on", "paused", "skipped")),
        (
            replace(made(), events=(event("stopped"), event("nonfinite"))),
            "breaks",
            "Breaks at step 1 of 3: mm in a made results",
        ),
        (replace(made(), measurement=replace(broken().measurement, degraded=True)), "degrades", "no single operation failed"),
        *(
            (
                replace(made(), events=(event(kind, rounded=1.0),)),
                "degrades",
                f"Degrades at step 1 of 3: {EVENTS[kind]}, mm in a.",
            )
            for kind in EVENTS
            if kind not in ("nonfinite", "underflow", "passed-on", "paused", "skipped")
        ),
    ],
)
def test_verdicts(report, word, sentence):
    assert report.verdict.word == word and sentence in report.verdict.sentence


def test_every_limit_beside_an_event_is_the_formats():
    values = {kind: dict(beside(event(kind, exact=3.0), FP16)) for kind in EVENTS}
    assert values["overflow"]["largest number of fp16"] == 65504 and values["overflow"]["exact result"] == 3
    assert values["underflow"]["smallest positive number of fp16"] == 2.0**-24
    assert values["stopped"]["unit roundoff of fp16"] == 2.0**-11
    assert beside(event("overflow"), None) == []


@pytest.mark.parametrize(
    "value, text",
    [(65504.0, "65504"), (-0.0, "0"), (math.inf, "inf"), (math.nan, "nan"), (None, "-"), (1e-7, "1e-07"), (1e300, "1e+300")],
)
def test_numbers_are_short(value, text):
    assert number(value) == text


def test_a_scale_is_straight_and_ends_at_its_ends():
    up, down = Scale(-4, 6), Scale(-4, 6, down=True)
    assert [up(x) for x in (-9, -4, 1, 6, 9)] == [0, 0, 50, 100, 100] == [100 - down(x) for x in (-9, -4, 1, 6, 9)]
    assert up.span(6, -4) == down.span(-4, 6) == (0, 100) and up.span(1, 2) == (50, 10)


def test_the_strip_has_every_layer_and_its_limits():
    drawn = strip(broken())
    assert [column.module for column in drawn.columns] == list(broken().paths)
    assert [column.overflowed for column in drawn.columns] == [False, False, True, False, False]
    assert strip(quiet()) is None
    for column in drawn.columns:
        for _, top, height in column.bars:
            assert 0 <= top < top + height <= 100
    start, extent = drawn.normal
    assert drawn.subnormal[0] == pytest.approx(start + extent, abs=0.02)


def test_a_deep_network_has_a_strip_all_the_same():
    rows = tuple(Row(f"{i}", "mm", "forward", Counts(5), "fp16", Range(2.0, 1.0)) for i in range(1000))
    drawn = strip(Report("p", rows, (FP16,)))
    assert len(drawn.columns) <= 300 and drawn.columns[-1].x + drawn.columns[-1].width == pytest.approx(100, abs=0.1)


def test_numbers_of_events_stand_beside_their_limits():
    line = number_line(broken().events[0], FP16)
    largest = next(x for x, _, text, _ in line.marks if text.startswith("largest"))
    exact = next(x for x, _, text, _ in line.marks if text.startswith("exact"))
    assert 0 < largest < exact < 100
    negative = number_line(event("overflow", exact=-(2.0**18)), FP16)
    assert [(x > largest, text) for x, _, text, is_limit in negative.marks if not is_limit] == [(True, "exact result -262144")]
    assert number_line(event("nonfinite", exact=math.inf, operands=(("a", 0.0), ("b", math.nan))), FP16) is None
    assert number_line(broken().events[0], None) is None


def test_events_stand_in_lanes_by_their_steps():
    drawn = timeline(broken().events, 12)
    assert [kind for kind, _ in drawn.lanes] == ["overflow", "nonfinite", "passed-on", "stopped"]
    (_, ((first, _),)), *_, (_, ((last, index),)) = drawn.lanes
    assert 0 < first < last < 100 and index == 3
    assert timeline((), 12) is None


def test_a_page_that_would_be_large_leaves_out_quiet_rows(monkeypatch):
    whole = len(page(broken()).encode())
    monkeypatch.setattr(pages, "_MOST_BYTES", whole - 1)
    text = page(broken())
    assert len(text.encode()) < whole and data_of(text)["left_out"] == 8
    held = payload.payload(broken(), 4)
    assert len(held["rows"]) == 4 and held["left_out"] == 11
    assert len(held["modules"]) == 4 and len(payload.payload(broken(), 0)["histograms"]) == 6  # of the events' modules
    column = held["counts"].index("overflows")
    assert sum(row[4][column] for row in held["rows"]) == 3


def test_a_missing_package_names_the_extra(monkeypatch):
    real = builtins.__import__
    monkeypatch.setattr("importlib.import_module", lambda name: real(f"no_{name}"))
    pages.template.cache_clear()
    with pytest.raises(ImportError, match=r"needs jinja2: install the extra `report`"):
        page(quiet())
    with pytest.raises(ImportError, match=r"needs pandas: install the extra `report`"):
        quiet().to_dataframe()


def test_a_data_frame_has_the_rows():
    pandas = pytest.importorskip("pandas")
    frame = broken().to_dataframe()
    assert isinstance(frame, pandas.DataFrame) and len(frame) == len(broken().rows)
    assert frame.overflows.sum() == 3 and frame.largest.isna().sum() == 1
    assert list(quiet().to_dataframe().columns) == list(frame.columns)


@pytest.mark.parametrize("name", FAULTS)
def test_the_first_screen_of_a_real_report_names_what_broke(name):
    fault = FAULTS[name]
    report = fault.run("fp16").report()
    assert repr(Report.from_json(report.to_json())) == repr(report)
    first = next(event for event in report.events if event.kind == fault.kind)
    assert report.verdict.word == ("breaks" if fault.kind in ("overflow", "nonfinite") else "degrades")
    assert report.first == first and f"planted_faults.py:{first.place.line}" in report.verdict.sentence
    text = html.unescape(re.sub(r"<[^>]+>", " ", fragment(report)))
    for words in (first.operation, first.module, first.place.text, plain(first.text), number(first.rounded)):
        assert words in text


@pytest.fixture(scope="module")
def browser():
    driver = open_browser()
    yield driver
    driver.quit()


@pytest.fixture
def opened(browser, tmp_path):
    """A browser that shows the page of the made-up report; at the end its console is empty and it has asked for nothing."""
    address = (tmp_path / "report.html").as_uri()
    broken().to_html(tmp_path / "report.html")
    resize(browser, 1200)
    requests(browser)
    browser.get(address)
    yield browser
    assert [entry["message"] for entry in browser.get_log("browser")] == []
    assert {url.partition("#")[0] for url in requests(browser)} == {address}


def test_a_real_report_is_shown(browser, tmp_path):
    sim = fpsim.run(identities(5), "fp16", observe=("events", "range", "histograms", "shadow"))
    with sim, torch.no_grad():
        sim[3].weight.mul_(2)
        sim(torch.linspace(1, 40000, 8).reshape(2, 4))
    sim.report().to_html(tmp_path / "real.html")
    browser.get((tmp_path / "real.html").as_uri())
    assert browser.get_log("browser") == []
    options = browser.execute_script("return [...document.getElementById('metric').options].map(option => option.text)")
    assert {"cumulative error", "local error", "overflow"} <= set(options)
    click(browser, ".jump")
    assert set(cells(browser, "module")) == {"3"} and "mm" in cells(browser, "operation")
    assert len(browser.find_elements("css selector", "#drawings figure")) == 2  # no gradients were computed


def cells(driver, column):
    """The texts of a column of the rows that are shown."""
    script = """const heads = [...document.querySelectorAll('thead th')].map(cell => cell.textContent);
        const index = heads.indexOf(arguments[0]);
        return [...document.querySelectorAll('tbody tr')].map(row => row.cells[index].firstChild?.textContent ?? "");"""
    return driver.execute_script(script, column)


def press(driver, keys, selector="body"):
    driver.find_element("css selector", selector).send_keys(keys)


def click(driver, selector):
    driver.find_element("css selector", selector).click()


def test_rows_are_sorted_and_filtered(opened):
    from selenium.webdriver.support.ui import Select

    whole = cells(opened, "module")
    assert whole == [path or "outside any module" for path in (plain(row.module) for row in broken().rows)]
    click(opened, "th.underflows button")
    assert cells(opened, "underflows")[:4] == ["300", "200", "100", "·"]
    click(opened, "th.underflows button")
    assert cells(opened, "underflows")[-3:] == ["100", "200", "300"]
    click(opened, "th.cumulative button")
    assert cells(opened, "cumulative")[:2] == ["∞", "0.004"]
    click(opened, "th.largest button")
    assert cells(opened, "largest")[-1] == ""  # what is not known comes last both ways
    click(opened, "th.largest button")
    assert cells(opened, "largest")[-1] == ""
    press(opened, "BLOCKS.<b>", "#query")
    assert set(cells(opened, "module")) == {plain(HOSTILE)} and len(cells(opened, "module")) == 3
    Select(opened.find_element("id", "phase")).select_by_visible_text("backward")
    assert cells(opened, "operation") == ["mm"]
    press(opened, "nothing of that name", "#query")
    assert cells(opened, "module") == [] and "0 of 15 rows" in opened.find_element("id", "shown").text


def test_keys_and_jumps_lead_to_places(opened):
    from selenium.webdriver.common.keys import Keys

    def focused(script):
        return opened.execute_script(f"return document.activeElement.{script}")

    press(opened, "n")
    assert focused("id") == "event-0"
    press(opened, "n", "#event-0")
    press(opened, "p", "#event-1")
    assert focused("id") == "event-0"
    click(opened, "#event-3 .jump")  # from the event to its row
    assert focused("dataset.row") == "13" and focused("cells[0].textContent") == plain(HOSTILE)
    assert set(cells(opened, "module")) == {plain(HOSTILE)}
    assert opened.find_element("id", "selected-name").text == plain(HOSTILE)
    assert opened.execute_script("return document.querySelectorAll('.tile[aria-pressed=true]').length") == 1
    press(opened, Keys.ESCAPE)
    assert len(cells(opened, "module")) == 15
    opened.execute_script("document.querySelector('.tile').focus()")
    press(opened, Keys.ARROW_RIGHT, ".tile")
    opened.switch_to.active_element.send_keys(Keys.ENTER)
    assert set(cells(opened, "module")) == {"layers.0"}
    assert opened.execute_script("return document.querySelectorAll('#drawings figure').length") == 3
    press(opened, "/")
    assert focused("id") == "query"
    opened.execute_script("document.querySelector('.timeline a').focus()")
    opened.switch_to.active_element.send_keys(Keys.ENTER)
    assert opened.current_url.endswith("#event-0")


def test_the_map_is_coloured_by_what_is_chosen(opened):
    def heats():
        return opened.execute_script(
            "return [...document.querySelectorAll('button.tile')].map(tile => +tile.style.getPropertyValue('--heat'))"
        )

    def choose(metric):
        opened.execute_script(
            "const list = document.getElementById('metric');"
            "list.value = [...list.options].find(option => option.text === arguments[0]).value;"
            "list.dispatchEvent(new Event('change'))", metric,
        )  # fmt: skip
        return heats()

    errors, overflows, lost = choose("local error"), choose("overflow"), choose("updates lost")
    assert errors[1] < errors[2] < errors[3] < errors[4]
    assert [bool(heat) for heat in overflows] == [False, False, True, False, False]
    assert lost[1] == 0 < lost[2] < lost[3] < lost[4]
    assert choose("swamped additions")[1] == 0


@pytest.mark.parametrize("width, dark", [(360, True), (800, False), (1400, True)])
def test_the_page_fits_the_screen(opened, width, dark):
    resize(opened, width, dark=dark)
    assert opened.execute_script("return document.documentElement.scrollWidth") <= width
    wide = """return [...document.querySelectorAll('main > *')].filter(part => part.scrollWidth > part.clientWidth + 1)
        .map(part => part.id || part.className)"""
    assert opened.execute_script(wide) == []
    colour = opened.execute_script("return getComputedStyle(document.body).backgroundColor")
    click(opened, "#theme")
    assert opened.execute_script("return getComputedStyle(document.body).backgroundColor") != colour

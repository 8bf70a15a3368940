"""report.html in a real browser: no complaint on the console, every plot drawn; sorting, filter, search work."""

from __future__ import annotations

import copy

import pytest

from compiler.bundle_report import COLUMNS, read_report
from compiler.codegen.bundle import read_bundle
from compiler.compile import compile_release
from compiler.config import load_config
from compiler.page import page
from tests.browser import COLOURS_IN, Opened, chromium, wait_until
from tests.small_models import write_release


@pytest.fixture(scope="module")
def browser():
    with chromium() as found:
        yield found


@pytest.fixture(scope="module")
def record(browser, tmp_path_factory):
    """Of a small release; the browser first, so that nothing is compiled where there is none."""
    folder = tmp_path_factory.mktemp("release")
    return read_report(read_bundle(compile_release(load_config(write_release(folder))).folder))


@pytest.fixture
def opened(browser, tmp_path):
    def open_page(*records, **options):
        path = tmp_path / "report.html"
        path.write_text(page(records))
        made.append(Opened(browser, path, **options))
        return made[-1]

    made = []
    yield open_page
    for one in made:
        assert one.complaints == []
        one.page.close()


def wide(record, tasks=6):
    """The same report with as many tasks, and a row per combination with its number in every quantity."""
    found = copy.deepcopy(record)
    found["tasks"] = [f"t{i}" for i in range(tasks)]
    rows = [[mask, 0, *[mask * 10 + i for i in range(len(COLUMNS) - 2)]] for mask in range(1, 1 << tasks)]
    found["combinations"] = {"columns": list(COLUMNS), "total": len(rows), "rows": rows}
    found["evaluation"] = []
    return found


def tall(record, rows=80):
    """The same report with a chain behind the graph, so that the whole is shown much smaller than legible."""
    found = copy.deepcopy(record)
    nodes, edges = found["graph"]["nodes"], found["graph"]["edges"]
    for i in range(rows):
        edges.append([len(nodes) - 1, len(nodes)])
        nodes.append({**nodes[1], "node": f"chain{i}", "step": None})
    return found


def column(page, table, key):
    """The texts of a column from top to bottom."""
    keys = page.eval_on_selector_all(f"[data-table={table}] th", "heads => heads.map(h => h.dataset.key)")
    cells = f"[data-table={table}] tbody td:nth-child({keys.index(key) + 1})"
    return page.eval_on_selector_all(cells, "cells => cells.map(c => c.textContent)")


def sort(page, table, key):
    page.click(f"[data-table={table}] th[data-key={key}] button")


@pytest.mark.parametrize(("width", "dark"), [(390, True), (1280, False)], ids=["phone", "desk"])
def test_every_plot_is_drawn_and_nothing_sticks_out(opened, record, width, dark):
    shown = opened(record, width=width, dark=dark).page
    plots = shown.query_selector_all("canvas[data-plot]")
    assert len(plots) == 5  # combinations, two metrics, owners, pool
    for canvas in plots:
        assert canvas.get_attribute("data-drawn") == "yes"
        colours = canvas.evaluate(COLOURS_IN)
        assert len(colours) >= 10
        assert "0,114,178" in colours or "230,159,0" in colours
    assert shown.evaluate("document.documentElement.scrollWidth") == width
    back = shown.evaluate("getComputedStyle(document.body).backgroundColor")
    assert back == ("rgb(20, 24, 31)" if dark else "rgb(255, 255, 255)")


def test_colours_follow_the_scheme_while_the_page_is_open(opened, record):
    shown = opened(record).page
    read = "Chart.getChart(document.querySelector('canvas')).options.color"
    before = shown.evaluate(read)
    shown.emulate_media(color_scheme="dark")
    wait_until(shown, f"{read} !== '{before}'")
    assert shown.evaluate(read) == "#e7ebf1"


def test_every_column_sorts_both_ways(opened, record):
    shown = opened(wide(record, 5)).page
    flops = [int(t.replace(",", "")) for t in column(shown, "combinations", "flops")]
    assert len(flops) == 31
    sort(shown, "combinations", "flops")
    assert [int(t.replace(",", "")) for t in column(shown, "combinations", "flops")] == sorted(flops)
    sort(shown, "combinations", "flops")
    found = [int(t.replace(",", "")) for t in column(shown, "combinations", "flops")]
    assert found == sorted(flops, reverse=True)
    head = shown.query_selector("[data-table=combinations] th[data-key=flops]")
    assert head.get_attribute("aria-sort") == "descending"
    sort(shown, "combinations", "tasks")
    names = column(shown, "combinations", "tasks")
    assert names == sorted(names)
    assert shown.query_selector("[aria-label='filter combinations']") is None


def test_long_tables_have_a_filter_and_pages(opened, record):
    shown = opened(wide(record)).page
    assert len(column(shown, "combinations", "tasks")) == 50
    shown.click("#combinations button[data-turn='1']")
    assert len(column(shown, "combinations", "tasks")) == 13
    shown.fill("[aria-label='filter combinations']", "t5 t0")
    found = column(shown, "combinations", "tasks")
    assert len(found) == 16
    assert all("t5" in names and "t0" in names for names in found)
    assert not shown.is_visible("#combinations button[data-turn='1']")


def test_the_graph_is_searched_and_tells_of_a_node(opened, record):
    shown = opened(record).page
    nodes = shown.query_selector_all(".node")
    assert len(nodes) == len(record["graph"]["nodes"])
    assert len(shown.query_selector_all(".edge")) == len(record["graph"]["edges"])
    shown.fill("[aria-label='search the graph']", "B/CONV")
    found = shown.query_selector_all(".node.found")
    assert [n.get_attribute("aria-label") for n in found] == ["Conv b/conv"]
    shown.press("[aria-label='search the graph']", "Enter")
    facts = shown.inner_text(".details")
    step = next(s for s in record["steps"] if "b/conv" in s["nodes"])
    total = sum(s["predicted"] or 0 for s in record["steps"])
    share = f"{100 * step['predicted'] / total:.1f} %"
    for part in ("6,912", "float32[1,4,8,8]", step["choice"], step["why"], share):
        assert part in facts
    shown.fill("[aria-label='search the graph']", "nowhere")
    assert shown.query_selector_all(".node.found") == []


@pytest.mark.parametrize(("name", "rows"), [("b/relu", 0), ("a/head", 80), ("chain71", 80)])
def test_a_node_found_is_shown_in_the_middle_and_legibly(opened, record, name, rows):
    shown = opened(tall(record, rows)).page
    shown.fill("[aria-label='search the graph']", name)
    shown.press("[aria-label='search the graph']", "Enter")
    box = shown.query_selector(".node.chosen").bounding_box()
    frame = shown.query_selector(".canvas").bounding_box()
    assert abs(box["x"] + box["width"] / 2 - frame["x"] - frame["width"] / 2) < 5
    assert abs(box["y"] + box["height"] / 2 - frame["y"] - frame["height"] / 2) < 5
    assert box["height"] > 20


def test_nodes_are_chosen_by_click_and_key_and_the_picture_zooms(opened, record):
    shown = opened(record).page
    shown.click(".node[aria-label='Gemm a/head']")
    assert "Gemm a/head" in shown.inner_text(".details h3")
    shown.focus(".node[aria-label='Relu b/relu']")
    shown.keyboard.press("Enter")
    assert "Relu b/relu" in shown.inner_text(".details h3")
    width = "document.querySelector('.node').getBoundingClientRect().width"
    before = shown.evaluate(width)
    shown.click("[aria-label='zoom in']")
    wait_until(shown, f"{width} > {before * 1.1}")
    shown.click("[aria-label='show the whole graph']")
    wait_until(shown, f"Math.abs({width} - {before}) < 1")


def test_several_bundles_are_compared_and_chosen(opened, record):
    other = {**copy.deepcopy(record), "name": "smaller", "measured": []}
    other["summary"][-1]["flops"] //= 2
    shown = opened(record, other).page
    assert column(shown, "bundles", "bundle") == ["pair for host", "smaller for host"]
    assert len(shown.query_selector_all("canvas[data-drawn]")) == 6
    assert shown.inner_text("header h1") == "pair"
    shown.select_option("select", "1")
    assert shown.inner_text("header h1") == "smaller"
    assert len(shown.query_selector_all("canvas[data-drawn]")) == 6


def test_a_portfolio_is_told_at_its_cheapest_level(opened, record):
    """Metrics are those of the level that costs are of; passes of variants are named."""
    other = {**copy.deepcopy(record), "name": "several"}
    other["summary"][-1]["level"] = 1
    other["evaluation"] += [{**copy.deepcopy(e), "level": 1} for e in other["evaluation"]]
    for found in other["evaluation"]:
        (found["bundle"] or found["graph"])["metric"] = 0.25 + found["level"] / 4
    other["passes"][-1]["variant"] = "alone"
    shown = opened(record, other).page
    assert column(shown, "bundles", "level") == ["0", "1"]
    assert column(shown, "bundles", "metric a")[1] == "0.5"
    shown.select_option("select", "1")
    assert column(shown, "passes", "pass")[-1] == f"alone: {record['passes'][-1]['spec']}"


def test_measured_times_are_in_table_and_plots_with_where_they_were_taken(opened, record):
    times = [{"tasks": t, "level": 0, "seconds_median": s} for t, s in (("a", 2e-6), ("b", 3e-6), ("a+b", 4.5e-6))]
    board = {"where": "pi@board, 2 threads", "subsets": [{**times[2], "seconds_median": 9e-6}]}
    here = {"where": "this machine, 1 thread", "subsets": times}
    shown = opened({**record, "measured": [board, here]}).page
    assert column(shown, "combinations", "measured 0") == ["–", "–", "9 µs"]
    assert column(shown, "combinations", "measured 1") == ["2 µs", "3 µs", "4.5 µs"]
    heads = shown.eval_on_selector_all("[data-table=combinations] th", "heads => heads.map(h => h.textContent)")
    assert heads[-2:] == ["measured: pi@board, 2 threads", "measured: this machine, 1 thread"]
    plots = shown.eval_on_selector_all("canvas[data-drawn]", "all => all.map(one => one.dataset.plot)")
    assert len(plots) == 7
    assert sum("against µs; times: this machine, 1 thread" in plot for plot in plots) == 2


HOSTILE = (
    "\"><img src=x onerror=alert(1)></script><script>alert(2)</script>'",
    "x" * 300,
    "__proto__",
    "\u202e\u05d0\U0001f600-->\u2028&amp;",
)


@pytest.mark.parametrize("name", HOSTILE, ids=["markup", "long", "prototype", "right to left"])
def test_hostile_names_stay_text(opened, record, name):
    evil = {**copy.deepcopy(record), "name": name, "tasks": [name, "b"]}
    evil["graph"]["nodes"][1]["node"] = name
    evil["ownership"][0]["layer"] = name
    evil["evaluation"][0] |= {"task": name, "metric": name}
    evil["gates"][0]["reason"] = evil["passes"][0]["spec"] = name
    evil["passes"][0]["notes"] = [{"where": f"'{name}'", "reason": name}]
    shown = opened(evil, evil).page
    assert shown.inner_text("header h1") == name
    assert shown.query_selector("img") is None
    assert shown.evaluate("document.documentElement.scrollWidth") == 1280
    shown.evaluate("document.querySelectorAll('.node')[1].dispatchEvent(new MouseEvent('click'))")
    assert name in shown.inner_text(".details h3")
    assert column(shown, "evaluation", "task")[0] == column(shown, "evaluation", "metric")[0] == name
    sort(shown, "passes", "pass")
    assert name in column(shown, "passes", "pass")
    assert (
        name in shown.eval_on_selector_all("[data-table=bundles] td", "cells => cells.map(c => c.textContent)")[0]
    )


@pytest.mark.parametrize("tasks", [1, 8])
def test_pages_of_one_task_and_of_many(opened, record, tasks, tmp_path):
    shown = opened(wide(record, tasks)).page
    assert (tmp_path / "report.html").stat().st_size < 1_000_000
    sort(shown, "combinations", "flops")
    sort(shown, "combinations", "flops")
    assert column(shown, "combinations", "tasks")[0] == " + ".join(f"t{i}" for i in range(tasks))


def test_what_is_no_number_is_not_taken_for_nothing(opened, record):
    bad = copy.deepcopy(record)
    for found in bad["evaluation"]:
        found |= {"graph": {"metric": None, "drift": None, "flipped": None}, "bundle": None}
    bad["evaluation"][1] |= {"metric": None, "original": None}
    bad["passes"][0]["drift"] = {"a": 0.5, "b": None}
    shown = opened(bad).page
    assert column(shown, "evaluation", "drift") == ["no number"] * 2
    assert column(shown, "evaluation", "graph") == ["no number", "\u2013"]
    assert column(shown, "passes", "drift")[0] == "no number"

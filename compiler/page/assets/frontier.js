"use strict";
// The page of a frontier: accuracy against time and cost, predicted beside measured time, and all rows.

const FRONTIER = JSON.parse(document.getElementById("data").textContent).frontier;
const REACHED = FRONTIER.points.filter((p) => p.status === "reached");

/** Lines through the points that have both quantities: [{label, x, y}] are texts and keys of rows. */
function linesPlot(caption, x, y, lines) {
  const datasets = lines.map(({ label, from, to, dashed }, i) => ({
    label,
    data: REACHED.filter((p) => !missing(p[from]) && !missing(p[to])).map((p) => ({ x: p[from], y: p[to], what: `share ${p.share}` })),
    borderColor: COLOURS[i % COLOURS.length], backgroundColor: COLOURS[i % COLOURS.length],
    showLine: true, pointRadius: 5, borderDash: dashed ? [5, 4] : [],
  })).filter((d) => d.data.length);
  const label = (context) => `${context.dataset.label}, ${context.raw.what}: ${exact(context.raw.y)} at ${short(context.raw.x)}`;
  return datasets.length ? plot(caption, 320, () => ({
    type: "scatter",
    data: { datasets },
    options: { plugins: { tooltip: { callbacks: { label } } }, scales: { x: axis(x), y: axis(y) } },
  })) : null;
}

/** One plot per metric and quantity: a line per task. */
function accuracyPlotsOf(key, unit) {
  const metrics = [...new Set(Object.values(FRONTIER.metrics).filter(Boolean))];
  return metrics.map((metric) => {
    const tasks = FRONTIER.tasks.filter((t) => FRONTIER.metrics[t] === metric);
    return linesPlot(`${metric} against ${unit}`, unit, metric, tasks.map((t) => ({ label: t, from: key, to: `metric_${t}` })));
  });
}

function buildFrontier() {
  const main = document.getElementById("main");
  const measured = REACHED.some((p) => !missing(p.measured_us));
  const time = measured ? ["measured_us", "measured µs"] : ["predicted_us", "predicted µs"];
  const columns = Object.keys(FRONTIER.points[0]).map((key) => ({ key, title: key.replaceAll("_", " "), ...(key === "error" ? { format: percent } : {}) }));
  const about = `target ${FRONTIER.target} · budgets in ${FRONTIER.quantity} · ${FRONTIER.pass}`;
  const off = missing(FRONTIER.largest_error) ? "" : `Measured times are within ${percent(FRONTIER.largest_error)} of the predicted ones.`;
  const parts = [
    el("h1", { text: `Frontier of ${FRONTIER.name}` }), el("p", { class: "faint", text: about }),
    ...accuracyPlotsOf(...time), ...accuracyPlotsOf("flops", "FLOPs, all tasks"), ...accuracyPlotsOf("weight_bytes", "bytes of weights"),
    measured ? linesPlot("Measured against predicted time", "predicted µs", "µs", [
      { label: "measured", from: "predicted_us", to: "measured_us" }, { label: "as predicted", from: "predicted_us", to: "predicted_us", dashed: true },
    ]) : null,
    off ? el("p", { text: off }) : null,
    dataTable(columns, FRONTIER.points, { name: "points" }),
  ];
  main.append(...parts.filter(Boolean));
  shown();
  drawPlots();
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", drawPlots);
}

buildFrontier();

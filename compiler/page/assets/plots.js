"use strict";
// Plots, drawn by Chart.js; drawn again when the colour scheme changes.

const PLOTS = new Map();
const BAR = 22;

/** A figure with a plot of `height` pixels; `configure` gives Chart.js its settings with the colours of now. */
function plot(caption, height, configure) {
  const canvas = el("canvas", { role: "img", "aria-label": caption, "data-plot": caption });
  const frame = el("div", { class: "plot", style: `height:${height}px` }, canvas);
  PLOTS.set(canvas, configure);
  return el("figure", {}, el("div", { class: "scroll" }, frame), el("figcaption", { text: caption }));
}

/** Draw every plot that is on the page, and forget those that are not. */
function drawPlots() {
  Object.assign(Chart.defaults, { color: ink("--ink"), borderColor: ink("--line"), animation: false });
  for (const [canvas, configure] of PLOTS) {
    Chart.getChart(canvas)?.destroy();
    if (!canvas.isConnected) { PLOTS.delete(canvas); continue; }
    const { options = {}, ...rest } = configure();
    new Chart(canvas, { ...rest, options: { maintainAspectRatio: false, responsive: true, ...options } });
    canvas.dataset.drawn = "yes";
  }
}

const barHeight = (count) => Math.max(160, count * BAR + 90);

const axis = (text, extra = {}) => ({ title: { display: true, text }, ...extra });

/** FLOPs of every combination beside the separate networks. */
function combinationPlot(report) {
  const rows = combinations(report);
  const beside = rows.some((r) => !missing(r.separate_flops));
  const labels = rows.map((r) => taskNames(report, r.mask) + (r.level ? ` · level ${r.level}` : ""));
  const bars = (label, key, colour) => ({ label, data: rows.map((r) => r[key]), backgroundColor: colour });
  return plot("FLOPs of every combination of tasks", barHeight(rows.length * (beside ? 1.6 : 1)), () => ({
    type: "bar",
    data: {
      labels,
      datasets: [
        ...(beside ? [bars("separate networks", "separate_flops", "#8c8c8c")] : []),
        bars("compiled", "flops", COLOURS[0]),
      ],
    },
    options: { indexAxis: "y", scales: { x: axis("FLOPs", { ticks: { callback: (v) => short(v) } }), y: { ticks: { autoSkip: false } } } },
  }));
}

/** Horizontal bars, stacked by set of tasks. `rows`: {label, owners: [[mask, amount]]}. */
function stackedPlot(report, caption, rows, unit) {
  const colours = ownerColours(report);
  const masks = [...new Set(rows.flatMap((r) => r.owners.map(([mask]) => mask)))].sort((a, b) => b - a);
  const amount = (row, mask) => row.owners.find(([m]) => m === mask)?.[1] ?? 0;
  const datasets = masks.map((mask) => ({
    label: mask ? taskNames(report, mask) : "shared or padding",
    data: rows.map((row) => amount(row, mask)),
    backgroundColor: colours.get(mask),
  }));
  return plot(caption, barHeight(rows.length), () => ({
    type: "bar",
    data: { labels: rows.map((r) => r.label), datasets },
    options: {
      indexAxis: "y",
      plugins: { legend: { display: masks.length <= 24 } },
      scales: { x: axis(unit, { stacked: true, ticks: { callback: (v) => short(v) } }), y: { stacked: true, ticks: { autoSkip: false } } },
    },
  }));
}

function ownershipPlot(report) {
  const rows = report.ownership.map((l) => ({ label: `${l.layer} (${l.op})`, owners: l.owners }));
  return stackedPlot(report, "Channels of every layer by the tasks that own them", rows, "channels");
}

function poolPlot(report) {
  const rows = report.pool.sections.map((s) => ({ label: s.section, owners: s.owners }));
  return stackedPlot(report, "Bytes of the weight pool by storage form, and by the tasks that read them", rows, "bytes");
}

/** {task, metric, what, value, flops, seconds} of every version and level of every task that was measured. */
function accuracyPoints(reports) {
  const points = [];
  for (const report of reports) {
    const where = reports.length > 1 ? `${report.name} for ${report.target}` : "compiled";
    for (const found of report.evaluation) {
      const level = found.level ?? 0;
      if (missing(found.original)) continue;
      const mask = 2 ** report.tasks.indexOf(found.task);
      const row = combinations(report).find((r) => r.mask === mask && r.level === level);
      if (!row) continue;
      const base = { task: found.task, metric: found.metric, lower: found.lower_is_better };
      if (!level) points.push({ ...base, what: "original", value: found.original, flops: row.separate_flops, seconds: null });
      const timed = report.measured.find((m) => !missing(measuredSeconds(m, found.task, level)));
      const seconds = timed ? measuredSeconds(timed, found.task, level) : null;
      points.push({ ...base, what: level ? `${where}, level ${level}` : where, value: (found.bundle || found.graph).metric, flops: row.flops, seconds, place: timed?.where });
    }
  }
  return points;
}

/** The median of a combination in the times of one place; null where it was not measured there. */
function measuredSeconds(times, tasks, level) {
  return times.subsets.find((r) => r.tasks === tasks && r.level === level)?.seconds_median ?? null;
}

/** One plot per metric: a line per task through its versions. `quantity`: flops or seconds. */
function accuracyPlots(reports, quantity, unit) {
  const points = accuracyPoints(reports).filter((p) => !missing(p[quantity]));
  const metrics = [...new Set(points.map((p) => p.metric))];
  return metrics.map((metric) => {
    const mine = points.filter((p) => p.metric === metric);
    const tasks = [...new Set(mine.map((p) => p.task))];
    const scale = quantity === "seconds" ? 1e6 : 1;
    const line = (task, i) => ({
      label: task,
      data: mine.filter((p) => p.task === task).map((p) => ({ x: p[quantity] * scale, y: p.value, what: p.what })),
      borderColor: COLOURS[i % COLOURS.length], backgroundColor: COLOURS[i % COLOURS.length],
      showLine: true, pointRadius: 6,
      pointStyle: mine.filter((p) => p.task === task).map((p) => (p.what === "original" ? "triangle" : "circle")),
    });
    const label = (context) => `${context.dataset.label}, ${context.raw.what}: ${exact(context.raw.y)} at ${short(context.raw.x)} ${unit}`;
    const better = mine[0].lower ? ", lower is better" : "";
    const places = quantity === "seconds" ? `; times: ${[...new Set(mine.map((p) => p.place))].join("; ")}` : "";
    const original = quantity === "seconds" ? "" : "; triangles: the original network of the task alone";
    return plot(`${metric}${better} against ${unit}${places}${original}`, 340, () => ({
      type: "scatter",
      data: { datasets: tasks.map(line) },
      options: {
        plugins: { tooltip: { callbacks: { label } } },
        scales: { x: axis(`${unit}, this task alone`, { ticks: { callback: (v) => short(v) } }), y: axis(metric) },
      },
    }));
  });
}

/** FLOPs of all tasks, pool and workspace of several bundles. */
function comparisonPlot(reports) {
  const labels = reports.map((r) => `${r.name} for ${r.target}`);
  const full = (r) => r.summary[r.summary.length - 1];
  return plot("FLOPs of all tasks together, by bundle", barHeight(labels.length), () => ({
    type: "bar",
    data: { labels, datasets: [{ label: "FLOPs", data: reports.map((r) => full(r).flops), backgroundColor: COLOURS[0] }] },
    options: { indexAxis: "y", plugins: { legend: { display: false } }, scales: { x: axis("FLOPs", { ticks: { callback: (v) => short(v) } }) } },
  }));
}

"use strict";
// The page: what several bundles have in common first, then every section of the chosen one.

const FLOPS_SAVED = (row) => (missing(row.separate_flops) || !row.separate_flops ? null : 1 - row.flops / row.separate_flops);

function build() {
  const main = document.getElementById("main");
  const body = el("div");
  const show = (index) => { body.replaceChildren(...reportSections(REPORTS[index])); shown(); drawPlots(); };
  if (REPORTS.length > 1) main.append(...comparisonSections(), bundleChoice(show));
  main.append(body);
  show(0);
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", drawPlots);
}

function bundleChoice(show) {
  const options = REPORTS.map((r, i) => el("option", { value: i, text: `${r.name} for ${r.target}` }));
  const choice = el("select", { on: { change: (event) => show(Number(event.target.value)) } }, ...options);
  return el("h2", {}, el("label", {}, "Bundle ", choice));
}

function section(id, title, ...content) {
  return el("section", { id }, el("h2", { text: title }), ...content);
}

/** Several bundles in one table and one plot. */
function comparisonSections() {
  const tasks = [...new Set(REPORTS.flatMap((r) => r.tasks))];
  const metric = (report, task) => {
    const level = report.summary[report.summary.length - 1].level ?? 0;
    const found = report.evaluation.find((e) => e.task === task && (e.level ?? 0) === level);
    return found ? (found.bundle || found.graph).metric : null;
  };
  const rows = REPORTS.map((r) => ({
    bundle: `${r.name} for ${r.target}`, ...r.summary[r.summary.length - 1], pool: r.pool.bytes,
    ...Object.fromEntries(tasks.map((t) => [`metric ${t}`, metric(r, t)])),
    failed: r.gates.filter((g) => g.verdict === "failed").length,
  }));
  const columns = [
    ["bundle", "bundle"], ...(rows.some((r) => r.level) ? [["level", "level"]] : []), ["flops", "FLOPs, all tasks"], ["macs", "MACs"], ["parameters", "parameters"], ["pool", "pool B"],
    ["workspace_bytes", "workspace B"], ...tasks.map((t) => [`metric ${t}`, t]), ["failed", "failed gates"],
  ].map(([key, title]) => ({ key, title }));
  return [
    el("h1", { text: `${REPORTS.length} bundles` }),
    dataTable(columns, rows, { name: "bundles", filter: rows.length > 10 }),
    comparisonPlot(REPORTS),
    ...accuracyPlots(REPORTS, "flops", "FLOPs"),
    ...accuracyPlots(REPORTS, "seconds", "µs"),
  ];
}

/** All sections of one bundle. */
function reportSections(report) {
  const sections = [
    section("combinations", "Combinations", ...combinationContent(report)),
    section("accuracy", "Accuracy and drift", ...accuracyContent(report)),
    section("ownership", "Channels by owner", ownershipPlot(report)),
    section("pool", "Weight pool", el("p", { text: `${exact(report.pool.bytes)} bytes, shared by all combinations.` }), poolPlot(report)),
    section("graph", "Graph", graphSection(report), ...report.remarks.map((text) => el("p", { class: "faint", text }))),
    section("passes", "Passes", ...passContent(report)),
    section("gates", "Gates", ...gateContent(report)),
  ];
  const links = sections.map((s) => el("a", { href: `#${s.id}`, text: s.firstChild.textContent }));
  return [headline(report), el("nav", { "aria-label": "sections" }, ...links), cards(report), ...sections];
}

function headline(report) {
  const failed = report.gates.filter((g) => g.verdict === "failed").length;
  const skipped = report.gates.filter((g) => g.verdict === "skipped").length;
  const words = [`${report.gates.length - failed - skipped} gates passed`];
  if (failed) words.push(`${failed} failed`);
  if (skipped) words.push(`${skipped} skipped`);
  const verdict = report.gates.length ? el("p", { class: failed ? "failed" : "passed", text: words.join(", ") }) : null;
  const text = `tasks ${report.tasks.join(", ")} · target ${report.target} (${report.preset}) · build ${report.build_id.slice(0, 16)}`;
  return el("header", {}, el("h1", { text: report.name }), el("p", { class: "faint", text }), verdict);
}

/** Before and after for all tasks together. */
function cards(report) {
  const last = report.summary[report.summary.length - 1];
  const first = report.summary.length > 1 ? report.summary[0] : null;
  const card = (title, key, unit) => {
    const saved = first && first[key] ? ` (${percent(1 - last[key] / first[key])} less)` : "";
    const before = first ? `separate ${short(first[key], unit)}${saved}` : "";
    return el("div", { class: "card" }, el("span", { text: title }), el("b", { text: short(last[key], unit) }), el("span", { class: "faint", text: before }));
  };
  const workspace = el("div", { class: "card" }, el("span", { text: "workspace, all tasks" }), el("b", { text: short(last.workspace_bytes, "B") }));
  return el("div", { class: "cards" }, card("FLOPs, all tasks", "flops", ""), card("MACs", "macs", ""), card("parameters", "parameters", ""),
    card("weights", "weight_bytes", "B"), workspace);
}

const MOST_BARS = 63;

function combinationContent(report) {
  const times = report.measured.map((at, i) => ({ key: `measured ${i}`, title: `measured: ${at.where}`, format: microseconds, at }));
  const rows = combinations(report).map((row) => {
    const tasks = taskNames(report, row.mask);
    const timed = times.map(({ key, at }) => [key, measuredSeconds(at, tasks.replaceAll(" + ", "+"), row.level)]);
    return { ...row, tasks, saved: FLOPS_SAVED(row), ...Object.fromEntries(timed) };
  });
  const columns = [
    { key: "tasks", title: "tasks" }, { key: "level", title: "level" }, { key: "flops", title: "FLOPs" },
    { key: "separate_flops", title: "separate" }, { key: "saved", title: "saved", format: percent },
    { key: "macs", title: "MACs needed" }, { key: "macs_dense", title: "with zeros" }, { key: "parameters", title: "parameters" },
    { key: "weight_bytes", title: "weights B" }, { key: "activation_bytes", title: "traffic B" }, { key: "workspace_bytes", title: "workspace B" },
    ...times,
  ];
  const present = columns.filter((c) => rows.some((r) => !missing(r[c.key])) && (c.key !== "level" || rows.some((r) => r.level)));
  const { total } = report.combinations;
  const left = total > rows.length ? `Shown are ${exact(rows.length)} of ${exact(total)} rows; combos.csv holds all.` : "";
  const table = dataTable(present, rows, { name: "combinations", filter: rows.length > 31 });
  const note = left ? el("p", { class: "faint", text: left }) : null;
  return rows.length <= MOST_BARS ? [combinationPlot(report), table, note].filter(Boolean) : [table, note].filter(Boolean);
}

function accuracyContent(report) {
  if (!report.evaluation.length) return [el("p", { class: "faint", text: "Not measured: the build was given neither evaluation nor calibration data." })];
  const rows = report.evaluation.map((e) => {
    const final = e.bundle || e.graph;
    const metric = (value) => (e.metric ? measured(value) : null);
    return { task: e.task, level: e.level, metric: e.metric, samples: e.samples, original: metric(e.original), graph: metric(e.graph.metric),
      compiled: e.bundle ? metric(e.bundle.metric) : null, drift: measured(final.drift), flipped: final.flipped };
  });
  const titles = { task: "task", ...(rows.some((r) => r.level) ? { level: "level" } : {}), metric: "metric", samples: "samples", original: "original", graph: "graph", compiled: "compiled library", drift: "drift" };
  const columns = Object.entries(titles).map(([key, title]) => ({ key, title }));
  columns.push({ key: "flipped", title: "decisions changed", format: percent });
  const plots = REPORTS.length > 1 ? [] : [...accuracyPlots([report], "flops", "FLOPs"), ...accuracyPlots([report], "seconds", "µs")];
  return [dataTable(columns, rows, { name: "evaluation" }), ...plots];
}

function passContent(report) {
  if (!report.passes.length) return [el("p", { class: "faint", text: "The graph was compiled as given." })];
  const largest = (values) => (values.some(missing) ? measured(null) : Math.max(0, ...values));
  const worst = (drift) => (drift ? largest(Object.values(drift)) : null);
  const named = (p) => (p.variant ? `${p.variant}: ${p.spec}` : p.spec);
  const rows = report.passes.map((p) => ({
    pass: named(p), outputs: p.exact ? "exact" : "approximate", before: p.before.nodes, after: p.after.nodes,
    parameters: p.after.parameters, flops: p.after.flops, drift: worst(p.drift),
  }));
  const titles = { pass: "pass", outputs: "outputs", before: "nodes before", after: "after", parameters: "parameters", flops: "FLOPs", drift: "largest drift" };
  const columns = Object.entries(titles).map(([key, title]) => ({ key, title }));
  const told = report.passes.flatMap((p) => [
    ...p.notes.map((n) => ({ pass: named(p), what: "did", ...n })), ...p.refusals.map((r) => ({ pass: named(p), what: "left alone", ...r })),
  ]);
  const toldColumns = [["pass", "pass"], ["what", ""], ["where", "where"], ["reason", "what and why"]].map(([key, title]) => ({ key, title }));
  const more = told.length ? el("details", {}, el("summary", { text: `${exact(told.length)} things that passes did or left alone, and why` }),
    dataTable(toldColumns, told, { name: "told", filter: true })) : null;
  return [dataTable(columns, rows, { name: "passes" }), more].filter(Boolean);
}

function gateContent(report) {
  if (!report.gates.length) return [el("p", { class: "faint", text: "No gates were checked." })];
  const titles = { gate: "gate", where: "where", value: "value", limit: "limit", verdict: "verdict", reason: "reason" };
  return [dataTable(Object.entries(titles).map(([key, title]) => ({ key, title })), report.gates, { name: "gates", filter: report.gates.length > 31 })];
}

build();

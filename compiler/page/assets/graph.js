"use strict";
// The graph as a picture: laid out by dagre, one box per node in the colour of its tasks; zoom by Panzoom.

const BOX = { height: 30, letter: 7.2, margin: 18, most: 34 };
const EAGER_NODES = 1500;

/** The picture with its tools and the panel for the chosen node. */
function graphSection(report) {
  const details = el("div", { class: "details" }, el("p", { class: "faint", text: "Choose a node to see its facts." }));
  const canvas = el("div", { class: "canvas" });
  const tools = el("div", { class: "tools" });
  const draw = () => drawGraph(report, canvas, details, tools);
  const count = report.graph.nodes.length;
  if (count > EAGER_NODES) {
    const text = `lay out ${exact(count)} nodes (this takes a while)`;
    tools.append(el("button", { type: "button", text, on: { click: () => { tools.replaceChildren(); draw(); } } }));
  } else whenShown(draw);
  return el("div", {}, tools, ownerChips(report), el("div", { class: "picture" }, canvas, details));
}

/** One chip per set of tasks that owns a node. */
function ownerChips(report) {
  const masks = [...new Set(report.graph.nodes.map((n) => n.mask))].sort((a, b) => b - a);
  const colours = ownerColours(report);
  const chip = (mask) =>
    el("span", { class: "chip" }, el("i", { style: `background:${colours.get(mask)}` }), taskNames(report, mask));
  return el("p", {}, ...masks.map(chip));
}

function boxText(node) {
  const text = node.op === "input" || node.op === "output" ? `${node.op} ${node.node}` : `${node.op}  ${node.node}`;
  return text.length > BOX.most ? `${text.slice(0, BOX.most - 1)}…` : text;
}

/** Positions of boxes and bends of arrows. */
function laidOut(report) {
  const { nodes, edges } = report.graph;
  const layout = new dagre.graphlib.Graph();
  const ranker = nodes.length > 300 ? "longest-path" : "network-simplex";
  layout.setGraph({ rankdir: "TB", nodesep: 22, ranksep: 34, marginx: 12, marginy: 12, ranker });
  layout.setDefaultEdgeLabel(() => ({}));
  nodes.forEach((node, i) =>
    layout.setNode(String(i), { width: boxText(node).length * BOX.letter + BOX.margin, height: BOX.height }));
  edges.forEach(([from, to]) => layout.setEdge(String(from), String(to)));
  dagre.layout(layout);
  return layout;
}

function drawGraph(report, canvas, details, tools) {
  const layout = laidOut(report);
  const { width, height } = layout.graph();
  const colours = ownerColours(report);
  const world = svg("g");
  for (const edge of layout.edges()) world.append(arrow(layout.edge(edge).points));
  const boxes = report.graph.nodes.map((node, i) => box(node, layout.node(String(i)), colours.get(node.mask)));
  world.append(...boxes);
  const picture = svg("svg", { viewBox: `0 0 ${width} ${height}`, role: "group", "aria-label": "graph" }, arrowHead(), world);
  canvas.replaceChildren(picture);
  const zoom = zoomable(canvas, world, { width, height });
  const choose = (i) => {
    for (const other of boxes) other.classList.toggle("chosen", other === boxes[i]);
    details.replaceChildren(nodeFacts(report, report.graph.nodes[i]));
  };
  boxes.forEach((one, i) => {
    one.addEventListener("click", () => choose(i));
    one.addEventListener("keydown", (event) => { if (event.key === "Enter") choose(i); });
  });
  tools.append(searchField(report, boxes, layout, zoom, choose), ...zoomButtons(zoom));
}

function arrowHead() {
  const head = svg("marker", { id: "head", viewBox: "0 0 8 8", refX: 7, refY: 4, markerWidth: 7, markerHeight: 7, orient: "auto" },
    svg("path", { d: "M0 0L8 4L0 8z" }));
  return svg("defs", {}, head);
}

function arrow(points) {
  const path = points.map((p, i) => `${i ? "L" : "M"}${p.x.toFixed(1)} ${p.y.toFixed(1)}`).join("");
  return svg("path", { class: "edge", d: path, "marker-end": "url(#head)" });
}

function box(node, place, colour) {
  const rect = svg("rect", {
    x: place.x - place.width / 2, y: place.y - place.height / 2, width: place.width, height: place.height,
    rx: node.op === "input" || node.op === "output" ? 15 : 4, fill: colour,
  });
  const label = svg("text", { x: place.x, y: place.y + 4, "text-anchor": "middle", fill: readable(colour) });
  label.textContent = boxText(node);
  return svg("g", { class: "node", tabindex: 0, role: "button", "aria-label": `${node.op} ${node.node}` }, rect, label);
}

/** Black or white, whichever stands out from a colour. */
function readable(colour) {
  const probe = document.createElement("canvas").getContext("2d");
  probe.fillStyle = colour;
  const [r, g, b] = [1, 3, 5].map((i) => parseInt(probe.fillStyle.slice(i, i + 2), 16));
  return 0.299 * r + 0.587 * g + 0.114 * b > 140 ? "#111" : "#fff";
}

/** Drag, pinch and wheel; `show(x, y)` brings a place of the picture to the middle, legibly. */
function zoomable(canvas, world, size) {
  const panzoom = Panzoom(world, { maxScale: 60, minScale: 0.5, canvas: true, exclude: [] });
  canvas.addEventListener("wheel", (event) => panzoom.zoomWithWheel(event), { passive: false });
  const show = (x, y) => {
    const fit = Math.min(canvas.clientWidth / size.width, canvas.clientHeight / size.height);
    const scale = Math.min(60, Math.max(1, 1 / fit));
    panzoom.zoom(scale, { animate: false });
    // the picture is scaled about its origin after it was moved, so the middle lies at half its size over the scale
    panzoom.pan(size.width / 2 / scale - x, size.height / 2 / scale - y, { animate: false, force: true });
  };
  return { panzoom, show };
}

function zoomButtons({ panzoom }) {
  const button = (text, label, run) => el("button", { type: "button", text, "aria-label": label, on: { click: run } });
  return [
    button("+", "zoom in", () => panzoom.zoomIn()),
    button("−", "zoom out", () => panzoom.zoomOut()),
    button("whole", "show the whole graph", () => panzoom.reset()),
  ];
}

/** Marks the nodes whose name, operator or kernel holds the text; Enter goes from one to the next. */
function searchField(report, boxes, layout, zoom, choose) {
  const { nodes } = report.graph;
  const kernel = (node) => (missing(node.step) ? "" : report.steps[node.step].choice ?? "");
  const texts = nodes.map((n) => `${n.op} ${n.node} ${kernel(n)} ${taskNames(report, n.mask)}`.toLowerCase());
  const status = el("span", { class: "faint", "aria-live": "polite", "data-found": "0" });
  let found = [];
  let next = 0;
  const mark = (event) => {
    const wanted = event.target.value.trim().toLowerCase();
    found = wanted ? texts.flatMap((text, i) => (text.includes(wanted) ? [i] : [])) : [];
    next = 0;
    boxes.forEach((one, i) => one.classList.toggle("found", found.includes(i)));
    status.dataset.found = String(found.length);
    status.textContent = wanted ? `${found.length} found; Enter shows the next` : "";
  };
  const go = (event) => {
    if (event.key !== "Enter" || !found.length) return;
    const i = found[next++ % found.length];
    const place = layout.node(String(i));
    zoom.show(place.x, place.y);
    choose(i);
  };
  const field = el("input", { type: "search", placeholder: "search the graph", "aria-label": "search the graph", on: { input: mark, keydown: go } });
  return el("span", {}, field, " ", status);
}

/** Everything recorded about one node: the graph's facts, its kernel's, and what passes said of it. */
function nodeFacts(report, node) {
  const list = el("dl");
  const add = (name, value) => {
    if (!missing(value) && value !== "") list.append(el("dt", { text: name }), el("dd", { text: String(value) }));
  };
  add("tasks", taskNames(report, node.mask));
  add("type", node.type);
  add("reads", node.operands);
  add("makes", node.results);
  if (node.macs || node.macs_dense) add("MACs needed / with all zeros", `${exact(node.macs)} / ${exact(node.macs_dense)}`);
  if (!missing(node.flops)) add("FLOPs", exact(node.flops));
  if (!missing(node.activation_bytes)) add("activation bytes moved", exact(node.activation_bytes));
  add("from", node.origin);
  if (!missing(node.step)) stepFacts(report, report.steps[node.step], add);
  for (const [pass, told] of toldOf(report, node.node)) add(pass, told);
  return el("div", {}, el("h3", { text: `${node.op} ${node.node}` }), list);
}

function stepFacts(report, step, add) {
  const total = report.steps.reduce((sum, s) => sum + (s.predicted ?? 0), 0);
  add("kernel", step.choice);
  add("chosen", [step.chosen_by && `by ${step.chosen_by}`, step.why].filter(Boolean).join(": "));
  add("together with", step.nodes.length > 1 ? step.nodes.join(", ") : "");
  add("predicted time of the kernel", missing(step.predicted) ? "none for this kind of kernel" : microseconds(step.predicted));
  if (!missing(step.predicted) && total) add("share of the predicted time", percent(step.predicted / total));
  add("packed weights, bytes", step.weight_bytes ? exact(step.weight_bytes) : "");
  add("zeros of sparse weights", step.zeros);
  add("layouts read", step.reads.join(", "));
  add("layouts made", step.writes.join(", "));
}

/** [pass, reason] of every note and refusal that names the node. */
function toldOf(report, name) {
  return report.passes.flatMap((pass) =>
    [...pass.notes, ...pass.refusals].filter((told) => told.where.includes(`'${name}'`)).map((told) => [pass.spec, told.reason]));
}

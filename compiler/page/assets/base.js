"use strict";
// What every part of the page needs: the data, elements, numbers in words, one colour per set of tasks.

const REPORTS = JSON.parse(document.getElementById("data").textContent).reports;

/** An element with properties (`class`, `text`, `on`, or attributes) and children; texts become text nodes. */
function el(tag, properties = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (name === "on") for (const [event, run] of Object.entries(value)) made.addEventListener(event, run);
    else if (name === "class") made.className = value;
    else if (name === "text") made.textContent = value;
    else if (value !== null && value !== undefined) made.setAttribute(name, value);
  }
  made.append(...children.filter((c) => c !== null && c !== undefined));
  return made;
}

/** The same for SVG. */
function svg(tag, attributes = {}, ...children) {
  const made = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  made.append(...children);
  return made;
}

const missing = (value) => value === null || value === undefined;

/** What was measured; JSON has null for NaN and infinity. */
const measured = (value) => (missing(value) ? "no number" : value);

/** Digits in groups of three for whole numbers, four significant ones for others, a dash for nothing. */
function exact(value) {
  if (missing(value)) return "–";
  if (typeof value !== "number") return String(value);
  return Number.isInteger(value) ? value.toLocaleString("en-US") : String(Number(value.toPrecision(4)));
}

/** A count with a prefix: 12.3 M. */
function short(value, unit = "") {
  if (missing(value)) return "–";
  const step = [[1e9, "G"], [1e6, "M"], [1e3, "k"]].find(([size]) => Math.abs(value) >= size);
  const number = step ? Number((value / step[0]).toPrecision(3)) : Number(value.toPrecision(4));
  return `${number} ${step ? step[1] : ""}${unit}`.trim();
}

const percent = (share) => (missing(share) ? "–" : `${(100 * share).toFixed(1)} %`);
const microseconds = (seconds) => (missing(seconds) ? "–" : `${exact(Number((seconds * 1e6).toPrecision(4)))} µs`);

/** Names of the tasks in a mask. Plain arithmetic: bit operators stop at 32 tasks. */
function taskNames(report, mask) {
  const names = report.tasks.filter((_, bit) => Math.floor(mask / 2 ** bit) % 2 === 1);
  return names.length ? names.join(" + ") : "no task";
}

/** The rows of `report.combinations` as objects. */
function combinations(report) {
  const { columns, rows } = report.combinations;
  return rows.map((row) => Object.fromEntries(columns.map((name, i) => [name, row[i]])));
}

// Okabe and Ito's colours, which also colour-blind readers tell apart; golden-angle hues where they run out.
const COLOURS = ["#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#d55e00", "#f0e442", "#8c8c8c"];

/** Mask -> colour for every set of tasks that owns something in the report; mask 0 is grey. */
function ownerColours(report) {
  const sections = report.pool.sections.map((s) => s.owners);
  const owners = [...report.ownership.map((l) => l.owners), ...sections].flat().map(([mask]) => mask);
  const masks = [...new Set([...owners, ...report.graph.nodes.map((n) => n.mask)])].filter((m) => m > 0);
  masks.sort((a, b) => b - a);
  const colour = (i) => COLOURS[i] || `hsl(${Math.round(i * 137.5) % 360} 55% ${50 + (i % 3) * 8}%)`;
  return new Map([...masks.map((mask, i) => [mask, colour(i)]), [0, "#9aa0a8"]]);
}

/** The value of a colour variable of the style sheet, as it is now (light or dark). */
const ink = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();

// What has to wait until its elements are part of the page, because it measures them.
const WAITING = [];
const whenShown = (run) => WAITING.push(run);
const shown = () => { for (const run of WAITING.splice(0)) run(); };

"use strict";
// Tables: every column sorts, a field filters, long ones come in pages.

const PAGE_ROWS = 50;

/**
 * A table of `rows` (objects). A column is {key, title, format?}: columns whose values are numbers are right-aligned
 * and sort by size; nothing sorts last. With `filter` a field above keeps the rows that hold every word typed.
 */
function dataTable(columns, rows, { filter = false, name = "" } = {}) {
  const state = { rows, order: null, falling: false, page: 0 };
  const shown = columns.map((c) => ({ format: exact, ...c, number: rows.some((r) => typeof r[c.key] === "number") }));
  const body = el("tbody");
  const heads = shown.map((column) => headCell(column, () => { sortBy(state, column.key); draw(); }));
  const status = el("span", { class: "faint", "aria-live": "polite" });
  const draw = () => drawRows(state, shown, heads, body, status);
  const tools = el("div", { class: "tools" });
  if (filter) tools.append(filterField(name, (words) => { keep(state, rows, shown, words); draw(); }));
  tools.append(status, ...turners(state, draw));
  const table = el("table", { "data-table": name }, el("thead", {}, el("tr", {}, ...heads)), body);
  draw();
  return el("div", {}, filter || rows.length > PAGE_ROWS ? tools : null, el("div", { class: "wide" }, table));
}

function headCell(column, sort) {
  const button = el("button", { type: "button", text: column.title, on: { click: sort } });
  return el("th", { scope: "col", "data-key": column.key, class: column.number ? "number" : "" }, button);
}

function filterField(name, apply) {
  return el("input", {
    type: "search", placeholder: "filter", "aria-label": `filter ${name}`,
    on: { input: (event) => apply(event.target.value.toLowerCase().split(/\s+/).filter(Boolean)) },
  });
}

function turners(state, draw) {
  const turn = (by) => () => { state.page += by; draw(); };
  return [["previous", -1], ["next", 1]].map(([text, by]) =>
    el("button", { type: "button", text, "data-turn": by, on: { click: turn(by) } }));
}

/** Sort by a column; the same one again turns the order round. */
function sortBy(state, key) {
  state.falling = state.order === key && !state.falling;
  state.order = key;
  state.page = 0;
}

/** A word keeps a row where it is one of the words of the row's texts, or part of one. */
function keep(state, rows, columns, words) {
  const texts = (row) => columns.map((c) => String(c.format(row[c.key], row))).join(" ").toLowerCase();
  state.rows = rows.filter((row) => words.every((word) => texts(row).includes(word)));
  state.page = 0;
}

function compared(key, falling) {
  return (a, b) => {
    const [x, y] = [a[key], b[key]];
    if (missing(x) || missing(y)) return missing(x) - missing(y);
    const order = typeof x === "number" && typeof y === "number" ? x - y : String(x).localeCompare(String(y), "en");
    return falling ? -order : order;
  };
}

function drawRows(state, columns, heads, body, status) {
  const rows = state.order ? [...state.rows].sort(compared(state.order, state.falling)) : state.rows;
  const pages = Math.max(1, Math.ceil(rows.length / PAGE_ROWS));
  state.page = Math.min(Math.max(0, state.page), pages - 1);
  const first = state.page * PAGE_ROWS;
  const cell = (column, row) =>
    el("td", { class: column.number ? "number" : "", text: String(column.format(row[column.key], row)) });
  const visible = rows.slice(first, first + PAGE_ROWS);
  body.replaceChildren(...visible.map((row) => el("tr", {}, ...columns.map((c) => cell(c, row)))));
  for (const head of heads) {
    const mine = head.dataset.key === state.order;
    if (mine) head.setAttribute("aria-sort", state.falling ? "descending" : "ascending");
    else head.removeAttribute("aria-sort");
  }
  const range = pages > 1 ? ` ${first + 1}–${Math.min(first + PAGE_ROWS, rows.length)} of` : "";
  status.textContent = `${range} ${rows.length.toLocaleString("en-US")} rows`.trim();
  for (const button of status.parentElement?.querySelectorAll("[data-turn]") ?? []) button.hidden = pages === 1;
}

// What is shown, as elements. Text goes in as text: nothing that a service says can become markup.

export function make(tag, properties = {}, ...children) {
  const element = Object.assign(document.createElement(tag), properties);
  element.append(...children);
  return element;
}

const isPlain = (value) => value === null || typeof value !== "object";
const worded = (name) => name.replaceAll("_", " ");

// A value as a person reads it: a table for a list of things, names and values for a thing, text for the rest.
export function view(value) {
  if (isPlain(value)) return make("span", { textContent: plain(value) });
  if (Array.isArray(value)) return value.every(isPlain) ? listOf(value) : tableOf(value);
  const entries = Object.entries(value);
  if (entries.length === 0) return make("span", { textContent: "none", className: "none" });
  const parts = entries.flatMap(([name, each]) => [make("dt", { textContent: worded(name) }), make("dd", {}, view(each))]);
  return make("dl", {}, ...parts);
}

function plain(value) {
  if (value === null || value === "") return "–";
  if (typeof value === "boolean") return value ? "yes" : "no";
  if (typeof value === "number" && !Number.isInteger(value)) return String(Number(value.toPrecision(5)));
  return String(value);
}

function listOf(values) {
  if (values.length === 0) return make("span", { textContent: "none", className: "none" });
  return make("ul", {}, ...values.map((each) => make("li", { textContent: plain(each) })));
}

function tableOf(values) {
  const columns = [...new Set(values.flatMap((each) => (isPlain(each) || Array.isArray(each) ? ["value"] : Object.keys(each))))];
  const cell = (each, column) => (isPlain(each) || Array.isArray(each) ? each : each[column]);
  const head = make("tr", {}, ...columns.map((column) => make("th", { textContent: worded(column) })));
  const rows = values.map((each) => {
    const texts = columns.map((column) => (cell(each, column) === undefined ? "" : compact(cell(each, column))));
    return make("tr", {}, ...texts.map((text) => make("td", { textContent: text, title: text })));
  });
  return make("div", { className: "wide" }, make("table", {}, make("thead", {}, head), make("tbody", {}, ...rows)));
}

function compact(value) {
  if (isPlain(value)) return plain(value);
  if (Array.isArray(value)) return value.map(compact).join(", ");
  return Object.entries(value).map(([name, each]) => `${worded(name)}: ${compact(each)}`).join(" · ");
}

const STATES = { ok: "working", degraded: "degraded", failed: "failed" };

// One card for each plugin: its state, what is wrong and since when, and its figures.
export function healthView(health) {
  const cards = Object.entries(health.plugins).map(([name, plugin]) => {
    const figures = Object.entries(plugin.figures ?? {}).flatMap(([figure, value]) => [
      make("dt", { textContent: worded(figure) }),
      make("dd", { textContent: isPlain(value) ? plain(value) : JSON.stringify(value) }),
    ]);
    const card = make("article", { className: `card ${plugin.state}` }, make("h3", { textContent: name }));
    card.append(make("p", { className: `state ${plugin.state}`, textContent: STATES[plugin.state] ?? plugin.state }));
    if (plugin.detail) card.append(make("p", { className: "detail", textContent: plugin.detail }));
    if (plugin.since) card.append(make("p", { className: "since", textContent: `since ${new Date(plugin.since * 1000).toLocaleString()}` }));
    card.append(make("dl", {}, ...figures));
    return card;
  });
  const notes = health.store.map((each) => make("p", { className: "note", textContent: `Store: ${each}` }));
  return [make("div", { className: "cards" }, ...cards), ...notes];
}

// The page. Everything shown is set as text: nothing that a service says can become markup.
import { eventsOf, fieldsOf, inputOf, requestOf } from "./forms.js";
import { healthView, make, view } from "./views.js";

const REFRESH_MS = 5000;

const main = document.getElementById("main");
const told = document.getElementById("told");
const leave = document.getElementById("leave");
const overall = document.getElementById("who");
let refreshing = null;

function tell(text, problem = false) {
  told.textContent = text;
  told.className = problem ? "problem" : "";
}

async function ask(method, path, { body = null, headers = {} } = {}) {
  const sent = body === null ? headers : { "content-type": "application/json", ...headers };
  const response = await fetch(path, { method, body, headers: sent, credentials: "same-origin", cache: "no-store" });
  if (response.ok) return response;
  const problem = await response.json().catch(() => ({ detail: `refused (${response.status})` }));
  throw Object.assign(new Error((problem.problems ?? [problem.detail]).join("\n")), { status: response.status });
}

function signIn() {
  clearInterval(refreshing);
  leave.hidden = true;
  overall.textContent = "";
  overall.className = "";
  const token = make("input", { type: "password", autocomplete: "off", required: true });
  const form = make(
    "form",
    { className: "card sign-in" },
    make("h2", { textContent: "Sign in" }),
    make("label", {}, "Token", token, make("small", { textContent: "the first one is in .deia/keys/bootstrap-token" })),
    make("button", { textContent: "Sign in", className: "main" }),
  );
  form.addEventListener("submit", async (event) => {
    event.preventDefault();
    try {
      await ask("POST", "session", { body: "{}", headers: { authorization: `Bearer ${token.value.trim()}` } });
      await show();
    } catch (error) {
      tell(error.message, true);
    }
  });
  main.replaceChildren(form);
}

function control(field) {
  if (field.kind === "boolean") return make("input", { type: "checkbox", checked: field.initial === true });
  if (field.kind === "choice") {
    const none = field.required ? [] : [make("option", { value: "", textContent: "" })];
    const options = field.choices.map((each) => make("option", { value: String(each), textContent: String(each) }));
    return make("select", {}, ...none, ...options);
  }
  const tag = field.kind === "json" || field.kind === "list" ? "textarea" : "input";
  const shown = field.initial === null ? "" : typeof field.initial === "string" ? field.initial : JSON.stringify(field.initial);
  return make(tag, { placeholder: shown });
}

function operationForm(operation) {
  const fields = fieldsOf(operation.input);
  const controls = Object.fromEntries(fields.map((field) => [field.name, control(field)]));
  const reason = make("input", { maxLength: 500 });
  const output = make("output", { hidden: true });
  const button = make("button", { textContent: operation.changes ? "Do it" : "Look", className: operation.changes ? "main" : "" });
  const labels = fields.map((field) =>
    make("label", {}, field.name + (field.required ? " *" : ""), controls[field.name], make("small", { textContent: field.help })),
  );
  if (operation.changes) labels.push(make("label", {}, "Reason", reason, make("small", { textContent: "why, for the trail" })));
  const form = make("form", {}, ...labels, button, output);
  form.addEventListener("submit", async (event) => {
    event.preventDefault();
    const typed = Object.fromEntries(
      fields.map((field) => [field.name, field.kind === "boolean" ? controls[field.name].checked : controls[field.name].value]),
    );
    button.disabled = true;
    try {
      const input = inputOf(fields, typed);
      if (operation.confirm && !window.confirm(operation.confirm)) return;
      await run(requestOf(operation, input), reason.value, output);
    } catch (error) {
      output.hidden = false;
      output.className = "problem";
      output.textContent = error.message;
      if (error.status === 401) signIn();
    } finally {
      button.disabled = false;
    }
  });
  const marks = make("small", { className: `role ${operation.changes ? "changes" : ""}`, textContent: operation.role });
  const summary = make("summary", {}, operation.name, make("small", { textContent: operation.summary }), marks);
  return make("details", {}, summary, form);
}

async function run(request, reason, output) {
  const headers = { accept: "text/event-stream, application/json" };
  if (reason) headers["deia-reason"] = encodeURIComponent(reason);
  const response = await ask(request.method, request.path, { body: request.body, headers });
  output.hidden = false;
  output.className = "";
  const decoder = new TextDecoder();
  let left = "";
  for await (const piece of response.body) {
    const [events, rest] = eventsOf(left + decoder.decode(piece, { stream: true }));
    left = rest;
    for (const { event, data } of events) {
      if (event === "progress") {
        const part = data.done === null ? "" : ` ${Math.round(data.done * 100)}%`;
        output.textContent = data.message + part;
      } else {
        output.className = event === "problem" ? "problem" : "";
        if (event === "problem") output.textContent = (data.problems ?? [data.detail]).join("\n");
        else output.replaceChildren(view(data), raw(data));
      }
    }
  }
}

function raw(data) {
  return make("details", { className: "raw" }, make("summary", {}, "as JSON"), make("pre", { textContent: JSON.stringify(data, null, 2) }));
}

async function refresh(place) {
  const health = await (await ask("GET", "health")).json();
  place.replaceChildren(...healthView(health));
  overall.textContent = { ok: "everything works", degraded: "something is degraded", failed: "something failed" }[health.state];
  overall.className = health.state;
}

async function show() {
  const place = make("div");
  await refresh(place);
  const { operations } = await (await ask("GET", "operations")).json();
  const groups = Map.groupBy ? Map.groupBy(operations, groupOf) : grouped(operations);
  const sections = [...groups].map(([group, members]) =>
    make("section", { id: group, className: "card" }, make("h2", { textContent: group }), ...members.map(operationForm)),
  );
  const links = ["health", ...groups.keys()].map((group) => make("a", { href: `#${group}`, textContent: group }));
  leave.hidden = false;
  tell("");
  main.replaceChildren(make("nav", {}, ...links), make("section", { id: "health" }, make("h2", { textContent: "Health" }), place), ...sections);
  clearInterval(refreshing);
  refreshing = setInterval(() => refresh(place).catch((error) => (error.status === 401 ? signIn() : tell(`no word of the service: ${error.message}`, true))), REFRESH_MS);
}

function groupOf(operation) {
  return operation.name.split(".")[0];
}

function grouped(operations) {
  const groups = new Map();
  for (const each of operations) groups.set(groupOf(each), [...(groups.get(groupOf(each)) ?? []), each]);
  return groups;
}

leave.addEventListener("click", async () => {
  try {
    await ask("DELETE", "session");
  } finally {
    signIn();
  }
});

show().catch((error) => {
  if (error.status !== 401) tell(error.message, true);
  signIn();
});

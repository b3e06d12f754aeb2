// The page. Everything shown is set as text: nothing that a service says can become markup.
import { eventsOf, fieldsOf, inputOf, requestOf } from "./forms.js";

const main = document.getElementById("main");
const told = document.getElementById("told");
const leave = document.getElementById("leave");

function make(tag, properties = {}, ...children) {
  const element = Object.assign(document.createElement(tag), properties);
  element.append(...children);
  return element;
}

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
  leave.hidden = true;
  const token = make("input", { type: "password", autocomplete: "off", required: true });
  const form = make(
    "form",
    {},
    make("label", {}, "Token", token, make("small", { textContent: "the first one is in .deia/keys/bootstrap-token" })),
    make("button", { textContent: "Sign in" }),
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

function healthTable(health) {
  const table = make("table", {}, make("tr", {}, ...["Plugin", "State", "What is wrong", "Since"].map((each) => make("th", { textContent: each }))));
  for (const [name, plugin] of Object.entries(health.plugins)) {
    const since = plugin.since ? new Date(plugin.since * 1000).toLocaleString() : "";
    table.append(
      make(
        "tr",
        {},
        make("td", { textContent: name }),
        make("td", { textContent: plugin.state, className: plugin.state }),
        make("td", { textContent: plugin.detail ?? "" }),
        make("td", { textContent: since }),
      ),
    );
  }
  const notes = health.store.map((each) => make("p", { textContent: `Store: ${each}` }));
  return make("section", {}, make("h2", { textContent: "Health" }), table, ...notes);
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
  const output = make("pre", { hidden: true });
  const button = make("button", { textContent: operation.changes ? "Do it" : "Look" });
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
  return make(
    "details",
    {},
    make("summary", {}, operation.name, make("small", { textContent: `${operation.summary} (${operation.role})` })),
    form,
  );
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
        output.textContent = event === "problem" ? (data.problems ?? [data.detail]).join("\n") : JSON.stringify(data, null, 2);
      }
    }
  }
}

async function show() {
  const health = await (await ask("GET", "health")).json();
  const { operations } = await (await ask("GET", "operations")).json();
  const groups = Map.groupBy ? Map.groupBy(operations, groupOf) : grouped(operations);
  const sections = [...groups].map(([group, members]) =>
    make("section", {}, make("h2", { textContent: group }), ...members.map(operationForm)),
  );
  leave.hidden = false;
  tell("");
  main.replaceChildren(healthTable(health), ...sections);
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

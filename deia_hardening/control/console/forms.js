// From an input's JSON Schema to the fields of a form, and from what was typed to the request. Pure: no DOM.

// The fields of a form: { name, kind, required, help, choices, initial }.
export function fieldsOf(schema) {
  const required = new Set(schema.required ?? []);
  return Object.entries(schema.properties ?? {}).map(([name, given]) => {
    const inner = plainest(given);
    return {
      name,
      kind: kindOf(inner),
      required: required.has(name),
      help: given.description ?? "",
      choices: inner.enum ?? (inner.type === "array" ? inner.items?.enum : undefined) ?? null,
      initial: given.default ?? null,
    };
  });
}

// "one of these or nothing" is shown as the one.
function plainest(schema) {
  const options = (schema.anyOf ?? []).filter((each) => each.type !== "null" && each.const !== 0);
  return options.length === 1 ? plainest({ ...schema, anyOf: undefined, ...options[0] }) : schema;
}

function kindOf(schema) {
  if (schema.type === "boolean") return "boolean";
  if (schema.type === "integer") return "integer";
  if (schema.type === "number") return "number";
  if (schema.type === "array") return "list";
  if (schema.enum) return "choice";
  if (schema.type === "string") return "text";
  return "json";
}

// What was typed (name -> text, or true and false) as the operation's input. Fields left empty are left out, so that
// their defaults hold. Throws an Error that names the field.
export function inputOf(fields, typed) {
  const input = {};
  for (const field of fields) {
    const given = typed[field.name];
    if (field.kind === "boolean") {
      const on = Boolean(given ?? field.initial);
      if (field.required || on !== Boolean(field.initial)) input[field.name] = on;
      continue;
    }
    const text = (given ?? "").trim();
    if (text === "") {
      if (field.required) throw new Error(`${field.name}: this is needed`);
      continue;
    }
    input[field.name] = valueOf(field, text);
  }
  return input;
}

function valueOf(field, text) {
  if (field.kind === "integer" || field.kind === "number") {
    const number = Number(text);
    const whole = field.kind === "number" || Number.isSafeInteger(number);
    if (!Number.isFinite(number) || !whole) {
      throw new Error(`${field.name}: ${field.kind === "integer" ? "a whole number" : "a number"} goes here`);
    }
    return number;
  }
  if (field.kind === "list") return text.split(/[\n,]/).map((each) => each.trim()).filter(Boolean);
  if (field.kind === "json") {
    try {
      return JSON.parse(text);
    } catch {
      throw new Error(`${field.name}: JSON goes here, as {"key": "value"}`);
    }
  }
  return text;
}

// The request of an operation: { method, path, body }.
export function requestOf(operation, input) {
  const path = operation.name.replace(".", "/");
  if (operation.changes) return { method: "POST", path, body: JSON.stringify(input) };
  const query = new URLSearchParams();
  for (const [name, value] of Object.entries(input)) {
    for (const each of Array.isArray(value) ? value : [value]) {
      query.append(name, typeof each === "object" && each !== null ? JSON.stringify(each) : String(each));
    }
  }
  return { method: "GET", path: query.size ? `${path}?${query}` : path, body: null };
}

// Whole server-sent events out of a growing text: [events, what is left]. An event is { event, data }.
export function eventsOf(text) {
  const blocks = text.split("\n\n");
  const rest = blocks.pop();
  const events = [];
  for (const block of blocks) {
    let event = "message";
    let data = "";
    for (const line of block.split("\n")) {
      if (line.startsWith("event: ")) event = line.slice(7);
      else if (line.startsWith("data: ")) data += line.slice(6);
    }
    if (data) events.push({ event, data: JSON.parse(data) });
  }
  return [events, rest];
}

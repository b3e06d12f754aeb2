// Runs the console's page against a real service, with just enough of a DOM and of a browser's fetch.
import http from "node:http";
import { pathToFileURL } from "node:url";
import path from "node:path";

const [folder, base, token] = process.argv.slice(2);
let cookie = "";

class Element {
  constructor(tag) {
    Object.assign(this, { tag, children: [], listeners: {}, text: "", value: "", checked: false });
  }
  append(...children) {
    this.children.push(...children);
  }
  replaceChildren(...children) {
    this.children = children;
  }
  addEventListener(kind, listener) {
    this.listeners[kind] = listener;
  }
  set textContent(text) {
    this.children = [];
    this.text = String(text);
  }
  get textContent() {
    return this.text + this.children.map((each) => (typeof each === "string" ? each : each.textContent)).join("");
  }
  all(tag) {
    const inner = this.children.filter((each) => each instanceof Element);
    return inner.flatMap((each) => [...(each.tag === tag ? [each] : []), ...each.all(tag)]);
  }
}

const named = new Map(["main", "told", "leave", "who"].map((name) => [name, new Element(name)]));
globalThis.document = { getElementById: (name) => named.get(name), createElement: (tag) => new Element(tag) };
globalThis.window = { confirm: () => true };

globalThis.fetch = (target, { method, body, headers }) =>
  new Promise((resolve, reject) => {
    const url = new URL(target, base);
    const sent = { ...headers, "sec-fetch-site": "same-origin", ...(cookie ? { cookie } : {}) };
    if (method !== "GET") Object.assign(sent, { origin: url.origin, "content-length": Buffer.byteLength(body ?? "") });
    const request = http.request(url, { method, headers: sent, agent: false }, (response) => {
      for (const each of response.headers["set-cookie"] ?? []) cookie = each.split(";")[0];
      const whole = async () => Buffer.concat(await Array.fromAsync(response)).toString();
      const ok = response.statusCode < 400;
      resolve({ ok, status: response.statusCode, body: response, json: async () => JSON.parse(await whole()) });
    });
    request.on("error", reject);
    request.end(body ?? undefined);
  });
Array.fromAsync ??= async (source) => {
  const found = [];
  for await (const each of source) found.push(each);
  return found;
};

const main = named.get("main");
const submit = (form) => form.listeners.submit({ preventDefault() {} });
const until = async (condition) => {
  while (!condition()) await new Promise((resolve) => setTimeout(resolve, 5));
};
const operation = (name) => main.all("details").find((each) => each.all("summary")[0].textContent.startsWith(name));

await import(pathToFileURL(path.join(folder, "console.js")));
await until(() => main.all("form").length === 1);
const seen = { before: main.all("button")[0].textContent };
main.all("input")[0].value = token;
await submit(main.all("form")[0]);
seen.plugins = main.all("h3").map((each) => each.textContent);
seen.operations = main.all("summary").map((each) => each.children[0]);

const write = operation("probe.write");
await submit(write.all("form")[0]);
seen.refused = write.all("output")[0].textContent;
write.all("input")[0].value = "<b>x</b>";
write.all("input")[1].value = "größer";
await submit(write.all("form")[0]);
seen.written = write.all("pre")[0].textContent;
const long = operation("probe.long");
await submit(long.all("form")[0]);
seen.long = long.all("pre")[0].textContent;

await named.get("leave").listeners.click();
seen.after = main.all("button")[0].textContent;
console.log(JSON.stringify(seen));
process.exit(0);

// SPDX-License-Identifier: Apache-2.0
// The page of the API: shows /openapi.json, resource by resource, with every GET to try out.

import { ask, attempt, byId, make, onToken, read } from "/static/common.js";

const METHODS = ["get", "put", "patch", "post", "delete"];
const LONGEST = 200000; // characters of an answer that are shown

let description = null;

// Return what a {"$ref": ...} of the description stands for.
function follow(value) {
  if (!value || !value.$ref) return value;
  return value.$ref.slice(2).split("/").reduce((here, part) => here?.[part.replaceAll("~1", "/").replaceAll("~0", "~")], description);
}

// Return a schema in a few words.
function inWords(schema) {
  if (!schema) return "";
  if (schema.$ref) return schema.$ref.split("/").pop();
  const choices = schema.anyOf ?? schema.oneOf;
  if (choices) return choices.map(inWords).join(" | ");
  if (schema.enum) return schema.enum.map((item) => JSON.stringify(item)).join(" | ");
  if (schema.const !== undefined) return JSON.stringify(schema.const);
  if (schema.type === "array") return `[${inWords(schema.items) || "any"}]`;
  if (schema.type === "object" && schema.additionalProperties) return `{name: ${inWords(schema.additionalProperties)}}`;
  const bounds = [
    schema.minimum === undefined ? "" : `from ${schema.minimum}`, schema.maximum === undefined ? "" : `to ${schema.maximum}`,
    schema.maxLength === undefined ? "" : `at most ${schema.maxLength} characters`, schema.pattern ?? "",
    schema.default === undefined ? "" : `default ${JSON.stringify(schema.default)}`,
  ].filter(Boolean);
  return [schema.type ?? "any", ...bounds].join(", ");
}

// Return a schema in words, its name a link to its place on this page.
function typeCell(schema) {
  const cell = make("td", { class: "path" });
  if (schema?.$ref) cell.append(make("a", { href: `#schema-${inWords(schema)}` }, inWords(schema)));
  else cell.append(inWords(schema));
  return cell;
}

function table(heads, rows) {
  return make("div", { class: "scroll" }, make("table", {},
    make("thead", {}, make("tr", {}, ...heads.map((head) => make("th", {}, head)))), make("tbody", {}, ...rows)));
}

function parameterTable(parameters) {
  return table(["Parameter", "In", "Type", ""], parameters.map((item) => make("tr", {},
    make("td", { class: "path" }, item.name + (item.required ? " *" : "")), make("td", {}, item.in),
    typeCell(item.schema), make("td", {}, item.description ?? ""))));
}

function body(operation) {
  const parts = [];
  for (const [type, content] of Object.entries(operation.requestBody?.content ?? {})) {
    parts.push(make("h3", {}, `Body: ${type}`), table(["Schema"], [make("tr", {}, typeCell(content.schema))]));
    for (const example of Object.values(content.examples ?? {})) {
      parts.push(make("pre", {}, JSON.stringify(example.value, null, 2)));
    }
  }
  return parts;
}

function answers(operation) {
  const rows = Object.entries(operation.responses).map(([status, ref]) => {
    const answer = follow(ref);
    const [[type, content] = ["", {}]] = Object.entries(answer.content ?? {});
    return make("tr", {}, make("td", {}, status), make("td", {}, answer.description), typeCell(content.schema),
      make("td", { class: "path" }, type));
  });
  return [make("h3", {}, "Answers"), table(["Status", "", "Schema", "Type"], rows)];
}

// Return the address that a form's fields make; empty ones of the query are left out.
function address(path, parameters, fields) {
  const query = new URLSearchParams();
  let filled = path;
  for (const item of parameters) {
    const value = fields.get(item.name);
    if (item.in === "path") filled = filled.replace(`{${item.name}}`, encodeURIComponent(value));
    else if (item.in === "query" && value) query.set(item.name, value);
  }
  return query.size ? `${filled}?${query}` : filled;
}

function tryOut(path, parameters) {
  const wanted = parameters.filter((item) => item.in !== "header");
  const result = make("pre", { hidden: true });
  const inputs = wanted.map((item) => make("label", {}, `${item.name} `,
    make("input", { name: item.name, required: item.required ?? false, value: item.in === "path" ? item.schema?.examples?.[0] ?? "" : "" })));
  const form = make("form", {}, ...inputs, make("button", {}, "Try it"));
  form.addEventListener("submit", async (event) => {
    event.preventDefault();
    const target = address(path, wanted, new FormData(form));
    try {
      const answer = await ask(target);
      let text = await answer.text();
      if (answer.headers.get("Content-Type")?.includes("json")) text = JSON.stringify(JSON.parse(text), null, 2);
      result.textContent = `GET ${target}\n${answer.status} ${answer.statusText}\n\n${text.slice(0, LONGEST)}`;
    } catch {
      result.textContent = `GET ${target}\nno answer: is the switch running?`;
    }
    result.hidden = false;
  });
  return [make("h3", {}, "Try it"), form, result];
}

function operation(path, method, item) {
  const parameters = (item.parameters ?? []).map(follow);
  const stream = Object.values(item.responses).some((answer) => answer.content?.["text/event-stream"]);
  return make("details", { id: item.operationId },
    make("summary", {}, make("span", { class: "method" }, method.toUpperCase()), make("span", { class: "path" }, path),
      make("span", { class: "soft" }, item.summary ?? "")),
    make("div", {}, item.description ? make("p", {}, item.description) : "",
      ...(parameters.length ? [parameterTable(parameters)] : []), ...body(item), ...answers(item),
      ...(method === "get" && !stream ? tryOut(path, parameters) : [])));
}

function schema(name, value) {
  const required = new Set(value.required ?? []);
  const rows = Object.entries(value.properties ?? {}).map(([key, item]) => make("tr", {},
    make("td", { class: "path" }, key + (required.has(key) ? " *" : "")), typeCell(item), make("td", {}, item.description ?? "")));
  return make("details", { id: `schema-${name}` }, make("summary", {}, make("span", { class: "path" }, name)),
    make("div", {}, make("p", {}, value.description ?? ""), rows.length ? table(["Key", "Type", ""], rows) : inWords(value)));
}

function show() {
  byId("version").textContent = description.info.version;
  byId("about").textContent = description.info.description;
  byId("resources").replaceChildren(...description.tags.flatMap((tag) => {
    const found = Object.entries(description.paths).flatMap(([path, item]) =>
      METHODS.filter((method) => item[method]?.tags?.includes(tag.name)).map((method) => operation(path, method, item[method])));
    return found.length ? [make("h2", {}, tag.name), make("p", { class: "soft" }, tag.description), ...found] : [];
  }));
  byId("schemas").replaceChildren(
    ...Object.entries(description.components.schemas).map(([name, value]) => schema(name, value)));
}

// Open what the address names, also when a link on this page changes it.
function openNamed() {
  const named = location.hash && byId(decodeURIComponent(location.hash.slice(1)));
  if (named instanceof HTMLDetailsElement) {
    named.open = true;
    named.scrollIntoView();
  }
}

async function load() {
  await attempt(async () => {
    description = await read("/openapi.json");
    show();
    openNamed();
  });
}

window.addEventListener("hashchange", openNamed);
onToken(load);
load();

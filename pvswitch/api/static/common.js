// SPDX-License-Identifier: Apache-2.0
// What both pages need: asking the API, with a token where one is required, and making elements whose text is only text.

export const byId = (id) => document.getElementById(id);

// Return an element; properties by name ("class" too), children as elements or text.
export function make(tag, properties = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (name === "class") element.className = value;
    else element[name] = value;
  }
  element.append(...children.map((child) => (child instanceof Node ? child : document.createTextNode(String(child)))));
  return element;
}

// Ask the API; the token stays in this tab's session and goes nowhere else.
export function ask(path, options = {}) {
  const token = sessionStorage.getItem("token");
  const headers = { ...options.headers, ...(token ? { Authorization: `Bearer ${token}` } : {}) };
  return fetch(path, { ...options, headers, cache: "no-store", redirect: "error" });
}

// Return the JSON of a GET; an Error with the switch's own sentence otherwise.
export async function read(path) {
  const answer = await ask(path);
  const body = await answer.json();
  if (!answer.ok) throw Object.assign(new Error(body.detail ?? answer.statusText), { status: answer.status });
  return body;
}

// Do `work`, and show what went wrong; where a token is missing, ask for it. Return whether all went well.
export async function attempt(work) {
  const trouble = byId("trouble");
  try {
    await work();
    trouble.hidden = byId("token").hidden = true;
    return true;
  } catch (error) {
    trouble.textContent = error.status ? error.message : "the switch does not answer: is it running?";
    trouble.hidden = false;
    byId("token").hidden = error.status !== 401;
    return false;
  }
}

// Have the token's form call `again` with the new token in use.
export function onToken(again) {
  byId("token").addEventListener("submit", (event) => {
    event.preventDefault();
    sessionStorage.setItem("token", byId("secret").value.trim());
    byId("secret").value = "";
    again();
  });
}

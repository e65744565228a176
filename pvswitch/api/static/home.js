// SPDX-License-Identifier: Apache-2.0
// The page of the running switch: asks every two seconds, and shows rates from one look to the next.

import { attempt, byId, make, onToken, read } from "/static/common.js";

const SECONDS = 2;
const SHOWN = 200; // ports in the table
const COUNTED = 50; // ports with a link whose counters are asked for
const RATES = ["rx_packets", "tx_packets", "rx_bytes", "tx_bytes", "dropped"];

let before = new Map(); // port -> { time, counters }
let timer = null;

const number = (value) => Math.round(value).toLocaleString("en");
const cell = (text, name = "") => make("td", { class: name }, text ?? "");

// Return what a port's counters have grown by in a second; null before there are two looks.
function rates(name, counters, now) {
  const last = before.get(name);
  if (!last || !counters) return null;
  const seconds = (now - last.time) / 1000;
  return Object.fromEntries(RATES.map((key) => [key, Math.max(0, counters[key] - last.counters[key]) / seconds]));
}

async function countersOf(port) {
  if (port.state.link !== "up") return null;
  try {
    const stats = await read(`/api/v1/ports/${encodeURIComponent(port.name)}/stats`);
    return { ...stats, dropped: stats.rx_dropped + stats.tx_dropped };
  } catch (error) {
    if (error.status === 404) return null; // it has gone meanwhile
    throw error;
  }
}

function portRow(port, rate) {
  const shown = rate
    ? [number(rate.rx_packets), number(rate.tx_packets), (rate.rx_bytes / 125000).toFixed(1),
       (rate.tx_bytes / 125000).toFixed(1), number(rate.dropped)]
    : ["", "", "", "", ""];
  return make("tr", {},
    cell(port.name, "path"), cell(port.bridge), cell(port.state.link, port.state.link),
    make("td", {}, make("span", { title: port.state.message ?? "" }, port.state.reason ?? "")),
    ...shown.map((text) => cell(text, "number")));
}

async function showPorts() {
  const page = await read(`/api/v1/ports?limit=${SHOWN}`);
  const now = performance.now();
  const up = page.items.filter((port) => port.state.link === "up").slice(0, COUNTED);
  const counters = new Map(await Promise.all(up.map(async (port) => [port.name, await countersOf(port)])));
  byId("ports").replaceChildren(
    ...page.items.map((port) => portRow(port, rates(port.name, counters.get(port.name), now))));
  byId("more").hidden = page.next === null;
  byId("more").textContent = `The first ${SHOWN} ports are shown.`;
  before = new Map([...counters].filter(([, values]) => values).map(([name, values]) => [name, { time: now, counters: values }]));
}

async function showWorkers() {
  const perf = await read("/api/v1/perf");
  byId("workers").replaceChildren(...perf.items.map((worker) => make("tr", {},
    cell(worker.name, "path"), cell(number(worker.packets), "number"),
    cell(worker.cycles_per_packet === undefined ? "" : number(worker.cycles_per_packet), "number"),
    cell(`${(worker.busy_share * 100).toFixed(1)} %`, "number"), cell(number(worker.sleeps), "number"))));
}

async function showTotals() {
  const totals = await read("/api/v1/stats");
  byId("totals").replaceChildren(...Object.entries(totals).map(([name, value]) =>
    make("tr", {}, cell(name.replaceAll("_", " ")), cell(number(value), "number"))));
}

async function look() {
  clearTimeout(timer);
  if (!document.hidden) {
    await attempt(async () => {
      const version = await read("/version");
      byId("version").textContent = `${version.version} · pid ${version.pid} · since ${version.started}`;
      await Promise.all([showPorts(), showWorkers(), showTotals()]);
    });
  }
  timer = setTimeout(look, SECONDS * 1000);
}

onToken(look);
look();

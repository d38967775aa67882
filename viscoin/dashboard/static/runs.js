import { call, complain, element, number, ready, root, span } from "./api.js";
import { chart } from "./charts.js";

const $ = (id) => document.getElementById(id);
const chosen = new Set();
let curves = {};

function ago(time) { return time ? `${span(Math.max(0, Date.now() / 1000 - time))} ago` : "–"; }

async function load() {
  const rows = await call("runs");
  $("none").hidden = rows.length > 0;
  $("rows").replaceChildren(...rows.map((row) => {
    const box = element("input", { type: "checkbox", "aria-label": `Compare ${row.run}`, checked: chosen.has(row.run), disabled: row.pending, onchange: () => { box.checked ? chosen.add(row.run) : chosen.delete(row.run); $("compare").disabled = !chosen.size; } });
    const bar = row.steps ? element("progress", { max: String(row.steps), value: String(row.step || 0), "aria-label": "Progress" }) : null;
    return element("tr", {}, element("td", {}, box), element("td", { class: "break" }, row.pending ? row.run : element("a", { href: `${root}runs/${encodeURIComponent(row.run)}` }, row.run)),
      element("td", {}, element("span", { class: `tag ${row.state}` }, row.state), row.reason && (row.pending || row.state === "failed") ? element("div", { class: "tiny soft" }, row.reason) : null), element("td", {}, row.kind || "–"),
      element("td", {}, bar, element("span", { class: "tiny soft num" }, row.step === null || row.step === undefined ? "" : `step ${number(row.step)}${row.steps ? ` of ${number(row.steps)}` : ""}`)),
      element("td", { class: "n" }, row.score ? number(row.score.value, 3) : "–", row.score ? element("div", { class: "tiny soft" }, row.score.measure.replace(/^validation\./, "").replaceAll("_", " ")) : null),
      element("td", { class: "n" }, row.state === "running" ? span(row.left) : "–"), element("td", { class: "n" }, ago(row.changed)));
  }));
}

async function compare() {
  curves = {};
  for (const run of chosen) curves[run] = (await call(`runs/${encodeURIComponent(run)}/metrics?points=600`)).curves;
  const names = [...new Set(Object.values(curves).flatMap(Object.keys))].sort();
  $("measure").replaceChildren(...names.map((name) => element("option", { value: name }, name)));
  $("measure").value = names.find((name) => name.startsWith("validation.")) || names[0];
  $("curves").hidden = !names.length;
  draw();
}

function draw() {
  const name = $("measure").value;
  const series = Object.entries(curves).filter(([, found]) => found[name]).map(([run, found]) => ({ name: run, ...found[name] }));
  chart($("chart"), name, series, { height: 300 });
}

$("compare").addEventListener("click", () => compare().catch(complain));
$("measure").addEventListener("change", draw);
ready("runs").then(load).catch(complain);
setInterval(() => { if (!document.hidden) load().catch(() => {}); }, 3000);

import { call, complain, element, number, ready, root, say, span } from "./api.js";
import { chart } from "./charts.js";
import { penalties } from "./penalties.js";

const $ = (id) => document.getElementById(id);
const name = $("name").dataset.run, path = `runs/${encodeURIComponent(name)}`;
const REPLAYED = ["finish", "evaluate", "set", "penalty", "note"];
const LIVE = ["starting", "running", "paused", "silent"];
const curves = new Map(), plots = new Map();
let record = [], figures = [], row = {}, waiting = false, steerable = "", stream = null, timer = null;

// Watching ends with the run: what is under way is given up, and nothing more is asked.
let watch = new AbortController();
const watched = (address) => call(address, { signal: watch.signal });
function stop() {
  watch.abort();
  stream?.close();
  clearInterval(timer);
}

// --- curves ---------------------------------------------------------------------------------------------------------

function add(line) {
  for (const [key, value] of Object.entries(line)) {
    if (key === "step" || key === "time" || value === null) continue;
    if (!curves.has(key)) curves.set(key, { name: key, steps: [], values: [] });
    const curve = curves.get(key);
    while (curve.steps.length && curve.steps.at(-1) >= line.step) { curve.steps.pop(); curve.values.pop(); }
    curve.steps.push(line.step);
    curve.values.push(value);
  }
  if (!waiting) { waiting = true; setTimeout(() => { waiting = false; draw(); }, 150); }
}

// Measures of training and validation of one name share a picture, and so do behaviour and map of a penalty.
const SHORT = { accuracy: "accuracy as is", accuracy_swapped: "region of another class", cam_share: "map inside", map_share: "map inside", predicted: "says the class", confused: "called the other class", confused_back: "the other way round", recall: "recall of the class", probability: "probability of the other" };
const titled = (name) => (/^validation\.penalties\.([^.]+)\.(accuracy|accuracy_swapped|cam_share|map_share|predicted|confused|confused_back|recall|probability)$/.exec(name) || [])[1];
function groups() {
  const found = new Map();
  for (const curve of curves.values()) {
    const penalty = titled(curve.name);
    const title = penalty ? `penalty ${penalty}: behaviour${/confused|recall|probability/.test(curve.name) ? "" : " and map"}` : curve.name.replace(/^(train|validation|test)\./, "");
    if (!found.has(title)) found.set(title, []);
    found.get(title).push(penalty ? { ...curve, name: SHORT[curve.name.split(".").at(-1)] } : curve);
  }
  return found;
}

function draw() {
  const found = groups();
  $("none").hidden = found.size > 0;
  for (const [title, series] of found) {
    const lengths = series.map(({ steps }) => steps.length).join();
    if (plots.get(title)?.lengths === lengths) continue;
    let place = plots.get(title)?.place;
    if (!place) { place = element("div", { class: "chart", role: "img" }); $("charts").append(place); }
    place.setAttribute("aria-label", `${title}: ${series.map(({ name: own, values }) => `${own} is now ${number(values.at(-1), 3)}`).join(", ")}`);
    const plot = chart(place, title, series, { marks: () => record.filter(({ step }) => step !== null) });
    plots.set(title, { place, lengths, plot });
  }
}

// --- state, commands ----------------------------------------------------------------------------------------------------

function state(found) {
  row = { ...row, ...found };
  const live = LIVE.includes(row.state);
  $("state").textContent = row.state;
  $("state").className = `tag ${row.state}`;
  $("about").textContent = [row.kind, row.dataset, row.created?.replace("T", " "), row.branch ? `branched from ${row.branch.run} at step ${number(row.branch.step)}` : null, row.reason].filter(Boolean).join(" · ");
  $("progress").hidden = !row.steps;
  if (row.steps) { $("progress").max = row.steps; $("progress").value = row.step || 0; }
  const facts = [["Step", row.step === null ? "–" : number(row.step)], ["of", row.steps ? number(row.steps) : "–"], ["Pace", row.pace ? `${number(row.pace, 3)} s a step` : "–"], ["Left", live ? span(row.left) : "–"], ["Model", row.model ? "written" : "not yet"]];
  $("facts").replaceChildren(...facts.map(([term, text]) => element("div", {}, element("dt", {}, term), element("dd", {}, text))));
  if ($("buttons")) {
    $("buttons").hidden = !live;
    $("rest").hidden = live;
    $("resume").hidden = !["stopped", "failed"].includes(row.state);
    $("steer").hidden = !live || !row.steerable;
    for (const button of $("buttons").children) {
      if (button.dataset.command === "pause" && !button.dataset.values) button.hidden = row.state === "paused";
      if (button.dataset.command === "continue") button.hidden = row.state !== "paused";
    }
    values();
    penalties(live ? row : {}, send);
  }
}

function values() {
  const told = JSON.stringify(row.steerable || {});
  if (told === steerable) return;
  steerable = told;
  $("values").replaceChildren(...Object.entries(row.steerable || {}).map(([key, value]) => {
    const input = element("input", { type: "text", value: value === null ? "null" : String(value), "aria-label": key, size: 10 });
    return element("form", { class: "row spread", onsubmit: (event) => { event.preventDefault(); send("set", { [key]: parsed(input.value) }); } }, element("div", {}, element("code", {}, key), element("div", { class: "tiny soft" }, range(key))), element("div", { class: "row" }, input, element("button", {}, "Set")));
  }));
}

function range(key) {
  const bounds = row.bounds?.[key] || {};
  return [bounds.help, ...[["least", "at least"], ["above", "above"], ["most", "at most"], ["below", "below"]].filter(([name]) => bounds[name] !== undefined).map(([name, word]) => `${word} ${bounds[name]}`)].filter(Boolean).join(", ");
}

function parsed(text) {
  const plain = text.trim();
  if (plain === "true" || plain === "false") return plain === "true";
  if (plain === "null") return null;
  return plain !== "" && Number.isFinite(Number(plain)) ? Number(plain) : plain;
}

function commands() {
  $("untouched").hidden = record.length > 0;
  $("record-table").hidden = !record.length;
  if ($("replay")) $("replay").hidden = !record.some(({ command, refused }) => !refused && REPLAYED.includes(command));
  $("record").replaceChildren(...record.map(({ step, command, values: given, refused, waiting: still, by }) => element("tr", {}, element("td", { class: "n" }, step === null ? "–" : number(step)), element("td", {}, command),
    element("td", { class: "break" }, Object.entries(given).map(([key, value]) => (key === "text" ? value : `${key} = ${value}`)).join(", ")),
    element("td", {}, still ? element("span", { class: "tag queued" }, "waits") : refused ? element("span", { class: "tag refused" }, `refused: ${refused}`) : `obeyed${by ? `, sent by ${by}` : ""}`))));
  for (const { plot } of plots.values()) plot.redraw(false, false);
}

async function send(command, given = {}) {
  try {
    await call(`${path}/commands`, { body: { command, values: given } });
    say(`${command}: sent`, 2);
    await refresh();
  } catch (error) { complain(error); }
}

function ask(question) {
  $("question").textContent = question;
  $("ask").showModal();
  return new Promise((done) => $("ask").addEventListener("close", () => done($("ask").returnValue === "yes"), { once: true }));
}

// --- pictures, log --------------------------------------------------------------------------------------------------------

async function pictures() {
  figures = await watched(`${path}/figures`);
  const steps = [...new Set(figures.map(({ step }) => step).filter((step) => step !== null))].sort((a, b) => a - b);
  $("pictures").hidden = !figures.length;
  const last = Number($("picture").value) === Number($("picture").max);
  $("picture").max = String(Math.max(0, steps.length - 1));
  $("picture").hidden = steps.length < 2;
  if (last) $("picture").value = $("picture").max;
  at(steps);
}

function at(steps) {
  const step = steps[Number($("picture").value)];
  $("picture-step").textContent = step === undefined ? "" : `step ${number(step)}`;
  const shown = figures.filter((figure) => figure.step === null || figure.step === step).slice(0, 8);
  const wanted = shown.map(({ name: file, changed }) => `${file}-${changed}`).join();
  if (step !== undefined) for (const { plot } of plots.values()) cursor(plot, step);
  if ($("figures").dataset.shown === wanted) return;
  $("figures").dataset.shown = wanted;
  $("figures").replaceChildren(...shown.map(({ name: file, title, changed }) => element("figure", {}, element("a", { href: `${root}api/v1/${path}/figures/${file}` }, element("img", { class: "thumb-free", src: `${root}api/v1/${path}/figures/${file}?t=${changed}`, alt: title })), element("figcaption", {}, title))));
}

// The cursor of a curve stands where the picture was drawn.
function cursor(plot, step) {
  const left = plot.valToPos(step, "x");
  if (Number.isFinite(left)) plot.setCursor({ left, top: plot.over.clientHeight / 2 }, false);
}

async function refresh() {
  record = await watched(`${path}/commands`);
  commands();
  $("log").textContent = await watched(`${path}/log`) || "The log is empty.";
}

// --- start ----------------------------------------------------------------------------------------------------------------

// Goes on where it was cut; a browser gives up by itself after some kinds of errors, as while the service starts again.
function listen(offset = 0) {
  let last = offset;
  const source = stream = new EventSource(`${root}api/v1/${path}/events?offset=${offset}`);
  const on = (kind, then) => source.addEventListener(kind, (event) => { last = Number(event.lastEventId) || last; then(event.data); });
  on("metrics", (data) => add(JSON.parse(data)));
  on("rewritten", () => { curves.clear(); plots.clear(); $("charts").replaceChildren(); });
  on("status", (data) => { state(JSON.parse(data)); saved().catch(() => {}); });
  on("command", () => refresh().catch(() => {}));
  on("figure", () => pictures().catch(() => {}));
  on("gone", gone);
  source.addEventListener("error", () => { if (source.readyState === EventSource.CLOSED && !watch.signal.aborted) setTimeout(() => again(last), 2000); });
}

async function again(offset) {
  try { await watched(path); } catch (error) {
    if (error.status === 404) return gone();
    if (error.name === "AbortError") return;
  }
  listen(offset);
}

function gone() {
  stop();
  for (const place of ["buttons", "rest", "steer", "branch-card", "penalties"]) if ($(place)) $(place).hidden = true;
  $("state").textContent = "gone";
  $("state").className = "tag failed";
  say(`Run ${name} is no longer there: its folder was deleted, moved or renamed. What is shown here is what was last seen of it.`);
}

async function saved() {
  if (!$("branch-card")) return;
  const steps = await watched(`${path}/saved`), chosen = $("branch-step").value;
  $("branch-card").hidden = !steps.length;
  $("branch-step").replaceChildren(...steps.toReversed().map((step) => element("option", { value: String(step) }, number(step))));
  if (steps.includes(Number(chosen))) $("branch-step").value = chosen; // it may be gone: a training keeps the last ones
}

// Starts another training, and goes to it when there is something to see.
async function begin(address, body) {
  try {
    const { run } = await call(address, { method: "POST", body });
    say(`${run} starts`, 3);
    setTimeout(() => { location.href = run === name ? location.href : `${root}runs`; }, 900);
  } catch (error) { complain(error); saved().catch(() => {}); }
}

function branch(event) {
  event.preventDefault();
  const set = $("branch-set").value.split(/[\s,;]+/).filter(Boolean).map((pair) => pair.split("="));
  const commands = set.length ? [{ command: "set", values: Object.fromEntries(set.map(([key, value]) => [key, parsed(value || "")])) }] : [];
  begin(`${path}/branch`, { step: Number($("branch-step").value), name: $("branch-name").value || null, commands });
}

async function remove() {
  if (!await ask(`Delete ${name}? It is moved into the folder .trash of the runs.`)) return;
  stop();
  try {
    await call(path, { method: "DELETE" });
    location.href = `${root}runs`;
  } catch (error) {
    complain(error);
    go();
  }
}

async function start() {
  state(await ready(path));
  const { curves: found } = await call(`${path}/metrics?points=1500`);
  for (const [key, { steps, values: own }] of Object.entries(found)) curves.set(key, { name: key, steps, values: own });
  draw();
  await Promise.all([pictures(), refresh()]);
  go();
}

// Watches, again after a deletion that was refused.
function go() {
  if (watch.signal.aborted) watch = new AbortController();
  saved().catch(() => {});
  listen();
  timer = setInterval(() => { if (!document.hidden) { refresh().catch(() => {}); pictures().catch(() => {}); saved().catch(() => {}); } }, 5000);
}

for (const button of document.querySelectorAll("[data-command]")) {
  button.addEventListener("click", async () => { if (!button.dataset.ask || await ask(button.dataset.ask)) await send(button.dataset.command, JSON.parse(button.dataset.values || "{}")); });
}
$("note")?.addEventListener("submit", (event) => { event.preventDefault(); send("note", { text: $("note-text").value }); $("note").reset(); });
$("resume")?.addEventListener("click", () => begin(`${path}/resume`));
$("replay")?.addEventListener("click", () => begin("jobs", { kind: row.kind, replay: name }));
$("delete")?.addEventListener("click", remove);
$("branch")?.addEventListener("submit", branch);
$("picture").addEventListener("input", () => at([...new Set(figures.map(({ step }) => step).filter((step) => step !== null))].sort((a, b) => a - b)));
start().catch(complain);

import { Newest, bars, call, complain, element, imageAddress, number, percent, ready, root, say } from "./api.js";
import { RIGHT, cropped } from "./crops.js";

const $ = (id) => document.getElementById(id);
const MOST = 6;
const PARTS = ["beak", "eye", "crest", "wings", "tail", "legs"];
const state = { model: null, image: null, source: null, factors: {}, prediction: null, last: null };
const asked = new URLSearchParams(location.search);

// --- one image ----------------------------------------------------------------------------------------------------

async function show(image, source, factors = {}) {
  Object.assign(state, { image, source: source || imageAddress(image), factors: { ...factors } });
  $("original").src = $("under").src = state.source;
  clearMap();
  const prediction = await ready("predict", { body: { image, model: state.model, top: 50 } });
  state.prediction = prediction;
  $("label").title = prediction.label?.name || "";
  $("label").textContent = prediction.label ? `It is: ${prediction.label.name}` : "Your image";
  say_of(prediction.f, prediction.g, prediction.agree);
  cards(shown());
  choices(prediction);
  truth(image);
  remember();
  if (state.draws) pictures.ask(null);
}

function say_of(f, g, agree) {
  $("f").replaceChildren(bars(f.slice(0, 3)));
  $("g").replaceChildren(g ? bars(g.slice(0, 3), "other") : element("p", { class: "soft small" }, "This model has no concepts."));
  $("agree").textContent = agree === null || agree === undefined ? "" : agree ? "Both agree on the class." : "They disagree: do not read the concepts as reasons of f here.";
}

const pictures = new Newest(async () => {
  const factors = Object.fromEntries(Object.entries(state.factors).filter(([, value]) => value !== 1));
  $("after").classList.add("waits");
  try {
    const found = await call("amplify", { body: { image: state.image, model: state.model, factors } });
    state.last = found;
    $("drawn").src = found.picture;
    $("changed").src = found.change_map;
    $("after").classList.remove("old");
    const touched = Object.keys(factors).length > 0;
    $("said").textContent = touched ? `Change ${percent(found.change)} of the range` : `As the concepts draw it; error ${percent(found.reconstruction_error / 2)}`;
    say_of(found.f, found.g, found.f[0].class === found.g[0].class);
    const unsure = touched && found.reliable === false;
    $("unsure").hidden = !unsure;
    $("unsure").textContent = unsure ? "Outside the reliable range: other concepts change at least as much as the one that you moved, or the picture leaves what the generator knows. What you see cannot be put down to it." : "";
    for (const card of document.querySelectorAll(".concept")) {
      const moved = (state.factors[card.dataset.concept] ?? 1) !== 1;
      card.classList.toggle("unsure", unsure && moved);
      card.querySelector("input").classList.toggle("unsure", unsure && moved);
    }
  } catch (error) {
    $("after").classList.add("old");
    throw error;
  } finally {
    $("after").classList.remove("waits");
  }
});

// --- concepts ---------------------------------------------------------------------------------------------------------

// Those that matter most, and those that were moved.
function shown() {
  const known = state.prediction.concepts, found = known.slice(0, MOST);
  for (const k of Object.keys(state.factors).map(Number)) {
    if (state.factors[k] !== 1 && !found.some(({ concept }) => concept === k)) {
      found.push(known.find(({ concept }) => concept === k) || { concept: k, name: `concept ${k}`, grade: null, activation: null, relevance: 0, opposite: null });
    }
  }
  return found;
}

function cards(concepts) {
  $("cards").replaceChildren(...concepts.map(card));
  if (!concepts.length) $("cards").append(element("p", { class: "soft" }, "A classifier alone has no concepts; the maps below work."));
  crops(concepts.map(({ concept }) => concept));
}

function card({ concept, name, grade, activation, relevance, opposite }) {
  const value = state.factors[concept] ?? 1;
  const output = element("output", { for: `slider-${concept}` }, `× ${value}`);
  const slider = element("input", { type: "range", id: `slider-${concept}`, min: "0", max: "4", step: "0.05", value: String(value), "aria-label": `${name}, factor` });
  const move = (to) => { state.factors[concept] = Number(to); output.textContent = `× ${Number(to)}`; remember(); pictures.ask(null); };
  slider.addEventListener("input", () => move(slider.value));
  const back = element("button", { class: "quiet", "aria-label": `Reset ${name}`, onclick: () => { slider.value = "1"; move(1); } }, "Reset");
  const about = [element("span", { class: relevance < 0 ? "sign minus" : "sign" }), `relevance ${number(relevance, 2)}, activation ${number(activation, 2)}`];
  if (opposite !== null) about.push(`, opposite of ${opposite}`);
  const known = element("div", { class: "tiny soft", "data-known": String(concept) }, grade === null || grade === undefined ? "" : `its name proves true: AUROC ${grade.toFixed(2)}`);
  return element("article", { class: "card concept", "data-concept": String(concept) },
    element("header", {}, element("div", { class: "crop", "data-crop": String(concept) }),
      element("div", {}, element("h3", {}, element("a", { href: `${root}concepts/${concept}` }, name)), element("div", { class: "tiny soft" }, ...about), known)),
    state.draws ? element("div", { class: "slider" }, slider, output, back) : null);
}

async function crops(concepts) {
  for (const concept of concepts) {
    const place = document.querySelector(`[data-crop="${concept}"]`);
    if (!place) return;
    try {
      const { examples, row } = await call(`concepts/${concept}${state.model ? `?model=${state.model}` : ""}`);
      const known = document.querySelector(`[data-known="${concept}"]`);
      if (known && !known.textContent && row.attribute) known.textContent = `${row.attribute_auroc >= RIGHT ? "tells" : "tells best"} ${row.attribute}: AUROC ${row.attribute_auroc.toFixed(2)}`;
      if (examples.length && place.isConnected) place.replaceChildren(cropped(examples[0], place.clientWidth));
    } catch (error) {
      if (error.status !== 503 && error.status !== 504) return;
    }
  }
}

// --- maps -------------------------------------------------------------------------------------------------------------

let heat = null;

async function map() {
  const [kind, which] = $("of").value.split(":");
  const body = { image: state.image, model: state.model, method: $("method").value };
  if (kind === "class") body.classes = [Number(which)];
  if (kind === "concept") body.concepts = [Number(which)];
  if (kind === "against") Object.assign(body, { classes: [state.prediction.f[0].class], against: Number(which) });
  $("show-map").disabled = true;
  $("map-said").textContent = "Computing…";
  try {
    const found = await call("explain", { body });
    const [one] = found.maps;
    heat = new Image();
    heat.src = one.picture;
    await heat.decode();
    paint();
    $("map-said").textContent = `${found.title} of ${one.name}, ${number(found.seconds, 2)} s`;
    const parts = one.truth && one.truth.parts;
    $("map-truth").textContent = !one.truth ? "" : parts.length ? `Its highest point lies on: ${parts.join(", ")}.` : "Its highest point lies beside the bird.";
    document.querySelector("#map-frame .point")?.remove();
    const point = element("i", { class: "point" });
    point.style.left = `${(100 * (one.point[0] + 0.5)) / heat.naturalWidth}%`;
    point.style.top = `${(100 * (one.point[1] + 0.5)) / heat.naturalHeight}%`;
    $("map-frame").append(point);
  } catch (error) {
    $("map-said").textContent = error.message;
  } finally {
    $("show-map").disabled = false;
  }
}

function paint() {
  if (!heat) return;
  const canvas = $("map"), threshold = Number($("threshold").value) * 255, opacity = Number($("opacity").value);
  [canvas.width, canvas.height] = [heat.naturalWidth, heat.naturalHeight];
  const context = canvas.getContext("2d");
  context.drawImage(heat, 0, 0);
  const pixels = context.getImageData(0, 0, canvas.width, canvas.height);
  for (let i = 3; i < pixels.data.length; i += 4) pixels.data[i] = pixels.data[i] < threshold ? 0 : pixels.data[i] * opacity;
  context.putImageData(pixels, 0, 0);
}

function clearMap() {
  heat = null;
  $("map").getContext("2d").clearRect(0, 0, $("map").width, $("map").height);
  document.querySelector("#map-frame .point")?.remove();
  $("map-said").textContent = "No map yet";
  $("map-truth").textContent = "";
}

function choices({ f, concepts }) {
  const rows = f.slice(0, 3).map(({ class: c, name, p }) => element("option", { value: `class:${c}` }, `f: ${name} (${percent(p)})`));
  if (f.length > 1) rows.push(element("option", { value: `against:${f[1].class}` }, `f: ${f[0].name}, rather than ${f[1].name}`));
  rows.push(...concepts.slice(0, MOST).map(({ concept, name }) => element("option", { value: `concept:${concept}` }, name)));
  $("of").replaceChildren(...rows);
}

// --- the truth of drawn scenes --------------------------------------------------------------------------------------------

function truth(image) {
  $("delete-card").hidden = !image.startsWith("birds/");
  if ($("delete-card").hidden) return;
  if (!$("part").options.length) $("part").append(element("option", { value: "" }, "choose a part"), ...PARTS.map((part) => element("option", { value: part }, part)));
  $("part").value = "";
  $("without-map").hidden = true;
  $("without").removeAttribute("src");
  $("without-f").replaceChildren();
}

async function remove() {
  const part = $("part").value;
  if (!part) return;
  const source = `${imageAddress(state.image)}?delete=${part}`;
  const form = new FormData();
  const answer = await fetch(source);
  if (!answer.ok) { say((await answer.json()).detail, 6); return; }
  const blob = await answer.blob();
  $("without-map").hidden = false;
  $("without").src = URL.createObjectURL(blob);
  form.append("file", blob, "scene.png");
  if (state.model) form.append("model", state.model);
  const [found] = await call("predict/files", { body: form });
  $("without-f").replaceChildren(bars(found.f.slice(0, 3)));
}

// --- where images come from ---------------------------------------------------------------------------------------------

async function open(file) {
  const form = new FormData();
  form.append("file", file);
  if (state.model) form.append("model", state.model);
  const [{ image, picture }] = await ready("images", { body: form });
  await show(image, picture);
}

function remember() {
  const factors = Object.entries(state.factors).filter(([, value]) => value !== 1).map(([k, value]) => `${k}:${value}`).join(",");
  const query = new URLSearchParams({ image: state.image });
  if (factors) query.set("factors", factors);
  if (state.model && $("model").options.length > 1) query.set("model", state.model);
  history.replaceState(null, "", `?${query}`);
}

function given() {
  const found = {};
  for (const pair of (asked.get("factors") || "").split(",").filter(Boolean)) {
    const [k, value] = pair.split(":").map(Number);
    if (Number.isInteger(k) && value >= 0 && value <= 16) found[k] = value;
  }
  return found;
}

let count = 0;
async function next() {
  const [dataset] = await ready("datasets");
  const number = (Number(String(state.image).split("/")[2] ?? -1) + 1) % dataset.images.test;
  await show(`${dataset.dataset}/test/${Number.isFinite(number) ? number : count++}`);
}

function random() {
  const concepts = state.prediction.concepts.slice(0, MOST).map(({ concept }) => concept);
  const moved = Object.keys(state.factors).map(Number).filter((k) => state.factors[k] !== 1);
  if (!moved.length) { say("Move a slider first: the control moves as many random other concepts as far.", 6); return; }
  const factor = state.factors[moved[0]];
  const others = Array.from({ length: state.concepts }, (_, k) => k).filter((k) => !concepts.includes(k));
  state.factors = {};
  for (let i = 0; i < moved.length; i += 1) state.factors[others.splice(Math.floor(Math.random() * others.length), 1)[0]] = factor;
  say(`Instead: ${Object.keys(state.factors).map((k) => `concept ${k}`).join(", ")} × ${factor}`, 8);
  cards(shown());
  remember();
  pictures.ask(null);
}

function download() {
  const content = JSON.stringify({ image: state.image, factors: state.factors, prediction: state.prediction, edited: state.last }, null, 2);
  const link = element("a", { href: URL.createObjectURL(new Blob([content], { type: "application/json" })), download: "explanation.json" });
  link.click();
  URL.revokeObjectURL(link.href);
}

async function start() {
  const models = await ready("models");
  state.model = asked.get("model") || null;
  const model = models.find(({ id }) => id === state.model) || models[0];
  state.concepts = model.concepts || 0;
  state.draws = model.draws;
  for (const id of ["after", "changed"]) $(id).closest("figure").hidden = !model.draws;
  for (const id of ["random", "reset"]) $(id).hidden = !model.draws;
  if (models.length > 1) {
    $("model").hidden = false;
    $("model").replaceChildren(...models.map(({ id, kind, dataset }) => element("option", { value: id }, `${dataset}, ${kind}`)));
    $("model").value = state.model || models[0].id;
    $("model").addEventListener("change", () => { location.search = `?model=${$("model").value}`; });
  }
  const methods = await call("methods");
  $("method").replaceChildren(...methods.map(({ method, title, quick }) => element("option", { value: method }, quick ? title : `${title} (slow)`)));
  $("method").value = "hirescam";
  const [dataset] = await ready("datasets");
  await show(asked.get("image") || `${dataset.dataset}/test/0`, null, given());
}

$("next").addEventListener("click", () => next().catch(complain));
$("random").addEventListener("click", random);
$("reset").addEventListener("click", () => { state.factors = {}; cards(shown()); remember(); pictures.ask(null); });
$("link").addEventListener("click", async () => { try { await navigator.clipboard.writeText(location.href); say("The link is in the clipboard.", 3); } catch { say(location.href, 12); } });
$("save").addEventListener("click", download);
$("show-map").addEventListener("click", () => map().catch(complain));
for (const id of ["opacity", "threshold"]) $(id).addEventListener("input", paint);
$("part").addEventListener("change", () => remove().catch(complain));
$("file").addEventListener("change", () => { if ($("file").files[0]) open($("file").files[0]).catch(complain); $("file").value = ""; });
document.addEventListener("paste", (event) => { const [file] = event.clipboardData.files; if (file) open(file).catch(complain); });
document.addEventListener("dragover", (event) => { event.preventDefault(); $("drop").classList.add("drop"); });
document.addEventListener("dragleave", (event) => { if (!event.relatedTarget) $("drop").classList.remove("drop"); });
document.addEventListener("drop", (event) => { event.preventDefault(); $("drop").classList.remove("drop"); const [file] = event.dataTransfer.files; if (file) open(file).catch(complain); });
start().catch(complain);

// The panel of penalties: those in force, their strength, and a form for another one.
import { element, number } from "./api.js";

const $ = (id) => document.getElementById(id);
const WORDS = {
  swap: "must not matter: taken from another image", attention: "the map of the true class must leave it",
  confusion: "images of one class must not be called another",
  not_for: "the concept must not speak for the class", not_in: "the concept must not fire there",
};
const SIDES = ["left", "top", "right", "bottom"];
const regional = (kind) => !["confusion", "not_for"].includes(kind);
const strength = (kind) => (kind === "swap" ? "share" : "weight");
let shown = "", drawn = "";

function where(one) {
  const parts = [];
  if (one.concept !== undefined) parts.push(`concept ${one.concept}`);
  if (one.predicted !== undefined) parts.push(`class ${one.label} called ${one.predicted}`);
  else if (one.label !== undefined) parts.push(`class ${one.label}`);
  if (one.region !== undefined) parts.push(/^[\d.,+ ]+$/.test(one.region) ? `box ${one.region.replaceAll(",", ", ").replaceAll("+", " and ")}` : one.region);
  return parts.join(", ");
}

function row(one, send) {
  const key = strength(one.penalty);
  const input = element("input", { type: "text", value: String(one[key]), size: 6, "aria-label": `${key} of ${one.name}` });
  const change = (event) => { event.preventDefault(); send("penalty", { do: "change", name: one.name, [key]: input.value.trim() }); };
  return element("form", { class: "row spread", onsubmit: change },
    element("div", {}, element("strong", {}, one.name), " ", element("span", { class: "small" }, where(one)), element("div", { class: "tiny soft" }, `${one.penalty}: ${WORDS[one.penalty]}`)),
    element("div", { class: "row" }, element("label", { class: "field" }, element("span", {}, key), input), element("button", { class: "low", "aria-label": `Change ${key} of ${one.name}` }, "Change"),
      element("button", { type: "button", class: "danger low", "aria-label": `Remove ${one.name}`, onclick: () => send("penalty", { do: "remove", name: one.name }) }, "Remove")));
}

// The measured behaviour beside the map: what a penalty is judged by.
function judged(name, metrics) {
  const of = (key) => metrics[`validation.penalties.${name}.${key}`];
  const facts = [["accuracy", "accuracy as is"], ["accuracy_swapped", "with the region of another class"], ["cam_share", "share of the map inside"], ["map_share", "share of the map inside"], ["vote", "vote for the class"], ["predicted", "says the class"],
    ["confused", "share called the other class"], ["confused_back", "the other way round"], ["recall", "recall of the class"], ["probability", "mean probability of the other"]];
  const known = facts.filter(([key]) => of(key) !== undefined && of(key) !== null);
  return known.length ? element("dl", { class: "facts few" }, ...known.map(([key, text]) => element("div", {}, element("dt", {}, text), element("dd", {}, number(of(key), 3))))) : null;
}

export function penalties(run, send) {
  const panel = $("penalties");
  if (!panel) return;
  const found = run.penalties;
  panel.hidden = !found;
  if (!found) return;
  const told = JSON.stringify([found.active, found.active.map(({ name }) => judged(name, run.metrics || {})?.textContent)]);
  if (told !== shown) {
    shown = told;
    $("penalties-none").hidden = found.active.length > 0;
    $("active").replaceChildren(...found.active.map((one) => element("div", { class: "stack" }, row(one, send), judged(one.name, run.metrics || {}))));
  }
  const offered = JSON.stringify([found.kinds, found.regions]);
  if (offered !== drawn) { drawn = offered; form(found, send); }
}

function form({ kinds, regions }, send) {
  const kind = $("penalty-kind"), region = $("penalty-region");
  kind.replaceChildren(...kinds.map((name) => element("option", { value: name }, `${name}: ${WORDS[name]}`)));
  region.replaceChildren(element("option", { value: "" }, "a box"), ...regions.map((name) => element("option", { value: name }, name)));
  const fit = () => {
    const concepts = kind.value.startsWith("not_"), place = regional(kind.value);
    $("penalty-concept").parentElement.hidden = !concepts;
    $("penalty-predicted").parentElement.hidden = kind.value !== "confusion";
    $("penalty-label").parentElement.hidden = place;
    region.parentElement.hidden = !place;
    $("penalty-box").hidden = !place || region.value !== "";
    $("penalty-key").textContent = strength(kind.value);
    $("penalty-strength").value = kind.value === "swap" ? "0.5" : "1";
  };
  kind.addEventListener("change", fit);
  region.addEventListener("change", fit);
  fit();
  $("penalty").onsubmit = (event) => {
    event.preventDefault();
    const values = { do: "add", penalty: kind.value, [strength(kind.value)]: $("penalty-strength").value.trim() };
    if (kind.value.startsWith("not_")) values.concept = $("penalty-concept").value.trim();
    if (kind.value === "confusion") values.predicted = $("penalty-predicted").value.trim();
    if (!regional(kind.value)) values.label = $("penalty-label").value.trim();
    else values.region = region.value || SIDES.map((side) => String(Number($(`penalty-${side}`).value) / 100)).join(",");
    send("penalty", values);
  };
}

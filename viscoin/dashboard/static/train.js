import { call, complain, element, ready, readOnly, root, say } from "./api.js";

const $ = (id) => document.getElementById(id);
let sections = [];
const changed = new Map();

function field({ key, value, type, choices, help, least, most, above, below }) {
  const shown = value === null ? "" : Array.isArray(value) ? JSON.stringify(value) : String(value);
  const input = choices
    ? element("select", { "aria-label": key }, ...choices.map((choice) => element("option", { value: String(choice), selected: choice === value }, String(choice))))
    : type === "boolean"
      ? element("input", { type: "checkbox", checked: value === true, "aria-label": key })
      : element("input", { type: "text", value: shown, placeholder: value === null ? "none" : "", "aria-label": key });
  input.addEventListener("change", () => {
    const now = type === "boolean" ? input.checked : input.value;
    if (String(now) === (type === "boolean" ? String(value) : shown)) changed.delete(key);
    else changed.set(key, type === "boolean" ? now : read(now, type));
    line();
  });
  const range = [[least, "at least"], [above, "above"], [most, "at most"], [below, "below"]].filter(([bound]) => bound !== undefined).map(([bound, word]) => `${word} ${bound}`).join(", ");
  return element("div", { class: "row spread", "data-key": key }, element("div", {}, element("code", {}, key), element("div", { class: "tiny soft" }, [help, range].filter(Boolean).join("; "))), input);
}

function read(text, type) {
  if (text === "") return null;
  return (type === "integer" || type === "number") && Number.isFinite(Number(text)) ? Number(text) : text;
}

function wish() {
  const found = { kind: $("kind").value, dataset: $("dataset").value, settings: Object.fromEntries(changed), name: $("run").value || null, recipe: $("recipe").value, where: $("where").value, devices: Number($("devices").value) || null };
  if (found.where === "slurm") found.limits = { partition: $("partition").value || null, account: $("account").value || null, gpus: $("gpus").value, nodes: Number($("nodes").value), time: $("time").value, mem: $("mem").value };
  return found;
}

function line() {
  const settings = [...changed].map(([key, value]) => ` --set ${key}=${value}`).join("");
  $("command").textContent = `python main.py train ${$("kind").value} --dataset ${$("dataset").value}${settings}`;
}

function draw() {
  const text = $("filter").value.trim().toLowerCase();
  $("keys").replaceChildren(...sections.map(({ section, keys }) => {
    const found = keys.filter(({ key, help }) => !text || key.includes(text) || (help || "").toLowerCase().includes(text));
    return found.length ? element("details", { open: Boolean(text) || section === $("kind").value || section === "dataset" }, element("summary", {}, `${section} (${found.length})`), element("div", { class: "stack" }, ...found.map(field))) : null;
  }).filter(Boolean));
}

async function recipe() {
  sections = (await call(`recipes/${encodeURIComponent($("recipe").value)}`)).sections;
  changed.clear();
  draw();
  line();
}

async function start() {
  const names = await ready("recipes");
  $("recipe").replaceChildren(...names.map((name) => element("option", { value: name }, name)));
  $("recipe").value = names.includes("birds") ? "birds" : names[0];
  await recipe();
}

if (!readOnly) {
  $("recipe").addEventListener("change", () => recipe().catch(complain));
  $("kind").addEventListener("change", () => { draw(); line(); });
  $("dataset").addEventListener("input", line);
  $("filter").addEventListener("input", draw);
  $("where").addEventListener("change", () => { $("limits").hidden = $("where").value === "here"; });
  $("check").addEventListener("click", async () => {
    $("checked").textContent = "";
    $("script").hidden = true;
    if (!$("form").reportValidity()) return;
    try {
      const { run, command, script } = await call("jobs", { body: { ...wish(), dry_run: true } });
      $("checked").textContent = `All values fit; the run would be ${run}.`;
      $("command").textContent = command;
      $("script").hidden = !script;
      $("script").textContent = script || "";
    } catch (error) { $("checked").textContent = error.message; }
  });
  $("form").addEventListener("submit", async (event) => {
    event.preventDefault();
    try {
      const { run, job } = await call("jobs", { body: wish() });
      say(job ? `${run} is job ${job} of the cluster` : `${run} starts`, 3);
      setTimeout(() => { location.href = `${root}runs`; }, 900);
    } catch (error) { complain(error); }
  });
  start().catch(complain);
}

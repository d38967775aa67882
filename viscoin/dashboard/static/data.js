import { call, complain, element, imageAddress, number, readOnly, ready, root, say } from "./api.js";
import { open } from "./marker.js";
import { MARKABLE, Marks, thumbnail } from "./marks.js";

const $ = (id) => document.getElementById(id);
const COUNT = 60, LIVE = ["starting", "running", "paused", "silent"];
let datasets = [], start = 0, names = [], rows = [], marks = null, asked = null;
const chosen = () => datasets.find(({ model }) => model === $("dataset").value);

async function load() {
  const found = chosen(), split = $("split").value;
  const label = $("label").value === "" ? "" : `&label=${$("label").value}`;
  const own = asked = {}, slow = setTimeout(() => say("The images are made ready, which may take minutes the first time."), 1500);
  let page;
  try { page = await call(`datasets/${found.dataset}/${split}?model=${found.model}&start=${start}&count=${COUNT}${label}`); } finally { clearTimeout(slow); }
  if (own !== asked) return; // something else was chosen meanwhile
  say("");
  rows = page.rows;
  $("images").replaceChildren(...rows.map(shown));
  for (const { image } of rows) overlay(image);
  $("parts-field").hidden = !found.parts.length;
  if ($("label").dataset.of !== `${found.model}/${split}`) counted(page.counts, `${found.model}/${split}`);
  const last = start + rows.length;
  $("where").textContent = page.images ? `${number(start + 1)} to ${number(last)} of ${number(page.images)}` : "no images";
  $("back").disabled = start === 0;
  $("on").disabled = last >= page.images;
  const all = page.counts.reduce((sum, one) => sum + one, 0);
  $("about").textContent = `${number(all)} ${split === "train" ? "training" : split} images of ${number(found.classes)} classes, ${found.resolution} px. A click explains an image${MARKABLE.includes(split) ? "; Mark draws regions on it, for penalties." : ". Regions are marked on training and validation images."}`;
}

function shown({ image, name }, at) {
  const { model } = chosen(), markable = MARKABLE.includes($("split").value);
  const picture = element("img", { class: "thumb pixels", loading: "lazy", src: `${imageAddress(image)}?model=${model}${$("parts").checked ? "&parts=true" : ""}`, alt: "" });
  return element("li", {}, element("a", { href: `${root}?image=${encodeURIComponent(image)}&model=${model}` }, element("span", { class: "marked" }, picture, element("canvas", { "data-image": image, hidden: true })), element("span", { class: "name", title: name }, name)),
    markable ? element("button", { class: "quiet", "data-mark": image, "aria-label": `Mark regions of image ${image.split("/")[2]}, ${name}`, onclick: () => mark(at) }, "Mark") : null);
}

async function classes() {
  ({ class_names: names } = await call(`models/${$("dataset").value}`));
  $("label").value = "";
}

// The classes with how many images each has in this split.
function counted(counts, of) {
  const before = $("label").value;
  $("label").replaceChildren(element("option", { value: "" }, "all"), ...names.map((name, i) => element("option", { value: String(i) }, `${name} (${counts[i]})`)));
  $("label").value = before;
  $("label").dataset.of = of;
}

// --- marks ------------------------------------------------------------------------------------------------------------------

function mark(at) {
  const { model, resolution: side } = chosen();
  const keep = (split, index, found) => { marks.put(split, index, found); overlay(`${chosen().dataset}/${split}/${index}`); summary(); };
  open(rows, at, { model, side, marks, keep });
}

function overlay(image) {
  const [, split, index] = image.split("/"), found = marks.of(split, index);
  const canvas = document.querySelector(`canvas[data-image="${CSS.escape(image)}"]`);
  if (!canvas) return;
  canvas.hidden = !found;
  const button = document.querySelector(`button[data-mark="${CSS.escape(image)}"]`);
  if (button) button.textContent = found ? "Marked" : "Mark";
  if (found) thumbnail(canvas, found);
}

function summary() {
  const [train, validation] = MARKABLE.map((split) => marks.count(split));
  $("marks").hidden = !train && !validation;
  $("marks-about").textContent = [[train, "training"], [validation, "validation"]].filter(([count]) => count).map(([count, split]) => `${number(count)} ${split} ${count === 1 ? "image" : "images"}`).join(" and ");
  $("marks-need").hidden = train > 0;
  if ($("marks-add")) $("marks-add").disabled = !train;
}

function download() {
  const address = URL.createObjectURL(new Blob([marks.text()], { type: "application/json" }));
  element("a", { href: address, download: "marks.json" }).click();
  setTimeout(() => URL.revokeObjectURL(address), 60_000);
}

// Trainings of this dataset that take penalties of a region now.
async function trainings() {
  if (readOnly || !marks) return;
  const found = (await call("runs")).filter((row) => LIVE.includes(row.state) && row.penalties?.kinds.includes("swap") && row.dataset === chosen().dataset);
  const told = JSON.stringify(found.map(({ run }) => run)), select = $("marks-run"), before = select.value;
  $("marks-send").hidden = !found.length;
  $("marks-nowhere").hidden = found.length > 0;
  if (select.dataset.told === told) return;
  select.dataset.told = told;
  select.replaceChildren(...found.map(({ run }) => element("option", { value: run }, run)));
  if (found.some(({ run }) => run === before)) select.value = before;
}

async function send(event) {
  event.preventDefault();
  const run = $("marks-run").value, path = `runs/${encodeURIComponent(run)}`, kind = $("marks-kind").value;
  $("marks-add").disabled = true;
  try {
    const { region } = await call(`${path}/marks`, { body: marks.splits });
    await call(`${path}/commands`, { body: { command: "penalty", values: { do: "add", penalty: kind, region, [kind === "swap" ? "share" : "weight"]: $("marks-strength").value.trim() } } });
    $("marks-sent").replaceChildren("Sent: what becomes of it stands on the page of ", element("a", { href: `${root}runs/${encodeURIComponent(run)}` }, run), ".");
    say(`${kind}: sent to ${run}`, 3);
  } catch (error) { complain(error); } finally { summary(); }
}

function strength() {
  const swap = $("marks-kind").value === "swap";
  $("marks-key").textContent = swap ? "share of a batch, 0 to 1" : "weight in the loss";
  $("marks-strength").value = swap ? "0.5" : "1";
}

// --- start ------------------------------------------------------------------------------------------------------------------

async function opened() {
  const { dataset, model } = chosen();
  marks = new Marks(`${dataset} of ${model}`);
  summary();
  await classes();
  await load();
  await trainings();
}

async function begin() {
  datasets = await ready("datasets");
  $("dataset").replaceChildren(...datasets.map(({ dataset, model }) => element("option", { value: model }, dataset)));
  await opened();
  setInterval(() => { if (!document.hidden && !$("marks").hidden) trainings().catch(() => {}); }, 5000);
}

$("dataset").addEventListener("change", () => { start = 0; opened().catch(complain); });
for (const id of ["split", "label"]) $(id).addEventListener("change", () => { start = 0; load().catch(complain); });
$("parts").addEventListener("change", () => load().catch(complain));
$("back").addEventListener("click", () => { start = Math.max(0, start - COUNT); load().catch(complain); });
$("on").addEventListener("click", () => { start += COUNT; load().catch(complain); });
$("marks-download").addEventListener("click", download);
$("marks-forget").addEventListener("click", () => $("forget").showModal());
$("forget").addEventListener("close", () => {
  if ($("forget").returnValue !== "yes") return;
  marks.clear();
  for (const { image } of rows) overlay(image);
  summary();
});
$("marks-send")?.addEventListener("submit", send);
$("marks-kind")?.addEventListener("change", strength);
if (!readOnly) strength();
begin().catch(complain);

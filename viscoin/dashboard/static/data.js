import { call, complain, element, imageAddress, number, ready, root } from "./api.js";

const $ = (id) => document.getElementById(id);
const COUNT = 60;
let datasets = [], start = 0, names = [];

async function load() {
  const found = datasets.find(({ model }) => model === $("dataset").value);
  const label = $("label").value === "" ? "" : `&label=${$("label").value}`;
  const page = await call(`datasets/${found.dataset}/${$("split").value}?model=${found.model}&start=${start}&count=${COUNT}${label}`);
  $("images").replaceChildren(...page.rows.map(({ image, name }) => element("li", {}, element("a", { href: `${root}?image=${encodeURIComponent(image)}&model=${found.model}` }, element("img", { class: "thumb pixels", loading: "lazy", src: `${imageAddress(image)}?model=${found.model}${$("parts").checked ? "&parts=true" : ""}`, alt: "" }), element("span", { class: "name", title: name }, name)))));
  $("parts-field").hidden = !found.parts.length;
  if ($("label").dataset.of !== `${found.model}/${$("split").value}`) counted(page.counts, `${found.model}/${$("split").value}`);
  const last = start + page.rows.length;
  $("where").textContent = page.images ? `${number(start + 1)} to ${number(last)} of ${number(page.images)}` : "no images";
  $("back").disabled = start === 0;
  $("on").disabled = last >= page.images;
  $("about").textContent = `${number(found.images[$("split").value])} ${$("split").value} images of ${number(found.classes)} classes, ${found.resolution} px. A click explains an image.`;
}

async function classes() {
  ({ class_names: names } = await call(`models/${$("dataset").value}`));
  $("label").value = "";
}

// The classes with how many images each has in this split.
function counted(counts, of) {
  const chosen = $("label").value;
  $("label").replaceChildren(element("option", { value: "" }, "all"), ...names.map((name, i) => element("option", { value: String(i) }, `${name} (${counts[i]})`)));
  $("label").value = chosen;
  $("label").dataset.of = of;
}

async function begin() {
  datasets = await ready("datasets");
  $("dataset").replaceChildren(...datasets.map(({ dataset, model }) => element("option", { value: model }, dataset)));
  await classes();
  await load();
}

$("dataset").addEventListener("change", () => { start = 0; classes().then(load).catch(complain); });
for (const id of ["split", "label"]) $(id).addEventListener("change", () => { start = 0; load().catch(complain); });
$("parts").addEventListener("change", () => load().catch(complain));
$("back").addEventListener("click", () => { start = Math.max(0, start - COUNT); load().catch(complain); });
$("on").addEventListener("click", () => { start += COUNT; load().catch(complain); });
begin().catch(complain);

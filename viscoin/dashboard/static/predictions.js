import { call, complain, element, imageAddress, number, percent, plotted, ready, root } from "./api.js";

const $ = (id) => document.getElementById(id);
const link = ({ image }, text) => element("a", { href: `${root}?image=${encodeURIComponent(image)}` }, text);
const of = (row) => (row.model ? `model=${row.model}` : "");
const thumb = (row) => element("li", {}, element("a", { href: `${root}?image=${encodeURIComponent(row.image)}&${of(row)}` }, element("img", { class: "thumb pixels", loading: "lazy", src: `${imageAddress(row.image)}?${of(row)}`, alt: "" }), element("b", { class: "num" }, percent(row.p)), element("span", { class: "name", title: row.predicted }, row.predicted), row.predicted === row.true ? null : element("span", { class: "name", title: row.true }, `it is: ${row.true}`)));
const NAMES = { f1: "F1", auroc: "AUROC", top5: "Top 5" };
const titled = (name) => NAMES[name] || (name[0].toUpperCase() + name.slice(1)).replaceAll("_", " ");
const fill = (id, rows, none) => $(id).replaceChildren(...(rows.length ? rows.map(thumb) : [element("li", { class: "soft" }, none)]));

async function load() {
  $("about").textContent = "Computing…";
  const found = await ready(`predictions?split=${$("split").value}&of=${$("of").value}`);
  $("about").textContent = `${number(found.images)} ${found.split} images, sampled at random.`;
  const facts = Object.entries(found.estimates).filter(([, { value }]) => value !== null);
  $("facts").replaceChildren(...facts.map(([name, { value, low, high }]) => element("div", {}, element("dt", {}, titled(name)), element("dd", {}, number(value, 3), low === null ? "" : element("span", { class: "tiny soft" }, ` ${number(low, 3)} to ${number(high, 3)}`)))));
  $("confused-about").textContent = found.confused.length ? "Pairs of classes, those with most errors first." : "No image was taken for another class.";
  $("confused").replaceChildren(...found.confused.map((row) => element("tr", {}, element("td", { class: "break" }, row.true), element("td", { class: "break" }, row.predicted), element("td", { class: "n" }, `${row.errors} of ${row.images}`), element("td", {}, ...row.examples.flatMap((one, i) => [i ? ", " : "", link(one, one.image.split("/").pop())])))));
  matrix(found);
  $("figures").replaceChildren(...found.figures.filter(({ title }) => !found.confusion || title !== "Confusion").map(({ title, picture }) => element("figure", { tabindex: "0", "aria-label": title }, plotted(picture, title), element("figcaption", {}, title))));
  fill("wrong", found.sure_and_wrong, "None is wrong.");
  fill("unsure", found.least_sure, "None.");
  $("classes").replaceChildren(...found.classes.map((row) => element("tr", {}, element("td", { class: "break" }, row.class), ...[row.images, row.precision, row.recall, row.f1].map((value) => element("td", { class: "n" }, number(value, 3))))));
}

// --- the confusion matrix --------------------------------------------------------------------------------------------

function matrix(found) {
  $("matrix-card").hidden = !found.confusion;
  $("cell").replaceChildren();
  $("cell-about").textContent = "";
  if (!found.confusion) return;
  const names = found.class_names, most = Math.max(...found.confusion.flat(), 1);
  const head = element("tr", {}, element("th", {}), ...names.map((name) => element("th", { scope: "col" }, element("span", {}, name))));
  const rows = found.confusion.map((row, i) => element("tr", {}, element("th", { scope: "row" }, names[i]), ...row.map((count, j) => {
    const cell = element("td", { class: i === j ? "right" : "" });
    if (count) {
      const button = element("button", { "aria-label": `${count} of ${names[i]}, called ${names[j]}`, onclick: () => shown(found, i, j) }, String(count));
      button.style.setProperty("--share", `${Math.round(10 + (45 * count) / most)}%`);
      cell.append(button);
    }
    return cell;
  })));
  $("matrix").replaceChildren(element("thead", {}, head), element("tbody", {}, ...rows));
}

function shown(found, i, j) {
  const { class_names: names } = found, rows = found.each.filter(([, label, predicted]) => label === i && predicted === j);
  $("cell-about").textContent = `${rows.length} of ${names[i]}, called ${names[j]}${rows.length > 24 ? ", the first 24 of them" : ""}:`;
  $("cell").replaceChildren(...rows.slice(0, 24).map(([index, , , p]) => thumb({ image: `${found.place}/${index}`, true: names[i], predicted: names[j], p })));
}

// --- two states side by side --------------------------------------------------------------------------------------------

async function sides() {
  const runs = await ready("runs");
  const own = runs.filter(({ kind, pending }) => kind === "classifier" && !pending);
  $("sides-card").hidden = !own.length;
  if (!own.length) return;
  $("sides").addEventListener("submit", (event) => { event.preventDefault(); compare().catch((error) => { $("sides-about").textContent = error.message; }); });
  for (const i of [0, 1]) {
    $(`run-${i}`).replaceChildren(...own.map(({ run }) => element("option", { value: run }, run)));
    $(`run-${i}`).addEventListener("change", () => listed(i).catch(complain));
  }
  await Promise.all([listed(0), listed(1)]);
}

async function listed(i) {
  const states = await call(`runs/${encodeURIComponent($(`run-${i}`).value)}/states`);
  $(`state-${i}`).replaceChildren(...states.map((state) => element("option", { value: state }, state === "final" ? "final" : `epoch ${state}`)));
  $(`state-${i}`).value = i ? states.at(-1) : states[0];
}

async function compare() {
  $("sides-about").textContent = "Computing…";
  for (const id of ["sides-found", "sides-images"]) $(id).replaceChildren();
  const found = [];
  for (const i of [0, 1]) {
    if (!$(`state-${i}`).value) throw new Error(`${$(`run-${i}`).value} has kept no model yet.`);
    const answer = await ready(`runs/${encodeURIComponent($(`run-${i}`).value)}/analysis?states=${$(`state-${i}`).value}&split=${$("split").value}`);
    found.push({ ...answer.states[0], run: answer.run, dataset: answer.dataset, model: answer.model });
  }
  $("sides-about").textContent = `${number(found[0].images)} ${$("split").value} images of ${found[0].dataset}${found[0].dataset === found[1].dataset ? "" : ` and ${found[1].dataset}`}.`;
  $("sides-found").replaceChildren(...found.map(side));
  changes(...found);
}

function side({ run, state, estimates, figures, classes }) {
  return element("section", { class: "stack" }, element("h3", {}, `${run}, ${state === "final" ? "final" : `epoch ${state}`}`),
    element("dl", { class: "facts" }, ...Object.entries(estimates).filter(([, { value }]) => value !== null).slice(0, 4).map(([name, { value }]) => element("div", {}, element("dt", {}, titled(name)), element("dd", {}, number(value, 3))))),
    ...figures.map(({ title, picture }) => element("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": title }, plotted(picture, title))),
    element("details", {}, element("summary", {}, "By class, those of the lowest F1 first"), element("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": "Table" }, element("table", {}, element("tbody", {}, ...classes.map((row) => element("tr", {}, element("td", { class: "break" }, row.class), element("td", { class: "n" }, `F1 ${number(row.f1, 3)}`))))))));
}

// Of the same images: what both get right or wrong, and what changed.
function changes(one, other) {
  if (one.dataset !== other.dataset || one.class_names.join() !== other.class_names.join()) return;
  const later = new Map(other.each.map((row) => [row[0], row])), lists = { "Turned right": [], "Turned wrong": [], "Wrong in both": [], "Right in both": [] };
  for (const [index, label, predicted] of one.each) {
    const row = later.get(index);
    if (!row) continue;
    const before = predicted === label, after = row[2] === label;
    lists[after ? (before ? "Right in both" : "Turned right") : before ? "Turned wrong" : "Wrong in both"].push(row);
  }
  const names = one.class_names, served = one.model && one.model === other.model;
  $("sides-images").replaceChildren(...Object.entries(lists).map(([title, rows]) => element("section", {}, element("h3", {}, `${title}: ${rows.length}`),
    served && rows.length ? element("ul", { class: "thumbs" }, ...rows.slice(0, 8).map(([index, label, predicted, p]) => thumb({ image: `${one.dataset}/${$("split").value}/${index}`, true: names[label], predicted: names[predicted], p, model: one.model }))) : element("p", { class: "small soft" }, rows.length ? `Images ${rows.slice(0, 12).map(([index]) => index).join(", ")}${rows.length > 12 ? ", …" : ""}` : ""))));
}

sides().catch(complain);
for (const id of ["of", "split"]) $(id).addEventListener("change", () => load().catch(complain));
load().catch(complain);

import { complain, element, imageAddress, number, percent, ready, root } from "./api.js";

const $ = (id) => document.getElementById(id);
const link = ({ image }, text) => element("a", { href: `${root}?image=${encodeURIComponent(image)}` }, text);
const thumb = (row) => element("li", {}, element("a", { href: `${root}?image=${encodeURIComponent(row.image)}` }, element("img", { class: "thumb pixels", loading: "lazy", src: imageAddress(row.image), alt: "" }), `${row.predicted === row.true ? "" : `not ${row.true} but `}${row.predicted}, ${percent(row.p)}`));
const fill = (id, rows, none) => $(id).replaceChildren(...(rows.length ? rows.map(thumb) : [element("li", { class: "soft" }, none)]));

async function load() {
  $("about").textContent = "Computing…";
  const found = await ready(`predictions?split=${$("split").value}&of=${$("of").value}`);
  $("about").textContent = `${number(found.images)} ${found.split} images, sampled at random.`;
  const facts = Object.entries(found.estimates).filter(([, { value }]) => value !== null);
  $("facts").replaceChildren(...facts.map(([name, { value, low, high }]) => element("div", {}, element("dt", {}, name.replaceAll("_", " ")), element("dd", {}, number(value, 3), low === null ? "" : element("span", { class: "tiny soft" }, ` ${number(low, 3)} to ${number(high, 3)}`)))));
  $("confused-about").textContent = found.confused.length ? "Pairs of classes, those with most errors first." : "No image was taken for another class.";
  $("confused").replaceChildren(...found.confused.map((row) => element("tr", {}, element("td", { class: "break" }, row.true), element("td", { class: "break" }, row.predicted), element("td", { class: "n" }, `${row.errors} of ${row.images}`), element("td", {}, ...row.examples.flatMap((one, i) => [i ? ", " : "", link(one, one.image.split("/").pop())])))));
  $("figures").replaceChildren(...found.figures.map(({ title, picture }) => element("figure", {}, element("img", { class: "thumb-free", src: picture, alt: title }), element("figcaption", {}, title))));
  fill("wrong", found.sure_and_wrong, "None is wrong.");
  fill("unsure", found.least_sure, "None.");
  $("classes").replaceChildren(...found.classes.map((row) => element("tr", {}, element("td", { class: "break" }, row.class), ...[row.images, row.precision, row.recall, row.f1].map((value) => element("td", { class: "n" }, number(value, 3))))));
}

for (const id of ["of", "split"]) $(id).addEventListener("change", () => load().catch(complain));
load().catch(complain);

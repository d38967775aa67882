import { complain, element, number, percent, ready, root } from "./api.js";
import { RIGHT } from "./crops.js";

const $ = (id) => document.getElementById(id);

async function load() {
  const found = await ready(`concepts/${encodeURIComponent($("name").dataset.concept)}`);
  const { row, examples, strip, classes, opposite, similar } = found;
  $("name").textContent = row.name.replace(/^c/, "C");
  document.title = `${row.name} · viscoin`;
  $("about").textContent = `Active in ${percent(row.active_share)} of the images; importance ${number(row.importance, 2)}; entropy over classes ${number(row.entropy, 2)}.${row.attribute ? ` Of the attributes that the images were made from it tells ${row.attribute} best: AUROC ${row.attribute_auroc.toFixed(2)}${row.attribute_auroc >= RIGHT ? "" : ", which is not much"}.` : ""}${row.grade === null ? "" : ` Its name proves true on held-out images with an AUROC of ${row.grade.toFixed(2)}.`}${opposite === null ? "" : ` Concept ${opposite} is its opposite.`}`;
  $("examples").replaceChildren(...examples.map(({ image, picture, activation }) => element("li", {},
    element("a", { href: `${root}?image=${encodeURIComponent(image)}` }, element("img", { class: "thumb pixels", src: picture, alt: `Image ${image}` }), `activation ${number(activation, 2)}`))));
  if (!examples.length) $("examples").append(element("li", { class: "soft" }, "No test image activates it."));
  $("strip").replaceChildren(...strip.map(({ factor, picture }) => element("li", {}, element("img", { class: "thumb pixels", src: picture, alt: `Times ${factor}` }), `× ${factor}`)));
  $("strip").closest("section").hidden = !strip.length;
  $("similar-card").hidden = !similar.length;
  $("similar").replaceChildren(...similar.map(({ concept, name, correlation }) => element("li", {}, element("a", { href: `${root}concepts/${concept}` }, name), element("span", { class: "soft num" }, ` ${number(correlation, 2)}`))));
  $("classes").replaceChildren(...classes.map(({ name, weight }) => element("tr", {}, element("td", { class: "break" }, name), element("td", { class: "n" }, number(weight, 3)))));
}
load().catch(complain);

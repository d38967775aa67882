import { complain, element, number, percent, ready, root } from "./api.js";

const $ = (id) => document.getElementById(id);

async function load() {
  const found = await ready(`concepts/${encodeURIComponent($("name").dataset.concept)}`);
  const { row, examples, strip, classes, opposite } = found;
  $("about").textContent = `Active in ${percent(row.active_share)} of the images; importance ${number(row.importance, 2)}.${opposite === null ? "" : ` Concept ${opposite} is its opposite.`}`;
  $("examples").replaceChildren(...examples.map(({ image, picture, activation }) => element("li", {},
    element("a", { href: `${root}?image=${encodeURIComponent(image)}` }, element("img", { class: "thumb pixels", src: picture, alt: `Image ${image}` }), `activation ${number(activation, 2)}`))));
  if (!examples.length) $("examples").append(element("li", { class: "soft" }, "No test image activates it."));
  $("strip").replaceChildren(...strip.map(({ factor, picture }) => element("li", {}, element("img", { class: "thumb pixels", src: picture, alt: `Times ${factor}` }), `× ${factor}`)));
  $("strip").closest("section").hidden = !strip.length;
  $("classes").replaceChildren(...classes.map(({ name, weight }) => element("tr", {}, element("td", { class: "break" }, name), element("td", { class: "n" }, number(weight, 3)))));
}
load().catch(complain);

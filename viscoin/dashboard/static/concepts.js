import { call, complain, element, number, percent, ready, root } from "./api.js";
import { RIGHT, cropped } from "./crops.js";

const $ = (id) => document.getElementById(id);
const PAGE = 24;
let rows = [], shown = PAGE;
const seen = new IntersectionObserver((entries) => entries.forEach(({ isIntersecting, target }) => { if (isIntersecting) { seen.unobserve(target); wanted.push(target); fill(); } }));
const wanted = [];
let filling = false;

async function fill() {
  if (filling) return;
  filling = true;
  while (wanted.length) {
    const place = wanted.shift();
    try {
      const { examples } = await call(`concepts/${place.dataset.crop}`);
      place.replaceChildren(...examples.slice(0, 4).map((example) => { const box = element("div", { class: "crop few" }, cropped(example, 48)); return box; }));
      if (!examples.length) place.textContent = "never active";
    } catch (error) {
      if (error.status === 503 || error.status === 504) wanted.push(place);
      else complain(error);
      await new Promise((done) => setTimeout(done, 500));
    }
  }
  filling = false;
}

// What the truth of the data, or held-out images, say of a concept.
function graded({ grade, attribute, attribute_auroc: area }) {
  const found = [];
  if (grade !== null) found.push(element("span", { class: `tag ${grade >= RIGHT ? "finished" : ""}` }, `name: AUROC ${grade.toFixed(2)}`));
  if (attribute) found.push(element("span", { class: `tag ${area >= RIGHT ? "finished" : ""}`, title: "the attribute that it detects best, on the images seen here" }, `${area >= RIGHT ? "tells" : "at best"} ${attribute}, AUROC ${area.toFixed(2)}`));
  return found.length ? element("div", { class: "tags" }, ...found) : null;
}

function draw() {
  const text = $("filter").value.trim().toLowerCase();
  const found = rows.filter((row) => !text || [row.name, row.class, row.votes_for, row.attribute].some((name) => (name || "").toLowerCase().includes(text)));
  $("cards").replaceChildren(...found.slice(0, shown).map((row) => {
    const crops = element("div", { class: "crops", "data-crop": String(row.concept) });
    seen.observe(crops);
    return element("article", { class: "card stack" }, element("h2", {}, element("a", { href: `${root}concepts/${row.concept}` }, row.name)), crops,
      element("div", { class: "small soft" }, `active in ${percent(row.active_share)} of the images, importance ${number(row.importance, 2)}, entropy ${number(row.entropy, 2)}`),
      element("div", { class: "small" }, row.class ? `most for ${row.class}` : "speaks for no class"),
      graded(row));
  }));
  $("more").hidden = found.length <= shown;
}

async function load() {
  const found = await ready(`concepts?count=500&sort=${$("sort").value}`);
  rows = found.rows;
  const { images, concepts, never_active: dead, active_per_image: active } = found.summary;
  $("about").textContent = `${concepts} concepts, seen in ${images} test images; ${dead} never active; a median of ${number(active)} active in an image.`;
  draw();
}

$("filter").addEventListener("input", () => { shown = PAGE; draw(); });
$("sort").addEventListener("change", () => load().catch(complain));
$("more").addEventListener("click", () => { shown += PAGE; draw(); });
load().catch(complain);

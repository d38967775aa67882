import { call, complain, element, imageAddress, percent, plotted, ready } from "./api.js";

const $ = (id) => document.getElementById(id);

async function demo(name) {
  $(`${name}-said`).replaceChildren(element("li", {}, "Computing…"));
  $(name).replaceChildren();
  try {
    const { summary, figures } = await ready("fallacies", { body: { image: $("image").value, demo: name, method: $("method").value } });
    $(`${name}-said`).replaceChildren(...summary.map((line) => element("li", {}, line)));
    $(name).replaceChildren(...figures.map(({ title, picture }) => element("figure", { tabindex: "0", "aria-label": title }, plotted(picture, title))));
  } catch (error) {
    $(`${name}-said`).replaceChildren(element("li", {}, error.message));
  }
}

async function classes() {
  const { f } = await ready("predict", { body: { image: $("image").value, top: 4 } });
  const { maps } = await ready("explain", { body: { image: $("image").value, method: $("method").value, classes: f.map((row) => row.class) } });
  const under = imageAddress($("image").value);
  $("classes").replaceChildren(...maps.map(({ picture, name }, i) => element("li", {}, element("div", { class: "over" }, element("img", { class: "pixels", src: under, alt: "" }), element("img", { class: "pixels", src: picture, alt: `Map of ${name}` })), `${name}, ${percent(f[i].p)}`)));
}

async function run() {
  $("run").disabled = true;
  try { await classes(); await demo("randomise"); await demo("shift"); } finally { $("run").disabled = false; }
}

async function start() {
  const methods = await ready("methods");
  $("method").replaceChildren(...methods.map(({ method, title }) => element("option", { value: method }, title)));
  $("method").value = "gradcam";
  const [dataset] = await ready("datasets");
  $("image").value = `${dataset.dataset}/test/0`;
  await run();
}

$("run").addEventListener("click", () => run().catch(complain));
start().catch(complain);

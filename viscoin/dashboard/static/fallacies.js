import { call, complain, element, imageAddress, number, percent, plotted, ready, root } from "./api.js";

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

// From the runs with penalties, each from its first evaluation to its last.
async function moved() {
  const known = /^validation\.penalties\.([^.]+)\.accuracy_swapped$/;
  const runs = (await call("runs")).filter(({ metrics }) => Object.keys(metrics || {}).some((key) => known.test(key))).slice(0, 5);
  const rows = [];
  for (const { run: name } of runs) {
    const { curves } = await call(`runs/${encodeURIComponent(name)}/metrics?points=1500`);
    for (const penalty of Object.keys(curves).map((key) => known.exec(key)?.[1]).filter(Boolean)) {
      const course = (...keys) => {
        const curve = keys.map((key) => curves[`validation.penalties.${penalty}.${key}`]).find(Boolean);
        return element("td", { class: "n" }, curve ? `${number(curve.values[0], 3)} → ${number(curve.values.at(-1), 3)}` : "–");
      };
      rows.push(element("tr", {}, element("td", {}, element("a", { href: `${root}runs/${encodeURIComponent(name)}` }, name)), element("td", {}, penalty), course("cam_share", "map_share"), course("accuracy"), course("accuracy_swapped")));
    }
  }
  $("moved").hidden = !rows.length;
  $("moved-rows").replaceChildren(...rows);
  $("moved-said").textContent = rows.length ? "Of the newest runs with a penalty, from the first evaluation to the last:" : "No run here has a penalty yet. Add one on the page of a training, with weight 0 if it shall only be measured.";
}

async function run() {
  $("run").disabled = true;
  try { await classes(); await demo("randomise"); await demo("shift"); } finally { $("run").disabled = false; }
}

async function start() {
  moved().catch(complain);
  const methods = await ready("methods");
  $("method").replaceChildren(...methods.map(({ method, title }) => element("option", { value: method }, title)));
  $("method").value = "gradcam";
  const [dataset] = await ready("datasets");
  $("image").value = `${dataset.dataset}/test/0`;
  await run();
}

$("run").addEventListener("click", () => run().catch(complain));
start().catch(complain);

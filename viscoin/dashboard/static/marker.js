// The window in which an image is marked: boxes by dragging or by numbers, a brush, and a way back.
import { element, imageAddress, root } from "./api.js";
import { covered, packed, paint, unpacked } from "./marks.js";

const $ = (id) => document.getElementById(id);
const SIDES = ["left", "top", "right", "bottom"], MOST_BOXES = 64, STEPS_BACK = 50;
const canvas = $("marker-canvas");
let now = null, boxes = [], mask = null, past = [], drawing = null;
const tool = () => document.querySelector("[name=tool]:checked").value;

// Opens an image. `rows` are those that can be gone through, `keep` is told of each change.
export function open(rows, at, { model, side, marks, keep }) {
  now = { rows, at, model, side, marks, keep };
  show();
  if (!$("marker").open) $("marker").showModal();
}

function show() {
  const { rows, at, model, side, marks } = now, { image, name } = rows[at];
  const [, split, index] = image.split("/"), mark = marks.of(split, index);
  now.split = split;
  now.index = index;
  boxes = (mark?.boxes || []).map((box) => [...box]);
  mask = mark?.mask ? unpacked(mark.mask) : null;
  past = [];
  drawing = null;
  canvas.width = canvas.height = side * Math.max(1, Math.round(768 / side));
  $("marker-image").src = `${imageAddress(image)}?model=${model}`;
  $("marker-about").textContent = `${split === "train" ? "training" : split} image ${index}, ${name}`;
  $("marker-explain").href = `${root}?image=${encodeURIComponent(image)}&model=${model}`;
  $("marker-back").disabled = at === 0;
  $("marker-on").disabled = at === rows.length - 1;
  $("brush").max = String(Math.max(3, Math.round(side / 3)));
  $("brush").value = String(Math.max(2, Math.round(side / 12)));
  width();
  draw();
}

// Before a change: what it was, to go back to.
function remember() {
  past.push({ boxes: boxes.map((box) => [...box]), mask: mask && mask.slice() });
  if (past.length > STEPS_BACK) past.shift();
}

function changed() {
  if (mask && !covered(mask)) mask = null;
  const mark = { ...(boxes.length ? { boxes } : {}), ...(mask ? { mask: packed(mask, now.side) } : {}) };
  now.keep(now.split, now.index, boxes.length || mask ? mark : null);
  draw();
}

const percent = (share) => `${Number((100 * share).toFixed(1))}`;

function draw(more = null) {
  paint(canvas, more ? [...boxes, more] : boxes, mask, now.side, canvas.width / (canvas.clientWidth || 400));
  $("marker-undo").disabled = !past.length;
  $("marker-clear").disabled = !boxes.length && !mask;
  $("marker-none").hidden = boxes.length > 0 || Boolean(mask);
  const rows = boxes.map((box, i) => row(`Box ${box.map(percent).join(", ")} %`, `Remove box ${i + 1}`, () => boxes.splice(i, 1)));
  if (mask) rows.push(row(`Brush, ${percent(covered(mask) / mask.length)} % of the image`, "Remove what is painted", () => { mask = null; }));
  $("marker-list").replaceChildren(...rows);
}

function row(text, label, remove) {
  return element("li", { class: "row spread" }, element("span", { class: "num" }, text), element("button", { type: "button", class: "quiet", "aria-label": label, onclick: () => { remember(); remove(); changed(); $("marker-undo").focus(); } }, "Remove"));
}

function add(box) {
  if (boxes.length >= MOST_BOXES) { tell(`An image has at most ${MOST_BOXES} boxes.`); return; }
  tell("");
  remember();
  boxes.push(box);
  changed();
}

const tell = (text) => { $("marker-said").textContent = text; };

function undo() {
  if (!past.length) return;
  ({ boxes, mask } = past.pop());
  changed();
}

// --- by pointer ----------------------------------------------------------------------------------------------------------

function place(event) {
  const { left, top, width: wide, height: high } = canvas.getBoundingClientRect();
  const inside = (x) => Math.min(1, Math.max(0, x));
  return [inside((event.clientX - left) / wide), inside((event.clientY - top) / high)];
}

// The box between two places, out to the borders of pixels: what is seen is what is marked.
function between([x, y], [u, v]) {
  const { side } = now, low = (a, b) => Math.floor(Math.min(a, b) * side) / side, high = (a, b) => Math.ceil(Math.max(a, b) * side) / side;
  return [low(x, u), low(y, v), high(x, u), high(y, v)].map((one) => Number(one.toFixed(6)));
}

// Paints a line of round ends from one place to another.
function stroke([x, y], [u, v], value) {
  const { side } = now, radius = Number($("brush").value) / 2, steps = Math.max(1, Math.ceil(Math.hypot(u - x, v - y) * side));
  for (let step = 0; step <= steps; step++) {
    const [a, b] = [x + (u - x) * step / steps, y + (v - y) * step / steps].map((one) => one * side);
    for (let j = Math.max(0, Math.floor(b - radius)); j < Math.min(side, b + radius); j++) {
      for (let i = Math.max(0, Math.floor(a - radius)); i < Math.min(side, a + radius); i++) {
        if (Math.hypot(i + 0.5 - a, j + 0.5 - b) <= Math.max(radius, 0.71)) mask[j * side + i] = value;
      }
    }
  }
}

canvas.addEventListener("pointerdown", (event) => {
  if (event.button !== 0 || drawing) return;
  event.preventDefault();
  canvas.setPointerCapture(event.pointerId);
  drawing = { from: place(event), tool: tool(), pointer: event.pointerId };
  if (drawing.tool === "box") return;
  remember();
  mask ||= new Uint8Array(now.side ** 2);
  stroke(drawing.from, drawing.from, drawing.tool === "brush" ? 1 : 0);
  draw();
});

canvas.addEventListener("pointermove", (event) => {
  if (drawing?.pointer !== event.pointerId) return;
  const to = place(event);
  if (drawing.tool === "box") { draw(between(drawing.from, to)); return; }
  stroke(drawing.from, to, drawing.tool === "brush" ? 1 : 0);
  drawing.from = to;
  draw();
});

canvas.addEventListener("pointerup", (event) => {
  if (drawing?.pointer !== event.pointerId) return;
  const { from, tool: used } = drawing, to = place(event), { width: wide } = canvas.getBoundingClientRect();
  drawing = null;
  if (used !== "box") changed();
  else if (Math.hypot(to[0] - from[0], to[1] - from[1]) * wide > 3) add(between(from, to)); // else a mere click
  else draw();
});

canvas.addEventListener("pointercancel", () => {
  if (drawing && drawing.tool !== "box") ({ boxes, mask } = past.pop());
  drawing = null;
  draw();
});

// --- by keyboard and buttons ---------------------------------------------------------------------------------------------

function width() {
  $("brush-size").hidden = tool() === "box";
  $("brush-value").textContent = `${$("brush").value} px`;
}

$("marker-box").addEventListener("submit", (event) => {
  event.preventDefault();
  const [left, top, right, bottom] = SIDES.map((side) => Number($(`mark-${side}`).value) / 100);
  if (!(left >= 0 && left < right && right <= 1 && top >= 0 && top < bottom && bottom <= 1)) {
    tell("This is no box within the image: left must be below right and top below bottom, all from 0 to 100 %.");
  } else add([left, top, right, bottom]);
});
for (const one of document.querySelectorAll("[name=tool]")) one.addEventListener("change", width);
$("brush").addEventListener("input", width);
$("marker-undo").addEventListener("click", undo);
$("marker-clear").addEventListener("click", () => { remember(); boxes = []; mask = null; changed(); });
$("marker-back").addEventListener("click", () => { now.at--; show(); });
$("marker-on").addEventListener("click", () => { now.at++; show(); });
$("marker-close").addEventListener("click", () => $("marker").close());
$("marker").addEventListener("keydown", (event) => {
  if ((event.ctrlKey || event.metaKey) && event.key === "z" && event.target.type !== "number") { event.preventDefault(); undo(); }
});

// What is marked on images: boxes and a mask for each, how they are drawn, written and kept while the browser is open.
const COLOUR = [255, 0, 150];
export const MARKABLE = ["train", "validation"];

// Run lengths of a mask, outside and inside in turn, column by column, as COCO has them.
export function packed(mask, side) {
  const counts = [];
  let inside = 0, run = 0;
  for (let x = 0; x < side; x++) {
    for (let y = 0; y < side; y++) {
      if (mask[y * side + x] !== inside) { counts.push(run); run = 0; inside = 1 - inside; }
      run++;
    }
  }
  return { size: [side, side], counts: [...counts, run] };
}

export function unpacked({ size: [height, width], counts }) {
  const mask = new Uint8Array(height * width);
  let at = 0, inside = 0;
  for (const count of counts) {
    if (inside) for (let i = at; i < at + count; i++) mask[(i % height) * width + Math.floor(i / height)] = 1;
    at += count;
    inside = 1 - inside;
  }
  return mask;
}

export const covered = (mask) => (mask ? mask.reduce((sum, one) => sum + one, 0) : 0);

// The marks of one dataset, as the file that the region of a penalty reads has them: split, index, boxes and mask.
export class Marks {
  constructor(key) {
    this.key = `marks of ${key}`;
    try { this.splits = JSON.parse(sessionStorage.getItem(this.key)) || {}; } catch { this.splits = {}; }
  }

  of(split, index) { return this.splits[split]?.[index] || null; }

  put(split, index, mark) {
    this.splits[split] ||= {};
    if (mark) this.splits[split][index] = mark; else delete this.splits[split][index];
    if (!Object.keys(this.splits[split]).length) delete this.splits[split];
    this.save();
  }

  clear() { this.splits = {}; this.save(); }
  count(split) { return Object.keys(this.splits[split] || {}).length; }
  text() { return JSON.stringify(this.splits); }
  save() { try { sessionStorage.setItem(this.key, this.text()); } catch { /* the page has them, as long as it is open */ } }
}

// Draws boxes and a mask over a picture; `unit` is the length of a line.
export function paint(canvas, boxes, mask, side, unit) {
  const pen = canvas.getContext("2d"), size = canvas.width;
  pen.clearRect(0, 0, size, size);
  if (mask) {
    const layer = new OffscreenCanvas(side, side), pixels = new ImageData(side, side);
    for (let i = 0; i < mask.length; i++) if (mask[i]) pixels.data.set([...COLOUR, 130], 4 * i);
    layer.getContext("2d").putImageData(pixels, 0, 0);
    pen.imageSmoothingEnabled = false;
    pen.drawImage(layer, 0, 0, size, size);
  }
  for (const [left, top, right, bottom] of boxes) {
    const place = [left * size, top * size, (right - left) * size, (bottom - top) * size];
    pen.fillStyle = `rgba(${COLOUR}, .35)`;
    pen.fillRect(...place);
    for (const [colour, width] of [["#fff", 3], [`rgb(${COLOUR})`, 1.5]]) {
      pen.strokeStyle = colour;
      pen.lineWidth = width * unit;
      pen.strokeRect(...place);
    }
  }
}

export function thumbnail(canvas, mark) {
  canvas.width = canvas.height = 208;
  paint(canvas, mark.boxes || [], mark.mask ? unpacked(mark.mask) : null, mark.mask?.size[0], 2);
}

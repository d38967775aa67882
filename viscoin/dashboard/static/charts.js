// Curves by uPlot, in the colours of the page.
const COLOURS = ["#0f8a8f", "#b0452c", "#6a5acd", "#8a7a00", "#2c6a9b", "#a0326a"];
const own = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();

export function chart(place, title, series, options = {}) {
  const steps = [...new Set(series.flatMap(({ steps: own_steps }) => own_steps))].sort((a, b) => a - b);
  const data = [steps, ...series.map(({ steps: at, values }) => { const known = new Map(at.map((step, i) => [step, values[i]])); return steps.map((step) => (known.has(step) ? known.get(step) : null)); })];
  const axis = { stroke: own("--soft"), grid: { stroke: own("--line"), width: 1 }, ticks: { stroke: own("--line") }, font: "12px system-ui" };
  place.replaceChildren();
  const made = new uPlot({
    title, width: Math.max(240, place.clientWidth), height: options.height || 220,
    scales: { x: { time: false } }, cursor: { sync: { key: "step" } },
    axes: [{ ...axis }, { ...axis, size: (_plot, labels) => 16 + 8 * Math.max(4, ...(labels || []).map((label) => label.length)), values: (_plot, found) => found.map((value) => (value === null ? "" : Number(value.toPrecision(3)).toString())) }],
    series: [{ label: "step" }, ...series.map(({ name }, i) => ({ label: name, stroke: COLOURS[i % COLOURS.length], width: 1.6, spanGaps: true, points: { show: steps.length < 40 } }))],
    plugins: options.marks ? [{ hooks: { draw: [(plot) => marks(plot, options.marks())] } }] : [],
  }, data, place);
  new ResizeObserver(() => made.setSize({ width: Math.max(240, place.clientWidth), height: options.height || 220 })).observe(place);
  return made;
}

function marks(plot, found) {
  const { ctx, bbox } = plot;
  ctx.save();
  ctx.strokeStyle = own("--warn");
  ctx.setLineDash([4, 4]);
  for (const { step } of found) {
    const x = plot.valToPos(step, "x", true);
    if (x < bbox.left || x > bbox.left + bbox.width) continue;
    ctx.beginPath();
    ctx.moveTo(x, bbox.top);
    ctx.lineTo(x, bbox.top + bbox.height);
    ctx.stroke();
  }
  ctx.restore();
}

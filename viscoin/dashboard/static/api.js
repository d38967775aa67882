// Calls of the API, messages, and the one way in which sliders ask for pictures.
export const root = document.body.dataset.root;
export const readOnly = document.body.dataset.readOnly === "yes";

export class Failed extends Error {
  constructor(problem, status) {
    super(problem.detail || `the service answered ${status}`);
    this.remedy = problem.remedy || "";
    this.status = status;
  }
}

export async function call(path, options = {}) {
  const { body, ...rest } = options;
  const asked = { headers: { Accept: "application/json" }, ...rest };
  if (body instanceof FormData) asked.body = body;
  else if (body !== undefined) {
    asked.body = JSON.stringify(body);
    asked.headers["Content-Type"] = "application/json";
  }
  if (body !== undefined && !asked.method) asked.method = "POST";
  let answer;
  try {
    answer = await fetch(`${root}api/v1/${path}`, asked);
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Failed({ detail: "the service cannot be reached", remedy: "it may be starting again" }, 0);
  }
  const kind = answer.headers.get("Content-Type") || "";
  const found = kind.includes("json") ? await answer.json() : await answer.text();
  if (!answer.ok) throw new Failed(typeof found === "object" ? found : {}, answer.status);
  return found;
}

// Waits while the models are loaded, and says so.
export async function ready(path, options) {
  for (;;) {
    try {
      const found = await call(path, options);
      say("");
      return found;
    } catch (error) {
      if (error.status !== 503 && error.status !== 0) throw error;
      say(error.message);
      await new Promise((done) => setTimeout(done, 1500));
    }
  }
}

let hiding;
export function say(text, seconds = 0) {
  const notice = document.getElementById("notice");
  clearTimeout(hiding);
  notice.textContent = text;
  notice.hidden = !text;
  if (text && seconds) hiding = setTimeout(() => { notice.hidden = true; }, seconds * 1000);
}

export function complain(error) {
  if (error.name === "AbortError") return;
  say(error.remedy ? `${error.message}; ${error.remedy}` : error.message, 9);
}

// One request at a time: while it is under way only the newest wish waits, and older ones are dropped.
export class Newest {
  constructor(run) { this.run = run; this.busy = false; this.next = null; }
  ask(wish) { this.next = { wish }; if (!this.busy) this.go(); }
  async go() {
    this.busy = true;
    while (this.next) {
      const { wish } = this.next;
      this.next = null;
      try { await this.run(wish); } catch (error) { complain(error); }
    }
    this.busy = false;
  }
}

export function element(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value === false || value === null || value === undefined) continue;
    if (name.startsWith("on")) made.addEventListener(name.slice(2), value);
    else if (name in made && typeof value !== "string") made[name] = value;
    else made.setAttribute(name, value === true ? "" : value);
  }
  made.append(...children.filter((child) => child !== null && child !== undefined));
  return made;
}

export const percent = (p) => (p > 0 && p < 0.0005 ? "< 0.1 %" : `${(100 * p).toFixed(p >= 0.0995 ? 0 : 1)} %`);

export function bars(rows, kind = "") {
  return element("ul", { class: "bars" }, ...rows.map(({ name, p }) => {
    const fill = element("i", { class: kind });
    fill.style.width = `${100 * p}%`;
    return element("li", {}, element("div", { class: "bar-name" }, element("span", {}, name), element("span", { class: "num" }, percent(p))),
      element("div", { class: "bar" }, fill));
  }));
}

// A picture of the library; a broad one may be scrolled where there is little room.
export function plotted(picture, title) {
  return element("img", { class: "thumb-free", src: picture, alt: title, onload: ({ target }) => target.classList.toggle("broad", target.naturalWidth > 1.4 * target.naturalHeight) });
}

export function number(value, digits = 4) {
  if (value === null || value === undefined) return "–";
  if (Number.isInteger(value)) return value.toLocaleString("en");
  return Math.abs(value) >= 1000 ? value.toFixed(0) : Number(value.toPrecision(digits)).toString();
}

export function span(seconds) {
  if (seconds === null || seconds === undefined) return "–";
  if (seconds < 90) return `${Math.round(seconds)} s`;
  if (seconds < 5400) return `${Math.round(seconds / 60)} min`;
  return `${Math.floor(seconds / 3600)} h ${Math.round((seconds % 3600) / 60)} min`;
}

export const imageAddress = (id) => (id.includes("/") ? `${root}api/v1/datasets/${id}.png` : null);

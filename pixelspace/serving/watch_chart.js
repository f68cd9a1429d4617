// A line chart in SVG: series over images seen, a crosshair by mouse, touch or arrow keys, and what it stands at in words.

const SVG = "http://www.w3.org/2000/svg";
const LEFT = 52, RIGHT = 8, TOP = 8, BOTTOM = 22;

export function made(name, attributes = {}, ...children) {
  const element = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) {
    if (key === "class") element.className = value;
    else element.setAttribute(key, value);
  }
  element.append(...children);
  return element;
}

function drawn(name, attributes = {}) {
  const element = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  return element;
}

export function swatchOf(style = "") {
  const sample = drawn("svg", { "aria-hidden": "true", viewBox: "0 0 26 10" });
  sample.classList.add("swatch");
  sample.append(drawn("path", { class: style, d: "M0 5H26" }));
  return sample;
}

export function brief(number, digits = 4) {
  if (number === null || number === undefined) return "–";
  const size = Math.abs(number);
  if (size !== 0 && (size < 1e-3 || size >= 1e6)) return number.toExponential(2);
  return String(Number(number.toPrecision(digits)));
}

export function count(number) {
  for (const [unit, size] of [["G", 1e9], ["M", 1e6], ["k", 1e3]]) {
    if (number >= size) return `${Number((number / size).toPrecision(4))}${unit}`;
  }
  return String(number);
}

function niceStep(range, parts) {
  const rough = range / parts, power = 10 ** Math.floor(Math.log10(rough));
  return power * [1, 2, 5, 10].find((one) => one * power >= rough);
}

function evenTicks(low, high, parts) {
  const step = niceStep(high - low, parts), ticks = [];
  for (let i = Math.ceil(low / step); i * step <= high + step * 1e-9; i++) ticks.push(i * step);
  return ticks;
}

function logTicks(low, high) {
  const decades = Math.log10(high / low);
  const marks = decades > 4 ? [1] : decades > 2.2 ? [1, 3] : decades > 0.8 ? [1, 2, 5] : [1, 1.5, 2, 3, 4, 5, 6, 8];
  const ticks = [];
  for (let power = Math.floor(Math.log10(low)); power <= Math.log10(high); power++) {
    for (const mark of marks) if (mark * 10 ** power >= low && mark * 10 ** power <= high) ticks.push(mark * 10 ** power);
  }
  return ticks.length < 2 ? evenTicks(low, high, 4) : ticks;
}

function range(numbers, log, zero) {
  let low = zero && !log ? 0 : Infinity, high = -Infinity;
  for (const one of numbers) { low = Math.min(low, one); high = Math.max(high, one); }
  if (high === -Infinity) return log ? [0.1, 1] : [0, 1];
  if (log) return low === high ? [low / 1.5, high * 1.5] : [low / (high / low) ** 0.04, high * (high / low) ** 0.04];
  const pad = low === high ? Math.abs(low) * 0.1 || 1 : (high - low) * 0.05;
  return [low >= 0 && low - pad < 0 ? 0 : low - pad, high + pad];
}

export function smoothed(points, keep) {
  let mean = null;
  return points.map(([x, y]) => [x, (mean = mean === null ? y : keep * mean + (1 - keep) * y)]);
}

// Series: {name, style, points: [[x, y]], marks: a circle at each point, faint: behind the others and not told}.
export class Chart {
  constructor(title, show = (y) => brief(y)) {
    this.title = title;
    this.show = show;
    this.series = [];
    this.log = false;
    this.at = null;
    this.caption = made("figcaption", {}, title);
    this.told = this.xs = [];
    this.cross = drawn("line", { class: "cross", y1: TOP, visibility: "hidden" });
    this.svg = drawn("svg", { tabindex: 0, role: "img" });
    this.legend = made("ul", { class: "legend" });
    this.readout = made("p", { class: "readout dim", "aria-live": "polite" });
    this.element = made("figure", { class: "chart" }, this.caption, this.svg, this.legend, this.readout);
    new ResizeObserver(() => this.draw()).observe(this.svg);
    this.svg.addEventListener("pointermove", (event) => this.moveTo(this.nearest(event)));
    this.svg.addEventListener("pointerdown", (event) => this.moveTo(this.nearest(event)));
    this.svg.addEventListener("pointerleave", () => this.moveTo(null));
    this.svg.addEventListener("blur", () => this.moveTo(null));
    this.svg.addEventListener("keydown", (event) => this.onKey(event));
  }

  // On a logarithmic scale, or one that begins at zero, or at what there is.
  update(series, { log = false, zero = false } = {}) {
    this.zero = zero;
    this.series = series.map((one) => ({ ...one, points: one.points.filter(([, y]) => y !== null && (!log || y > 0)) }));
    this.told = this.series.filter((one) => !one.faint);
    this.xs = [...new Set(this.told.flatMap((one) => one.points.map(([x]) => x)))].sort((a, b) => a - b);
    this.log = log;
    this.legend.replaceChildren(...this.told.map((one) => {
      const sample = swatchOf(`line ${one.style}`);
      if (one.marks) sample.append(drawn("circle", { class: one.style, cx: 13, cy: 5, r: 3 }));
      return made("li", {}, sample, one.name);
    }));
    const last = this.told.filter((one) => one.points.length).map((one) => `${one.name} ${this.show(one.points.at(-1)[1])}`);
    this.svg.setAttribute("aria-label", `${this.title}: ${last.length ? `now ${last.join(", ")}` : "nothing yet"}. Arrow keys read it.`);
    this.draw();
  }

  draw() {
    const width = this.svg.clientWidth, height = this.svg.clientHeight;
    if (!width || !height) return;
    this.svg.setAttribute("viewBox", `0 0 ${width} ${height}`);
    const points = this.series.flatMap((one) => one.points);
    const [low, high] = range(points.map(([, y]) => y), this.log, this.zero);
    const [start, end] = [Math.min(0, ...this.xs), Math.max(1, ...this.xs)];
    const place = this.log ? (y) => Math.log(y / low) / Math.log(high / low) : (y) => (y - low) / (high - low);
    this.x = (x) => LEFT + ((x - start) / (end - start)) * (width - LEFT - RIGHT);
    this.y = (y) => height - BOTTOM - place(y) * (height - TOP - BOTTOM);
    const parts = [];
    for (const tick of this.log ? logTicks(low, high) : evenTicks(low, high, 4)) {
      parts.push(drawn("line", { class: "grid", x1: LEFT, x2: width - RIGHT, y1: this.y(tick), y2: this.y(tick) }));
      const label = drawn("text", { x: LEFT - 5, y: this.y(tick) + 4, "text-anchor": "end" });
      label.textContent = this.show(tick);
      parts.push(label);
    }
    for (const tick of evenTicks(start, end, Math.max(2, width / 110))) {
      const label = drawn("text", { x: this.x(tick), y: height - 6, "text-anchor": tick > end * 0.95 ? "end" : "middle" });
      label.textContent = count(tick);
      parts.push(label);
    }
    for (const one of this.series) {
      const path = one.points.map(([x, y], i) => `${i ? "L" : "M"}${this.x(x).toFixed(1)} ${this.y(y).toFixed(1)}`).join("");
      parts.push(drawn("path", { class: `line ${one.style}${one.faint ? " faint" : ""}`, d: path }));
      const marks = one.marks || one.points.length === 1 ? one.points : [];
      for (const [x, y] of marks) parts.push(drawn("circle", { class: one.style, cx: this.x(x), cy: this.y(y), r: 3 }));
    }
    this.cross.setAttribute("y2", height - BOTTOM);
    this.svg.replaceChildren(...parts, this.cross);
    this.moveTo(this.at);
  }

  nearest(event) {
    if (!this.xs.length) return null;
    const x = event.clientX - this.svg.getBoundingClientRect().left;
    return this.xs.reduce((best, one) => (Math.abs(this.x(one) - x) < Math.abs(this.x(best) - x) ? one : best));
  }

  onKey(event) {
    const i = this.at === null ? this.xs.length : this.xs.indexOf(this.at);
    const next = { ArrowLeft: i - 1, ArrowRight: i + 1, Home: 0, End: this.xs.length - 1, PageUp: i - 20, PageDown: i + 20 }[event.key];
    if (event.key === "Escape") this.moveTo(null);
    if (next === undefined || !this.xs.length) return;
    event.preventDefault();
    this.moveTo(this.xs[Math.min(Math.max(next, 0), this.xs.length - 1)]);
  }

  moveTo(at) {
    this.at = this.x && this.xs.includes(at) ? at : null;
    this.cross.setAttribute("visibility", this.at === null ? "hidden" : "visible");
    if (this.at === null) {
      this.readout.textContent = "";
      return;
    }
    this.cross.setAttribute("x1", this.x(this.at));
    this.cross.setAttribute("x2", this.x(this.at));
    const said = this.told.map((one) => [one.name, one.points.filter(([x]) => x <= this.at).at(-1)]).filter(([, point]) => point);
    const text = `${this.at.toLocaleString("en")} images: ${said.map(([name, [, y]]) => `${name} ${this.show(y)}`).join(", ")}`;
    if (this.readout.textContent !== text) this.readout.textContent = text; // else it would be read aloud again
  }
}

import { forget, keep, kept } from "/draw_gallery.js";

const byId = (id) => document.getElementById(id);
const client = crypto.getRandomValues(new Uint32Array(4)).join("-");
const FIELDS = ["text", "negative", "label", "height", "width", "n", "sampler", "steps", "guidance", "seed", "levels"];

let offer = null;      // what the server has told of itself
let underWay = null;   // the AbortController of the drawings under way, or null

export function made(name, properties = {}, ...children) {
  const element = Object.assign(document.createElement(name), properties);
  element.append(...children);
  return element;
}

function options(select, pairs, chosen) {
  select.replaceChildren(...pairs.map(([value, text]) => made("option", { value, textContent: text })));
  select.value = String(chosen);
}

const current = () => offer.models.find((one) => one.name === byId("model").value);

function show(id, shown) {
  byId(id).hidden = !shown;
}

// The fields that the chosen model has, at its own settings.
function adapt() {
  const model = current();
  show("problem", model.problem !== "");
  byId("problem").textContent = model.problem;
  byId("draw").disabled = model.problem !== "" || underWay !== null;
  show("text-field", model.text);
  show("negative-field", model.text);
  show("label-field", model.num_classes > 0);
  const numbers = [...Array(model.num_classes).keys()];
  options(byId("label"), [["", "none"], ...numbers.map((i) => [i, model.classes[i] ?? `class ${i}`])], "");
  model.sides.forEach((sides, axis) => {
    const select = byId(["height", "width"][axis]);
    options(select, sides.map((side) => [side, `${side} px`]), model.size[axis]);
  });
  const frames = model.frames > 1 ? `, clips of ${model.frames} frames` : "";
  const own = `${model.steps} steps of ${model.sampler}${model.guided ? `, guidance ${model.guidance}` : ""}`;
  byId("about").textContent = `${model.name}: trained at ${model.size.join(" × ")} px${frames}; its own settings: ${own}`;
  options(byId("sampler"), offer.samplers.map((name) => [name, name]), model.sampler);
  byId("steps").value = model.steps;
  byId("guidance").value = model.guidance;
  show("guidance-field", model.guided);
  byId("over").querySelector("[value=guidance]").hidden = !model.guided;
  if (!model.guided && byId("over").value === "guidance") {
    byId("over").value = "";
    show("values-field", false);
  }
  show("levels-field", model.levels > 1);
}

function newSeed() {
  byId("seed").value = String(crypto.getRandomValues(new Uint32Array(1))[0]);
}

const numberOr = (text) => (text.trim() !== "" && Number.isFinite(Number(text)) ? Number(text) : text);

// What the form asks of a model. The server says what is wrong with it.
function asked(model) {
  const wanted = {
    model: model.name,
    seed: byId("seed").value.trim(),
    n: numberOr(byId("n").value),
    size: [Number(byId("height").value), Number(byId("width").value)],
    steps: numberOr(byId("steps").value),
    sampler: byId("sampler").value,
  };
  if (model.guided) wanted.guidance = numberOr(byId("guidance").value);
  if (model.num_classes && byId("label").value !== "") wanted.label = Number(byId("label").value);
  if (model.text) {
    wanted.text = byId("text").value;
    if (byId("negative").value.trim() !== "") wanted.negative = byId("negative").value;
  }
  if (model.levels > 1 && byId("levels").checked) wanted.levels = true;
  return wanted;
}

// The requests of one click: [what is told apart, request], one or as many as are compared.
function variants() {
  const wanted = asked(current());
  const over = byId("over").value;
  if (over === "") return [["", wanted]];
  if (over === "model") {
    return offer.models.filter((one) => one.problem === "").map((one) => {
      const fits = one.sides.every((sides, axis) => sides.includes(wanted.size[axis]));
      return [one.name, { ...asked(one), size: fits ? wanted.size : one.size }];
    });
  }
  const values = byId("values").value.split(",").map((one) => one.trim()).filter((one) => one !== "");
  if (values.length === 0) throw new Error(`side by side over ${over}: give some values, with commas between them`);
  if (values.length > 16) throw new Error(`side by side over ${over}: ${values.length} values; 16 at most`);
  return values.map((one) => [`${over} ${one}`, { ...wanted, [over]: over === "seed" ? one : numberOr(one) }]);
}

const bytesOf = (text) => Uint8Array.from(atob(text), (one) => one.charCodeAt(0));

function duration(seconds) {
  const whole = Math.ceil(seconds);
  return whole < 60 ? `${whole} s` : `${Math.floor(whole / 60)} min ${String(whole % 60).padStart(2, "0")} s`;
}

// Screen readers are told how it ended, not every step.
function tell(text, loud = true) {
  byId("status").setAttribute("aria-live", loud ? "polite" : "off");
  if (byId("status").textContent !== text) byId("status").textContent = text;
}

function complain(text) {
  show("error", text !== "");
  byId("error").textContent = text;
}

// How many screen pixels wide an image is: small ones are enlarged by a whole number.
function shownWidth(width) {
  return width * Math.max(1, Math.floor(192 / width));
}

export function place(figure, level, url, width) {
  const levels = figure.querySelector(".levels");
  for (let count = levels.childElementCount; count <= level; count += 1) {  // whichever of them is there first
    const one = made("img", { alt: figure.dataset.what + (count ? `, level ${count + 1}` : "") });
    const button = made("button", { type: "button" }, one);
    button.setAttribute("aria-label", `Enlarge ${one.alt}`);
    button.addEventListener("click", () => enlarge(one));
    levels.append(button);
  }
  const image = levels.querySelectorAll("img")[level];
  if (image.src.startsWith("blob:")) return;
  image.src = url;
  image.width = shownWidth(width);
  image.classList.toggle("enlarged", image.width > width);
}

function enlarge(image) {
  const big = byId("zoom").querySelector("img");
  const width = image.naturalWidth;
  big.src = image.src;
  big.alt = image.alt;
  big.width = width * Math.max(1, Math.floor(Math.min(innerWidth, innerHeight) * 0.9 / Math.max(width, image.naturalHeight)));
  big.classList.toggle("enlarged", big.width > width);
  byId("zoom").showModal();
}

export function figureOf(run, number) {
  let figure = run.querySelector(`[data-image="${number}"]`);
  if (figure === null) {
    figure = made("figure", { className: "forming" }, made("div", { className: "levels" }), made("figcaption"));
    figure.dataset.image = number;
    figure.dataset.what = `image ${number}`;
    run.querySelector(".images").append(figure);
  }
  return figure;
}

// The command that draws the same images. Words are quoted for a shell.
function command(settings) {
  const quoted = (word) => (/^[\w.,:/-]+$/.test(word) && !word.startsWith("-") ? word : `'${word.replaceAll("'", "'\\''")}'`);
  const words = ["pixelspace", "sample", quoted(settings.model), "-n", settings.of, "--seed", settings.seed, "--size", ...settings.size];
  words.push("--steps", settings.steps, "--sampler", settings.sampler);
  const model = offer.models.find((one) => one.name === settings.model);
  if (model?.guided ?? settings.guidance !== 1) words.push("--guidance", settings.guidance);
  if (settings.label !== null) words.push("--label", quoted(String(settings.label)));
  if (settings.text !== null) words.push("--text", quoted(settings.text));
  if (settings.negative !== null) words.push("--negative", quoted(settings.negative));
  return words.join(" ");
}

function describe(run, settings) {
  if (run.querySelector("details") !== null) return;
  const model = offer.models.find((one) => one.name === settings.model);  // one that was drawn with earlier may be gone
  const list = made("dl");
  for (const [name, value] of Object.entries(settings)) {
    if (value === null || name === "image" || name === "of") continue;
    const classes = model?.classes ?? [];
    const said = name === "label" && classes[value] ? `${value}, ${classes[value]}` : Array.isArray(value) ? value.join(" × ") : value;
    list.append(made("dt", { textContent: name }), made("dd", { textContent: said }));
  }
  const again = made("button", { type: "button", textContent: "Use these settings", disabled: model === undefined });
  again.addEventListener("click", () => use(settings));
  const said = made("details", {}, made("summary", { textContent: "Settings" }), list,
    made("p", { className: "dim", textContent: "The same images from the command line, where the model stands:" }),
    made("pre", { textContent: command(settings) }), again);
  run.append(said);
}

function use(settings) {
  byId("model").value = settings.model;
  adapt();
  const fields = { ...settings, height: settings.size[0], width: settings.size[1], n: settings.of };
  for (const id of FIELDS) if (id !== "levels") byId(id).value = fields[id] ?? "";
  byId("fresh").checked = false;
  byId("over").value = "";
  show("values-field", false);
  byId("seed").focus();
}

// One request, from its first line to its last. What it shows stands in `run`, and what it made in `drawing`.
async function drawOne(wanted, run, drawing, which, signal) {
  const headers = { "content-type": "application/json", "x-client": client };
  const answer = await fetch("/draw", { method: "POST", headers, body: JSON.stringify(wanted), signal });
  if (!answer.ok) throw new Error((await answer.json()).error);
  const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
  let text = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) throw new Error("the server ended in the middle of the drawing; its terminal says why");
    const lines = (text + value).split("\n");
    text = lines.pop();
    for (const line of lines) {
      const said = JSON.parse(line);
      if (said.kind === "done") return said;
      if (said.kind === "error") throw new Error(said.error);
      heard(said, run, drawing, which);
    }
  }
}

function heard(said, run, drawing, which) {
  const bar = byId("bar");
  if (said.kind === "note") {
    run.append(made("p", { className: "dim", textContent: `Note: ${said.note}.` }));
  } else if (said.kind === "queued") {
    bar.removeAttribute("value");
    tell(`${which}waiting: ${said.ahead} ${said.ahead === 1 ? "drawing is" : "drawings are"} before this one`);
  } else if (said.kind === "step") {
    bar.value = said.part;
    tell(`${which}step ${said.done} of ${said.steps}, ${said.left < 1 ? "about a second" : duration(said.left)} left`, false);
    (said.previews ?? []).forEach((levels, row) => levels.forEach((data, level) => {
      const figure = figureOf(run, said.images[row]);
      place(figure, level, `data:image/jpeg;base64,${data}`, JSON.parse(run.dataset.widths)[level]);
    }));
  } else if (said.kind === "image") {
    const files = said.files.map(({ data, type }) => new Blob([bytesOf(data)], { type }));
    drawing.images.push({ number: said.image, files, settings: said.settings });
    finish(run, drawing.images.at(-1));
  }
}

function finish(run, { number, files, settings }) {
  const figure = figureOf(run, number), caption = made("figcaption", {}, made("span", { textContent: `${number}` }));
  figure.classList.remove("forming");
  files.forEach((file, level) => {
    const url = URL.createObjectURL(file);
    const image = new Image();
    image.src = url;
    image.decode().then(() => place(figure, level, url, image.naturalWidth));
    const suffix = file.type.split("/")[1];
    const name = `pixelspace-${settings.seed}-${String(number).padStart(6, "0")}${level ? `-level${level + 1}` : ""}.${suffix}`;
    caption.append(made("a", { href: url, download: name, textContent: level ? `level ${level + 1}` : "download" }));
  });
  figure.querySelector("figcaption").replaceWith(caption);
  describe(run, settings);
}

// The place of all drawings of one click, and of one of them.
function sheetOf(heading) {
  const runs = made("div", { className: "runs" });
  byId("results").prepend(made("article", {}, made("h2", { textContent: heading }), runs));
  show("empty", false);
  return runs;
}

function sectionOf({ name, widths }) {
  const title = name ? [made("h3", { textContent: name })] : [];
  const run = made("section", { className: "run" }, ...title, made("div", { className: "images" }));
  run.dataset.widths = JSON.stringify(widths);
  return run;
}

function widthsOf(wanted) {
  const { factors, frames } = offer.models.find((one) => one.name === wanted.model);
  const sides = Math.sqrt(frames);  // of the coarsest level of clips there is one frame, by a factor of the whole
  return factors.map((factor, i) => Math.round(wanted.size[1] * (i > 0 && i === factors.length - 1 ? sides : 1) / factor));
}

// What this browser has kept of earlier.
async function recall() {
  const sheets = new Map();
  for (const drawing of await kept()) {
    if (!sheets.has(drawing.sheet)) sheets.set(drawing.sheet, sheetOf(drawing.heading));
    const run = sectionOf(drawing);
    sheets.get(drawing.sheet).append(run);
    drawing.images.forEach((image) => finish(run, image));
  }
  show("keeping", sheets.size > 0);
}

function heading(wanted, over) {
  const model = offer.models.find((one) => one.name === wanted.model);
  const label = wanted.label === undefined ? "" : model.classes[wanted.label] ?? `class ${wanted.label}`;
  const what = wanted.text?.trim() || label || "images";
  const plural = { seed: "seeds", model: "models" }[over] ?? over;
  return over ? `${what}, side by side over ${plural}` : `${what}, seed ${wanted.seed}`;
}

async function remember(drawing) {
  const done = await keep(drawing);
  show("keeping", true);
  show("forget", done);
  byId("kept").textContent = done ? "Images are kept by this browser alone." : "This browser does not keep images: download what you want to keep.";
}

async function draw(event) {
  event.preventDefault();
  if (underWay !== null || offer === null || current().problem !== "") return;
  complain("");
  tell("");
  if (byId("fresh").checked || byId("seed").value.trim() === "") newSeed();
  let all;
  try {
    all = variants();
  } catch (error) {
    complain(error.message);
    return;
  }
  underWay = new AbortController();
  byId("draw").disabled = true;
  byId("cancel").disabled = false;
  show("bar", true);
  byId("bar").value = 0;
  const sheet = crypto.getRandomValues(new Uint32Array(4)).join("-"), title = heading(all[0][1], byId("over").value);
  const runs = sheetOf(title);
  let seconds = 0, finished = 0, run = null;
  try {
    for (const [name, wanted] of all) {
      const drawing = { sheet, heading: title, name, widths: widthsOf(wanted), images: [] };
      run = sectionOf(drawing);
      runs.append(run);
      const which = all.length > 1 ? `${finished + 1} of ${all.length}: ` : "";
      try {
        seconds += (await drawOne(wanted, run, drawing, which, underWay.signal)).seconds;
      } finally {
        if (drawing.images.length) await remember(drawing);  // of one that was cancelled what was finished
      }
      finished += 1;
    }
    tell(`done in ${seconds < 10 ? seconds.toFixed(1) : Math.round(seconds)} s`);
  } catch (error) {
    const cancelled = error.name === "AbortError";
    tell(cancelled ? "cancelled" : "");
    // A TypeError is how browsers report a connection that broke.
    if (!cancelled) complain(error instanceof TypeError ? "The server cannot be reached; is it still running?" : error.message);
    for (const figure of run?.querySelectorAll(".forming") ?? []) figure.querySelector("figcaption").textContent = "not finished";
    if (run !== null && run.querySelector("img") === null) run.remove();
    if (runs.childElementCount === 0) runs.closest("article").remove();
    show("empty", byId("results").querySelector("article") === null);
  } finally {
    underWay = null;
    byId("cancel").disabled = true;
    byId("draw").disabled = current().problem !== "";
    show("bar", false);
  }
}

byId("form").addEventListener("submit", draw);
byId("forget").addEventListener("click", async () => {
  await forget();
  byId("results").querySelectorAll("article").forEach((one) => one.remove());
  show("keeping", false);
  show("empty", true);
});
byId("cancel").addEventListener("click", () => underWay?.abort());
byId("model").addEventListener("change", adapt);
byId("over").addEventListener("change", () => {
  const over = byId("over").value;
  const seed = byId("seed").value.trim();
  show("values-field", over !== "" && over !== "model");
  byId("values").value = { seed: [0, 1, 2, 3].join(", "), guidance: "1, 2, 4", steps: "10, 20, 50" }[over] ?? "";
  if (over === "seed" && /^\d+$/.test(seed)) byId("values").value = [0n, 1n, 2n, 3n].map((i) => BigInt(seed) + i).join(", ");
});

async function begin() {
  try {
    const answer = await fetch("/offer");
    const said = await answer.json();
    if (!answer.ok) throw new Error(said.error);
    offer = said;
  } catch (error) {
    complain(error instanceof TypeError ? "The server cannot be reached; is it still running?" : error.message);
    return;
  }
  options(byId("model"), offer.models.map((one) => [one.name, one.name]), offer.models[0].name);
  show("model-field", offer.models.length > 1);
  byId("over").querySelector("[value=model]").hidden = offer.models.length < 2;
  byId("n").max = offer.limits.n;
  byId("n").value = 4;
  byId("steps").max = offer.limits.steps;
  byId("guidance").max = offer.limits.guidance;
  byId("seed").value = "0";
  adapt();
  await recall();
}

begin();

// What the runs' folders hold, asked for every few seconds while the page is seen. All texts go in as text, never as HTML.

import { Chart, brief, count, made, smoothed, swatchOf } from "/watch_chart.js";
import { Sheets } from "/watch_sheets.js";

const SECONDS = 3, MOST = 6, OCTILES = 8;
const byId = (id) => document.getElementById(id);
const answers = new Map(); // by address: the last answer and its tag
const rows = new Map(); // by run: what of it stands in the list
const charts = new Map(); // by name
let runs = [], chosen = [], tracks = [], skew = 0, asking = false, touched = false;

async function ask(address) {
  const known = answers.get(address);
  const response = await fetch(address, { cache: "no-store", headers: known ? { "If-None-Match": known.tag } : {} });
  skew = new Date(response.headers.get("date")) - Date.now() || skew;
  if (response.status === 304) return known.data;
  const data = await response.json();
  if (!response.ok) throw new Error(data.error);
  answers.set(address, { tag: response.headers.get("etag"), data });
  return data;
}

function ago(seconds) {
  if (seconds < 90) return `${Math.max(0, Math.round(seconds))} s`;
  if (seconds < 5400) return `${Math.round(seconds / 60)} min`;
  return seconds < 129600 ? `${Math.round(seconds / 3600)} h` : `${Math.round(seconds / 86400)} days`;
}

function bytes(number) {
  for (const [unit, size] of [["GB", 1e9], ["MB", 1e6]]) if (number >= size) return `${brief(number / size, 3)} ${unit}`;
  return brief(number, 3);
}

const percent = (number) => `${brief(100 * number, 3)} %`;
const since = (updated) => (Date.now() + skew) / 1000 - updated;

// What is there already stays: it may have the focus, or be read aloud.
function put(id, children) {
  const now = made("div", {}, ...children);
  if (byId(id).innerHTML !== now.innerHTML) byId(id).replaceChildren(...now.childNodes);
}

// --- The list of runs -------------------------------------------------------------------------------------------------

function stageRow(run, index) {
  const box = made("input", { type: "checkbox" }), swatch = swatchOf();
  const name = made("span", { class: "name" }), state = made("span", { class: "state" });
  const progress = made("progress", { max: 1 }), told = made("p", { class: "dim" });
  const key = `${run}.${index}`;
  box.dataset.key = key;
  box.addEventListener("change", () => {
    chosen = box.checked ? [...chosen, key] : chosen.filter((one) => one !== key);
    remember();
    refresh();
  });
  const element = made("li", {}, made("label", {}, box, swatch, name, state), progress, told);
  const update = (stage) => {
    const place = chosen.indexOf(key);
    box.checked = place >= 0;
    box.disabled = stage.state === "waiting" || (place < 0 && chosen.length >= MOST);
    swatch.firstChild.setAttribute("class", place < 0 ? "" : `line c${place}`);
    name.textContent = stage.name;
    state.className = `state ${stage.state}`;
    state.textContent = stage.state === "silent" ? `silent for ${ago(since(stage.updated))}` : stage.state;
    progress.value = stage.images ? Math.min(1, stage.seen / stage.images) : 0;
    progress.setAttribute("aria-label", `Images seen in ${stage.name}`);
    const left = stage.left === null ? "" : `, about ${ago(stage.left)} left`;
    const rate = stage.rate === null || stage.state !== "training" ? "" : `, ${brief(stage.rate, 3)}/s`;
    told.textContent = `${stage.seen.toLocaleString("en")} of ${stage.images.toLocaleString("en")} images${rate}${left}`;
  };
  return { element, update };
}

function runRow(run) {
  const title = made("h3"), told = made("p", { class: "dim" }), list = made("ul"), stages = [];
  const update = (now) => {
    title.textContent = now.name;
    const seed = now.seed === null ? "" : `, seed ${now.seed}`;
    told.textContent = now.trouble || `${now.recipe}${seed}`;
    while (stages.length > now.stages.length) stages.pop().element.remove();
    while (stages.length < now.stages.length) {
      stages.push(stageRow(run, stages.length));
      list.append(stages.at(-1).element);
    }
    now.stages.forEach((stage, i) => stages[i].update(stage));
  };
  return { element: made("li", {}, title, told, list), update };
}

function showRuns() {
  for (const [key, row] of rows) {
    if (!runs.some((run) => run.id === key)) {
      row.element.remove();
      rows.delete(key);
    }
  }
  runs.forEach((run, i) => {
    if (!rows.has(run.id)) rows.set(run.id, runRow(run.id));
    const row = rows.get(run.id);
    row.update(run);
    const there = byId("runs").children[i];
    if (there !== row.element && !row.element.contains(document.activeElement)) byId("runs").insertBefore(row.element, there ?? null);
  });
  byId("none").hidden = runs.length > 0;
}

// --- What is chosen: in the address, so that a reload or a link shows the same --------------------------------------------

const stageOf = (key) => {
  const [id, index] = key.split(".");
  const run = runs.find((one) => one.id === id);
  const stage = run?.stages[index];
  return stage && stage.state !== "waiting" ? { key, run, stage, index } : null;
};

function remember() {
  touched = true;
  history.replaceState(null, "", `#${chosen.join(",")}`);
}

function recall() {
  chosen = location.hash.slice(1).split(",").filter((key) => /^[0-9a-f]{16}\.\d{1,3}$/.test(key)).slice(0, MOST);
}

function choose() {
  chosen = chosen.filter(stageOf);
  if (chosen.length || touched) return;
  const begun = runs.find((run) => run.stages.some((stage) => stage.state !== "waiting"));
  if (begun) chosen = [`${begun.id}.${begun.stages.findLastIndex((stage) => stage.state !== "waiting")}`];
}

// --- The charts -------------------------------------------------------------------------------------------------------

function chart(place, name, title, show) {
  if (!charts.has(name)) {
    const one = new Chart(title, show);
    charts.set(name, one);
    byId(place).append(one.element);
  }
  const one = charts.get(name);
  one.used = true;
  return one;
}

const zipped = (curves, name) => curves.images.map((x, i) => [x, curves[name][i]]);

// A line, smoothed as is asked for, with what it was behind it.
function lines(name, style, points) {
  const keep = Number(byId("smooth").value), known = points.filter(([, y]) => y !== null);
  if (!keep) return [{ name, style, points }];
  return [{ name, style, points: known, faint: true }, { name, style, points: smoothed(known, keep) }];
}

function drawLosses() {
  const log = byId("log").checked, series = [];
  tracks.forEach((track, i) => {
    series.push(...lines(track.name, `c${i}`, zipped(track.train, "loss")));
    const held = zipped(track.validation, "loss");
    if (held.length) series.push({ name: `${track.name}, held out`, style: `c${i}`, points: held, marks: true });
  });
  chart("losses", "loss", "Loss over images seen; held out: with averaged weights").update(series, { log });
  tracks.forEach((track) => {
    const octiles = [...Array(OCTILES).keys()].flatMap((i) =>
      lines(`octile ${i + 1}`, `o${i}`, track.train.images.map((x, n) => [x, track.train.octiles[i][n]])));
    chart("octiles", `octiles ${track.key}`, track.name).update(octiles, { log });
  });
}

function drawSpeeds() {
  const kinds = [
    ["images_per_second", "Images a second", { zero: true }],
    ["peak_bytes", "Peak of memory (GPU, else RAM)", { zero: true }, bytes],
    ["data_wait", "Share of the time that waits for data", { zero: true }, percent],
    ["grad_norm", "Norm of the gradient", { log: byId("log").checked }],
    ["lr", "Learning rate", { zero: true }],
    ["ema_decay", "Decay of the average", {}],
  ];
  for (const [name, title, scale, show] of kinds) {
    const series = tracks.map((track, i) => ({ name: track.name, style: `c${i}`, points: zipped(track.train, name) }));
    // Runs of earlier versions did not write all of them.
    if (series.some(({ points }) => points.some(([, y]) => y !== null))) chart("speeds", name, title, show).update(series, scale);
  }
}

function drawEvaluations() {
  const kinds = new Map();
  tracks.forEach((track, i) => track.evaluations.forEach((one) => Object.entries(one.numbers).forEach(([name, points]) => {
    const title = `${name} (${one.name})`;
    const better = one.best === name ? `${title}, ${one.lower ? "less" : "more"} is better` : title;
    if (!kinds.has(title)) kinds.set(title, { title: better, series: [] });
    kinds.get(title).series.push({ name: track.name, style: `c${i}`, points, marks: true });
  })));
  byId("judged").hidden = kinds.size === 0;
  for (const [name, { title, series }] of kinds) chart("evaluations", `evaluation ${name}`, title).update(series);
}

// --- In words ---------------------------------------------------------------------------------------------------------

function table(heads, lines) {
  const head = made("tr", {}, ...heads.map((one, i) => made("th", { scope: "col", class: i ? "number" : "" }, one)));
  const body = lines.map(([first, ...others]) => made("tr", {}, made("th", { scope: "row" }, first), ...others.map((one) => made("td", { class: "number" }, String(one)))));
  return made("table", {}, made("thead", {}, head), made("tbody", {}, ...body));
}

function facts(track) {
  const told = [
    ["Images", `${track.size.join(" x ")} pixels, in batches of ${track.batch}`],
    ["Network", `${track.backbone.replace(/Config$/, "")}, learnt by ${track.objective}, rate ${brief(track.lr)}`],
    ["From", track.from ? `stage ${track.from}, its ${track.weights === "ema" ? "averaged" : "raw"} weights` : track.growth ? track.growth.source : "scratch"],
    ["Frozen", track.frozen.join(", ")],
    ["Started", track.attempt > 1 ? `${track.attempt} times` : ""],
    ["Skipped steps", track.not_finite.length ? `${track.not_finite.length}, not finite, the last at ${track.not_finite.at(-1).toLocaleString("en")} images` : ""],
    ["Checkpoints", track.checkpoints.length ? `at ${track.checkpoints.map(count).join(", ")} images` : "none yet"],
    ["Metrics", [track.cut ? "the beginning is too long to be shown" : "", track.unreadable ? `${track.unreadable} lines are not readable` : ""].filter(Boolean).join("; ")],
  ];
  return made("dl", {}, ...told.filter(([, text]) => text).flatMap(([name, text]) => [made("dt", {}, name), made("dd", {}, text)]));
}

function grown(track) {
  if (!track.growth) return [];
  const { source, total, parts } = track.growth;
  const line = `Of ${total.copied + total.resized + total.fresh} tensors ${total.copied} were copied from ${source}, ${total.resized} resized, and ${total.fresh} began fresh; ${total.unused} there were not used.`;
  const lines = parts.map((one) => [one.part, one.copied, one.resized, one.fresh, one.unused]);
  const scroll = made("div", { class: "scroll", tabindex: 0, role: "region", "aria-label": `Growth of ${track.name}` },
    table(["Part", "copied", "resized", "fresh", "unused there"], lines));
  return [made("p", {}, line), scroll];
}

function showStages() {
  put("stages", tracks.flatMap((track) => [made("h3", {}, track.name), facts(track), ...grown(track)]));
}

async function showDifferences() {
  const ids = [...new Set(tracks.map((track) => track.run))];
  byId("differing").hidden = ids.length < 2;
  if (ids.length < 2) return;
  const settings = await Promise.all(ids.map(async (id) => new Map(await ask(`/runs/${id}/settings`))));
  const paths = [...new Set(settings.flatMap((one) => [...one.keys()]))];
  const differ = paths.filter((path) => new Set(settings.map((one) => one.get(path))).size > 1);
  const lines = differ.slice(0, 200).map((path) => [path, ...settings.map((one) => one.get(path) ?? "–")]);
  const heads = ["Setting", ...ids.map((id) => runs.find((run) => run.id === id)?.name ?? "")];
  const more = differ.length > 200 ? `and ${differ.length - 200} more` : differ.length ? "" : "None: the runs have the same settings.";
  put("differences", [...(lines.length ? [table(heads, lines)] : []), made("p", { class: "dim" }, more)]);
}

// --- All of it --------------------------------------------------------------------------------------------------------

const sheets = new Sheets(byId);

function draw() {
  byId("main").hidden = tracks.length === 0;
  for (const one of charts.values()) one.used = false;
  if (tracks.length) {
    drawLosses();
    drawSpeeds();
    drawEvaluations();
    sheets.update(tracks);
  }
  for (const [name, one] of charts) {
    if (!one.used) {
      one.element.remove();
      charts.delete(name);
    }
  }
}

async function refresh() {
  if (asking) return void (asking = "again");
  asking = true;
  try {
    const found = await ask("/runs");
    runs = found.runs;
    byId("folder").textContent = found.folder;
    document.title = `Trainings in ${found.folder}`;
    byId("limit").hidden = !found.hidden;
    byId("limit").textContent = `${found.hidden} older runs are not shown; watch a folder below to see them.`;
    choose();
    showRuns();
    const details = await Promise.all(chosen.map(stageOf).map((one) => ask(`/runs/${one.run.id}/stages/${one.index}`)));
    const before = JSON.stringify(tracks);
    tracks = chosen.map(stageOf).map(({ key, run, index }, i) => {
      const alone = run.stages.length === 1;
      return { ...details[i], key, run: run.id, index, name: alone ? run.name : `${run.name} / ${details[i].name}` };
    });
    if (JSON.stringify(tracks) !== before) {
      draw();
      showStages();
    }
    await showDifferences();
    byId("pick").hidden = tracks.length > 0 || runs.length === 0;
    byId("time").textContent = `Up to date at ${new Date().toLocaleTimeString()}.`;
    put("status", chosen.length >= MOST ? [`${MOST} stages are shown, the most at once.`] : []);
    byId("trouble").hidden = true;
  } catch (error) {
    const lost = error instanceof TypeError || error instanceof SyntaxError;
    byId("trouble").textContent = lost ? "The server does not answer; it may have been ended. This page tries on." : error.message;
    byId("trouble").hidden = false;
  }
  const again = asking === "again";
  asking = false;
  if (again) await refresh();
}

byId("smooth").addEventListener("change", draw);
byId("log").addEventListener("change", draw);
window.addEventListener("hashchange", () => { recall(); refresh(); });
document.addEventListener("visibilitychange", () => { if (!document.hidden) refresh(); });
setInterval(() => { if (!document.hidden) refresh(); }, 1000 * SECONDS);
recall();
refresh();

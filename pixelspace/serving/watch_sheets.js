// Sheets of samples over the training: one slider for all that are chosen, so that they are seen at the same count of images.

import { made } from "/watch_chart.js";

const FRAMES_PER_SECOND = 3, LARGEST = 8; // screen pixels an image pixel
const NARROWEST = 240, WIDEST = 720, GAP = 20; // pixels of a sheet, and between two

export class Sheets {
  constructor(byId) {
    this.byId = byId;
    this.figures = new Map(); // by track
    this.stops = [];
    this.newest = true; // whether the slider goes on to what is drawn next
    this.timer = null;
    byId("slide").addEventListener("input", () => { this.stop(); this.moved(); });
    byId("level").addEventListener("change", () => this.show());
    byId("play").addEventListener("click", () => (this.timer ? this.stop() : this.play()));
    window.addEventListener("resize", () => this.fit());
  }

  update(tracks) {
    this.tracks = tracks;
    const before = this.stops[this.byId("slide").value];
    this.stops = [...new Set(tracks.flatMap((track) => track.samples.map((one) => one.images)))].sort((a, b) => a - b);
    this.byId("sampling").hidden = !this.stops.length;
    const slide = this.byId("slide"), last = this.stops.length - 1;
    slide.max = Math.max(0, last);
    slide.value = this.newest && !this.timer ? last : Math.max(0, this.stops.findLastIndex((one) => one <= before));
    this.levels([...new Set(tracks.flatMap((track) => track.samples.flatMap((one) => one.levels)))]);
    for (const [key, { figure }] of this.figures) {
      if (!tracks.some((track) => track.key === key)) {
        figure.remove();
        this.figures.delete(key);
        this.fit();
      }
    }
    this.show();
  }

  levels(names) {
    const select = this.byId("level"), now = select.value;
    if (names.join() !== [...select.options].map((one) => one.value).join()) {
      select.replaceChildren(...names.map((name) => made("option", { value: name }, name ? `${name} pixels` : "finest")));
      select.value = names.includes(now) ? now : "";
    }
    this.byId("level-label").hidden = names.length < 2;
  }

  moved() {
    this.newest = Number(this.byId("slide").value) === this.stops.length - 1;
    this.show();
  }

  play() {
    const slide = this.byId("slide");
    if (Number(slide.value) >= this.stops.length - 1) slide.value = 0;
    this.timer = setInterval(() => {
      slide.value = Number(slide.value) + 1;
      this.show();
      if (Number(slide.value) >= this.stops.length - 1) this.stop();
    }, 1000 / FRAMES_PER_SECOND);
    this.byId("play").setAttribute("aria-pressed", "true");
    this.byId("play").textContent = "Stop";
    this.show();
  }

  stop() {
    clearInterval(this.timer);
    this.timer = null;
    this.newest = Number(this.byId("slide").value) === this.stops.length - 1;
    this.byId("play").setAttribute("aria-pressed", "false");
    this.byId("play").textContent = "Play";
  }

  show() {
    const at = this.stops[this.byId("slide").value] ?? 0, level = this.byId("level").value;
    const said = `after ${at.toLocaleString("en")} images`;
    this.byId("slide-text").textContent = said;
    this.byId("slide").setAttribute("aria-valuetext", said);
    this.tracks.forEach((track, i) => this.showTrack(track, i, at, level));
  }

  // Side by side as large as there is room for, enlarged in whole multiples, so that pixels stay squares.
  fit() {
    const width = this.byId("sheets").clientWidth, beside = Math.min(this.figures.size, Math.floor(width / NARROWEST) || 1);
    const room = Math.min(width / beside - GAP, WIDEST);
    for (const { image } of this.figures.values()) {
      if (!image) continue;
      const times = Math.min(LARGEST, Math.floor(room / image.naturalWidth));
      image.className = times > 1 ? "enlarged" : "";
      image.style.width = `${times > 1 ? times * image.naturalWidth : Math.min(room, image.naturalWidth)}px`;
    }
  }

  showTrack(track, place, at, level) {
    if (!this.figures.has(track.key)) this.figures.set(track.key, figureOf());
    const one = this.figures.get(track.key);
    const there = this.byId("sheets").children[place];
    if (there !== one.figure) this.byId("sheets").insertBefore(one.figure, there ?? null);
    const sheet = track.samples.findLast((drawn) => drawn.images <= at && drawn.levels.includes(level));
    one.link.hidden = !sheet;
    one.caption.textContent = sheet ? `${track.name}, after ${sheet.images.toLocaleString("en")} images` : `${track.name}: nothing drawn at this level yet`;
    one.texts.hidden = !track.captions.length;
    if (one.list.childElementCount !== track.captions.length) one.list.replaceChildren(...track.captions.map((text) => made("li", {}, text)));
    if (!sheet) return;
    const query = new URLSearchParams({ level, written: sheet.written });
    const address = `/runs/${track.run}/stages/${track.index}/samples/${sheet.images}?${query}`;
    if (one.address === address) return;
    one.address = address;
    one.link.href = address;
    const image = new Image(); // loaded before it is shown, so that nothing flickers
    image.alt = `Samples of ${track.name} after ${sheet.images.toLocaleString("en")} images`;
    image.addEventListener("load", () => {
      if (one.address !== address) return;
      one.image = image;
      one.link.replaceChildren(image);
      this.fit();
    });
    image.addEventListener("error", () => { if (one.address === address) one.caption.textContent += ": the picture is not readable"; });
    image.src = address;
  }
}

function figureOf() {
  const caption = made("figcaption"), link = made("a", { target: "_blank", rel: "noopener" }), list = made("ol");
  const texts = made("details", {}, made("summary", {}, "Captions, row by row"), list);
  return { figure: made("figure", {}, caption, link, texts), caption, link, list, texts, image: null, address: "" };
}


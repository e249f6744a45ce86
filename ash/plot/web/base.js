// What all pictures share: numbers, colours, a canvas with axes, and what lies under the pointer.

const data = JSON.parse(document.getElementById("data").textContent);
const REACH = 28; // CSS pixels around a finger or a pointer

// A typed array from base64.
const unpack = (text, Kind) => new Kind(Uint8Array.from(atob(text), (c) => c.charCodeAt(0)).buffer);

// A number as people read it: whole ones in full, others with four digits.
function shown(value) {
  if (value === null || Number.isNaN(value)) return "–";
  if (Number.isInteger(value)) return value.toLocaleString("en");
  const size = Math.abs(value);
  if (size !== 0 && (size < 1e-3 || size >= 1e6)) return value.toExponential(2).replace("e+", "e");
  return value.toLocaleString("en", { maximumSignificantDigits: 4 });
}

// The colours of the scheme that is on, light or dark.
let palette;
function readPalette() {
  const style = getComputedStyle(document.documentElement);
  const get = (name) => style.getPropertyValue(name).trim();
  const map = get("--map").split(" ");
  palette = { ink: get("--ink"), pale: get("--pale"), paper: get("--paper"), lines: get("--lines").split(" "), map };
  palette.channels = map.map((hex) => [1, 3, 5].map((i) => parseInt(hex.slice(i, i + 2), 16)));
  palette.up = map[map.length - 2];
  palette.down = map[1];
}

// The colour of a value between -1 and 1.
function tint(share, alpha = 1) {
  const place = ((Math.max(-1, Math.min(1, share)) + 1) / 2) * (palette.channels.length - 1);
  const low = Math.min(Math.floor(place), palette.channels.length - 2);
  const mixed = palette.channels[low].map((c, i) => Math.round(c + (palette.channels[low + 1][i] - c) * (place - low)));
  return `rgba(${mixed.join(",")},${alpha})`;
}

// About n round numbers from low to high.
function ticks(low, high, n, whole = false) {
  if (!(high > low)) return [low];
  const rough = (high - low) / Math.max(1, n), ten = 10 ** Math.floor(Math.log10(rough));
  let step = [1, 2, 5, 10].map((m) => m * ten).find((s) => s >= rough * 0.999);
  if (whole) step = Math.max(1, step);
  const found = [];
  for (let i = Math.ceil(low / step - 1e-9); i * step <= high + step * 1e-9; i++) found.push(Number((i * step).toPrecision(12)));
  return found;
}

// A picture that follows the slider. One that derives from it gives `height(width)`, `paint()`, and `find(x, y)`: what
// lies there, as {x, y, text} in CSS pixels, or null.
class Picture {
  constructor(figure, spec) {
    this.figure = figure;
    this.spec = spec;
    this.stage = figure.querySelector(".stage");
    this.canvas = figure.querySelector("canvas");
    this.tip = figure.querySelector(".tip");
    this.state = figure.querySelector(".state");
    this.legend = figure.querySelector(".legend");
    this.pen = this.canvas.getContext("2d");
    this.step = 0;
    this.frame = 0;
    this.pointer = null;
    for (const kind of ["pointermove", "pointerdown"]) {
      this.canvas.addEventListener(kind, (event) => this.point({ x: event.offsetX, y: event.offsetY }));
    }
    this.canvas.addEventListener("pointerleave", (event) => {
      if (event.pointerType !== "touch") this.point(null); // after a tap the answer stays
    });
  }

  // The last frame at or before a step.
  follow(step) {
    this.step = step;
    const steps = this.spec.steps || [];
    this.frame = 0;
    while (this.frame + 1 < steps.length && steps[this.frame + 1] <= step) this.frame++;
  }

  draw() {
    const width = this.stage.clientWidth, height = Math.round(this.height(width)), sharp = window.devicePixelRatio || 1;
    this.width = width;
    this.canvas.width = Math.round(width * sharp);
    this.canvas.height = Math.round(height * sharp);
    this.canvas.style.height = `${height}px`;
    this.pen.setTransform(sharp, 0, 0, sharp, 0, 0);
    this.pen.font = "11px system-ui, sans-serif";
    this.paint();
    this.answer();
  }

  point(pointer) {
    this.pointer = pointer;
    this.draw();
  }

  // What is under the pointer, as text beside it.
  answer() {
    const hit = this.pointer && this.find(this.pointer.x, this.pointer.y);
    this.tip.hidden = !hit;
    if (!hit) return;
    this.tip.textContent = hit.text;
    const size = this.tip.getBoundingClientRect();
    const left = Math.max(0, Math.min(this.width - size.width, hit.x - size.width / 2));
    const above = hit.y - size.height - 12;
    this.tip.style.left = `${left}px`;
    this.tip.style.top = `${above < 0 ? hit.y + 14 : above}px`;
  }

  // The nearest of n places (x(i), y(i)) to the pointer that is in reach; -1 if none is.
  nearest(n, place, x, y) {
    let best = -1, least = REACH * REACH;
    for (let i = 0; i < n; i++) {
      const at = place(i);
      const far = at ? (at.x - x) ** 2 + (at.y - y) ** 2 : Infinity;
      if (far < least) [best, least] = [i, far];
    }
    return best;
  }

  // Axes at the left and below the box, with grid lines; `at` turns a tick into its place.
  axes(box, across, down, labels) {
    const pen = this.pen;
    pen.strokeStyle = palette.pale;
    pen.fillStyle = palette.ink;
    pen.lineWidth = 1;
    pen.globalAlpha = 0.45;
    pen.beginPath();
    for (const { at } of across) { pen.moveTo(at, box.top); pen.lineTo(at, box.top + box.height); }
    for (const { at } of down) { pen.moveTo(box.left, at); pen.lineTo(box.left + box.width, at); }
    pen.stroke();
    pen.globalAlpha = 1;
    pen.strokeRect(box.left, box.top, box.width, box.height);
    pen.textAlign = "center";
    pen.textBaseline = "top";
    for (const { at, text } of across) pen.fillText(text, at, box.top + box.height + 4);
    pen.fillText(labels[1], box.left + box.width / 2, box.top + box.height + 19);
    pen.textAlign = "right";
    pen.textBaseline = "middle";
    for (const { at, text } of down) pen.fillText(text, box.left - 5, at);
    pen.save();
    pen.translate(9, box.top + box.height / 2);
    pen.rotate(-Math.PI / 2);
    pen.textAlign = "center";
    pen.fillText(labels[0], 0, 0);
    pen.restore();
  }
}

// The plane of a matrix: the row runs down, the column to the right, an index is a pixel or a part of one.
class Plane extends Picture {
  height(width) {
    const [rows, columns] = this.spec.sizes, ratio = columns / (rows * (this.spec.aspect || 1));
    const inner = Math.max(60, width - 62), high = Math.min(620, Math.max(40, inner / ratio));
    const wide = Math.min(inner, high * ratio);
    this.box = { left: 52, top: 8, width: Math.max(wide, 20), height: high };
    return high + 46;
  }

  x(column) { return this.box.left + ((column + 0.5) / this.spec.sizes[1]) * this.box.width; }
  y(row) { return this.box.top + ((row + 0.5) / this.spec.sizes[0]) * this.box.height; }
  cell() { return Math.min(this.box.width / this.spec.sizes[1], this.box.height / this.spec.sizes[0]); }

  ground() {
    const [rows, columns] = this.spec.sizes;
    const across = ticks(0, columns - 1, this.box.width / 60, true), down = ticks(0, rows - 1, this.box.height / 40, true);
    this.axes(this.box, across.map((at) => ({ at: this.x(at), text: shown(at) })),
      down.map((at) => ({ at: this.y(at), text: shown(at) })), this.spec.labels);
  }
}

// A scale of colours from -limit, or from 0 where nothing is below it, to limit, as a line of the legend.
function colourScale(legend, limit, what, signed = true) {
  const line = document.createElement("span"), bar = document.createElement("i");
  bar.className = "scale";
  const colours = signed ? palette.map : palette.map.slice((palette.map.length - 1) / 2);
  bar.style.background = `linear-gradient(to right, ${colours.join(", ")})`;
  line.append(`${what} ${shown(signed ? -limit : 0)} `, bar, ` ${shown(limit)}`);
  legend.append(line);
}

// A line of the legend: a patch of colour and what it means; returns the text beside it.
function legendEntry(legend, colour, text, kind = "patch") {
  const line = document.createElement("span"), patch = document.createElement("i"), words = document.createElement("span");
  patch.className = kind;
  patch.style.borderColor = colour;
  words.textContent = text;
  line.append(patch, words);
  legend.append(line);
  return words;
}

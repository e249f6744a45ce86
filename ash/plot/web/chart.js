// Curves over the steps, with a line at the slider's step; a click or a tap takes the slider there.

const NAMED = 12; // up to so many curves have names in the legend; of more, the one under the pointer is told
const DASHES = [[], [6, 4], [2, 3]];

class Curves extends Picture {
  constructor(figure, spec) {
    super(figure, spec);
    this.many = spec.series.length > NAMED;
    const all = spec.series.flatMap((one) => [...one.y, ...(one.low || []), ...(one.high || [])]);
    const values = all.filter((v) => v !== null && (!spec.logy || v > 0));
    [this.low, this.high] = this.limits(values);
    const steps = spec.series.flatMap((one) => one.x);
    [this.first, this.last] = [steps.reduce((a, b) => Math.min(a, b), Infinity), steps.reduce((a, b) => Math.max(a, b), -Infinity)];
    this.whole = steps.every(Number.isInteger);
    if (this.first === this.last) [this.first, this.last] = [this.first - 1, this.last + 1];
    this.canvas.addEventListener("click", (event) => this.go(event.offsetX));
  }

  limits(values) {
    let low = values.reduce((a, b) => Math.min(a, b), Infinity), high = values.reduce((a, b) => Math.max(a, b), -Infinity);
    if (!values.length) [low, high] = [0, 1];
    if (this.spec.logy) return high > low ? [low, high] : [low / 2, high * 2];
    if (low === high) [low, high] = [low - (Math.abs(low) || 1) / 2, high + (Math.abs(high) || 1) / 2];
    const room = 0.04 * (high - low);
    return [low - room, high + room];
  }

  height(width) {
    this.box = { left: 62, top: 8, width: Math.max(60, width - 76), height: Math.max(140, Math.min(260, width * 0.5)) };
    return this.box.height + 46;
  }

  x(step) { return this.box.left + ((step - this.first) / (this.last - this.first)) * this.box.width; }
  y(value) {
    const turn = this.spec.logy ? Math.log : (v) => v;
    const share = (turn(value) - turn(this.low)) / (turn(this.high) - turn(this.low));
    return this.box.top + (1 - share) * this.box.height;
  }
  shows(value) { return value !== null && (!this.spec.logy || value > 0); }
  colour(i) { return this.many ? palette.pale : palette.lines[i % palette.lines.length]; }

  marks() {
    if (!this.spec.logy) return ticks(this.low, this.high, this.box.height / 45);
    const powers = ticks(Math.log10(this.low), Math.log10(this.high), this.box.height / 45);
    const whole = powers.every(Number.isInteger);
    return whole ? powers.map((p) => 10 ** p) : powers.map((p) => Number((10 ** p).toPrecision(1))).filter((v) => v >= this.low && v <= this.high);
  }

  paint() {
    const { pen, box, spec } = this, across = ticks(this.first, this.last, box.width / 75, this.whole);
    this.axes(box, across.map((at) => ({ at: this.x(at), text: shown(at) })),
      this.marks().map((at) => ({ at: this.y(at), text: shown(at) })), [spec.ylabel, spec.xlabel]);
    spec.series.forEach((one, i) => { if (one.low) this.band(one, this.colour(i)); });
    const hit = this.pointer && this.hit(this.pointer.x, this.pointer.y);
    spec.series.forEach((one, i) => this.curve(one, this.colour(i), i, 1.5));
    if (hit) this.curve(spec.series[hit.series], this.many ? palette.lines[0] : this.colour(hit.series), hit.series, 2.6);
    if (this.step >= this.first && this.step <= this.last && this.moves) {
      pen.strokeStyle = palette.ink;
      pen.setLineDash([4, 3]);
      pen.lineWidth = 1;
      pen.beginPath();
      pen.moveTo(this.x(this.step), box.top);
      pen.lineTo(this.x(this.step), box.top + box.height);
      pen.stroke();
      pen.setLineDash([]);
    }
    this.explain();
  }

  band(one, colour) {
    const known = one.x.map((_, i) => i).filter((i) => this.shows(one.low[i]) && this.shows(one.high[i])), pen = this.pen;
    pen.beginPath();
    for (const i of known) pen.lineTo(this.x(one.x[i]), this.y(one.high[i]));
    for (const i of known.reverse()) pen.lineTo(this.x(one.x[i]), this.y(one.low[i]));
    pen.fillStyle = colour;
    pen.globalAlpha = 0.18;
    pen.fill();
    pen.globalAlpha = 1;
  }

  curve(one, colour, i, width) {
    const pen = this.pen;
    pen.strokeStyle = pen.fillStyle = colour;
    pen.lineWidth = width;
    pen.setLineDash(this.many ? [] : DASHES[Math.floor(i / palette.lines.length) % DASHES.length]);
    pen.beginPath();
    let joined = false;
    one.x.forEach((step, n) => {
      if (!this.shows(one.y[n])) { joined = false; return; }
      if (joined) pen.lineTo(this.x(step), this.y(one.y[n]));
      else pen.moveTo(this.x(step), this.y(one.y[n]));
      joined = true;
    });
    pen.stroke();
    pen.setLineDash([]);
    if (one.x.length <= 3) one.x.forEach((step, n) => { if (this.shows(one.y[n])) this.dot(this.x(step), this.y(one.y[n])); });
  }

  dot(x, y) {
    this.pen.beginPath();
    this.pen.arc(x, y, 2.5, 0, 2 * Math.PI);
    this.pen.fill();
  }

  // The value of a curve at the slider's step: that of the last point before it.
  now(one) {
    let found = null;
    for (let n = 0; n < one.x.length && one.x[n] <= this.step; n++) found = one.y[n];
    return found;
  }

  explain() {
    this.legend.replaceChildren();
    if (this.many) this.state.textContent = `${shown(this.spec.series.length)} curves; point at one to see which it is.`;
    else this.spec.series.forEach((one, i) => {
      const value = this.moves ? `: ${shown(this.now(one))}` : "";
      legendEntry(this.legend, this.colour(i), `${one.name}${value}`, ["line", "line dashed", "line dotted"][Math.floor(i / palette.lines.length) % 3]);
    });
  }

  hit(x, y) {
    let best = null, least = REACH * REACH * 2;
    this.spec.series.forEach((one, series) => one.x.forEach((step, n) => {
      if (!this.shows(one.y[n])) return;
      const far = (this.x(step) - x) ** 2 + (this.y(one.y[n]) - y) ** 2;
      if (far < least) [best, least] = [{ series, n }, far];
    }));
    return best;
  }

  find(x, y) {
    const hit = this.hit(x, y);
    if (!hit) return null;
    const one = this.spec.series[hit.series], step = one.x[hit.n], value = one.y[hit.n];
    let text = `${one.name}\n${this.spec.xlabel} ${shown(step)}: ${shown(value)}`;
    if (one.low) text += ` (${shown(one.low[hit.n])} to ${shown(one.high[hit.n])})`;
    return { x: this.x(step), y: this.y(value), text };
  }

  go(x) {
    const share = (x - this.box.left) / this.box.width;
    if (share >= 0 && share <= 1) slideTo(this.first + share * (this.last - this.first));
  }
}

// Index tuples: a dot is a mean, its colour the value, the ellipse around it reaches one scale to each side.

class Tuples extends Plane {
  constructor(figure, spec) {
    super(figure, spec);
    this.blobs = spec.blobs.map((blob) => unpack(blob, Float32Array));
    this.ids = unpack(spec.ids, Int32Array);
    this.target = unpack(spec.target, Int32Array);
    this.rank = spec.rank;
  }

  // Number `column` of tuple i at a frame: means, then scales, then the value; columns that never change have one row.
  value(column, i, frame = this.frame) {
    const blob = this.blobs[this.spec.columns[column]];
    return blob.length === this.spec.k ? blob[i] : blob[frame * this.spec.k + i];
  }

  row(i, frame) { return this.value(this.spec.row, i, frame); }
  column(i, frame) { return this.value(this.spec.column, i, frame); }
  scale(side, i) { return this.value(this.rank + side, i); }
  worth(i) { return this.value(2 * this.rank, i); }

  place(i) {
    const row = this.row(i);
    return Number.isNaN(row) ? null : { x: this.x(this.column(i)), y: this.y(row) };
  }

  paint() {
    this.ground();
    const { pen, box } = this, cell = this.cell();
    pen.save();
    pen.beginPath();
    pen.rect(box.left - 4, box.top - 4, box.width + 8, box.height + 8);
    pen.clip();
    this.squares(Math.max(4, 0.8 * cell));
    const present = [...this.ids.keys()].filter((i) => this.place(i)); // the largest values on top
    present.sort((a, b) => Math.abs(this.worth(a)) - Math.abs(this.worth(b)));
    for (const i of present) this.ellipse(i);
    const radius = Math.max(1.5, Math.min(5, 0.3 * cell, (0.25 * Math.sqrt(box.width * box.height)) / Math.sqrt(present.length || 1)));
    for (const i of present) this.dot(i, Math.max(radius, 1.5));
    const hit = this.pointer ? this.nearest(this.ids.length, (i) => this.place(i), this.pointer.x, this.pointer.y) : -1;
    if (hit >= 0) this.trail(hit, radius);
    pen.restore();
    this.explain();
    this.state.textContent = [`step ${shown(this.spec.steps[this.frame])}: ${shown(present.length)} tuples`, ...this.spec.notes].join(". ");
  }

  squares(side) {
    this.pen.strokeStyle = palette.ink;
    this.pen.lineWidth = 0.8;
    for (let i = 0; i < this.target.length; i += 2) {
      this.pen.strokeRect(this.x(this.target[i + 1]) - side / 2, this.y(this.target[i]) - side / 2, side, side);
    }
  }

  ellipse(i) {
    const wide = (this.scale(this.spec.column, i) / this.spec.sizes[1]) * this.box.width;
    const high = (this.scale(this.spec.row, i) / this.spec.sizes[0]) * this.box.height;
    if (!(wide > 0) || !(high > 0)) return;
    const { x, y } = this.place(i), crowd = (Math.PI * wide * high * this.ids.length) / (this.box.width * this.box.height);
    const alpha = Math.max(0.02, Math.min(0.3, 0.35 / Math.max(crowd, 1e-9)));
    this.pen.fillStyle = tint(this.worth(i) / this.spec.limit, alpha);
    this.pen.beginPath();
    this.pen.ellipse(x, y, wide, high, 0, 0, 2 * Math.PI);
    this.pen.fill();
  }

  dot(i, radius) {
    const { x, y } = this.place(i);
    this.pen.fillStyle = tint(this.worth(i) / this.spec.limit);
    this.pen.beginPath();
    this.pen.arc(x, y, radius, 0, 2 * Math.PI);
    this.pen.fill();
  }

  // The path of a tuple up to this frame, and a ring around it.
  trail(i, radius) {
    const pen = this.pen, { x, y } = this.place(i);
    pen.strokeStyle = palette.ink;
    pen.lineWidth = 1.2;
    pen.beginPath();
    for (let frame = 0; frame <= this.frame; frame++) pen.lineTo(this.x(this.column(i, frame)), this.y(this.row(i, frame)));
    pen.stroke();
    pen.beginPath();
    pen.arc(x, y, radius + 3, 0, 2 * Math.PI);
    pen.stroke();
  }

  explain() {
    this.legend.replaceChildren();
    colourScale(this.legend, this.spec.limit, "value");
    if (this.target.length) legendEntry(this.legend, palette.ink, "entries of the target", "hollow");
  }

  // Some columns of a mean, such as "input (3.5, 7)".
  index(i, from, to, side) {
    const parts = [];
    for (let c = from; c < to; c++) parts.push(shown(this.value(c, i)));
    return to - from > 1 ? `${side} (${parts.join(", ")})` : `${side} ${parts[0]}`;
  }

  find(x, y) {
    const i = this.nearest(this.ids.length, (n) => this.place(n), x, y);
    if (i < 0) return null;
    const each = [...Array(this.rank).keys()], scales = [...new Set(each.map((c) => this.scale(c, i)).filter((s) => s > 0))];
    const lines = [`tuple ${shown(this.ids[i])}: ${this.index(i, 0, this.spec.out, "output")}, ${this.index(i, this.spec.out, this.rank, "input")}`];
    if (scales.length) lines.push(`scale ${scales.map(shown).join(", ")}`);
    return { ...this.place(i), text: [...lines, `value ${shown(this.worth(i))}`].join("\n") };
  }
}

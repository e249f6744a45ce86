// Edges: a square at (row, column) for every one that exists; new ones stand out, and so do those that have just gone.

class Edges extends Plane {
  constructor(figure, spec) {
    super(figure, spec);
    this.rows = unpack(spec.rows, Int32Array);
    this.columns = unpack(spec.columns, Int32Array);
    this.states = unpack(spec.states, Uint8Array);
  }

  there(i, frame = this.frame) { return this.states[frame * this.rows.length + i]; }
  isNew(i) { return this.frame > 0 && this.there(i) && !this.there(i, this.frame - 1); }
  isGone(i) { return this.frame > 0 && !this.there(i) && this.there(i, this.frame - 1); }
  worth(i, frame = this.frame) { return ((this.there(i, frame) - 128) / 127) * this.spec.limit; }
  place(i) { return { x: this.x(this.columns[i]), y: this.y(this.rows[i]) }; }

  paint() {
    this.ground();
    const side = Math.max(1.2, Math.min(12, 0.85 * this.cell()));
    for (let i = 0; i < this.rows.length; i++) if (this.there(i)) this.old(i, side);
    for (let i = 0; i < this.rows.length; i++) {
      if (this.isNew(i)) this.mark(i, side, palette.up);
      if (this.isGone(i)) this.mark(i, side, palette.down, true);
    }
    this.legend.replaceChildren();
    if (this.spec.valued) colourScale(this.legend, this.spec.limit, "value");
    legendEntry(this.legend, palette.up, "new since the frame before", this.spec.valued ? "hollow" : "patch");
    legendEntry(this.legend, palette.down, "gone since then", "hollow");
    const [n, fresh, gone] = this.spec.counts[this.frame];
    const text = `step ${shown(this.spec.steps[this.frame])}: ${shown(n)} edges, ${shown(fresh)} new, ${shown(gone)} gone`;
    this.state.textContent = [text, ...this.spec.notes].join(". ");
  }

  old(i, side) {
    const { x, y } = this.place(i);
    this.pen.fillStyle = this.spec.valued ? tint(this.worth(i) / this.spec.limit) : palette.ink;
    this.pen.fillRect(x - side / 2, y - side / 2, side, side);
  }

  mark(i, side, colour, hollow = false) {
    const { x, y } = this.place(i), size = Math.max(side, 3);
    this.pen.fillStyle = this.pen.strokeStyle = colour;
    this.pen.lineWidth = 1.3;
    if (hollow || this.spec.valued) this.pen.strokeRect(x - size / 2, y - size / 2, size, size);
    else this.pen.fillRect(x - size / 2, y - size / 2, size, size);
  }

  find(x, y) {
    const i = this.nearest(this.rows.length, (n) => (this.there(n) || this.isGone(n) ? this.place(n) : null), x, y);
    if (i < 0) return null;
    const [target, source] = this.spec.labels;
    let since = this.frame;
    while (since > 0 && Boolean(this.there(i, since - 1)) === Boolean(this.there(i))) since--;
    const began = since ? `since step ${shown(this.spec.steps[since])}` : "from the start";
    const lines = [`edge: ${target} ${shown(this.rows[i])}, ${source} ${shown(this.columns[i])}`];
    lines.push(this.there(i) ? `there ${began}` : `gone ${began}`);
    if (this.spec.valued && this.there(i)) lines.push(`value about ${shown(Number(this.worth(i).toPrecision(2)))}`);
    return { ...this.place(i), text: lines.join("\n") };
  }
}

// Gates: a row for every layer that is fed, a column for every layer that feeds; a square is as large as its gate.

class Gates extends Picture {
  constructor(figure, spec) {
    super(figure, spec);
    this.gates = unpack(spec.gates, Float32Array);
  }

  worth(i, frame = this.frame) { return this.gates[frame * this.spec.cells.length + i]; }

  height(width) {
    const { targets, sources } = this.spec;
    this.pen.font = "11px system-ui, sans-serif";
    const widest = (names) => Math.max(...names.map((name) => this.pen.measureText(name).width));
    const left = Math.min(width * 0.4, widest(targets) + 12), foot = Math.min(110, widest(sources) * 0.8 + 18);
    const cell = Math.max(12, Math.min(46, (width - left - 12) / sources.length));
    this.box = { left, top: 6, cell, foot };
    return targets.length * cell + foot + 6;
  }

  place(i) {
    const [row, column] = this.spec.cells[i], { left, top, cell } = this.box;
    return { x: left + (column + 0.5) * cell, y: top + (row + 0.5) * cell };
  }

  paint() {
    const { pen, box, spec } = this;
    for (let i = 0; i < spec.cells.length; i++) this.square(i);
    pen.fillStyle = palette.ink;
    pen.textAlign = "right";
    pen.textBaseline = "middle";
    spec.targets.forEach((name, row) => pen.fillText(name, box.left - 6, box.top + (row + 0.5) * box.cell, box.left - 8));
    spec.sources.forEach((name, column) => {
      pen.save();
      pen.translate(box.left + (column + 0.6) * box.cell, box.top + spec.targets.length * box.cell + 6);
      pen.rotate(-Math.PI / 3.4);
      pen.fillText(name, 0, 0, 120);
      pen.restore();
    });
    this.legend.replaceChildren();
    colourScale(this.legend, spec.limit, "gate", this.gates.some((gate) => gate < 0));
    this.state.textContent = [`step ${shown(spec.steps[this.frame])}`, ...spec.notes].join(". ");
  }

  square(i) {
    const { pen, box } = this, { x, y } = this.place(i), worth = this.worth(i), share = worth / this.spec.limit;
    const whole = box.cell - 2, side = whole * Math.sqrt(Math.min(1, Math.abs(share)));
    pen.strokeStyle = palette.pale;
    pen.strokeRect(x - whole / 2, y - whole / 2, whole, whole);
    pen.fillStyle = tint(share);
    if (side > 0) pen.fillRect(x - side / 2, y - side / 2, side, side);
    if (box.cell < 34) return;
    pen.fillStyle = palette.ink;
    pen.textAlign = "center";
    pen.textBaseline = "middle";
    pen.fillText(worth.toFixed(2), x, y);
  }

  find(x, y) {
    const i = this.nearest(this.spec.cells.length, (n) => this.place(n), x, y);
    if (i < 0) return null;
    const [row, column] = this.spec.cells[i];
    const text = `${this.spec.sources[column]} → ${this.spec.targets[row]}\ngate ${shown(this.worth(i))}`;
    return { ...this.place(i), text: this.frame ? `${text} (first ${shown(this.worth(i, 0))})` : text };
  }
}

// The slider, the play button and the keys, and redrawing whatever they move.

const KINDS = { tuples: Tuples, edges: Edges, gates: Gates };
const slider = document.getElementById("slider"), output = document.getElementById("step");
const button = document.getElementById("play");
const PLAYED = 7000; // milliseconds from the first frame to the last
const FRAMES = 400;
let timer = null, asked = false;

readPalette();
const figures = [...document.querySelectorAll("figure.drawn")];
const pictures = [
  ...data.tracks.map((spec, i) => new KINDS[spec.kind](figures[i], spec)),
  ...data.charts.map((spec, i) => new Curves(figures[data.tracks.length + i], spec)),
];

// The steps that the slider stops at: those of the tracks, or, where nothing but curves moves, those of the curves.
function allSteps() {
  const own = data.tracks.flatMap((track) => track.steps);
  const found = own.length ? own : data.charts.flatMap((chart) => chart.series.flatMap((one) => one.x));
  const sorted = [...new Set(found)].sort((a, b) => a - b), every = Math.ceil(sorted.length / FRAMES);
  return sorted.filter((_, i) => i % every === 0 || i === sorted.length - 1);
}
const steps = allSteps();

function redraw() {
  const step = steps[slider.value];
  output.textContent = step === undefined ? "" : `step ${shown(step)}`;
  slider.setAttribute("aria-valuetext", output.textContent);
  for (const picture of pictures) {
    picture.follow(step);
    picture.draw();
  }
}

// Once before the browser next paints, however often it is asked for.
function soon() {
  if (asked) return;
  asked = true;
  requestAnimationFrame(() => { asked = false; redraw(); });
}

function slide(place) {
  slider.value = Math.max(0, Math.min(steps.length - 1, place));
  soon();
}

// To the step of the slider that is nearest.
function slideTo(step) {
  stop();
  slide(steps.reduce((best, each, i) => (Math.abs(each - step) < Math.abs(steps[best] - step) ? i : best), 0));
}

function stop() {
  clearInterval(timer);
  timer = null;
  button.textContent = "▶";
  button.setAttribute("aria-label", "play");
}

function play() {
  if (timer) return stop();
  if (Number(slider.value) === steps.length - 1) slide(0);
  button.textContent = "❚❚";
  button.setAttribute("aria-label", "pause");
  timer = setInterval(() => {
    if (Number(slider.value) === steps.length - 1) return stop();
    slide(Number(slider.value) + 1);
  }, Math.max(40, Math.min(300, PLAYED / steps.length)));
}

const KEYS = {
  ArrowLeft: () => slide(Number(slider.value) - 1),
  ArrowRight: () => slide(Number(slider.value) + 1),
  Home: () => slide(0),
  End: () => slide(steps.length - 1),
  " ": play,
};

document.addEventListener("keydown", (event) => {
  // The slider itself and whatever else has the focus know what to do with their keys.
  const busy = event.target instanceof Element && event.target.closest("input, button, a, summary, .scroll");
  if (busy || event.ctrlKey || event.metaKey || event.altKey || !(event.key in KEYS)) return;
  event.preventDefault();
  if (event.key !== " ") stop();
  KEYS[event.key]();
});

slider.max = Math.max(0, steps.length - 1);
slider.value = slider.max;
slider.addEventListener("input", () => { stop(); soon(); });
button.addEventListener("click", play);
document.getElementById("control").hidden = steps.length < 2;
for (const picture of pictures) picture.moves = steps.length > 1;
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => { readPalette(); soon(); });
new ResizeObserver(soon).observe(document.querySelector("main"));
redraw();

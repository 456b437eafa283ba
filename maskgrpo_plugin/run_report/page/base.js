// What the parts of the report share: its data, colours, numbers, and elements. Texts of runs are never read as HTML.
const data = JSON.parse(document.getElementById("data").textContent);
const at = id => document.getElementById(id);
const hiddenRuns = new Set();   // numbers of the runs that are switched off
const drawers = {};             // by name of a tab, what draws it
const TONES = {   // told apart with each of the common kinds of colour blindness, 3:1 against the card at least
  light: ["#0b63b5", "#c2410c", "#00795a", "#a3307d", "#8a6100", "#5b4bb0", "#0e7d8c", "#a11d33", "#4f6b16", "#6b5a4e"],
  dark: ["#5cb3f2", "#ff9152", "#3ecf9f", "#f28cc8", "#f0c04a", "#b3a4ff", "#5fd3e0", "#ff8a99", "#b3d465", "#cdb8a6"],
};
const DASHES = [[], [7, 3], [2, 3], [9, 3, 2, 3], [4, 4], [12, 4]];

function tone(number) {
  const tones = TONES[dark.matches ? "dark" : "light"];
  return tones[number % tones.length];
}

function styleOf(name) {
  return getComputedStyle(document.documentElement).getPropertyValue(name).trim();
}

// an element with properties and children; a string among the children is a text
function element(tag, properties, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(properties ?? {})) {
    if (name.startsWith("aria-") || name === "role") made.setAttribute(name, value);
    else made[name] = value;
  }
  made.append(...children);
  return made;
}

function swatch(colour) {
  const made = element("span", { className: "swatch" });
  made.style.background = colour;
  return made;
}

function option(value, text) {
  return element("option", { value, textContent: text });
}

// four digits, and powers of ten where those say more
function number(value) {
  if (value === null || value === undefined || !Number.isFinite(value)) return "–";
  const size = Math.abs(value);
  if (size !== 0 && (size < 1e-3 || size >= 1e6)) return value.toExponential(2);
  return String(Number(value.toPrecision(4)));
}

function mean(values) {
  return values.length ? values.reduce((sum, value) => sum + value, 0) / values.length : NaN;
}

function shownRuns() {
  return data.runs.map((run, place) => ({ run, place })).filter(each => !hiddenRuns.has(each.place));
}

function runLabel({ run, place }) {
  return element("span", { className: "run" }, swatch(tone(place)), run.name);
}

function empty(text) {
  return element("p", { className: "empty" }, text);
}

function later(milliseconds, act) {
  let timer = null;
  return () => {
    clearTimeout(timer);
    timer = setTimeout(act, milliseconds);
  };
}

// calls an element's `whenSeen` once it comes near the window
const watcher = new IntersectionObserver(entries => {
  for (const entry of entries) {
    entry.target.inView = entry.isIntersecting;
    if (entry.isIntersecting) entry.target.whenSeen();
  }
}, { rootMargin: "300px" });

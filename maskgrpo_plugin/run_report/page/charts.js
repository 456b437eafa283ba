// Curves of the metrics, and the time of each step by stage.
const HEIGHT = 210;
const MOST_BARS = 240;
let smoothing = 0;

// by step, the value of a metric: undefined where it was not logged, null (a gap) where it is no finite number
function valuesAt(run, metric, steps) {
  const found = run.metrics.values[metric];
  if (!found) return null;
  const place = new Map(run.metrics.steps.map((step, number) => [step, number]));
  return steps.map(step => {
    const value = place.has(step) ? found[place.get(step)] : null;
    return value === null ? undefined : value === "nan" ? null : value;
  });
}

function unionOfSteps(runs) {
  return [...new Set(runs.flatMap(({ run }) => run.metrics.steps))].sort((a, b) => a - b);
}

// exponential moving average without a bias to its start, over the values that are there
function smooth(values, weight) {
  let sum = 0, total = 0;
  return values.map(value => {
    if (value === undefined || value === null) return value;
    sum = weight * sum + (1 - weight) * value;
    total = weight * total + (1 - weight);
    return sum / total;
  });
}

function faint(colour) {
  return `color-mix(in srgb, ${colour} 28%, transparent)`;
}

// the lines of a panel: one per metric and run that has it
function linesOf(panel, runs, steps) {
  const alone = data.runs.length === 1;
  const lines = [], shown = panel.series.filter(series => runs.length === 1 || !isExtreme(panel, series));
  for (const each of runs) {
    shown.forEach((series, place) => {
      const values = valuesAt(each.run, series.metric, steps);
      if (!values) return;
      const label = alone ? series.label : shown.length > 1 ? `${each.run.name}: ${series.label}` : each.run.name;
      const bad = values.filter(value => value === null).length;
      lines.push({ label, values, bad, colour: tone(alone ? place : each.place), dash: DASHES[place % DASHES.length] });
    });
  }
  return lines;
}

// whether a line is the smallest or the largest of what another one is the mean of: too many lines, with several runs
function isExtreme(panel, series) {
  return ["min", "max"].includes(series.label) && panel.series.some(other => other.label === "mean");
}

function axes(label) {
  const ink = styleOf("--soft"), grid = { stroke: styleOf("--line"), width: 1 }, font = "12px system-ui, sans-serif";
  const common = { stroke: ink, grid, ticks: grid, font, labelFont: font, labelSize: 18 };
  const whole = (plot, splits) => splits.map(step => Number.isInteger(step) ? String(step) : "");
  return [
    { ...common, label: "training step", values: whole, size: 34 },
    { ...common, label, values: (plot, splits) => splits.map(number), size: 58 },
  ];
}

function lineOptions(panel, lines, width) {
  const series = [{ label: "step", value: (plot, step) => step === null ? "–" : String(step) }];
  for (const line of lines) {
    const value = (plot, found) => number(found);
    const drawn = { label: line.label, stroke: line.colour, dash: line.dash, width: 1.8, value, points: { size: 5 } };
    if (smoothing > 0) series.push({ ...drawn, stroke: faint(line.colour), dash: [], width: 1, points: { show: false }, class: "raw" });
    series.push(drawn);
  }
  return {
    width, height: HEIGHT, series, axes: axes(panel.axis), padding: [8, 14, 0, 0],
    scales: { x: { time: false, range: padded }, y: { range: roomy } },
    cursor: { sync: { key: "steps" }, focus: { prox: 24 } }, focus: { alpha: .35 },
  };
}

// a single step has room on both sides
function padded(plot, low, high) {
  return low === high ? [low - 1, high + 1] : [low, high];
}

function roomy(plot, low, high) {
  if (low === null) return [0, 1];
  if (low === high) return low === 0 ? [0, 1] : [low - Math.abs(low) / 10, low + Math.abs(low) / 10];
  return uPlot.rangeNum(low, high, .1, true);
}

// a stretch of a line as a background: what is drawn and what is left out, in turns
function strokeOf(colour, dash) {
  if (!dash?.length) return colour;
  let end = 0;
  const stops = dash.flatMap((length, place) => {
    const start = end;
    end += length;
    return [`${place % 2 ? "transparent" : colour} ${start}px ${end}px`];
  });
  return `repeating-linear-gradient(to right, ${stops.join(", ")})`;
}

class Chart {
  constructor(title, note) {
    this.plot = null;
    this.stale = true;
    this.note = element("div", { className: "soft" }, note);
    this.place = element("div");
    this.card = element("div", { className: "chart" }, element("h3", null, title), this.note, this.place);
    this.card.whenSeen = () => { if (this.stale) this.draw(); };
    watcher.observe(this.card);
  }

  redraw() {
    this.stale = true;
    if (this.card.inView) this.draw();
  }

  width() {
    return Math.max(200, this.card.clientWidth - 24);
  }

  put(options, columns) {
    this.plot?.destroy();
    this.plot = new uPlot(options, columns, this.place);
    this.place.querySelectorAll(".u-series").forEach((row, place) => {
      const series = this.plot.series[place], marker = row.querySelector(".u-marker");
      row.hidden = row.classList.contains("raw");
      if (series.stroke && marker) marker.style.background = strokeOf(series.stroke(this.plot, place), series.dash);
    });
    this.stale = false;
  }
}

class Curve extends Chart {
  constructor(panel) {
    super(panel.title, panel.note);
    this.panel = panel;
    this.card.title = panel.series.map(series => series.metric).join(", ");
  }

  draw() {
    const runs = shownRuns(), all = unionOfSteps(runs);
    const lines = linesOf(this.panel, runs, all);
    // steps at which none of the lines has anything would only widen the axis
    const kept = all.map((_, place) => lines.some(line => line.values[place] !== undefined));
    const steps = all.filter((_, place) => kept[place]);
    for (const line of lines) line.values = line.values.filter((_, place) => kept[place]);
    const bad = lines.filter(line => line.bad).map(line => `${line.label}: ${line.bad} values are not finite`);
    const metric = this.panel.series.length === 1 && this.panel.title !== this.panel.series[0].metric ? this.panel.series[0].metric : "";
    this.note.textContent = [metric, this.panel.note, ...bad].filter(Boolean).join(" · ");
    const columns = lines.flatMap(line => smoothing > 0 ? [line.values, smooth(line.values, smoothing)] : [line.values]);
    this.put(lineOptions(this.panel, lines, this.width()), [steps, ...columns]);
  }
}

// ---- time

// by bar the mean seconds of each stage, and what of the whole step belongs to none; long runs have several steps a bar
function stageTimes(run) {
  const steps = run.metrics.steps.filter((_, place) => timeAt(run, data.wholeStep, place) !== null);
  const where = new Map(run.metrics.steps.map((step, place) => [step, place]));
  const size = Math.max(1, Math.ceil(steps.length / MOST_BARS));
  const names = data.stages.filter(name => run.metrics.values[name]);
  const bars = [];
  for (let start = 0; start < steps.length; start += size) {
    const places = steps.slice(start, start + size).map(step => where.get(step));
    const times = names.map(name => mean(places.map(place => timeAt(run, name, place) ?? 0)));
    const within = names.reduce((sum, name, stage) => name === "timing_s/testing" ? sum : sum + times[stage], 0);
    const whole = mean(places.map(place => timeAt(run, data.wholeStep, place)));
    bars.push({ step: steps[start], times: [...times, Math.max(0, whole - within)] });
  }
  return { names: [...names.map(name => name.slice("timing_s/".length)), "other"], bars, size };
}

function timeAt(run, name, place) {
  const value = run.metrics.values[name]?.[place];
  return typeof value === "number" ? value : null;
}

class Stages extends Chart {
  constructor({ run, place }) {
    const { names, bars, size } = stageTimes(run);
    super(run.name, size > 1 ? `mean of ${size} steps per bar` : "");
    Object.assign(this, { names, bars, size, number: place });
  }

  draw() {
    const count = this.names.length, size = this.size;
    const order = this.names.map((_, place) => count - 1 - place);   // the highest pile first, lower ones over it
    const piles = order.map(stage => this.bars.map(bar => bar.times.slice(0, stage + 1).reduce((a, b) => a + b, 0)));
    const raw = order.map(stage => this.bars.map(bar => bar.times[stage]));
    const series = order.map((stage, place) => {
      const colour = stage === count - 1 ? styleOf("--soft") : tone(stage);
      return {
        label: this.names[stage], stroke: colour, fill: colour, width: 0, points: { show: false },
        paths: uPlot.paths.bars({ size: [.85, 60], align: size > 1 ? 1 : 0 }),
        value: (plot, _, __, bar) => bar === null ? "–" : `${number(raw[place][bar])} s`,
      };
    });
    const steps = this.bars.map(bar => bar.step);
    const range = (plot, low, high) => size > 1 ? [low, high + size] : [low - .6, high + .6];
    this.put({
      width: this.width(), height: 300, axes: axes("seconds per step"), cursor: { sync: { key: "steps" } },
      series: [{ label: "step", value: (plot, step) => step === null ? "–" : String(step) }, ...series],
      scales: { x: { time: false, range }, y: { range: (plot, low, high) => [0, high * 1.05 || 1] } },
      }, [steps, ...piles]);
  }
}

// ---- the two tabs

const curves = [], times = [];

function drawCurves() {
  if (!curves.length) {
    const sections = new Map();
    for (const panel of data.panels) {
      if (!sections.has(panel.section)) {
        const grid = element("div", { className: "grid" });
        const section = element("section", null, element("h2", null, panel.section), grid);
        sections.set(panel.section, { section, grid });
        at("panels").append(section);
      }
      const chart = new Curve(panel);
      curves.push(chart);
      sections.get(panel.section).grid.append(chart.card);
    }
    if (!curves.length) at("panels").append(empty("There are no metrics: trainer.logger needs file."));
  }
  searchMetrics();
  for (const chart of curves) chart.redraw();
}

function searchMetrics() {
  const asked = at("metric-search").value.trim().toLowerCase(), runs = shownRuns();
  for (const chart of curves) {
    const { title, section, series } = chart.panel;
    const texts = [title, section, ...series.map(each => each.metric)];
    const logged = series.some(each => runs.some(({ run }) => run.metrics.values[each.metric]));
    chart.card.hidden = !logged || !texts.some(text => text.toLowerCase().includes(asked));
  }
  for (const section of at("panels").querySelectorAll("section")) {
    section.hidden = [...section.querySelectorAll(".chart")].every(card => card.hidden);
  }
}

function drawTimes() {
  if (!times.length) {
    const runs = data.runs.map((run, place) => ({ run, place })).filter(({ run }) => run.metrics.values[data.wholeStep]);
    times.push(...runs.map(each => new Stages(each)));
    const grid = element("div", { className: "grid wide" }, ...times.map(chart => chart.card));
    at("part-time").replaceChildren(times.length ? grid : empty("No run tells the time of its stages (timing_s/…)."));
  }
  for (const chart of times) {
    chart.card.hidden = hiddenRuns.has(chart.number);
    chart.redraw();
  }
}

drawers.curves = drawCurves;
drawers.time = drawTimes;
at("smoothing").addEventListener("input", () => {
  smoothing = Number(at("smoothing").value);
  at("smoothing-value").textContent = String(smoothing);
  for (const chart of curves) chart.redraw();
});
at("metric-search").addEventListener("input", searchMetrics);
addEventListener("resize", later(150, () => [...curves, ...times].forEach(chart => chart.redraw())));

// Draws the page that replays denoisings (trace.html) from the JSON in its element #data; see `Trace` in trace.py.
"use strict";
const data = JSON.parse(document.getElementById("data").textContent);
const at = id => document.getElementById(id);
const state = { completion: 0, step: 0, colour: null };   // colour null: that of the kind of completion
let shown = null;   // the completion that is on the page: its entry, its tokens' elements, its images
let timer = null;

// ---- colours: of a step from early (blue) to late (rose), of certainty from none (amber) to full (pale)

function colour(mode, share, alpha) {
  const onPixels = shown.entry.kind === "image";
  const [light, chroma] = onPixels ? [.72, .13] : paleTone();
  if (mode === "step") return stepColour(share, [light, chroma], alpha);
  const doubt = 1 - share;
  return `oklch(${light} ${.02 + 1.3 * chroma * doubt} ${150 - 85 * Math.min(1, 2 * doubt)} / ${alpha * (.35 + .65 * doubt)})`;
}

function mode() {
  return state.colour ?? (shown.entry.kind === "text" ? "step" : "none");
}

function colourOf(mark, alpha) {
  if (mode() === "none") return "transparent";
  const last = Math.max(1, shown.lastStep);
  return colour(mode(), mode() === "step" ? mark.step / last : mark.probability, alpha);
}

function drawLegend() {
  const plain = mode() === "none";
  at("scale").hidden = plain;
  const stops = [0, .125, .25, .375, .5, .625, .75, .875, 1].map(share => colour(mode(), share, 1));
  at("scale").style.background = `linear-gradient(to right, ${stops.join(", ")})`;
  const steps = [`step 1`, `step ${shown.lastStep + 1}`];
  const ends = plain ? ["", ""] : mode() === "step" ? steps : ["certainty 0", "1"];
  [at("low").textContent, at("high").textContent] = ends;
}

// ---- what stands after the first n frames: by place, the step, the probability, and the text of a token that was replaced

function marksAfter(count) {
  const marks = new Map();
  shown.entry.frames.slice(0, count).forEach((frame, number) => {
    for (const [place, probability, step, text] of frame.set) {
      marks.set(place, { probability, step, text, fresh: number === count - 1 });
    }
  });
  return marks;
}

const percent = share => share.toFixed(3);
const about = mark => `step ${mark.step + 1}, certainty ${percent(mark.probability)}`;

// ---- text

function layOutText(entry) {
  const special = new Set(entry.special), written = new Set(entry.written);
  const touched = new Set(entry.frames.flatMap(frame => frame.set.map(change => change[0])));
  at("text").replaceChildren();
  at("tail").replaceChildren();
  const after = document.createElement("div");
  after.className = "soft";
  const undone = entry.pieces.some((_, place) => place > entry.end && !touched.has(place));
  after.textContent = undone ? "after the end; dashed: not decoded" : "after the end";
  at("tail").append(after);
  const tokens = entry.pieces.map((piece, place) => {
    const element = document.createElement("span");
    const inTail = place > entry.end;
    element.className = "token";
    if (inTail || piece === "") element.classList.add("bare");
    else if (special.has(place)) element.classList.add("special");
    if (!touched.has(place)) element.classList.add("undone");
    (inTail ? at("tail") : at("text")).append(element);
    return { element, piece, inTail, own: written.has(place), touched: touched.has(place) };
  });
  at("tail").hidden = tokens.every(token => !token.inTail);
  return tokens;
}

function drawText() {
  const marks = marksAfter(state.step);
  shown.tokens.forEach((token, place) => {
    const mark = marks.get(place), element = token.element;
    const fixed = !token.own || !token.touched;
    element.classList.toggle("hidden", !mark && !fixed);
    element.classList.toggle("fresh", Boolean(mark && mark.fresh));
    element.style.background = mark ? colourOf(mark, 1) : "";
    const text = mark && mark.text !== undefined ? mark.text : token.piece;
    if (!element.classList.contains("bare") && element.dataset.text !== text) {
      element.dataset.text = text;
      fill(element, text);
    }
    const what = token.inTail ? `${token.piece}, ` : "";
    element.title = mark ? what + about(mark) : token.touched ? "hidden" : `${what}not decoded`;
  });
}

// ---- images

function layOutImage(entry) {
  const [height, width] = entry.size;
  const scale = Math.max(1, Math.floor(480 / Math.max(height, width)));
  const canvas = at("canvas");
  [canvas.width, canvas.height] = [width * scale, height * scale];
  shown.images = entry.frames.map(frame => {
    const image = new Image();
    image.onload = draw;
    image.src = frame.png;
    return image;
  });
}

function drawImage() {
  const { entry, images } = shown, canvas = at("canvas"), [rows, columns] = entry.grid;
  const context = canvas.getContext("2d"), style = getComputedStyle(document.documentElement);
  const [wide, high] = [canvas.width / columns, canvas.height / rows];
  context.clearRect(0, 0, canvas.width, canvas.height);
  context.imageSmoothingEnabled = false;
  const image = images[state.step - 1];
  if (image && image.complete) context.drawImage(image, 0, 0, canvas.width, canvas.height);
  const marks = marksAfter(state.step);
  for (let place = 0; place < rows * columns; place++) {
    const x = (place % columns) * wide, y = Math.floor(place / columns) * high, mark = marks.get(place);
    if (!mark) hatch(context, x, y, wide, high, style);
    else if (mode() !== "none") {
      context.fillStyle = colourOf(mark, .6);
      context.fillRect(x, y, wide, high);
    }
    if (mark && mark.fresh && state.step < entry.frames.length) {
      context.strokeStyle = style.getPropertyValue("--accent");
      context.lineWidth = 2;
      context.strokeRect(x + 1, y + 1, wide - 2, high - 2);
    }
  }
  shown.marks = marks;
}

function hatch(context, x, y, wide, high, style) {
  context.save();
  context.beginPath();
  context.rect(x, y, wide, high);
  context.clip();
  context.fillStyle = style.getPropertyValue("--hidden");
  context.fill();
  context.strokeStyle = style.getPropertyValue("--hatch");
  context.lineWidth = 1;
  context.beginPath();
  const first = Math.floor((x + y) / 8) * 8;   // lines go on from cell to cell
  for (let sum = first; sum < x + y + wide + high; sum += 8) {
    context.moveTo(sum - y, y);
    context.lineTo(sum - y - high, y + high);
  }
  context.stroke();
  context.restore();
}

at("canvas").addEventListener("mousemove", event => {
  const box = at("canvas").getBoundingClientRect(), [rows, columns] = shown.entry.grid;
  const row = Math.min(rows - 1, Math.floor((event.clientY - box.top) / box.height * rows));
  const column = Math.min(columns - 1, Math.floor((event.clientX - box.left) / box.width * columns));
  const mark = shown.marks.get(row * columns + column);
  at("cell").textContent = `row ${row + 1}, column ${column + 1}: ${mark ? about(mark) : "hidden"}`;
});
at("canvas").addEventListener("mouseleave", () => { at("cell").textContent = ""; });

// ---- the page

function title(entry) {
  const text = entry.messages[entry.messages.length - 1].content.replace(/\s+/g, " ");
  return `${entry.row + 1}, sample ${entry.sample + 1}: ${text.length > 70 ? text.slice(0, 70) + "…" : text}`;
}

function show(number) {
  const entry = data.completions[number], isText = entry.kind === "text";
  state.completion = number;
  shown = { entry, tokens: [], images: [], marks: new Map(), lastStep: 0 };
  shown.lastStep = Math.max(0, ...entry.frames.map(frame => frame.step));
  at("prompt").replaceChildren(...entry.messages.map(message => {
    const element = document.createElement("div"), role = document.createElement("span");
    element.className = "message";
    role.className = "role";
    role.textContent = message.role;
    element.append(role, message.content);
    return element;
  }));
  at("picture").hidden = !entry.picture;
  if (entry.picture) at("picture").src = entry.picture;
  at("text").hidden = !isText;
  at("tail").hidden = !isText;
  at("canvas").hidden = isText;
  at("cell").textContent = "";
  if (isText) shown.tokens = layOutText(entry);
  else layOutImage(entry);
  at("slider").max = entry.frames.length;
  const notes = [`${entry.calls} model calls`, `seed ${entry.seed}`];
  if (entry.frames.length < entry.steps) notes.push(`${entry.frames.length} of ${entry.steps} steps are in this page`);
  if (!isText) notes.push("to decode pixels, a hidden token is taken as its nearest revealed one");
  at("notes").textContent = notes.join(" · ");
  at("select").value = number;
  state.step = entry.frames.length;
}

function draw() {
  const { entry } = shown, count = entry.frames.length;
  at("slider").value = state.step;
  document.querySelector(`input[value=${mode()}]`).checked = true;
  drawLegend();
  if (entry.kind === "text") drawText();
  else drawImage();
  const marks = [...marksAfter(state.step).values()];
  const mean = marks.reduce((sum, mark) => sum + mark.probability, 0) / marks.length;
  const total = new Set(entry.frames.flatMap(frame => frame.set.map(change => change[0]))).size;
  const step = state.step === 0 ? "before the first step" : `step ${entry.frames[state.step - 1].step + 1} of ${shown.lastStep + 1}`;
  at("where").textContent = `${step} · ${marks.length} of ${total} tokens revealed`
    + (marks.length ? ` · mean certainty ${percent(mean)}` : "");
  at("play").textContent = timer ? "pause" : "play";
  at("slider").setAttribute("aria-valuetext", at("where").textContent);
  at("play").disabled = count === 0;
}

function go(step) {
  state.step = Math.max(0, Math.min(shown.entry.frames.length, step));
  draw();
  tell();
}

function pause() {
  clearInterval(timer);
  timer = null;
}

function play() {
  if (timer) {
    pause();
    draw();
    return;
  }
  const count = shown.entry.frames.length;
  if (state.step === count) state.step = 0;
  timer = setInterval(() => {
    if (state.step + 1 >= count) pause();
    go(state.step + 1);
  }, Math.max(60, Math.min(500, 8000 / count)));
  draw();
}

// ---- the address: #completion=2&step=12&colour=certainty, each part may be missing

function tell() {
  const colour = state.colour ? `&colour=${state.colour}` : "";
  history.replaceState(null, "", `#completion=${state.completion + 1}&step=${state.step}${colour}`);
}

function listen() {
  const asked = new URLSearchParams(location.hash.slice(1)), number = Number(asked.get("completion")) - 1;
  if (Number.isInteger(number) && data.completions[number] && number !== state.completion) show(number);
  if (["step", "certainty", "none"].includes(asked.get("colour"))) state.colour = asked.get("colour");
  const step = Number(asked.get("step"));
  if (asked.has("step") && Number.isInteger(step)) state.step = Math.max(0, Math.min(shown.entry.frames.length, step));
  draw();
}

addEventListener("keydown", event => {
  const onChoice = event.target.matches("select, input[type=radio]");
  if (event.altKey || event.ctrlKey || event.metaKey || onChoice) return;
  const steps = { ArrowLeft: state.step - 1, ArrowRight: state.step + 1, Home: 0, End: Infinity };
  if (event.key in steps) {
    event.preventDefault();
    pause();
    go(steps[event.key]);
  } else if (event.key === " " && !event.target.matches("button")) {
    event.preventDefault();
    play();
  }
});
at("play").addEventListener("click", play);
at("slider").addEventListener("input", () => { pause(); go(Number(at("slider").value)); });
at("select").addEventListener("change", () => { pause(); show(Number(at("select").value)); go(state.step); });
document.querySelectorAll("input[name=colour]").forEach(input => input.addEventListener("change", () => {
  state.colour = input.value;
  go(state.step);
}));
addEventListener("hashchange", listen);
dark.addEventListener("change", draw);

at("settings").textContent = [data.model, ...Object.entries(data.settings).map(([name, value]) => `${name} ${value}`)].join(" · ");
at("picture").addEventListener("load", () => at("picture").classList.toggle("small", at("picture").naturalWidth < 128));
data.completions.forEach((entry, number) => {
  const option = document.createElement("option");
  option.value = number;
  option.textContent = title(entry);
  at("select").append(option);
});
at("choice").hidden = data.completions.length < 2;
if (data.completions.length) {
  show(0);
  listen();
} else at("notes").textContent = "no completions";

// Samples by step: groups of a prompt's completions, their rewards, and the order in which a text was revealed.
const PAGE = 20;   // cards that are drawn at a time
const VIEWS = {
  groups: { best: "best mean first", worst: "worst mean first", varied: "most varied first", data: "as in the data" },
  samples: { high: "highest reward first", low: "lowest reward first", long: "longest first", short: "shortest first",
    data: "as in the data" },
};
const picked = { run: null, kind: null, place: null };   // of the samples on the page; place: of the step in its list
let listed = [];        // groups, or samples with their group, in the order of the list
let drawn = 0;          // how many of them are in the page
let players = new Set();

// ---- what is asked for

function groupsPicked() {
  const groups = picked.run === null ? [] : data.runs[picked.run].groups.filter(group => group.kind === picked.kind);
  if (at("sample-all").checked) return groups;
  const step = stepsPicked()[picked.place];
  return groups.filter(group => group.step === step);
}

function stepsPicked() {
  const groups = picked.run === null ? [] : data.runs[picked.run].groups;
  return [...new Set(groups.filter(group => group.kind === picked.kind).map(group => group.step))].sort((a, b) => a - b);
}

function scoresOf(group) {
  return group.samples.map(sample => sample.score).filter(score => score !== null);
}

function deviation(values) {
  const centre = mean(values);
  return values.length > 1 ? Math.sqrt(values.reduce((sum, v) => sum + (v - centre) ** 2, 0) / (values.length - 1)) : 0;
}

// by a number, those without one last
function sorted(items, key) {
  return items.map(item => ({ item, by: key(item) }))
    .sort((a, b) => Number.isFinite(a.by) && Number.isFinite(b.by) ? a.by - b.by : Number.isFinite(b.by) - Number.isFinite(a.by))
    .map(each => each.item);
}

const bySample = (key, sign) => items => sorted(items, ({ sample }) => sample[key] === null ? NaN : sign * sample[key]);
const ORDERS = {
  best: items => sorted(items, group => -mean(scoresOf(group))),
  worst: items => sorted(items, group => mean(scoresOf(group))),
  varied: items => sorted(items, group => -deviation(scoresOf(group))),
  high: bySample("score", -1), low: bySample("score", 1), long: bySample("length", -1), short: bySample("length", 1),
  data: items => items,
};

function contains(text, asked) {
  return text.toLowerCase().includes(asked);
}

function findSamples() {
  const asked = at("sample-search").value.trim().toLowerCase(), view = at("sample-view").value;
  const groups = groupsPicked();
  const has = (group, sample) => [group.prompt, group.truth, sample.answer].some(text => contains(text, asked));
  const items = view === "groups"
    ? groups.filter(group => !asked || group.samples.some(sample => has(group, sample)))
    : groups.flatMap(group => group.samples.filter(sample => !asked || has(group, sample)).map(sample => ({ group, sample })));
  return ORDERS[at("sample-order").value](items);
}

// ---- what is drawn

// a text in which what was searched for is marked
function marked(text) {
  const asked = at("sample-search").value.trim().toLowerCase();
  const made = document.createDocumentFragment(), low = text.toLowerCase();
  if (!asked || low.length !== text.length) {
    made.append(text);
    return made;
  }
  let start = 0;
  for (let found = low.indexOf(asked); found >= 0; found = low.indexOf(asked, start)) {
    made.append(text.slice(start, found), element("mark", null, text.slice(found, found + asked.length)));
    start = found + asked.length;
  }
  made.append(text.slice(start));
  return made;
}

function fact(name, value) {
  return element("span", null, `${name} `, element("b", null, value));
}

function headOf(group) {
  const scores = scoresOf(group), facts = element("div", { className: "facts" });
  facts.append(fact("step", String(group.step)));
  if (scores.length > 1) facts.append(fact("mean reward", `${number(mean(scores))} ± ${number(deviation(scores))}`));
  if (group.truth) facts.append(fact("expected", group.truth.length > 120 ? `${group.truth.slice(0, 120)}…` : group.truth));
  if (group.row !== null) facts.append(fact("data row", String(group.row)));
  if (group.source) facts.append(fact("source", group.source));
  return element("div", { className: "head" }, element("div", { className: "prompt" }, marked(group.prompt)), facts);
}

function rowOf(sample, range) {
  const left = element("div"), right = element("div"), row = element("div", { className: "sample" }, left, right);
  const meter = element("i");
  const share = range[1] > range[0] ? (sample.score - range[0]) / (range[1] - range[0]) : 1;
  meter.style.width = `${100 * Math.max(0, Math.min(1, share))}%`;
  left.append(element("span", { className: "score" }, number(sample.score)), element("span", { className: "meter" }, meter));
  const facts = element("div", { className: "facts" });
  if (sample.advantage !== null) facts.append(fact("advantage", number(sample.advantage)));
  if (sample.length !== null) facts.append(fact("tokens", String(sample.length)));
  left.append(facts);
  const rewards = element("div", { className: "facts" });
  for (const [name, value] of Object.entries(sample.rewards)) {
    if (name !== "score" || value !== sample.score) {
      rewards.append(fact(name, typeof value === "number" ? number(value) : String(value)));
    }
  }
  const answer = element("div", { className: "answer cut" });
  answer.append(sample.image ? "an image; the contact sheets are under Images" : marked(sample.answer || "(empty)"));
  const actions = element("div", { className: "actions" });
  right.append(answer, rewards, actions);
  const whole = element("button", { type: "button" }, "whole answer");
  whole.addEventListener("click", () => {
    whole.textContent = answer.classList.toggle("cut") ? "whole answer" : "shorter";
  });
  if (sample.answer.length > 400 || sample.answer.split("\n").length > 4) actions.append(whole);
  else answer.classList.remove("cut");
  if (sample.reveal) {
    const open = element("button", { type: "button", className: "open-replay", "aria-expanded": "false" }, "order of revealing");
    open.addEventListener("click", () => {
      if (row.player) {
        row.player.close();
        row.player = null;
      } else {
        row.player = new Player(sample);
        row.append(row.player.place);
      }
      open.setAttribute("aria-expanded", String(Boolean(row.player)));
    });
    actions.append(open);
  }
  return row;
}

function cardOf(item) {
  const group = item.group ?? item, range = cardOf.range;
  const samples = item.group ? [item.sample] : ORDERS.high(group.samples.map(sample => ({ sample }))).map(each => each.sample);
  return element("div", { className: "card group" }, headOf(group), ...samples.map(sample => rowOf(sample, range)));
}

function drawMore() {
  for (const item of listed.slice(drawn, drawn + PAGE)) at("sample-list").append(cardOf(item));
  drawn = Math.min(listed.length, drawn + PAGE);
  at("sample-more").hidden = drawn >= listed.length;
  if (drawn < listed.length) {   // the end of the list may still be in view
    watcher.unobserve(at("sample-more"));
    watcher.observe(at("sample-more"));
  }
}

function drawSamples() {
  const any = picked.run !== null;
  for (const bar of at("part-samples").querySelectorAll(".bar")) bar.hidden = !any;
  if (!any) {
    at("sample-list").replaceChildren(empty("No samples were found. A run writes them to trainer.rollout_data_dir and "
      + "trainer.validation_data_dir, trainer.dump_rows of a step."));
    return;
  }
  for (const player of players) player.close();
  players = new Set();
  const steps = stepsPicked(), all = at("sample-all").checked;
  at("sample-step").max = steps.length - 1;
  at("sample-step").value = picked.place;
  at("sample-step").disabled = all || steps.length < 2;
  at("sample-step-value").textContent = all ? "all" : String(steps[picked.place]);
  at("sample-step").setAttribute("aria-valuetext", at("sample-step-value").textContent);
  listed = findSamples();
  const scores = groupsPicked().flatMap(scoresOf);
  cardOf.range = scores.reduce(([low, high], score) => [Math.min(low, score), Math.max(high, score)], [0, -Infinity]);
  const count = listed.reduce((sum, item) => sum + (item.group ? 1 : item.samples.length), 0);
  const groups = at("sample-view").value === "groups" ? `${listed.length} groups, ` : "";
  at("sample-count").textContent = `${groups}${count} samples`
    + (scores.length ? ` · mean reward of the step's samples ${number(mean(scores))}` : "");
  if (all) at("sample-count").textContent = at("sample-count").textContent.replace("the step's", "all");
  at("sample-list").replaceChildren();
  drawn = 0;
  drawMore();
}

// ---- replay of one text

class Player {
  constructor(sample) {
    this.sample = sample;
    this.steps = [...new Set(sample.reveal.filter(step => step >= 0))].sort((a, b) => a - b);
    this.place = element("div", { className: "replay" });
    this.play = element("button", { type: "button" }, "play");
    this.slider = element("input", { type: "range", min: "0", max: String(this.steps.length), step: "1", "aria-label": "step" });
    this.slider.value = String(this.steps.length);
    this.where = element("span", { className: "where soft", role: "status" });
    const controls = element("div", { className: "controls" }, this.play, this.slider, this.where);
    const special = sample.pieces.map((piece, place) => place >= sample.length);
    this.tokens = sample.pieces.map((piece, place) => {
      const token = element("span", { className: special[place] ? "token special" : "token" });
      if (piece === "") token.classList.add("bare");
      else fill(token, piece);
      return token;
    });
    this.place.append(controls, element("div", { className: "tokens" }, ...this.tokens));
    this.slider.addEventListener("input", () => { this.pause(); this.draw(); });
    this.play.addEventListener("click", () => this.timer ? this.pause() : this.start());
    this.timer = null;
    players.add(this);
    this.draw();
  }

  draw() {
    const count = Number(this.slider.value), { reveal } = this.sample, last = Math.max(1, this.steps.at(-1) ?? 1);
    const now = count > 0 ? this.steps[count - 1] : -1;
    let known = 0;
    this.tokens.forEach((token, place) => {
      const step = reveal[place], visible = step <= now || step < 0;
      known += visible;
      token.classList.toggle("hidden", !visible);
      token.classList.toggle("fresh", step >= 0 && step === now);
      token.style.background = visible && step >= 0 ? stepColour(step / last, paleTone(), 1) : "";
      token.title = step < 0 ? "not revealed by the sampler" : visible ? `step ${step + 1}` : "hidden";
    });
    const at = count === 0 ? "before the first step" : `step ${now + 1} of ${(this.steps.at(-1) ?? 0) + 1}`;
    this.where.textContent = `${at} · ${known} of ${this.tokens.length} tokens revealed`;
    this.slider.setAttribute("aria-valuetext", this.where.textContent);
    this.play.textContent = this.timer ? "pause" : "play";
  }

  start() {
    if (Number(this.slider.value) === this.steps.length) this.slider.value = "0";
    this.timer = setInterval(() => {
      this.slider.value = String(Number(this.slider.value) + 1);
      if (Number(this.slider.value) >= this.steps.length) this.pause();
      this.draw();
    }, Math.max(60, Math.min(500, 8000 / Math.max(1, this.steps.length))));
    this.draw();
  }

  pause() {
    clearInterval(this.timer);
    this.timer = null;
    this.play.textContent = "play";
  }

  close() {
    this.pause();
    players.delete(this);
    this.place.remove();
  }
}

// ---- choices

function pickRun(number) {
  picked.run = number;
  const kinds = [...new Set(data.runs[number].groups.map(group => group.kind))];
  at("sample-kind").replaceChildren(...kinds.map(kind => option(kind, kind)));
  pickKind(kinds.includes(picked.kind) ? picked.kind : kinds[0]);
}

function pickKind(kind) {
  picked.kind = kind;
  at("sample-kind").value = kind;
  at("sample-kind").parentElement.hidden = at("sample-kind").options.length < 2;
  picked.place = stepsPicked().length - 1;
}

function offerOrders() {
  const orders = VIEWS[at("sample-view").value];
  at("sample-order").replaceChildren(...Object.entries(orders).map(([value, text]) => option(value, text)));
}

function startSamples() {
  const runs = data.runs.map((run, number) => number).filter(number => data.runs[number].groups.length);
  at("sample-run").replaceChildren(...runs.map(number => option(number, data.runs[number].name)));
  at("sample-run").parentElement.hidden = data.runs.length < 2;
  offerOrders();
  if (runs.length) pickRun(runs[0]);
  at("sample-more").whenSeen = drawMore;
  at("sample-run").addEventListener("change", () => { pickRun(Number(at("sample-run").value)); drawSamples(); });
  at("sample-kind").addEventListener("change", () => { pickKind(at("sample-kind").value); drawSamples(); });
  at("sample-step").addEventListener("input", () => { picked.place = Number(at("sample-step").value); drawSamples(); });
  at("sample-view").addEventListener("change", () => { offerOrders(); drawSamples(); });
  for (const id of ["sample-all", "sample-order"]) at(id).addEventListener("change", drawSamples);
  at("sample-search").addEventListener("input", later(150, drawSamples));
}

startSamples();
drawers.samples = drawSamples;

// The frame of the report: which runs are shown, what was left out, and the tabs (#samples in the address).
const TABS = ["curves", "time", "samples", "images", "config"];
let tab = null;

function drawRuns() {
  const chips = data.runs.map((run, place) => {
    if (data.runs.length === 1) return element("span", { className: "run", title: run.folder }, run.name);
    const box = element("input", { type: "checkbox", checked: !hiddenRuns.has(place) });
    box.addEventListener("change", () => {
      if (box.checked) hiddenRuns.delete(place);
      else hiddenRuns.add(place);
      drawers[tab]();
    });
    return element("label", { className: "run", title: run.folder }, box, swatch(tone(place)), run.name);
  });
  at("runs").replaceChildren(...chips);
}

function drawNotes() {
  const notes = data.runs.flatMap(run => run.notes.map(note => data.runs.length > 1 ? `${run.name}: ${note}` : note));
  at("notes").hidden = notes.length === 0;
  at("notes").querySelector("summary").textContent = notes.length === 1 ? "1 note" : `${notes.length} notes`;
  at("notes").querySelector("ul").replaceChildren(...notes.map(note => element("li", null, note)));
}

function show(name) {
  tab = name;
  for (const each of TABS) {
    at(`part-${each}`).hidden = each !== name;
    at(`tab-${each}`).setAttribute("aria-selected", String(each === name));
    at(`tab-${each}`).tabIndex = each === name ? 0 : -1;
  }
  drawers[name]();
}

function go(name) {
  history.replaceState(null, "", `#${name}`);
  show(name);
}

function listen() {
  const asked = location.hash.slice(1);
  const first = data.panels.length ? "curves" : data.runs.some(run => run.groups.length) ? "samples" : "images";
  show(TABS.includes(asked) ? asked : first);
}

for (const name of TABS) at(`tab-${name}`).addEventListener("click", () => go(name));
document.querySelector("nav").addEventListener("keydown", event => {
  const move = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
  if (!move) return;
  const next = TABS[(TABS.indexOf(tab) + move + TABS.length) % TABS.length];
  go(next);
  at(`tab-${next}`).focus();
});
addEventListener("hashchange", listen);
dark.addEventListener("change", () => { drawRuns(); show(tab); });
document.title = `Training report: ${data.runs.map(run => run.name).join(", ")}`;
drawRuns();
drawNotes();
listen();

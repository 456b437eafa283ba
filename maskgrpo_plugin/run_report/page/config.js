// Versions and resolved configs, one column per run; rows that differ are marked.
function configText(value) {
  if (value === undefined) return "–";
  return typeof value === "string" ? value : JSON.stringify(value);
}

function tableOf(title, runs, rowsOf, asked, differences) {
  const keys = [...new Set(runs.flatMap(({ run }) => Object.keys(rowsOf(run))))];
  const rows = [];
  for (const key of keys) {
    const texts = runs.map(({ run }) => configText(rowsOf(run)[key])), differs = new Set(texts).size > 1;
    if (asked && ![key, ...texts].some(text => text.toLowerCase().includes(asked))) continue;
    if (differences && !differs) continue;
    const row = element("tr", { className: differs ? "differs" : "" }, element("td", null, key));
    row.append(...texts.map(text => element("td", null, text)));
    rows.push(row);
  }
  if (!rows.length) return [];
  const head = element("tr", null, element("th", null, title), ...runs.map(each => element("th", null, runLabel(each))));
  return [element("table", { className: "config" }, element("thead", null, head), element("tbody", null, ...rows))];
}

function drawConfig() {
  const runs = shownRuns(), asked = at("config-search").value.trim().toLowerCase();
  const differences = runs.length > 1 && at("config-differences").checked;
  at("config-differences-label").hidden = runs.length < 2;
  const about = run => ({ folder: run.folder, started: run.started ? new Date(1000 * run.started).toISOString() : undefined });
  const tables = [
    ...tableOf("run", runs, about, asked, differences),
    ...tableOf("version", runs, run => run.versions, asked, differences),
    ...tableOf("config", runs, run => run.config, asked, differences),
  ];
  const known = data.runs.some(run => Object.keys(run.config).length);
  const note = known ? [] : [empty("No run left its config: run.json is written to trainer.default_local_dir.")];
  const parts = tables.flatMap(table => [table, element("br")]);
  at("config-tables").replaceChildren(...note, ...(parts.length ? parts : [empty("Nothing to show.")]));
}

drawers.config = drawConfig;
at("config-search").addEventListener("input", later(100, drawConfig));
at("config-differences").addEventListener("change", drawConfig);

// Contact sheets: those of one step side by side for the runs, or all of them.
const sheetState = { place: null, all: false };

function sheetSteps(runs) {
  return [...new Set(runs.flatMap(({ run }) => run.sheets.map(sheet => sheet.step)))].sort((a, b) => a - b);
}

// an image whose data is read once it comes near the window
function figureOf(each, sheet) {
  const image = element("img", { alt: `contact sheet of ${each.run.name} at step ${sheet.step}`, width: sheet.width, height: sheet.height });
  image.whenSeen = () => {
    if (!image.src) image.src = sheet.uri;
  };
  watcher.observe(image);
  return element("figure", null, element("figcaption", null, runLabel(each), ` step ${sheet.step}`), image);
}

function latest(run, step) {
  return run.sheets.filter(sheet => sheet.step <= step).at(-1);
}

function drawImages() {
  const runs = shownRuns().filter(({ run }) => run.sheets.length), steps = sheetSteps(runs);
  if (!steps.length) {
    at("part-images").replaceChildren(empty("No contact sheets were found. Runs of images draw one at each validation, "
      + "under images in their folder."));
    return;
  }
  sheetState.place = Math.min(sheetState.place ?? steps.length - 1, steps.length - 1);
  const slider = element("input", { type: "range", id: "sheet-step", min: "0", max: String(steps.length - 1), step: "1" });
  slider.value = String(sheetState.place);
  slider.disabled = sheetState.all || steps.length < 2;
  const value = element("output"), all = element("input", { type: "checkbox", id: "sheet-all", checked: sheetState.all });
  const place = element("div", { className: "sheets" });
  const draw = () => {
    const step = steps[sheetState.place];
    value.textContent = sheetState.all ? "all" : String(step);
    slider.disabled = sheetState.all || steps.length < 2;
    const chosen = runs.flatMap(each => {
      const sheets = sheetState.all ? each.run.sheets : [latest(each.run, step)].filter(Boolean);
      return sheets.map(sheet => figureOf(each, sheet));
    });
    place.replaceChildren(...chosen);
  };
  slider.addEventListener("input", () => { sheetState.place = Number(slider.value); draw(); });
  all.addEventListener("change", () => { sheetState.all = all.checked; draw(); });
  const bar = element("div", { className: "bar" },
    element("label", { className: "grow" }, "step ", slider, value), element("label", null, all, " all steps"));
  at("part-images").replaceChildren(bar, place);
  draw();
}

drawers.images = drawImages;

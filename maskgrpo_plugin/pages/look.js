// What the pages share: colours of steps, and the text of a token in its element.
"use strict";
const dark = matchMedia("(prefers-color-scheme: dark)");

// lightness and chroma of a colour behind text
function paleTone() {
  return dark.matches ? [.42, .1] : [.89, .07];
}

// from early (blue, share 0) to late (rose, share 1)
function stepColour(share, [light, chroma], alpha) {
  return `oklch(${light} ${chroma} ${230 + 125 * share} / ${alpha})`;
}

// line breaks are shown, and break
function fill(element, text) {
  element.replaceChildren();
  text.split("\n").forEach((line, number) => {
    if (number > 0) {
      const mark = document.createElement("span");
      mark.className = "mark";
      mark.textContent = "↵";
      element.append(mark, "\n");
    }
    element.append(line);
  });
}
